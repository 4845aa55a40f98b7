"""A system at work on a stage, with everything it does wrong as a TeamError of its own episode."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from mappa.errors import MappaError, TeamError
from mappa.systems import System

if TYPE_CHECKING:
    from mappa.rollout.stage import EpisodeStage


async def play(system: System, stage: EpisodeStage) -> None:
    """Run `system` to its end. Raises MappaError: its own where it has one, else TeamError with the line that failed.

    What a system does in parallel fails as a group: the first error of it counts.
    """
    try:
        await system.run(stage)
    except MappaError:
        raise
    except Exception as error:  # a user's function may raise anything; the episode is lost and the run goes on
        first = _first(error)
        if isinstance(first, MappaError):
            raise first from error
        raise TeamError(f"the system raised {type(first).__name__}: {first}{_where(first)}") from error
    if not stage.actions:
        raise TeamError("the system took no action: its function must await stage.act at least once")


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
