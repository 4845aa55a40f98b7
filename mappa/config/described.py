"""What a key of the config means and what it may be, beside its type."""

from __future__ import annotations

from msgspec import Meta


def doc(text: str, **bounds: float) -> Meta:
    """For `Annotated`: `text` is shown to people, `bounds` (ge, gt, le, ...) are checked when a config is read."""
    return Meta(description=text, **bounds)  # type: ignore[call-overload]
