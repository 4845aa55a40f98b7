"""What the server's processes do first, by the name of their part."""

from __future__ import annotations

import json
import os
import signal
import sys

from .command import command, execution_environment


def main() -> None:
    """`guard PIDFD CGROUP`: on the host, make the private root. `serve FACTS`: inside it, fork executions.
    `bubblewrap PIDFD CGROUP`, `landlock ...`, `unsafe ...`: on the host, start executions. `execute LIMITS`: inside
    bubblewrap, be one.
    """
    mode, argument, *rest = sys.argv[2:]
    # What a process hands down beside its environment; the trainer's may be anything.
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if mode == "guard":
        from .launch import SERVER_CODE, launch

        serving = command(os.path.dirname(SERVER_CODE), "serve")
        launch(int(argument), serving, execution_environment(), cgroup=rest[0])
    elif mode == "execute":
        from . import runner
        from .fallback import confine_execution

        confine_execution(argument)
        runner.hide()
        runner.run()
    elif mode == "landlock":
        # Executed anew, so that no fork holds anything of the environment this one was started with.
        folder = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
        anew = command(folder, "landlock-server", argument, *rest)
        os.execve(anew[0], anew, execution_environment() | {"JOBLIB_MULTIPROCESSING": "0"})  # it needs /dev/shm
    elif mode == "landlock-server":
        from .landlock import Landlock
        from .main import main as serve

        serve(Landlock, trainer=int(argument), cgroup=rest[0])
    elif mode in ("bubblewrap", "unsafe"):
        from .fallback import Bubblewrap, Nothing
        from .main import main as serve

        if mode == "bubblewrap":
            serve(Bubblewrap, trainer=int(argument), cgroup=rest[0], preload=False)
        else:
            serve(Nothing, trainer=int(argument), cgroup=rest[0])
    else:
        from .isolation import Namespaces, Place
        from .main import main as serve

        facts = json.loads(argument)
        groups = facts.pop("groups")
        place = Place(**facts)
        serve(lambda limits: Namespaces(place, limits), groups=groups)
