"""Corrected actions: written by the coach, tried in the sandbox where the first one stood, kept if they do better."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from mappa.coach import ActionContext, Writer
from mappa.coach.matching import quality_of
from mappa.coach.rewrite import Rewrite
from mappa.errors import SandboxError, TaskError
from mappa.journal import Record
from mappa.rollout.place import OpenWorkspace, Place
from mappa.systems import python_block
from mappa.tasks import inspect
from mappa.types import Action, Evidence, Role


class Rewriter(Struct, frozen=True, kw_only=True):
    """Tries to better the actions with code that were scored below `below`."""

    writer: Writer
    below: float
    output_ids: Callable[[tuple[int, ...], str, bool], tuple[int, ...]]
    """Token ids of a text behind a prompt, and of the end of the turn where that is True."""
    longest: int
    """Tokens of context and text together."""
    open_workspace: OpenWorkspace

    async def rewrites(
        self, records: Sequence[Record], contexts: Mapping[str, ActionContext], roles: Mapping[str, Role]
    ) -> tuple[Rewrite, ...]:
        """`contexts` are the records' measured actions by name. Raises CoachError."""
        chosen = [
            self._rewrite(record, ordinal, contexts[name], roles, name)
            for record in records
            for ordinal, entry in sorted(record.entries.items())
            if (name := f"{record.episode.id}/{entry.action.role}/{entry.action.turn}") in contexts
            and self._is_bad(entry.action)
        ]
        return tuple(found for found in await asyncio.gather(*chosen) if found is not None)

    def _is_bad(self, action: Action) -> bool:
        score = action.verdict.score if action.verdict is not None else None
        return score is not None and score < self.below and bool(action.output_ids)  # no outside model learns

    async def _rewrite(
        self, record: Record, ordinal: int, context: ActionContext, roles: Mapping[str, Role], name: str
    ) -> Rewrite | None:
        action, role = context.action, context.role
        text = await self.writer.rewrite(context)
        code = python_block(text) if text is not None else None
        if text is None or code is None or action.evidence is None:
            return None
        output = self.output_ids(action.prompt_ids, text, role.stop is None)
        if len(output) > role.max_tokens or len(action.prompt_ids) + len(output) > self.longest:
            return None  # the role could not write it
        found = await self._try(replace(action, text=text), code, context, before(record, ordinal, roles))
        if found is None or _merit(found) <= _merit(action.evidence):
            return None
        return Rewrite(adapter=role.plays, prompt_ids=action.prompt_ids, output_ids=output, source=name)

    async def _try(
        self, action: Action, code: str, context: ActionContext, before: Callable[[Place], None]
    ) -> Evidence | None:
        """What the code leaves behind in the workspace as the action found it; None if it does not run to its end, or
        the sandbox fails, which proves nothing."""
        place = Place(context.task, self.open_workspace)
        before(place)
        try:
            workspace = await place.workspace()
            execution = await workspace.run(code)
            if execution.outcome != "ok":
                return None
            action = replace(action, execution=execution)
            return await inspect(context.task, context.role, workspace, self.open_workspace, action)
        except (SandboxError, TaskError):
            return None
        finally:
            place.close()


def before(record: Record, ordinal: int, roles: Mapping[str, Role]) -> Callable[[Place], None]:
    """Brings a place to where the journaled episode was before that action.

    What was put right is not journaled: it is taken to be what every failed role before a repaired action owed.
    """

    def owe(place: Place) -> None:
        for earlier, entry in sorted(record.entries.items()):
            if earlier < ordinal and entry.observation is not None:
                place.owe(entry.observation)
                evidence = entry.action.evidence
                if record.entries[ordinal].action.repaired and evidence is not None and not evidence.success:
                    place.repair(roles[entry.action.role].produces)

    return owe


def _merit(evidence: Evidence) -> tuple[bool, float]:
    return evidence.success, quality_of(evidence)
