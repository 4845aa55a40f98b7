"""A system at work on a stage, with everything it does wrong as a TeamError of its own episode."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mappa.errors import JournalError, MappaError, ServerError, TeamError
from mappa.rollout.budget import Draining
from mappa.systems import System

if TYPE_CHECKING:
    from mappa.rollout.stage import EpisodeStage


async def play(system: System, stage: EpisodeStage) -> None:
    """Run `system` to its end. Raises MappaError: its own where it has one, else TeamError with the line that failed;
    and Draining, which is nobody's fault.

    What a system does in parallel fails as a group: what concerns the whole run counts, else the first error of it.
    """
    try:
        await system.run(stage)
    except (MappaError, Draining, GeneratorExit):
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise TeamError(str(error) or "the system cancelled itself") from error
    except BaseException as error:  # a user's function may raise anything; the episode is lost and the run goes on
        found = list(_each(error))
        first = next((one for one in found if isinstance(one, Draining | JournalError | ServerError)), found[0])
        if isinstance(first, MappaError | Draining):
            raise first from error
        raise TeamError(f"the system raised {type(first).__name__}: {first}{_where(first)}") from error
    if not stage.actions:
        raise TeamError("the system took no action: its function must await stage.act at least once")


def _each(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _each(inner)
    else:
        yield error


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
