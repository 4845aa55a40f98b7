"""The paper's data-science team: Data Engineer, Modeler, Analyst, each with up to four turns in one workspace.

    train.csv, test.csv -> [engineer] -> X_train, y_train, X_test -> [modeler] -> model -> [analyst] -> submission.csv

The turn protocol:
 1. A role's first turn begins a conversation of its own: its prompt, the task, what upstream roles handed on, the
    files that are there, a warning for every file that it needs and that is not.
 2. Every closed ```python block outside of the reasoning is code. Several blocks of one action are one program, in
    their order. A block that was never closed is not run: it was cut off.
 3. After an action with code the role is told how it ended, what was printed, which files are there and which it must
    still make. Its next turn goes on from what it saw and wrote, its own reasoning included, token for token.
 4. An action without code ends the role, whether or not its files are there.
 5. Not so one that was cut off at the token limit before any code was closed, in its reasoning or behind it: that
    turn is spent, and the role is told to be brief.
 6. A role ends after four turns, or once its conversation is longer than `LONGEST_CONTEXT` tokens.
 7. What a role says in its last closed <summary> goes to every later role, as does the list of files. Reasoning
    never does.
 8. Nothing is put right. A role whose files are missing costs the next one a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from mappa.systems.stage import Stage
from mappa.systems.text import chat, python_program, shortened, spoken, tagged
from mappa.types import Action, ExecutionResult, Message, Role, Task

TURNS = 4
LONGEST_CONTEXT = 24_576
"""Tokens, prompt and answer, after which a role gets no further turn."""
TASK_LENGTH = 8_000
OUTPUT_LENGTH = 4_000
"""Characters of a task's description, and of what an execution printed, that a role is shown."""

_TOOL = (
    "You work in a folder that your team shares. Put Python in ```python blocks: all blocks of an answer are run "
    "together, as one program that remembers nothing of earlier ones, and you are shown what it printed. You have "
    f"{TURNS} answers at most, and files are what you leave behind."
)
_END = (
    "When the files are there, end with an answer that has no code block, with what your colleagues must know between "
    "<summary> and </summary>."
)

ENGINEER = Role(
    name="data_engineer",
    prompt=(
        "You are the Data Engineer of a three-person data-science team. Look at train.csv and test.csv, clean them and "
        "make features that a scikit-learn model can take: numbers only, nothing missing, the same columns in the same "
        "order for both, neither the id nor the target among them. Save with pandas' to_pickle: X_train.pkl and "
        "X_test.pkl (tables, rows as in the files, the id as their index), y_train.pkl (the target), and any scaler "
        f"or encoder that you fitted.\n\n{_TOOL}\n\n{_END} Say what you did to the columns, and why."
    ),
    produces=("X_train.pkl", "y_train.pkl", "X_test.pkl"),
    max_tokens=16_384,
)
MODELER = Role(
    name="modeler",
    prompt=(
        "You are the Modeler of a three-person data-science team. The Data Engineer leaves you X_train.pkl and "
        "y_train.pkl. Choose a model for the task and its metric, check it by cross-validation, fit it on all rows and "
        "save it with pandas' to_pickle as model.pkl. It must have a predict method that takes a table with the "
        f"columns of X_train.\n\n{_TOOL}\n\n{_END} Say which model it is, its validated score, and how to use it."
    ),
    needs=("X_train.pkl", "y_train.pkl"),
    produces=("model.pkl",),
    max_tokens=16_384,
)
ANALYST = Role(
    name="analyst",
    prompt=(
        "You are the Analyst of a three-person data-science team. Load model.pkl and X_test.pkl with pandas' "
        "read_pickle, predict, and write submission.csv in the form of sample_submission.csv: the same columns, one "
        "row for every row of test.csv. Check the number of rows, the ids and the range of the predictions before you "
        f"finish.\n\n{_TOOL}\n\n{_END}"
    ),
    needs=("model.pkl", "X_test.pkl"),
    produces=("submission.csv",),
    max_tokens=16_384,
)


