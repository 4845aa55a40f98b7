"""The vocabulary: what flows from tasks to the update, as frozen structs.

    tasks -> rollouts (roles act, the sandbox executes, the coach scores) -> episodes -> samples -> update

Token ids are exact: nothing that was sampled is ever tokenised again. Log-probs are natural logs of the
distribution that was sampled from (temperature included). Every struct is immutable; a verdict that arrives
later makes a new Action with `msgspec.structs.replace`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from msgspec import Struct, field

FinishReason = Literal["stop", "length", "abort"]
ExecutionOutcome = Literal[
    "ok", "error", "timeout", "memory", "output-limit", "disk-limit", "killed", "sandbox-failure"
]
Fact = bool | int | float | str | None
Missing = Literal[
    "unmeasured", "sandbox-failure", "malformed", "deadline", "unavailable", "refused", "too-long", "budget",
    "disagreement", "not-recorded",
]  # fmt: skip
"""Why a coach gave no score; docs/coach.md says what each stands for."""


class Metric(Struct, frozen=True, kw_only=True):
    """How a task's predictions are measured, and the two scores that give a number its meaning.

    >>> Metric(name="accuracy", greater_is_better=True, baseline=0.62, reference=0.91)
    """

    name: str
    greater_is_better: bool
    baseline: float
    """Score of the trivial prediction (majority class, mean of the target)."""
    reference: float
    """Score of a competent model on the same split."""


class Task(Struct, frozen=True, kw_only=True):
    """One problem to solve. What is public may be shown to roles; what is private never enters an episode's workspace.

    >>> Task(id="Boston", kind="regression", prompt="Target: medv (regression). ...",
    ...      folder="/cache/tasks/train/Boston", target="medv", metric=Metric(...))
    """

    id: str
    kind: str
    """Stratum: tasks of one kind are comparable (regression, classification, algebra ...)."""
    prompt: str
    """The task in words, as the first role reads it."""
    folder: str = ""
    """Holds public/ and private/ where the task has files; empty where it has none."""
    target: str = ""
    id_column: str = ""
    answer: str = ""
    """The expected answer of a task without files."""
    metric: Metric | None = None
    facts: dict[str, Fact] = field(default_factory=dict)
    """Public facts of the task a system may use in its prompts (text columns, missing values ...)."""


class Message(Struct, frozen=True):
    """One chat turn. `Message("user", "Target: medv (regression).")`"""

    role: Literal["system", "user", "assistant"]
    content: str


class Role(Struct, frozen=True, kw_only=True):
    """One agent of a team: what it is told, what it must leave behind, and how much it may write.

    >>> Role(name="modeler", prompt="You are the Modeler. ...", needs=("X_train.pkl", "y_train.pkl"),
    ...      produces=("model.pkl",), max_tokens=96)
    """

    name: str
    prompt: str
    examples: tuple[tuple[str, str], ...] = ()
    """Worked examples: (what it is asked, what it answers)."""
    needs: tuple[str, ...] = ()
    """Files it reads that an upstream role must have made."""
    produces: tuple[str, ...] = ()
    """Files it must leave in the workspace."""
    max_tokens: int = 512
    stop: str | None = None
    """Regular expression over the text written so far; generation ends after the token that completes a match."""
    adapter: str = ""
    """The adapter it acts with and trains; roles that name the same one share it. Empty: one named as the role."""
    frozen: bool = False
    """Acts with its adapter, never changes it."""
    model: str = ""
    """An outside model that acts in its place, by its name in the config ([outside.NAME]): it has no adapter then, and
    its actions are never trained on."""

    @property
    def plays(self) -> str:
        """Name of the adapter it acts with; empty for a role that an outside model plays."""
        return "" if self.model else self.adapter or self.name


class SamplingParams(Struct, frozen=True, kw_only=True):
    """How to sample one generation. `temperature=0` is greedy; log-probs are then those at temperature 1."""

    temperature: float = 1.0
    max_tokens: int = 512
    stop: str | None = None
    seed: int = 0


class Generation(Struct, frozen=True, kw_only=True):
    """What a sampler returns: ids and log-probs of equal length, the end token included if it was sampled."""

    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class ExecutionResult(Struct, frozen=True, kw_only=True):
    """One execution of model-written code in the sandbox: the evidence it left.

    >>> ExecutionResult(outcome="error", exit_code=1, exception="KeyError: 'speed'", exception_line=4)
    """

    outcome: ExecutionOutcome
    exit_code: int | None = None
    stdout: str = ""
    """Truncated in the middle; `stdout_bytes` is the full count."""
    stderr: str = ""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    exception: str | None = None
    """Type and message of the exception that ended it."""
    exception_line: int | None = None
    """Line in the model's code where it was raised."""
    created: dict[str, int] = field(default_factory=dict)
    """Files made, with their sizes in bytes."""
    changed: dict[str, int] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0


