"""Beyond a score: the action that a bad one should have been, written by a coach that reads.

Whether it is any better is for the sandbox and the task's checks to say, never for who wrote it.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import Struct

from mappa.coach.context import ActionContext
from mappa.coach.reply import balanced_objects


class Writer(Protocol):
    """A coach that can write."""

    async def rewrite(self, context: ActionContext) -> str | None:
        """The action of `context` as it should have been, or None where nothing usable was written."""
        ...


class Rewrite(Struct, frozen=True, kw_only=True):
    """A corrected action that ran and did better than the one in whose place it stands."""

    adapter: str
    """Name of the adapter that learns it."""
    prompt_ids: tuple[int, ...]
    """The context that the first one was sampled in."""
    output_ids: tuple[int, ...]
    source: str
    """`3-1-Boston-0/modeler/0`"""


class Rewritten(Struct, frozen=True, kw_only=True):
    """What a model is asked for."""

    reason: str
    text: str


SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "text": {"type": "string"}},
    "required": ["reason", "text"],
    "additionalProperties": False,
}

_decode = msgspec.json.Decoder(Rewritten).decode


def read_rewritten(text: str) -> str | None:
    """What the reply holds, whole or as its last balanced JSON object; None where that is nothing."""
    for found in (text, *balanced_objects(text)):
        try:
            return _decode(found).text.strip() or None
        except (msgspec.DecodeError, UnicodeEncodeError):
            continue
    return None