class DSBench:
    """The pipeline."""

    roles = (ENGINEER, MODELER, ANALYST)
    turns: ClassVar = {role.name: TURNS for role in roles}
    """Actions of each role at most, for estimates."""

    async def run(self, stage: Stage) -> None:
        handed_on: dict[str, str] = {}
        for role in self.roles:
            handed_on[role.name] = await take_turns(stage, role, briefing(stage.task, role, handed_on, stage.files()))


async def take_turns(stage: Stage, role: Role, request: str, turns: int = TURNS) -> str:
    """A role's whole part; returns its summary, empty where it left none."""
    action, summary = None, ""
    messages = chat(role, request)
    for left in reversed(range(turns)):
        action = await stage.act(role, messages, code=python_program, after=action)
        summary = tagged(action.text, "summary") or summary
        if is_done(action) or len(action.prompt_ids) + len(action.output_ids) > LONGEST_CONTEXT:
            break
        messages = [Message("user", feedback(role, action, stage.files(), left))]
    return summary


def is_done(action: Action) -> bool:
    """It ran no code and was not cut off."""
    return action.execution is None and action.finish_reason != "length"


def briefing(task: Task, role: Role, handed_on: Mapping[str, str], files: Mapping[str, int]) -> str:
    """What a role is told at its start."""
    parts = [f"Task: {shortened(task.prompt, TASK_LENGTH)}", _measure(task)]
    for other, summary in handed_on.items():
        parts.append(f"From the {_title(other)}:\n{summary}" if summary else f"The {_title(other)} left no summary.")
    parts.append(_listing(files))
    missing = [name for name in role.needs if name not in files]
    if missing:
        parts.append(
            f"WARNING: {', '.join(missing)} missing. Whoever was to make it did not; make what you need yourself, "
            "from what is there."
        )
    parts.append(f"Leave behind: {', '.join(role.produces)}.")
    return "\n\n".join(parts)


def feedback(role: Role, action: Action, files: Mapping[str, int], left: int) -> str:
    """What a role is told of its last action."""
    if action.execution is None:
        what = "was cut off in your reasoning" if not spoken(action) else "was cut off before a code block was closed"
        parts = [f"Your answer {what}, and nothing was run. Think less and write the code."]
    else:
        parts = [_ending(action.execution), _listing(files)]
    missing = [name for name in role.produces if name not in files]
    parts.append(f"Still missing: {', '.join(missing)}." if missing else "All your files are there.")
    parts.append(f"Answers left: {left}." if left > 1 else "This is your last answer." if left else "")
    return "\n\n".join(part for part in parts if part)


def _measure(task: Task) -> str:
    lines = [f"Target column: {task.target} ({task.kind}). Id column: {task.id_column}."]
    if task.metric is not None:
        better = "higher" if task.metric.greater_is_better else "lower"
        lines.append(f"Measured by {task.metric.name}: {better} is better.")
    return " ".join(lines)


def _ending(execution: ExecutionResult) -> str:
    """How an execution ended and what it printed."""
    where = f" (line {execution.exception_line})" if execution.exception_line is not None else ""
    ending = {
        "ok": "Your code ran to its end.",
        "error": f"Your code failed: {execution.exception or execution.exit_code}{where}.",
        "timeout": "Your code was stopped: it took too long.",
        "memory": "Your code was stopped: it used too much memory.",
    }.get(execution.outcome, f"Your code was stopped ({execution.outcome}).")
    printed = [
        f"{name}:\n{shortened(text.rstrip(), OUTPUT_LENGTH)}"
        for name, text in (("stdout", execution.stdout), ("stderr", execution.stderr))
        if text.strip() and not (name == "stderr" and execution.outcome == "ok")  # warnings of libraries
    ]
    return "\n\n".join([ending, *(printed or ["It printed nothing."])])


def _listing(files: Mapping[str, int]) -> str:
    return f"Files: {', '.join(_sized(files.items()))}."


def _sized(files: Iterable[tuple[str, int]]) -> list[str]:
    shown = [f"{name} ({max(1, size >> 10)} KiB)" for name, size in sorted(files)]
    return shown if len(shown) <= 40 else [*shown[:40], f"and {len(shown) - 40} more"]


def _title(name: str) -> str:
    return name.replace("_", " ").title()