class Evidence(Struct, frozen=True, kw_only=True):
    """What was measured about one action's work by the task's own checks, never by the coach.

    >>> Evidence(success=False, fault="X_test.pkl missing", facts={"X_train.pkl": True, "X_test.pkl": False})
    """

    success: bool
    """The role did its part: every file it must produce is there, well-formed and useful."""
    fault: str | None = None
    """The first thing that is wrong, in a few words."""
    facts: dict[str, Fact] = field(default_factory=dict)


class Verdict(Struct, frozen=True, kw_only=True):
    """A coach's score of one action, 0 to 10, or None with the reason it is missing. There is no default score.

    >>> Verdict(evidence={"ran": False}, reason="code crashed: KeyError 'speed'", score=2.0, coach="rubric@2")
    """

    evidence: dict[str, Fact] = field(default_factory=dict)
    """What the score hangs on, found before it."""
    reason: str
    score: float | None
    coach: str
    """Name and version of who scored: scores of different coaches are not comparable."""
    missing: Missing | None = None
    """Why there is no score, where there is none."""


class Action(Struct, frozen=True, kw_only=True):
    """One generation of one role in one turn, with the exact context it saw and all that came of it.

    >>> Action(role="modeler", turn=0, adapter="modeler@12", prompt_ids=(1, 9, ...), output_ids=(55, 2),
    ...        logprobs=(-0.1, -0.02), finish_reason="stop", text="...", verdict=Verdict(score=8.0, ...))
    """

    role: str
    turn: int
    adapter: str
    """Name and version that sampled it (`modeler@12`); `outside/NAME` where an outside model wrote it: its prompt is
    in the base's tokens then, and of what it wrote no tokens are known."""
    prompt_ids: tuple[int, ...]
    """The full context, token for token as the model saw it."""
    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Behaviour log-probs of `output_ids`."""
    finish_reason: FinishReason
    text: str
    execution: ExecutionResult | None = None
    evidence: Evidence | None = None
    verdict: Verdict | None = None
    repaired: bool = False
    """Its inputs were put right with reference artefacts because an upstream role had failed."""


class Outcome(Struct, frozen=True, kw_only=True):
    """How an episode ended, measured by the task's own grader. A repaired chain is never a success."""

    success: bool
    metrics: dict[str, float] = field(default_factory=dict)


class Episode(Struct, frozen=True, kw_only=True):
    """One rollout of the team on one task: its actions in order and how it ended.

    >>> Episode(id="3-1-Boston-0", task="Boston", kind="regression", seed=7, step=3, actions=(...),
    ...         outcome=Outcome(success=True, metrics={"r2": 0.71}))
    """

    id: str
    task: str
    kind: str
    seed: int
    step: int
    actions: tuple[Action, ...] = ()
    outcome: Outcome | None = None
    cut: bool = False
    """It was ended at its deadline. What it had finished and scored by then is learned from; it has no outcome."""
    error: str | None = None
    """Why it was lost, where it was: `TypeName: message`. A lost episode is counted, never trained on."""


class Sample(Struct, frozen=True, kw_only=True):
    """What the learner eats: one token sequence of one role, and the spans of it that were sampled.

    `spans` are half-open [start, end) into `tokens`, ascending, not overlapping, the first start > 0.
    `logprobs` holds the behaviour log-probs of all spans' tokens in order; `rewards` one number per span
    (0 to 1, NaN where the coach gave none); `advantages`, where given, replaces the rewards: one per span.

    >>> Sample(role="modeler", tokens=(1, 9, 4, 55, 2), spans=((3, 5),), logprobs=(-0.1, -0.02), rewards=(0.8,))
    """

    role: str
    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    logprobs: tuple[float, ...]
    rewards: tuple[float, ...] = ()
    advantages: tuple[float, ...] | None = None
    group: str = ""
    """What its advantages are normalised with, inside its role (empty: the whole role)."""
    supervised: bool = False
    """Nobody sampled it: it has no `logprobs`, and `advantages` are the weights of its spans' log-likelihood, which are
    taken as they are. Such samples may stand beside others that give rewards."""
    truncated: bool = False
    """An action of it ended at the token limit: masked from the loss."""
    versions: tuple[int, ...] = ()
    """Adapter version that sampled each span."""
    source: str = ""
    """Where it came from, for messages: `3-1-Boston-0/modeler/0`."""


class Workspace(Protocol):
    """An episode's private folder inside the sandbox. Reading it never follows a link and never blocks."""

    async def run(self, code: str, *, timeout: float | None = None) -> ExecutionResult: ...

    def files(self) -> Mapping[str, int]:
        """Regular files by relative name, with their sizes in bytes."""
        ...

    def read(self, path: str, limit: int = ...) -> bytes: ...

    def put(self, path: str, data: bytes) -> None: ...

    def close(self) -> None: ...
