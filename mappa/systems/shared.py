"""Any system with one adapter for all its roles: the single agent that a team of adapters is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from mappa.errors import TeamError
from mappa.systems.stage import CodeOf, ForwardingStage, Stage, System
from mappa.types import Action, Message, Role

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


class _SharingStage(ForwardingStage):
    """The system names its roles as it knows them."""

    async def act(
        self, role: Role, messages: Sequence[Message], *, code: CodeOf | None = None, after: Action | None = None
    ) -> Action:
        return await super().act(_sharing(role), messages, code=code, after=after)


def _sharing(role: Role) -> Role:
    return role if role.model else replace(role, adapter=ADAPTER)
