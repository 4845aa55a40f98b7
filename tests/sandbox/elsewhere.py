"""Programs run as another user, or as root who shares an interpreter with other users."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
USER = 12345


def run_elsewhere(
    *arguments: str,
    user: int | None = USER,
    before: str = ":",
    through: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    cwd: str = "/tmp",
    timeout: float = 240,
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter as `user` (None: as root) where every user can read it, wherever it is installed.

    Where it lies below a folder that is root's alone, that folder is replaced, in a mount namespace, by one that
    holds nothing else. `before`: shell commands as root; `through`: a command that runs the interpreter.
    """
    needed = sorted({sys.prefix, sys.base_prefix, str(REPOSITORY)})
    shell = ["set -e"]
    shut = {str(parent) for path in needed for parent in Path(path).parents if not parent.stat().st_mode & 0o001}
    for number, folder in enumerate(sorted(shut)):
        below = [path for path in needed if path.startswith(folder + "/")]
        stash = [f"/mnt/stash-{number}-{index}" for index in range(len(below))]
        shell += ["mount -t tmpfs tmpfs /mnt"] if number == 0 else []
        shell += [f"mkdir {place} && mount --bind {path} {place}" for path, place in zip(below, stash, strict=True)]
        shell += [f"mount -t tmpfs -o mode=755 tmpfs {folder}"]
        shell += [f"mkdir -p {path} && mount --bind {place} {path}" for path, place in zip(below, stash, strict=True)]
    become = "" if user is None else f"setpriv --reuid {user} --regid {user} --clear-groups --inh-caps=-all "
    shell += [before, f'exec {become}"$@"']
    paths = f"{REPOSITORY}:{REPOSITORY / 'kernels'}"
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", "\n".join(shell), "sh", *through, sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={"PYTHONPATH": paths, "PATH": os.environ["PATH"], "HOME": "/tmp", **(environment or {})},
        cwd=cwd,
    )
