"""Who scores an action: `await load_coach(config.coach).score(context)` gives a Verdict.

A coach sees evidence and never measures: outcomes are measured by the tasks' own graders.
"""

from __future__ import annotations

from mappa.coach.context import ActionContext, Coach
from mappa.coach.rubric import RubricCoach
from mappa.config import CoachConfig

__all__ = ["ActionContext", "Coach", "RubricCoach", "load_coach"]


def load_coach(config: CoachConfig) -> Coach:
    """The coach that `config` asks for."""
    match config.kind:
        case "rubric":
            return RubricCoach()
