"""A stage made of paper: actions and what came of their code are given, what roles were shown is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mappa.systems import CodeOf
from mappa.types import Action, ExecutionResult, Message, Role, Task

CUT = "[cut]"


class PaperStage:
    """Obeys `mappa.systems.Stage`. `replies` by role; `runs` maps a program to what its execution came to."""

    def __init__(
        self,
        task: Task,
        replies: Mapping[str, Sequence[str]],
        runs: Mapping[str, ExecutionResult] | None = None,
        files: Mapping[str, int] | None = None,
    ) -> None:
        self.task = task
        self.replies = {role: list(texts) for role, texts in replies.items()}
        self.runs = runs or {}
        self.there = dict(files or {"train.csv": 2048, "test.csv": 1024})
        self.actions: list[Action] = []
        self.programs: list[str] = []
        self.shown: dict[str, list[str]] = {}
        self.went_on: list[bool] = []

    async def act(
        self, role: Role, messages: Sequence[Message], *, code: CodeOf | None = None, after: Action | None = None
    ) -> Action:
        text = self.replies[role.name].pop(0)
        self.shown.setdefault(role.name, []).append("\n".join(message.content for message in messages))
        self.went_on.append(after is not None)
        program = code(text) if code is not None else None
        execution = None
        if program is not None:
            self.programs.append(program)
            execution = self.runs.get(program, ExecutionResult(outcome="ok", exit_code=0, stdout="fine\n"))
            self.there |= execution.created
        action = Action(
            role=role.name, turn=len(self.shown[role.name]) - 1, adapter=f"{role.name}@0", prompt_ids=(1,),
            output_ids=(2,), logprobs=(0.0,), finish_reason="length" if text.endswith(CUT) else "stop",
            text=text.removesuffix(CUT), execution=execution,
        )  # fmt: skip
        self.actions.append(action)
        return action

    async def repair(self, role: Role) -> bool:
        raise AssertionError("nothing is put right here")

    def files(self) -> dict[str, int]:
        return dict(self.there)
