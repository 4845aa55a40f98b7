"""Every key of a config, for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from mappa.config.reading import section_of
from mappa.config.run import Config


def describe(struct: type[Struct] = Config) -> str:
    """Every key of the config with its type, default and meaning, a line each."""
    lines = []
    for key, kind, default, text in _fields(struct, ""):
        shown = "required" if default is msgspec.NODEFAULT else f"default {default!r}"
        lines.append(f"  {key} ({kind}, {shown})\n      {text}")
    return "\n".join(lines)


def _fields(struct: type[Struct], prefix: str) -> Iterator[tuple[str, str, Any, str]]:
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        kind, meta = get_args(hints[field.name])
        inner, by_name = section_of(hints[field.name])
        if inner is not None:
            yield from _fields(inner, f"{prefix}{field.name}.{'NAME.' if by_name else ''}")
        else:
            shown = _readable_type(kind)
            made = field.default_factory is not msgspec.NODEFAULT
            yield f"{prefix}{field.name}", shown, field.default_factory() if made else field.default, meta.description


def _readable_type(kind: Any) -> str:
    """`float`, `'a' | 'b'`, `int | None`."""
    if get_origin(kind) is Annotated:
        return _readable_type(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return " | ".join(map(repr, get_args(kind)))
    if type(None) in get_args(kind):
        return f"{_readable_type(get_args(kind)[0])} | None"
    return getattr(kind, "__name__", str(kind))
