"""Multi-agent systems. A system names its roles and is one async function over a *stage*, which is an episode as the
system sees it: roles act on it, their code is run, and every action is scored and kept without the system's doing.
docs/systems.md has an example of every shape.
"""

from mappa.systems.loading import adapters_of, frozen_adapters, load_system, team_of
from mappa.systems.stage import CodeOf, FunctionSystem, Stage, System, system
from mappa.systems.text import chat, python_block, python_program, shortened, spoken, tagged, without_thinking
from mappa.types import Action, Message, Role

__all__ = [
    "Action",
    "CodeOf",
    "FunctionSystem",
    "Message",
    "Role",
    "Stage",
    "System",
    "adapters_of",
    "chat",
    "frozen_adapters",
    "load_system",
    "python_block",
    "python_program",
    "shortened",
    "spoken",
    "system",
    "tagged",
    "team_of",
    "without_thinking",
]
