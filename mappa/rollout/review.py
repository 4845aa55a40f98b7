"""A run's watch over its coach: its steps read from the journal, probes asked in the background, the state kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from mappa.coach import ActionContext, Coach, Standing
from mappa.coach.probe import Probe, Probed, anchors_of, probe
from mappa.coach.watch import Kept, Review, Watch, Watched
from mappa.config import Config
from mappa.errors import CoachError
from mappa.journal import Journal, Record, read_reviews
from mappa.rollout.stage import context_of
from mappa.types import Role, Task

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Kept).decode


class Reviews:
    """Belongs to one event loop. `resume` comes first, then `review` once per step."""

    def __init__(
        self, config: Config, coach: Coach, journal: Journal, roles: Sequence[Role], tasks: Sequence[Task]
    ) -> None:
        self._config, self._coach, self._journal = config.coach, coach, journal
        self._roles = {role.name: role for role in roles}
        self._tasks = {task.id: task for task in tasks}
        self._watch = Watch(config.coach, lag=config.rollout.max_staleness)
        self._known: dict[int, Kept] = {}
        self._anchors: dict[str, ActionContext] = {}
        self._asked: asyncio.Task[Probed] | None = None

    async def resume(self, step: int) -> None:
        """Be where the run was after `step`, 0 for its start."""
        rows = await asyncio.to_thread(read_reviews, self._journal.path)
        self._known = {number: _decode(row) for number, row in rows.items()}
        for number in range(1, step + 1):
            if number in self._known:
                self._watch.recall(number, self._known[number])
        if step > 0:
            self._anchors = anchors_of(_named(await self._watched(1)))
        self._ask(step, await self._watched(step) if step > 0 else [])

    async def review(self, step: int, episodes: Sequence[str]) -> Review:
        """Judge the ended episodes of those ids, in their order; on return, what was seen is on its way to disk.

        Of a step that was reviewed before an interruption, the probes are those it had then. Raises CoachError.
        """
        by_id = {one.episode.id: one for one in await self._watched(step)}
        probed = self._known[step].probed if step in self._known else await self._answers()
        review = self._watch.review(step, [by_id[id] for id in episodes], probed)
        self._journal.add_review(step, _encode(review.kept))
        if step == 1:
            self._anchors = anchors_of(_named(list(by_id.values())))
        self._ask(step, list(by_id.values()))
        return review

    def standing(self, step: int, role: str, kind: str) -> Standing | None:
        return self._watch.standing(step, role, kind)

    async def close(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
            with contextlib.suppress(asyncio.CancelledError, CoachError):
                await self._asked

    def _ask(self, step: int, watched: Sequence[Watched]) -> None:
        if not self._config.monitor or self._coach.stopped is not None or step + 1 in self._known:
            return
        what = Probe(
            step=step,
            task=next(iter(self._tasks.values())),
            roles=list(self._roles.values()),
            anchors={name: self._remembering(step + 1, context) for name, context in self._anchors.items()},
            actions={name: self._remembering(step + 1, context) for name, context in _named(watched).items()},
        )
        self._asked = asyncio.create_task(probe(self._coach, self._config, what))

    async def _answers(self) -> Probed:
        asked, self._asked = self._asked, None
        if asked is None:
            return Probed()
        try:
            return await asked
        except CoachError:
            if self._coach.stopped is None:
                raise
            return Probed()  # the run stops before the next step, and says why

    async def _watched(self, step: int) -> list[Watched]:
        records = await asyncio.to_thread(self._journal.recall, "train", step)
        return [self._contexts(record) for record in records.values()]

    def _contexts(self, record: Record) -> Watched:
        """With all that the journal has; what a role saw it keeps as tokens only."""
        return Watched(record.episode, contexts_of(record, self._tasks[record.episode.task], self._roles))

    def _remembering(self, step: int, context: ActionContext) -> ActionContext:
        return replace(context, standing=self.standing(step, context.role.name, context.task.kind))


def contexts_of(record: Record, task: Task, roles: Mapping[str, Role]) -> tuple[ActionContext, ...]:
    """The contexts of a journaled episode's measured actions, in order."""
    actions = {ordinal: entry.action for ordinal, entry in record.entries.items()}
    return tuple(
        context_of(task, roles[entry.action.role], ordinal, actions, entry.observation)
        for ordinal, entry in sorted(record.entries.items())
        if entry.observation is not None
    )


def _named(watched: Sequence[Watched]) -> dict[str, ActionContext]:
    return {
        f"{one.episode.id}/{context.role.name}/{context.action.turn}": context
        for one in watched
        if one.episode.error is None
        for context in one.contexts
    }
