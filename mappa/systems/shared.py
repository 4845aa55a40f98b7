"""Any system with one adapter for all its roles: the single agent that a team of adapters is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from mappa.errors import TeamError
from mappa.systems.stage import CodeOf, Stage, System
from mappa.types import Action, Message, Role, Task

ADAPTER = "team"


class SharedAdapter:
    """`system`, its roles' prompts and order as they are, every role acting with and training the same adapter."""

    def __init__(self, system: System) -> None:
        frozen = [role.name for role in system.roles if role.frozen]
        if frozen:
            raise TeamError(f"role {frozen[0]!r} is frozen, so it cannot share its adapter: set adapters='per-role'")
        self._system = system
        self.roles = tuple(_sharing(role) for role in system.roles)
        self.turns: dict[str, int] = getattr(system, "turns", {})

    async def run(self, stage: Stage) -> None:
        await self._system.run(_SharingStage(stage))


class _SharingStage:
    """Implements `Stage`: the system names its roles as it knows them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @property
    def task(self) -> Task:
        return self._stage.task

    async def act(
        self, role: Role, messages: Sequence[Message], *, code: CodeOf | None = None, after: Action | None = None
    ) -> Action:
        return await self._stage.act(_sharing(role), messages, code=code, after=after)

    async def repair(self, role: Role) -> bool:
        return await self._stage.repair(role)

    def files(self) -> dict[str, int]:
        return self._stage.files()


def _sharing(role: Role) -> Role:
    return role if role.model else replace(role, adapter=ADAPTER)
