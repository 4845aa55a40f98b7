"""Runs a server and ends all of its processes when it ends, when told to (SIGTERM), or when the trainer is gone.

    python guard.py PIDFD COMMAND...

PIDFD is a descriptor of the trainer's process, which becomes readable when that dies in whatever way. Started as the
leader of a session, it is one with the server: what it kills at last is their process group, itself included.
Standard library only: it runs before anything else is known to work.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    trainer, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, lambda *_: _end())
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", flush=True)
        sys.exit(1)
    ended = os.pidfd_open(server.pid)
    waiting = select.poll()
    for descriptor in (trainer, ended):
        waiting.register(descriptor, select.POLLIN)
    if any(descriptor == ended for descriptor, _ in waiting.poll()):
        print(f"the server ended with exit status {server.wait()}", flush=True)
    _end()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
