"""x"""
from __future__ import annotations
from mappa.coach.context import ActionContext, Coach
from mappa.coach.rubric import RubricCoach
from mappa.config import CoachConfig
def load_coach(config: CoachConfig) -> Coach:
    return RubricCoach()
