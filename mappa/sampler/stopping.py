"""Where a text ends: after the token that completes a match of its stop pattern, in the pieces its tokens decode to."""

from __future__ import annotations

import re
from collections.abc import Sequence


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
