"""From what a person wrote to plain data, and what is wrong with it in a person's words."""

from __future__ import annotations

import difflib
import re
import tomllib
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct

from mappa.errors import ConfigError

S = TypeVar("S", bound=Struct)


def checked(raw: dict[str, Any], struct: type[S], *, where: str) -> S:
    """Plain data as `struct`. Raises ConfigError that names the wrong key and the nearest right one."""
    _refuse_unknown(raw, struct, prefix="", where=where)
    try:
        # TOML has no tuples and writes 1 where 1.0 is meant; everything else must be of its type.
        return msgspec.convert(raw, struct, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_readable(str(error))}") from None


def apply(raw: dict[str, Any], override: str) -> None:
    """Put `section.key=value` into plain data. Raises ConfigError."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: model=path/to/folder
    *sections, name = key.strip().split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
    raw[name] = value


def _refuse_unknown(raw: dict[str, Any], struct: type[Struct], *, prefix: str, where: str) -> None:
    known = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    for name, value in raw.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key {prefix}{name}; {hint}")
        inner, by_name = section_of(known[name].type)
        if inner is not None and isinstance(value, dict):
            sections = {f"{prefix}{name}.{key}.": part for key, part in value.items()} if by_name else {}
            for place, part in (sections or {f"{prefix}{name}.": value}).items():
                if isinstance(part, dict):
                    _refuse_unknown(part, inner, prefix=place, where=where)


def _readable(message: str) -> str:
    found = re.match(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", message, re.S)
    assert found is not None
    return f"{found['path']}: {found['what']}" if found["path"] else found["what"]


def section_of(annotation: Any) -> tuple[type[Struct] | None, bool]:
    """The section an annotation stands for, if any, and whether it is one of several that go by name."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    by_name = get_origin(kind) is dict
    if by_name:
        kind = get_args(kind)[1]
    return (kind, by_name) if isinstance(kind, type) and issubclass(kind, Struct) else (None, False)
