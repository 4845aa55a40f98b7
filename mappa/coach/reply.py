"""From what a model wrote to a verdict: strictly, then by two fallbacks, else not at all.

1. The whole text is one JSON object of the schema.
2. The last balanced JSON object in the text is (prose or a fence around it, an object echoed before it).
3. The last line that is `SCORE: n/10` and nothing else.

Evidence comes before the score in the schema: what is written first is what the score can hang on.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct


class Judgement(Struct, frozen=True, kw_only=True):
    """What a model is asked for.

    >>> Judgement(evidence=["X_test.pkl was never written"], fault="own", reason="...", score=2)
    """

    evidence: tuple[str, ...]
    """The facts the score hangs on."""
    fault: Literal["none", "own", "upstream"]
    """Whose fault it is if the work is not done."""
    reason: str
    score: Annotated[float, Meta(ge=0, le=10)]


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "evidence": {"type": "array", "items": {"type": "string"}},
        "fault": {"type": "string", "enum": ["none", "own", "upstream"]},
        "reason": {"type": "string"},
        "score": {"type": "number", "minimum": 0, "maximum": 10},
    },
    "required": ["evidence", "fault", "reason", "score"],
    "additionalProperties": False,
}

_decode = msgspec.json.Decoder(Judgement).decode
CANDIDATES = 3
_MARKS = re.compile(r'"(?:[^"\\\n]|\\.)*"?|[{}]')  # a string that nothing closes ends with its line
_SCORE_LINE = re.compile(r"^[ \t*_#>]*SCORE[ \t*_]*:[ \t*_]*(\d{1,2}(?:\.\d+)?)[ \t]*/[ \t]*10[ \t*_.]*$", re.M | re.I)


class Unreadable(Struct, frozen=True):
    """No verdict can be read off; `why` is what is wrong with the nearest thing to one."""

    why: str


def read_judgement(text: str) -> Judgement | Unreadable:
    """The judgement in a model's reply. Nothing is guessed: a score of 11, NaN or "eight" is unreadable."""
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        why = str(error)
    for found in balanced_objects(text):
        try:
            return _decode(found)
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            why = str(error)
    lines = _SCORE_LINE.findall(text)
    if lines and float(lines[-1]) <= 10:
        return Judgement(evidence=(), fault="none", reason=_tail(text), score=float(lines[-1]))
    return Unreadable(f"a score of {lines[-1]}" if lines else why)


def balanced_objects(text: str) -> list[str]:
    """The last few balanced {...} of `text`, last first; braces in JSON strings do not count. Takes linear time."""
    opened: list[int] = []
    closed: deque[tuple[int, int]] = deque(maxlen=CANDIDATES)
    for mark in _MARKS.finditer(text):
        if mark[0] == "{":
            opened.append(mark.start())
        elif mark[0] == "}" and opened:
            closed.append((opened.pop(), mark.end()))
    return [text[start:end] for start, end in reversed(closed)]


def _tail(text: str) -> str:
    return " ".join(text.split())[-300:]
