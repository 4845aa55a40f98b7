"""What a run does about its coach, step by step: put credit right, watch for bias and drift, take off what is found.

    review = watch.review(step, episodes, probed)    # samples are made of review.episodes, less review.offsets
    watch.recall(step, kept)                         # the same state again, from what a run kept of earlier steps

Nothing is asked here and nothing is random (probe.py asks): a review depends on the reviews before it and on its
arguments alone, so that a resumed run and a replay come to the same. With the defaults no score is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from mappa.coach.context import ActionContext, Standing
from mappa.coach.credit import retrospect
from mappa.coach.monitor import Alarm, Monitor, Reading, Strata, readings_of
from mappa.coach.probe import Probed
from mappa.coach.rewrite import Rewrite
from mappa.coach.rubrics import load_rubric
from mappa.config import CoachConfig
from mappa.types import Episode


class Watched(Struct, frozen=True):
    """An ended episode with the context of each of its measured actions, in order."""

    episode: Episode
    contexts: tuple[ActionContext, ...]


class Kept(Struct, frozen=True):
    """What a run keeps of a step's review to rebuild the watch from."""

    readings: tuple[Reading, ...]
    probed: Probed


class Review(Struct, frozen=True, kw_only=True):
    """One step's episodes as they are learned from, and what was seen."""

    episodes: list[Episode]
    """With credit reassigned, where that is on."""
    offsets: Mapping[Strata, float] = field(default_factory=dict)
    """Points to take off the scores by role and kind, where that is on."""
    alarms: list[Alarm] = field(default_factory=list)
    news: list[Alarm] = field(default_factory=list)
    """Alarms that the step before did not have."""
    metrics: dict[str, float] = field(default_factory=dict)
    kept: Kept

    @property
    def rewrites(self) -> tuple[Rewrite, ...]:
        """Corrected actions that are learned beside the episodes."""
        return self.kept.probed.rewrites


class Watch:
    """`lag`: steps that a coach with a memory is behind, besides the one under way: as many as episodes may run ahead
    of the learner, so that what it is shown never hangs on who was faster."""

    def __init__(self, config: CoachConfig, *, lag: int = 0) -> None:
        self._config, self._lag = config, lag
        self._monitor = Monitor(config.alarm_rate)
        self._standings: dict[int, dict[Strata, Standing]] = {}
        self._raised: set[tuple[str, str]] = set()

    def review(self, step: int, watched: Sequence[Watched], probed: Probed) -> Review:
        """Take in a step, which must follow the one before. `probed` is what was asked since then."""
        episodes = [self._in_retrospect(one) if self._config.retrospect else one.episode for one in watched]
        if not self._config.monitor:
            return Review(episodes=episodes, kept=Kept((), probed))
        kept = Kept(tuple(readings_of(step, episodes)), probed)
        before = self._raised
        alarms = self.recall(step, kept)
        return Review(
            episodes=episodes,
            offsets=self._monitor.offsets() if self._config.correct == "offset" else {},
            alarms=alarms,
            news=[alarm for alarm in alarms if (alarm.about, alarm.where) not in before],
            metrics=self._monitor.metrics(),
            kept=kept,
        )

    def recall(self, step: int, kept: Kept) -> list[Alarm]:
        """The state after a step, from what was kept of it; what was wrong then."""
        self._monitor.sing(kept.probed.songs)
        for first, second in kept.probed.repeats:
            self._monitor.repeated(first, second)
        if kept.probed.anchors:
            self._monitor.anchor(kept.probed.anchors)
        alarms = self._monitor.observe(kept.readings)
        self._raised = {(alarm.about, alarm.where) for alarm in alarms}
        if self._config.memory:
            self._standings[step] = self._monitor.standings()
            self._standings.pop(step - 1 - self._lag, None)
        return alarms

    def standing(self, step: int, role: str, kind: str) -> Standing | None:
        """What the coach is shown of its own past when it scores actions of a step."""
        return self._standings.get(step - 1 - self._lag, {}).get((role, kind))

    def _in_retrospect(self, one: Watched) -> Episode:
        """With credit reassigned, once the episode has its outcome."""
        episode = one.episode
        verdicts = [action.verdict for action in episode.actions if action.verdict is not None]
        if episode.outcome is None or not len(verdicts) == len(one.contexts) == len(episode.actions) > 0:
            return episode
        rubrics = [load_rubric(name) for name in self._config.rubrics]
        rubric = next((r for r in rubrics if r.part(one.contexts[0].role) is not None), rubrics[0])
        found = retrospect(one.contexts, verdicts, rubric)
        pairs = zip(episode.actions, found, strict=True)
        return replace(episode, actions=tuple(replace(action, verdict=verdict) for action, verdict in pairs))
