"""What a key of the config means and what it may be, beside its type."""

from __future__ import annotations

from msgspec import Meta

LARGEST_SEED = 2**63 - 1
"""What torch, and a journal's column, take."""


def doc(text: str, **bounds: float) -> Meta:
    """For `Annotated`: `text` is shown to people, `bounds` (ge, gt, le, ...) are checked when a config is read."""
    return Meta(description=text, **bounds)  # type: ignore[call-overload]
