"""What agents do, as far as time is concerned: tokens written, whether there is code, how long tools and coach take.

The real systems run on it: their prompts, turn protocol and summaries are what they are, with four characters to a
token. What a model would write is drawn from the action's name alone, so that two designs meet the same episodes.

Without a journal the distributions are those below. They are assumptions, chosen before any result: a reasoning model
of 4B writes thousands of tokens a turn; executions load tables and fit scikit-learn models; the coach is a large model
behind an endpoint, whatever the config says, as the published design has no other.
"""

from __future__ import annotations

import math
import random
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from mappa.config import Config
from mappa.errors import JournalError
from mappa.journal import read_episodes, read_spans
from mappa.types import Message, Role, Task

CHARACTERS = 4
"""Of text per token; as many bytes as a token's id has."""


class LogNormal(Struct, frozen=True):
    """Never above `most`, where there is one."""

    median: float
    sigma: float
    most: float = math.inf

    def draw(self, source: random.Random) -> float:
        return min(self.most, self.median * math.exp(source.gauss(0, self.sigma)))


class Seen(Struct, frozen=True):
    """Any of the values that were seen in a run."""

    values: tuple[float, ...]

    def draw(self, source: random.Random) -> float:
        return source.choice(self.values)


class Turn(Struct, frozen=True):
    """A role's action in one of its turns."""

    tokens: LogNormal | Seen
    """Written, reasoning included; the role's limit cuts it off."""
    code: float = 1.0
    """Chance that it has code. A turn without code ends the part of a role that may have several."""


class Habits(Struct, frozen=True, kw_only=True):
    """How the roles of one system behave. A turn after the last that is listed is like the last."""

    turns: Mapping[str, Sequence[Turn]] = {}
    tool: LogNormal | Seen = LogNormal(6.0, 1.0)
    """Seconds of an execution."""
    coach: LogNormal | Seen = LogNormal(8.0, 0.6, 120.0)
    """Seconds of a verdict by a large model that is shown a whole action."""
    task: LogNormal = LogNormal(5000, 0.4)
    """Characters of a task's description."""
    spoken: int = 1500
    """Characters others are shown of an action: a summary, code, and what code printed, each."""

    def turn(self, role: Role, number: int) -> Turn:
        listed = self.turns.get(role.name)
        if not listed:  # a role nothing is known of: half its limit, and code to run
            return Turn(LogNormal(role.max_tokens / 2, 0.5))
        return listed[min(number, len(listed) - 1)]


_SCIENCE = (Turn(LogNormal(3000, 0.7)), Turn(LogNormal(1800, 0.7), 0.6), Turn(LogNormal(1500, 0.7), 0.5))
HABITS: dict[str, Habits] = {
    "mappa.systems.dsbench:DSBench": Habits(
        turns={role: (*_SCIENCE, Turn(LogNormal(1200, 0.7), 0.3)) for role in ("data_engineer", "modeler", "analyst")},
    ),
    "mappa.systems.mathchat:MathChat": Habits(
        turns={
            "problem_solver": (Turn(LogNormal(3500, 0.6), 0.0),),
            "code_executor": (Turn(LogNormal(2200, 0.6)), Turn(LogNormal(1200, 0.6), 0.3)),
            "verifier": (Turn(LogNormal(1800, 0.6), 0.0),),
        },
        tool=LogNormal(0.8, 1.0),
        task=LogNormal(500, 0.4),
        coach=LogNormal(5.0, 0.6, 120.0),
    ),
}
"""By system; another one gets `Habits()`."""


def habits_of(system: str, journal: Path | None = None) -> Habits:
    """What is assumed of a system, or with a run's journal what was seen of its roles. Raises JournalError."""
    assumed = HABITS.get(system, Habits())
    if journal is None:
        return assumed
    turns: dict[tuple[str, int], list[tuple[int, bool]]] = defaultdict(list)
    for episode in read_episodes(journal):
        for action in episode.actions:
            if action.output_ids:
                turns[action.role, action.turn].append((len(action.output_ids), action.execution is not None))
    spans = read_spans(journal)
    seconds = {kind: tuple(s.ended - s.began for s in spans if s.kind == kind) for kind in ("tool", "coach")}
    if not turns or not all(seconds.values()):
        raise JournalError(f"{journal} holds no actions that were run and scored; give the journal of a training run")
    roles = {role for role, _ in turns}
    return Habits(
        turns={role: [_seen(turns[key]) for key in sorted(turns) if key[0] == role] for role in roles},
        tool=Seen(seconds["tool"]),
        coach=Seen(seconds["coach"]),
        task=assumed.task,
        spoken=assumed.spoken,
    )


