"""A run's watch over its coach: its steps read from the journal, probes asked in the background, the state kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from mappa.coach import ActionContext, Coach, Standing
from mappa.coach.probe import Probe, Probed, anchors_of, probe
from mappa.coach.watch import Kept, Review, Watch, Watched
from mappa.config import Config
from mappa.errors import CoachError
from mappa.journal import Journal, Record, read_reviews
from mappa.rollout.rewrite import Rewriter
from mappa.rollout.stage import context_of
from mappa.types import Role, Task

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Kept).decode


class Reviews:
    """Belongs to one event loop. `resume` comes first, then `review` once per step."""

    def __init__(
        self,
        config: Config,
        coach: Coach,
        journal: Journal,
        roles: Sequence[Role],
        tasks: Sequence[Task],
        rewriter: Rewriter | None = None,
    ) -> None:
        self._config, self._coach, self._journal, self._rewriter = config.coach, coach, journal, rewriter
        self._last = config.steps
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
        await asyncio.to_thread(self._recall, step)
        if step > 0:
            self._anchors = anchors_of(self._named(await self._records(1)))
        self._ask(step, await self._records(step) if step > 0 else [])

    async def review(self, step: int, episodes: Sequence[str]) -> Review:
        """Judge the ended episodes of those ids, in their order; on return, what was seen is on its way to disk.

        Of a step that was reviewed before an interruption, the probes are those it had then. Raises CoachError.
        """
        records = {record.episode.id: record for record in await self._records(step)}
        probed = self._known[step].probed if step in self._known else await self._answers()
        watched = [self._watched(records[id]) for id in episodes]
        review = await asyncio.to_thread(self._watch.review, step, watched, probed)  # others roll out meanwhile
        self._journal.add_review(step, _encode(review.kept))
        if step == 1:
            self._anchors = anchors_of(self._named(list(records.values())))
        self._ask(step, list(records.values()))
        return review

    def standing(self, step: int, role: str, kind: str) -> Standing | None:
        return self._watch.standing(step, role, kind)

    async def close(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
            with contextlib.suppress(asyncio.CancelledError, CoachError):
                await self._asked

    def _recall(self, step: int) -> None:
        for number, kept in self._known.items():
            if number <= step:
                self._watch.recall(number, kept)

    def _ask(self, step: int, records: Sequence[Record]) -> None:
        """Start what the next review takes in."""
        if step < self._last and self._coach.stopped is None and step + 1 not in self._known:
            self._asked = asyncio.create_task(self._probe(step, records))

    async def _probe(self, step: int, records: Sequence[Record]) -> Probed:
        actions = {name: self._remembering(step + 1, context) for name, context in self._named(records).items()}
        what = Probe(
            step=step,
            task=next(iter(self._tasks.values())),
            roles=list(self._roles.values()),
            anchors={name: self._remembering(step + 1, context) for name, context in self._anchors.items()},
            actions=actions,
        )
        probed = await probe(self._coach, self._config, what) if self._config.monitor else Probed()
        if self._rewriter is None:
            return probed
        return replace(probed, rewrites=await self._rewriter.rewrites(records, actions, self._roles))

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

    async def _records(self, step: int) -> list[Record]:
        return list((await asyncio.to_thread(self._journal.recall, "train", step)).values())

    def _watched(self, record: Record) -> Watched:
        """With all that the journal has; what a role saw it keeps as tokens only."""
        return Watched(record.episode, contexts_of(record, self._tasks[record.episode.task], self._roles))

    def _named(self, records: Sequence[Record]) -> dict[str, ActionContext]:
        """The measured actions of episodes that were not lost."""
        return {
            f"{record.episode.id}/{context.role.name}/{context.action.turn}": context
            for record in records
            if record.episode.error is None
            for context in self._watched(record).contexts
        }

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


def read_probed(path: Path) -> dict[int, Probed]:
    """What a run asked of its coach and took in with each step, from its journal."""
    return {step: _decode(row).probed for step, row in read_reviews(path).items()}
