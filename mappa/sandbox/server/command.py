"""How the server's processes are started: one command line, an environment with nothing of the trainer's in it."""

from __future__ import annotations

import sys

_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from server.start import main; sys.path.pop(0); main()"


def command(folder: str, *arguments: str) -> list[str]:
    """This interpreter, isolated from environment and user settings, running the package `server` in `folder`."""
    return [sys.executable, "-I", "-B", "-X", "utf8", "-c", _BOOT, folder, *arguments]


def execution_environment() -> dict[str, str]:
    """All the environment that the server, and with it the model's code, ever gets."""
    return {
        "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "USER": "agent",
        "LANG": "C.UTF-8",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": "/tmp/matplotlib",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        # A library that starts threads when imported would lose them in every fork.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator; pandas imports it where it is there
        # Each further malloc arena reserves 64 MiB of the address space that is limited.
        "MALLOC_ARENA_MAX": "2",
    }
