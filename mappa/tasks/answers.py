"""Tasks that ask for one answer in words: what is read off as the answer, and whether it is right.

An answer is what stands in the last `\\boxed{}`, else behind the last "answer is" or "####", else the last number.
Plain numbers on both sides are compared exactly, on the host. Everything else is a formula somebody wrote, and is
compared by math-verify, in the sandbox and under its limits: sympy can be kept busy for ever by a few characters.

The facts: answered, boxed, correct; of an action whose code was run: printed, prints_answer (the last line holds it).
"""

from __future__ import annotations

import re
from fractions import Fraction

from mappa.errors import TaskError
from mappa.tasks.probing import OpenWorkspace, probe, short
from mappa.types import Action, Evidence, Fact, Role, Task

LONGEST_ANSWER = 1000
"""Characters of an answer that are looked at; what is longer is no answer."""

_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+"
_PHRASE = re.compile(r"(?:answer\s+is\s*:?|answer\s*[:=]|####)\s*\**\s*(?P<what>[^\n]+)", re.I)
_OPERATORS = "pi|sqrt|sin|cos|tan|log|ln|exp|and|or|to|mod|times|plus|minus|over|choose"
_BEGINNING = re.compile(
    rf"(?P<number>\$?(?:{_NUMBER}))(?![\d/])"
    rf"(?:\s+(?!(?:{_OPERATORS})\b)(?=[^\W\d_]{{2}})|\s*[,;:.]\s+(?=[^\W\d_]))",
    re.I,
)
"""A number that words follow: its unit, or a reason. Not `3 pi`, nor the first of `3, 5` and `3 or 5`."""
_FRACTION = re.compile(r"\\[dt]?frac\s*\{?\s*(-?\d+)\s*\}?\s*\{?\s*(\d+)\s*\}?")
_MIXED = re.compile(r"([-+]?)(\d{1,60})\s+(\d{1,60}/\d{1,60})")
_DECORATION = re.compile(
    r"\\(?:left|right|,|!|;|:|%|\$|text\{[^{}]*\}|mathrm\{[^{}]*\})|[$%]|(?<!\d)\s|\s(?!\d)|(?<=\d),(?=\d{3})"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_BARE = re.compile(r"[^\s{}$]+")


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{}` whose braces close, or of a bare `\\boxed 7`. Linear in the text.

    >>> boxed(r"so \\boxed{\\frac{1}{2}}")
    '\\\\frac{1}{2}'
    """
    starts = [found.end() for found in _BOX.finditer(text)]
    ends = _closing(text) if starts else {}
    for start in reversed(starts):
        if start in ends:
            return text[start + 1 : ends[start]].strip() or None
        bare = _BARE.match(text, start)
        if bare:
            return bare.group(0)
    return None


def _closing(text: str) -> dict[int, int]:
    """Where each brace that closes does so, by where it opens."""
    opened: list[int] = []
    ends: dict[int, int] = {}
    for found in re.finditer(r"[{}]", text):
        if found.group() == "{":
            opened.append(found.start())
        elif opened:
            ends[opened.pop()] = found.start()
    return ends


def read_answer(text: str) -> str | None:
    """What is read off as the answer in `text`, which is to be without reasoning; None where there is none."""
    found = boxed(text)
    if found is None:
        phrases = [match["what"].strip() for match in _PHRASE.finditer(text)]
        numbers = re.findall(_NUMBER, text)
        found = _first_of(phrases[-1].rstrip(".* ")) if phrases else numbers[-1] if numbers else None
    return found if found and len(found) <= LONGEST_ANSWER else None


def _first_of(phrase: str) -> str:
    """`18` of `18 dollars` and of `18, since ...`; else the phrase as it is."""
    beginning = _BEGINNING.match(phrase)
    return beginning["number"] if beginning else phrase


def plain_number(text: str) -> Fraction | None:
    """The value of a text that is a number and nothing else: 27.0, 1,234, 3 1/2, \\frac{3}{4}, $15\\%$ (in percent).

    >>> plain_number("1,234.50")
    Fraction(2469, 2)
    """
    bare = _DECORATION.sub("", text).rstrip(".")
    as_fraction = _FRACTION.fullmatch(bare.lstrip("-"))
    if as_fraction:
        top, bottom = int(as_fraction[1]), int(as_fraction[2])
        return Fraction(top, bottom) * (-1 if bare.startswith("-") else 1) if bottom else None
    mixed = _MIXED.fullmatch(bare)
    if mixed:
        part = plain_number(mixed[3])
        return None if part is None else (int(mixed[2]) + part) * (-1 if mixed[1] == "-" else 1)
    if not re.fullmatch(r"[-+]?(?:\d{1,60}(?:\.\d{0,60})?|\.\d{1,60})(?:/\d{1,60})?", bare) or bare.endswith("/0"):
        return None
    top_text, _, bottom_text = bare.partition("/")
    bottom_value = Fraction(bottom_text or "1")
    return Fraction(top_text) / bottom_value if bottom_value else None


async def same_answer(gold: str, given: str | None, open_workspace: OpenWorkspace) -> bool:
    """Whether `given` says what `gold` says. Raises TaskError where that needs math-verify and there is none."""
    if given is None:
        return False
    if given.strip() == gold.strip():
        return True
    right, said = plain_number(gold), plain_number(given)
    if right is not None and said is not None:
        return right == said
    report = (await probe("maths", {"gold": gold, "given": given}, {}, open_workspace)).report
    if not report.facts.get("installed", True):
        raise TaskError(
            "answers that are no plain numbers are compared by math-verify, which the sandbox does not find: "
            "pip install 'math-verify[antlr4_13_2]'"
        )
    return report.facts.get("correct", False)


async def inspect_answer(task: Task, role: Role, action: Action, open_workspace: OpenWorkspace) -> Evidence:
    """What an action on a task without files came to. Code is judged by what it printed, words by what they say; facts
    that `role` must produce (`boxed`) are needed as well."""
    said = action.text.rpartition("</think>")[2].partition("<think>")[0]
    answer = read_answer(said)
    facts: dict[str, Fact] = {
        "answered": answer is not None,
        "boxed": boxed(said) is not None,
        "correct": await same_answer(task.answer, answer, open_workspace),
    }
    if action.execution is not None:
        lines = [line for line in action.execution.stdout.splitlines() if line.strip()]
        printed = read_answer(lines[-1]) if lines else None
        facts["printed"] = bool(lines)
        facts["prints_answer"] = await same_answer(task.answer, printed, open_workspace)
    success = facts["prints_answer" if action.execution is not None else "correct"] is True
    missing = [name for name in role.produces if facts.get(name) is not True]
    return Evidence(success=success and not missing, fault=_fault(facts, missing, answer), facts=facts)


def _fault(facts: dict[str, Fact], missing: list[str], answer: str | None) -> str | None:
    if facts.get("printed") is False:
        return "the code printed nothing"
    if facts.get("prints_answer") is False:
        return "what the code printed is not the answer"
    if "prints_answer" not in facts and answer is None:
        return "no answer can be read off"
    if missing:
        return f"{missing[0]}: missing"
    if "prints_answer" not in facts and facts["correct"] is False:
        return short(f"{answer} is not the answer")
    return None
