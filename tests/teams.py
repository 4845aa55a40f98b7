"""A team for tests: what the (random) model writes decides, as a coin would, whether its code works."""

from __future__ import annotations

from msgspec.structs import replace

from mappa.systems import Stage, chat, python_block
from mappa.systems.datascience import ANALYST, ENGINEER, MODELER, _fit, _prepare, _submit
from mappa.types import Role, Task


def _short(role: Role) -> Role:
    """One letter ends the text; no letter for long cuts it off."""
    return replace(role, prompt="Write.", examples=(), max_tokens=12, stop="[A-Za-z]")


class CoinTeam:
    """The data-science roles with the worked examples' own code, run if the first letter is in the first half."""

    roles = tuple(_short(role) for role in (ENGINEER, MODELER, ANALYST))

    async def run(self, stage: Stage) -> None:
        for role in self.roles:
            good = python_block(self._answer(role.name, stage.task)) or ""

            def code(text: str, good: str = good) -> str | None:
                letters = [character for character in text.lower() if character.isascii() and character.isalpha()]
                return good if letters and letters[-1] <= "m" else "raise ValueError('tails')"

            action = await stage.act(role, chat(role, "Go."), code=code)
            if role.name != "analyst" and action.evidence is not None and not action.evidence.success:
                await stage.repair(role)

    @staticmethod
    def _answer(role: str, task: Task) -> str:
        if role == "data_engineer":
            return _prepare(task.target)
        if role == "modeler":
            return _fit(task.kind, "RandomForestRegressor" if task.kind == "regression" else "RandomForestClassifier")
        return _submit(task.target)


class SteadyTeam(CoinTeam):
    """Its models are the same every time they are fitted: the same run twice comes to the same scores."""

    @staticmethod
    def _answer(role: str, task: Task) -> str:
        return CoinTeam._answer(role, task).replace(
            "()", "(n_estimators=5, random_state=0)", 1 if role == "modeler" else 0
        )


class RoomyTeam(SteadyTeam):
    """Its roles may write more than they do: there is room for what a coach would have them write."""

    roles = tuple(replace(role, max_tokens=900) for role in CoinTeam.roles)


class NoRoles:
    roles: tuple[Role, ...] = ()

    async def run(self, stage: Stage) -> None: ...


class TwiceTeam:
    """Names a role twice."""

    roles = (ENGINEER, ENGINEER)

    async def run(self, stage: Stage) -> None: ...
