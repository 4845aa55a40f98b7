"""The paper's maths team: Problem Solver, Code Executor, Verifier.

    problem -> [solver] reasons -> [executor] computes, up to 2 turns -> [verifier] gives \\boxed{}

The turn protocol:
 1. The solver writes once, without a tool.
 2. The executor is shown the problem and the solver's words. Its closed ```python blocks are run as one program; what
    was printed is its second turn's question, which goes on from its first, token for token. Without code it is done.
 3. The verifier is shown the problem, the solver's words, the last code and what it printed, and must give \\boxed{}.
 4. Reasoning (<think>) stays in the context of whoever wrote it; words cut off inside it are shown to nobody, and the
    next role is told so.
"""

from __future__ import annotations

from typing import ClassVar

from mappa.systems.stage import Stage
from mappa.systems.text import chat, python_program, shortened, spoken
from mappa.types import Action, Message, Role

TURNS = 2
SHOWN = 6_000
"""Characters that a role is shown of another's words, of code, and of what code printed."""

SOLVER = Role(
    name="problem_solver",
    prompt=(
        "You are the Problem Solver of a team. Solve the problem step by step. Say what is asked, which facts decide "
        "it, and your result; say what is worth computing to be sure. You have no tool."
    ),
    max_tokens=4_096,
)
EXECUTOR = Role(
    name="code_executor",
    prompt=(
        "You are the Code Executor of a team. You are shown a problem and a colleague's reasoning, which may be wrong. "
        "Write one ```python block that works out the answer on its own (by enumeration, exact arithmetic or sympy) "
        "and prints it on the last line. You are shown what it printed and may mend it once; if it is right, answer "
        "without a code block."
    ),
    max_tokens=4_096,
)
VERIFIER = Role(
    name="verifier",
    prompt=(
        "You are the Verifier of a team. You are shown a problem, a colleague's reasoning, and a program with its "
        "output. Where they differ find out which is wrong. End with the final answer in \\boxed{}."
    ),
    produces=("boxed",),
    max_tokens=4_096,
)


class MathChat:
    """The pipeline."""

    roles = (SOLVER, EXECUTOR, VERIFIER)
    turns: ClassVar = {EXECUTOR.name: TURNS}
    """Actions of each role at most, where more than one, for estimates."""

    async def run(self, stage: Stage) -> None:
        problem = f"Problem: {stage.task.prompt}"
        solved = await stage.act(SOLVER, chat(SOLVER, problem))
        reasoning = f"{problem}\n\nThe Problem Solver says:\n{_words(solved)}"
        computed = await compute(stage, reasoning)
        await stage.act(VERIFIER, chat(VERIFIER, f"{reasoning}\n\n{_program(computed)}"))


async def compute(stage: Stage, request: str) -> Action | None:
    """The executor's part; returns its last action whose code was run."""
    action, ran = None, None
    messages = chat(EXECUTOR, request)
    for _ in range(TURNS):
        action = await stage.act(EXECUTOR, messages, code=python_program, after=action)
        if action.execution is None:
            break
        ran = action
        messages = [Message("user", f"{_output(action)}\n\nIf that is the answer, say so without code. Else mend it.")]
    return ran


def _words(action: Action) -> str:
    said = spoken(action)
    return shortened(said, SHOWN) if said else "(nothing: the answer was cut off in its reasoning)"


def _program(action: Action | None) -> str:
    if action is None:
        return "The Code Executor ran no code."
    code = python_program(action.text) or ""
    return f"The Code Executor ran:\n```python\n{shortened(code, SHOWN)}\n```\n\n{_output(action)}"


def _output(action: Action) -> str:
    execution = action.execution
    assert execution is not None
    printed = shortened(execution.stdout.rstrip(), SHOWN)
    if execution.outcome != "ok":
        return f"It ended with {execution.outcome}: {execution.exception or ''}\n{printed}".strip()
    return f"It printed:\n{printed}" if printed else "It printed nothing."
