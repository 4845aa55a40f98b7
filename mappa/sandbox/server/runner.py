"""Runs the model's code as `__main__` in this process, reports how it ended, and leaves without a trace of us."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import json
import linecache
import os
import random
import sys
import threading
import traceback
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import NoReturn

FILENAME = "main.py"
MESSAGE_LIMIT = 2000
"""Characters of an exception's text that are reported; all of it goes to stderr."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


REPORT, STARTED, CODE = 3, 4, 5
"""Descriptors that an execution begins with, beside stdin, stdout and stderr. Only REPORT stays open."""


def run() -> NoReturn:
    """Execute what CODE holds, write a JSON report to REPORT if an exception ended it, exit.

    STARTED is told first that all went well so far: what comes after is the model's doing.
    """
    source = os.pread(CODE, os.fstat(CODE).st_size, 0)
    os.close(CODE)
    os.set_inheritable(REPORT, False)
    os.write(STARTED, b"started")
    os.close(STARTED)
    _run(source, REPORT)


def _run(source: bytes, report: int) -> NoReturn:
    _freshen()
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    main.__file__ = os.path.join(os.getcwd(), FILENAME)
    main.__spec__ = ModuleSpec("__main__", None)  # else a process that is spawned would look for that file
    sys.modules["__main__"] = main
    try:
        status = _execute(source, main, report)
        status = _finish(report) or status
    finally:
        _flush()
        os._exit(1 if sys.exc_info()[0] else status)


def hide() -> None:
    """Take this package out of `sys.modules`: the model may have a module of the same name."""
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
        del sys.modules[name]


def _freshen() -> None:
    """Undo what must not be shared with other forks of the same server."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(random.getrandbits(32))
    sys.argv = [FILENAME]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what is printed before a kill is kept
    sys.path.insert(0, os.getcwd())
    gc.enable()


def _execute(source: bytes, main: ModuleType, report: int) -> int:
    try:
        text = source.decode("utf-8")
        lines = text.splitlines(keepends=True)
        linecache.cache[FILENAME] = (len(source), None, lines, FILENAME)
        # Else it would be compiled with this file's `from __future__` as well.
        exec(compile(text, FILENAME, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as stop:
        return _exit_status(stop)
    except BaseException as error:  # noqa: BLE001 - whatever the model's code raises ends it, and is evidence
        _tell(error, report)
        return 1
    return 0


def _finish(report: int) -> int:
    """What an interpreter does at its end: wait for threads, run exit handlers. 1 if that fails."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException as error:  # noqa: BLE001 - as above: these handlers are the model's
        _tell(error, report)
        return 1
    return 0


def _exit_status(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def _tell(error: BaseException, report: int) -> None:
    """The traceback, without our frames, to stderr; type, message and line to `report`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != FILENAME:
        trace = trace.tb_next
    _flush()
    text = "".join(traceback.format_exception(type(error), error, trace))
    _write(2, text.encode("utf-8", "backslashreplace"))
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - the model's own __str__
        message = "<exception str() failed>"
    name = type(error).__qualname__
    told = {
        "exception": (f"{name}: {message}" if message else name)[:MESSAGE_LIMIT],
        "line": _line(error, trace),
        "kind": _kind(error),
    }
    _write(report, json.dumps(told).encode())


def _line(error: BaseException, trace: TracebackType | None) -> int | None:
    """Where in the model's code: its deepest frame, or the place of a syntax error."""
    if isinstance(error, SyntaxError) and error.filename == FILENAME:
        return error.lineno
    found = [number for frame, number in traceback.walk_tb(trace) if frame.f_code.co_filename == FILENAME]
    return found[-1] if found else None


def _kind(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return "disk"
    return None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # The model may have closed or replaced it: nothing of ours is lost.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _write(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the model may have closed it: its exit status still says how it ended
        while data:
            data = data[os.write(descriptor, data) :]
