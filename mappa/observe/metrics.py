"""The numbers of one step, and the file that keeps them: one JSON line per step, in metrics.jsonl."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
from msgspec import Struct, field

from mappa.errors import JournalError, NonFiniteError

FILE_NAME = "metrics.jsonl"


class RoleMetrics(Struct, frozen=True, kw_only=True):
    """One role's actions and update in one step. A number is None where there was nothing to measure it on.

    >>> RoleMetrics(actions=18, score=7.2, success=0.72, distinct=0.94, tokens=64.5)
    """

    actions: int
    score: float | None = None
    """Mean of the coach's scores, 0 to 10, over the actions that have one."""
    missing_scores: int = 0
    success: float | None = None
    """Share of actions that did their part, whether or not what they worked from had been repaired."""
    distinct: float | None = None
    """Different outputs as a share of all: 1 = no two alike, falling towards 0 as entropy collapses."""
    tokens: float | None = None
    """Mean length of an action, tokens."""
    truncated: float | None = None
    """Share of actions that ended at the token limit."""
    entropy: float | None = None
    """Mean per-token entropy of the policy, nats."""
    logprob: float | None = None
    """Mean per-token log-prob of what was sampled, nats."""
    kl: float | None = None
    """Mean per-token KL to the base, nats."""
    clip_fraction: float | None = None
    """Share of action tokens whose ratio the PPO clip cut."""
    ratio: float | None = None
    """Mean of the learner's probability over the sampler's, per token; 1 before any update."""
    advantage_std: float | None = None
    """Standard deviation of the advantages of its action tokens as they entered the loss: near 1 where `learn.whiten`
    normalises them."""
    loss: float | None = None
    grad_norm: float | None = None
    """Before clipping."""
    lr: float | None = None

    def __post_init__(self) -> None:
        _refuse_non_finite(self)


class Seconds(Struct, frozen=True, kw_only=True):
    """Where one step's wall time went. The phases add up to the step: what overlaps is counted once, by the caller."""

    generate: float = 0.0
    execute: float = 0.0
    coach: float = 0.0
    learn: float = 0.0
    publish: float = 0.0
    other: float = 0.0

    def __post_init__(self) -> None:
        _refuse_non_finite(self)

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in self.__struct_fields__)


class RolloutMetrics(Struct, frozen=True, kw_only=True):
    """How well one step's rollouts kept everybody busy, over its wall time from the end of the step before.

    >>> RolloutMetrics(busy=0.63, overlap=0.81, wait_coach=1.2, wait_sandbox=2.4, wait_learner=19.0, staleness={0: 54})
    """

    busy: float = 0.0
    """Share of the time in which something was being generated."""
    overlap: float = 0.0
    """Share of the time of sandbox, coach and learner that lay within generation."""
    wait_coach: float = 0.0
    """Seconds in which nothing was generated, run or learned because only verdicts were missing."""
    wait_sandbox: float = 0.0
    """Seconds in which code ran and nothing was generated or learned."""
    wait_learner: float = 0.0
    """Seconds in which the learner was at work and nothing was generated."""
    staleness: dict[int, int] = field(default_factory=dict)
    """Versions the sampler was behind the learner -> actions."""
    lag: float = 0.0
    """Seconds by which the event loop was late, 99th percentile."""
    cut: int = 0
    """Episodes that were ended at their deadline."""
    recalled: int = 0
    """Actions taken from the journal of an interrupted run."""
    replayed: int = 0
    """Runs of journaled code in a new workspace; `differed` of them did not end as before."""
    differed: int = 0

    def __post_init__(self) -> None:
        _refuse_non_finite(self)


class StepMetrics(Struct, frozen=True, kw_only=True):
    """One step of training.

    >>> StepMetrics(step=3, episodes=18, lost=0, success=0.39, roles={"modeler": RoleMetrics(...)},
    ...             tokens_generated=4120, tokens_trained=4120, tokens_computed=9800,
    ...             seconds=Seconds(generate=38, execute=3, learn=19), peak_memory_gb=4.1)
    """

    step: int
    """1 for the first update."""
    episodes: int
    lost: int = 0
    """Episodes that ended in an error: counted, never trained on."""
    success: float | None = None
    """Share of episodes whose outcome succeeded with no repair."""
    roles: dict[str, RoleMetrics] = field(default_factory=dict)
    tokens_generated: int = 0
    tokens_trained: int = 0
    """Action tokens in the loss."""
    tokens_computed: int = 0
    """Tokens that went through forward and backward after shared prefixes were counted once."""
    tokens_unshared: int = 0
    """Tokens that would have, had every sample been computed on its own."""
    seconds: Seconds = field(default_factory=Seconds)
    rollout: RolloutMetrics | None = None
    coach: dict[str, float] = field(default_factory=dict)
    """What was seen of the coach: `modeler/regression/mean` (spread, missing, correlation; in points), `modeler/gap
    classification over regression`, `drift`, `repeat spread`; `rewrites`, the corrected actions that were learned."""
    alarms: list[str] = field(default_factory=list)
    """What is wrong with the coach."""
    learning: dict[str, float] = field(default_factory=dict)
    """What the learner's seconds went to on rank 0: attention, linear layers, lm_head, optimizer, other."""
    peak_memory_gb: float = 0.0

    def __post_init__(self) -> None:
        _refuse_non_finite(self)

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated and trained on over the whole step's wall time."""
        total = self.seconds.total
        return (self.tokens_generated + self.tokens_trained) / total if total else 0.0


def append_metrics(path: Path, metrics: StepMetrics) -> None:
    """Add one line to `path`. What an interrupted write left behind its last newline is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(msgspec.json.encode(metrics) + b"\n")


def read_metrics(path: Path) -> list[StepMetrics]:
    """All steps in order, empty where there is no file. A step that was run again after a resume counts once, the last.

    An unfinished last line is left out. Raises JournalError on any other line that is not a StepMetrics.
    """
    if not path.exists():
        return []
    complete, _, _ = path.read_bytes().rpartition(b"\n")
    steps = {}
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            metrics = msgspec.json.decode(line, type=StepMetrics)
        except msgspec.DecodeError as error:
            raise JournalError(f"{path}:{number} is not a step's metrics ({error}); mend or remove the line") from None
        steps[metrics.step] = metrics
    return [steps[step] for step in sorted(steps)]


def _refuse_non_finite(metrics: Struct) -> None:
    # JSON has no NaN: msgspec would write null, which reads back as "nothing to measure".
    for name in metrics.__struct_fields__:
        value = getattr(metrics, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise NonFiniteError(
                f"{type(metrics).__name__}.{name} is {value}; use None where there is nothing to measure"
            )
