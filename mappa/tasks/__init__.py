"""Where tasks come from, and how an outcome is measured.

    tasks = prepare("quickstart", cache)            # or another source: source.py has the list
    populate(task, workspace)                       # the public tables
    evidence = await inspect(task, role, workspace, open_workspace)
    repair(task, workspace, ("X_test.pkl",))        # training only: reference artefacts
    outcome(task, actions)

What a role left behind is opened in the sandbox only, by the programs in probes/; the answers never share a workspace
with an object that model-written code made.
"""

from mappa.tasks.found import TaskSet
from mappa.tasks.inspection import inspect, outcome
from mappa.tasks.metrics import normalised
from mappa.tasks.source import measured_on, prepare
from mappa.tasks.supply import populate, public_files, repair

__all__ = [
    "TaskSet",
    "inspect",
    "measured_on",
    "normalised",
    "outcome",
    "populate",
    "prepare",
    "public_files",
    "repair",
]