def _seen(actions: Sequence[tuple[int, bool]]) -> Turn:
    lengths, ran = zip(*actions, strict=True)
    return Turn(Seen(tuple(map(float, lengths))), sum(ran) / len(ran))


class Drawn(Struct, frozen=True, kw_only=True):
    """One action."""

    ids: tuple[int, ...]
    finished: bool
    """It did not meet its role's limit."""
    text: str
    tool: float
    coach: float


class Workload:
    """A config's roles at work, with the same draws whenever and in whatever order they are asked for."""

    def __init__(self, config: Config, roles: Sequence[Role], habits: Habits) -> None:
        self._config = config
        self._roles = {role.name: role for role in roles}
        self._habits = habits
        self._drawn: dict[str, Drawn] = {}
        self._written: dict[int, Drawn] = {}

    def action(self, name: str) -> Drawn:
        """`action("3-17-task-0/modeler/1")`: the second turn of that episode's modeler."""
        if name not in self._drawn:
            drawn = self._drawn[name] = self._draw(name)
            self._written[drawn.ids[0]] = drawn
        return self._drawn[name]

    def written(self, ids: tuple[int, ...]) -> Drawn:
        """The action with these tokens."""
        return self._written[ids[0]]

    def tasks(self, count: int) -> list[Task]:
        """Without files or answers, so that nothing is measured."""
        made = []
        for number in range(count):
            length = round(self._habits.task.draw(random.Random(f"{self._config.tasks.seed}/task {number}")))
            made.append(Task(id=f"task{number}", kind="simulated", prompt=filler(f"task {number}", length)))
        return made

    def _draw(self, name: str) -> Drawn:
        source = random.Random(f"{self._config.seed}/{name}")
        _, role_name, number = name.rsplit("/", 2)
        role, habits = self._roles[role_name], self._habits
        turn = habits.turn(role, int(number))
        wanted = max(2, round(turn.tokens.draw(source)))
        tokens = min(wanted, role.max_tokens)
        finished = wanted <= role.max_tokens
        has_code = source.random() < turn.code and finished  # what was cut off has no closed block
        first = zlib.crc32(name.encode())  # no two actions begin alike: only what they are shown is shared
        code = f"```python\n# {name}\n{filler(name, habits.spoken)}\n```\n" if has_code else ""
        return Drawn(
            ids=(first, *range(tokens - 1)),
            finished=finished,
            text=f"{code}<summary>{filler(name, habits.spoken)}</summary>" if finished else "",
            tool=min(habits.tool.draw(source), self._config.sandbox.timeout),
            coach=habits.coach.draw(source),
        )


def name_in(code: str) -> str:
    """The action that wrote the code."""
    return code.partition("\n")[0].removeprefix("# ")


def filler(name: str, length: int) -> str:
    """So many characters that no other name has."""
    return f"{name} {'.' * length}"[:length]


class Text:
    """Instead of a tokenizer: a token for every four characters, the same for the same text."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._known: dict[Message, tuple[int, ...]] = {}

    def prompt_ids(self, messages: list[Message]) -> tuple[int, ...]:
        return tuple(token for message in messages for token in self._tokens(message))

    def continued_ids(self, context: tuple[int, ...], messages: list[Message]) -> tuple[int, ...]:
        return context + self.prompt_ids(messages)

    def opening(self, prompt: tuple[int, ...]) -> str:
        return ""

    def text(self, ids: tuple[int, ...]) -> str:
        return self._workload.written(ids).text

    def _tokens(self, message: Message) -> tuple[int, ...]:
        if message not in self._known:
            text = f"<{message.role}>{message.content}".encode()
            padded = text.ljust(-(-len(text) // CHARACTERS) * CHARACTERS)
            self._known[message] = tuple(memoryview(padded).cast("I"))
        return self._known[message]
