"""A second system on the same base, to be trained after the first: one more role, which describes a table.

It names the first team's roles too, so that their adapters lie in the same learner; they never act. It has one worked
example, which the base copies: that it must put in another target is left to learn. With two it begins at 80 %
success, and gradients are so faint that they would show nothing of what a shared adapter forgets.
"""

from __future__ import annotations

from mappa.systems import Role, Stage, chat, python_block
from mappa.systems.datascience import ANALYST, ENGINEER, MODELER

_CLOSED_BLOCK = r"```[\s\S]+```"


def _describe(target: str) -> str:
    return f"""```python
import pandas as pd
train = pd.read_csv("train.csv", index_col="id")
report = train[["{target}"]].describe(include="all")
report.to_csv("report.csv")
```"""


REPORTER = Role(
    name="reporter",
    prompt="You are the Reporter. Write short Python. Read train.csv, describe the target and save it as report.csv.",
    examples=(("Target: speed.", _describe("speed")),),
    produces=("report.csv",),
    max_tokens=80,
    stop=_CLOSED_BLOCK,
)


class Reporting:
    """One action."""

    roles = (ENGINEER, MODELER, ANALYST, REPORTER)

    async def run(self, stage: Stage) -> None:
        await stage.act(REPORTER, chat(REPORTER, f"Target: {stage.task.target}."), code=python_block)
