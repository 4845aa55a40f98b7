"""Episodes with one planted fault each, made at random: who is guilty, who suffers, and how it shows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from mappa.types import Fact

from .scenarios import (
    ANALYST,
    ENGINEER,
    MODELER,
    TABLES,
    TABULAR,
    UNGRADED,
    UNUSABLE,
    Scenario,
    Step,
    missing,
    nothing,
)

Planted = tuple[list[Step], int]
"""The steps, and the place of the guilty one."""
SHAPES = ("ValueError: X has {0} features, but the model is expecting {1} features", "KeyError: 'col{0}'",
          "ValueError: Input contains NaN", "TypeError: unsupported operand type(s) for col{0}",
          "IndexError: index {1} is out of bounds")  # fmt: skip


def planted(seed: int) -> tuple[Scenario, int]:
    """One episode and the place of its guilty action."""
    rng = random.Random(seed)
    plant = rng.choice(PLANTS)
    steps, guilty = plant(rng)
    return Scenario(f"{plant.__name__.strip('_')} {seed}", TABULAR, tuple(steps)), guilty


def _good(rng: random.Random) -> list[Step]:
    """Three roles that did their part, some better, some worse."""
    quality = rng.uniform(0.1, 1.0)
    graded: dict[str, Fact] = {"normalised": quality, "score": 3.0}
    return [Step(ENGINEER, 0, 0), Step(MODELER, 0, 0, facts=graded), Step(ANALYST, 0, 0, facts=graded)]


def _dead(step: Step, exception: str) -> Step:
    """It dies of that and leaves nothing."""
    fault = f"{step.role.produces[0]} missing"
    return replace(step, outcome="error", exception=exception, makes=(), facts=nothing(step.role), fault=fault)


def _shape(rng: random.Random) -> str:
    return rng.choice(SHAPES).format(rng.randrange(3, 9), rng.randrange(9, 20))


def _a_table_not_saved(rng: random.Random) -> Planted:
    steps = _good(rng)
    name = rng.choice(TABLES)
    facts: dict[str, Fact] = {name: False, "shapes": False, "same_columns": False, "target_values": False}
    steps[0] = replace(
        steps[0], makes=tuple(t for t in TABLES if t != name), facts=facts, fault=f"{name} missing"
    )  # fmt: skip
    if name == "X_test.pkl":
        steps[1] = replace(steps[1], facts=UNGRADED, fault="model cannot be graded: X_test.pkl missing")
        steps[2] = _dead(steps[2], missing(name))
    else:
        steps[1] = _dead(steps[1], missing(name))
        steps[2] = _dead(steps[2], missing("model.pkl"))
    return steps, 0


def _unusable_tables(rng: random.Random) -> Planted:
    steps = _good(rng)
    fact = rng.choice(("shapes", "same_columns", "numeric", "no_missing", "target_left_out"))
    steps[0] = replace(steps[0], facts={fact: False}, fault=f"the tables fail the check {fact}")
    if rng.random() < 0.5:
        steps[1] = _dead(steps[1], _shape(rng))
        steps[2] = _dead(steps[2], missing("model.pkl"))
    else:
        steps[1] = replace(steps[1], facts=UNUSABLE, fault="predict failed")
        steps[2] = _dead(steps[2], _shape(rng))
    return steps, 0


def _an_overwritten_table(rng: random.Random) -> Planted:
    steps = _good(rng)
    steps[1] = replace(
        steps[1], text="```python\nX.to_pickle('X_test.pkl')\n```", changes=("X_test.pkl",), facts=UNUSABLE,
        fault="predict failed",
    )  # fmt: skip
    steps[2] = _dead(steps[2], _shape(rng))
    return steps, 1


def _a_useless_model(rng: random.Random) -> Planted:
    steps = _good(rng)
    facts: dict[str, Fact] = {"has_predict": False, **UNUSABLE}
    steps[1] = replace(steps[1], facts=facts, fault="what was saved has no predict")
    steps[2] = _dead(steps[2], rng.choice(("TypeError: 'dict' object is not callable", "ValueError: not fitted")))
    return steps, 1


def _a_crash_of_its_own(rng: random.Random) -> Planted:
    """Whoever comes later has nothing to work from."""
    steps, guilty = _good(rng), rng.randrange(3)
    own = rng.choice(("NameError: name 'pdd' is not defined", "SyntaxError: '(' was never closed",
                      "ModuleNotFoundError: No module named 'xgboots'", missing("tarin.csv")))  # fmt: skip
    steps[guilty] = _dead(steps[guilty], own)
    for place in range(guilty + 1, 3):
        steps[place] = _dead(steps[place], missing(rng.choice(steps[place].role.needs[:1])))
    return steps, guilty


def _a_limit(rng: random.Random) -> Planted:
    steps, guilty = _good(rng), rng.randrange(3)
    steps[guilty] = replace(_dead(steps[guilty], ""), outcome=rng.choice(("timeout", "memory")), exception=None)
    for place in range(guilty + 1, 3):
        steps[place] = _dead(steps[place], missing(steps[place].role.needs[0]))
    return steps, guilty


def _nothing_to_run(rng: random.Random) -> Planted:
    steps, guilty = _good(rng), rng.randrange(3)
    steps[guilty] = replace(
        _dead(steps[guilty], ""), outcome=None, exception=None, text=rng.choice(("", ":", "Thought process:"))
    )  # fmt: skip
    for place in range(guilty + 1, 3):
        steps[place] = _dead(steps[place], missing(steps[place].role.needs[0]))
    return steps, guilty


def _an_invented_result(rng: random.Random) -> Planted:
    steps, guilty = _good(rng), rng.randrange(3)
    steps[guilty] = replace(
        steps[guilty], text="```python\nfit()\n```\n```output\naccuracy 0.99\n```", stdout="",
        facts=nothing(steps[guilty].role), fault="nothing of it is there", makes=(),
    )  # fmt: skip
    for place in range(guilty + 1, 3):
        steps[place] = _dead(steps[place], missing(steps[place].role.needs[0]))
    return steps, guilty


PLANTS: tuple[Callable[[random.Random], Planted], ...] = (
    _a_table_not_saved,
    _unusable_tables,
    _an_overwritten_table,
    _a_useless_model,
    _a_crash_of_its_own,
    _a_limit,
    _nothing_to_run,
    _an_invented_result,
)
