"""Actions by what is remarkable about them: a page of a list at a time."""

from __future__ import annotations

import re
from typing import Any

from msgspec import Struct

from mappa.errors import ConfigError
from mappa.view.catalogue import Catalogue

PAGE = 100
"""Actions listed at once."""

ORDERS: dict[str, tuple[str, str]] = {
    "newest": ("", "id desc"),
    "worst": ("score", "score"),
    "best": ("score", "score desc"),
    "disagreement": ("gap", "gap desc"),
    "suspected": ("suspect", "id desc"),
}
"""What an action must have to be in an order, and what it is sorted by."""


class ActionRow(Struct, frozen=True, kw_only=True):
    """One action of a list."""

    episode: str
    ordinal: int
    phase: str
    step: int
    task: str
    kind: str
    role: str
    turn: int
    adapter: str
    score: float | None
    quality: float | None
    """Measured, 0 to 1."""
    success: bool | None
    suspect: str | None
    tokens: int


def list_actions(
    catalogue: Catalogue,
    order: str = "newest",
    *,
    phase: str = "train",
    role: str = "",
    task: str = "",
    kind: str = "",
    adapter: str = "",
    text: str = "",
    offset: int = 0,
    limit: int = PAGE,
) -> list[ActionRow]:
    """A page of the actions that all of the filters let through. `text` is looked for as a phrase, its last word as the
    beginning of one, in what was written, printed and said of it. Raises ConfigError for an order there is not."""
    if order not in ORDERS:
        raise ConfigError(f"no order {order!r}; there are {', '.join(ORDERS)}")
    needed, sort = ORDERS[order]
    # Those of one task or version are few enough to be sorted: found by their own index, not by walking the order's.
    own = "+" if task or adapter else ""
    conditions = ["phase = :phase", *([f"{own}{needed} is not null"] if needed else [])]
    given = {"role": role, "task": task, "kind": kind, "adapter": adapter}
    conditions += [f"{name} = :{name}" for name, value in given.items() if value]
    if phrase := _phrase(text):
        conditions.append("+id in (select rowid from words where words match :phrase)")
    elif text:
        return []
    rows = catalogue.rows(
        f"select {', '.join(ActionRow.__struct_fields__)} from actions where {' and '.join(conditions)} "
        f"order by {own}{sort} limit :limit offset :offset",
        {**given, "phase": phase, "phrase": phrase, "limit": limit, "offset": offset},
    )
    return [_action(row) for row in rows]


def _action(row: tuple[Any, ...]) -> ActionRow:
    values = dict(zip(ActionRow.__struct_fields__, row, strict=True))
    success = values.pop("success")
    return ActionRow(**values, success=None if success is None else bool(success))


def _phrase(text: str) -> str:
    """A query of the full-text index: the words of `text` in a row. Signs between them do not matter."""
    words = re.findall(r"\w+", text)
    return f'"{" ".join(words)}" *' if words else ""
