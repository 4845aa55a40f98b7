"""What is read off as an answer, and when two say the same."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from pathlib import Path

import pytest

from mappa.config import SandboxConfig
from mappa.errors import TaskError
from mappa.sandbox import Sandbox
from mappa.tasks.answers import boxed, plain_number, read_answer, same_answer
from mappa.tasks.probing import Finding, Report

from .workspace import Workspaces


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{never closed", None),
        (r"\boxed 7$", "7"),
        (r"\boxed{}", None),
        ("no box", None),
    ],
)
def test_the_last_box_that_closes(text: str, found: str | None) -> None:
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 12.", "12"),
        ("We get 3, then 4", "4"),
        ("steps\n#### 1,234", "1,234"),
        ("**Answer:** 5", "5"),
        ("I do not know.", None),
        ("The answer is 18 dollars.", "18"),
        ("So the answer is:\n42", "42"),
        ("The answer is 42, since 6*7=42.", "42"),
        ("The answer is 3 1/2", "3 1/2"),
        ("The answer is 3, 5", "3, 5"),
        ("The answer is 3 pi", "3 pi"),
        ("The total is 12, so that is it", "12"),
        (r"The answer is 3. \boxed{4}", "4"),
        ("", None),
        (r"\boxed{" + "9" * 2000 + "}", None),
    ],
)
def test_what_is_read_off(text: str, found: str | None) -> None:
    assert read_answer(text) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("27.0", Fraction(27)), ("1,234", Fraction(1234)), (r"\frac{3}{4}", Fraction(3, 4)), ("-3/4", Fraction(-3, 4)),
        ("$15$", Fraction(15)), (r"15\%", Fraction(15)), ("007", Fraction(7)), (r"5\text{ cm}", Fraction(5)),
        ("1/0", None), (r"\sqrt{2}", None), ("9" * 100, None), ("", None), ("x", None), (r"-\frac12", Fraction(-1, 2)),
        ("-3 1/2", Fraction(-7, 2)), ("1 2", None), (r"1\,234", Fraction(1234)), ("$ 5 $", Fraction(5)),
        ("1 1/0", None),
    ],
)  # fmt: skip
def test_plain_numbers(text: str, value: Fraction | None) -> None:
    assert plain_number(text) == value


def test_a_text_full_of_open_boxes_costs_no_time() -> None:
    """An action of 100,000 characters is read on the event loop."""
    began = time.process_time()
    assert boxed(r"\boxed{7} " + r"\boxed{" * 14_000) == "7"
    assert time.process_time() - began < 1


def test_numbers_need_no_sandbox(workspaces: Workspaces) -> None:
    def same(gold: str, given: str | None) -> bool:
        return asyncio.run(same_answer(gold, given, workspaces.open))

    assert same("27", "27.0") and same(r"\frac{1}{2}", "0.5") and same("x+1", " x+1 ")
    assert not same("27", "28") and not same("27", None)
    assert not workspaces.opened


def test_formulas_are_compared_by_math_verify_in_the_sandbox() -> None:
    pairs = {
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"): True,
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"): True,
        (r"x^2+2x+1", r"(x+1)^2"): True,
        (r"\sqrt{2}", r"\sqrt{3}"): False,
        (r"\sqrt{2}", "I do not know"): False,
        ("2", "9^{9^{9^{9^{9}}}}"): False,
    }

    async def compare() -> list[bool]:
        async with Sandbox.open(SandboxConfig(preload=("math_verify",), timeout=60.0)) as sandbox:
            return [await same_answer(gold, given, sandbox.workspace) for gold, given in pairs]

    assert asyncio.run(compare()) == list(pairs.values())


def test_without_math_verify_a_formula_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def bare(*_: object) -> Finding:
        return Finding(Report(facts={"installed": False, "correct": False}, fault=None))

    monkeypatch.setattr("mappa.tasks.answers.probe", bare)
    with pytest.raises(TaskError, match="pip install 'math-verify"):
        asyncio.run(same_answer(r"\sqrt{2}", "1.5", Workspaces(tmp_path).open))
