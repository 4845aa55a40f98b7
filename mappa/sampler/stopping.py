"""Where a text ends: after the token that completes a match of its stop pattern, in the pieces its tokens decode to."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

Decode = Callable[[tuple[int, ...]], str]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_UNFINISHED = 3  # tokens that a character which lacks one can have: it has four bytes at most
_HELD = 16


def remembering(decode: Decode) -> Decode:
    """`decode`, which looks up single tokens once."""
    known = functools.cache(lambda token: decode((token,)))
    return lambda ids: known(ids[0]) if len(ids) == 1 else decode(ids)


class Pieces:
    """What each token adds to a text. A character of several tokens comes with the last of them, as alone they decode
    to U+FFFD; until then tokens are held and decoded together."""

    def __init__(self) -> None:
        self._held: tuple[int, ...] = ()
        self._told = 0  # characters of what is held

    def add(self, token: int, decode: Decode) -> str:
        if not self._held and not (text := decode((token,))).endswith(_BROKEN):
            return text
        self._held += (token,)
        text = decode(self._held)
        whole = len(text) - _broken_end(text)
        if whole < len(text) and len(self._held) > _HELD:  # no text: of it all, only the end can become a character
            self._held = self._held[-_UNFINISHED:]
            kept = decode(self._held)
            whole = max(self._told, len(text) - _broken_end(kept))
            piece, self._told = text[self._told : whole], len(kept) - _broken_end(kept)
            return piece
        piece, self._told = text[self._told : whole], whole
        if whole == len(text):
            self._held, self._told = (), 0
        return piece


def _broken_end(text: str) -> int:
    return len(text) - len(text.rstrip(_BROKEN))


def stops_at(pattern: str | None, pieces: Sequence[str]) -> int | None:
    """How many of `pieces` the text has when it first matches, or None if it never does.

    A server that looked for the pattern has stopped there already, so the whole text and the text without its last
    piece are looked at before all that is shorter.
    """
    if pattern is None:
        return None
    stop = re.compile(pattern)
    if not stop.search("".join(pieces)):
        return None
    if not stop.search("".join(pieces[:-1])):
        return len(pieces)
    ends = (count for count in range(1, len(pieces)) if stop.search("".join(pieces[:count])))
    return next(ends)
