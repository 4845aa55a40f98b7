"""Servers of our own: the command, the child processes, their logs, and that none outlives the trainer."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from mappa.config import SGLangConfig
from mappa.errors import ConfigError, ServerError

_GUARD = Path(__file__).with_name("guard.py")
_STOP_SECONDS = 10.0
_LAST_LINES = 25
_FOREIGN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "GROUP_", "ROLE_", "LOCAL_WORLD_SIZE", "TORCHELASTIC_")
"""What torchrun tells its ranks; a server that heard it would take itself for one."""


class Launch(Struct, frozen=True, kw_only=True):
    """What every server of a run is started with."""

    model: str
    dtype: str
    rank: int
    targets: tuple[str, ...]
    loras_per_batch: int
    max_context: int
    """Longest prompt plus output, tokens."""
    context: int
    """What a server is given: a little more, where the model has it, for SGLang keeps some tokens to itself."""


class ServerProcess:
    """One start of one server. Made by `start`; a process that ended is not started again, a new one is made."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path, on_exit: Callable[[], None]) -> None:
        self.url = url
        self.log = log
        self._tell = on_exit
        self._process = process
        loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[None] = loop.create_future()
        descriptor = os.pidfd_open(process.pid)
        loop.add_reader(descriptor, self._on_exit, loop, descriptor)

    @classmethod
    async def start(
        cls,
        config: SGLangConfig,
        launch: Launch,
        number: int,
        log: Path,
        taken: set[int],
        on_exit: Callable[[], None],
    ) -> ServerProcess:
        """Start server `number` on a free port that is not in `taken`, which the port joins.

        Its output goes to `log`; `on_exit` is called on this loop when it has ended.
        """
        port = await asyncio.to_thread(_free_port, config.ports, taken)
        taken.add(port)
        command = command_of(config, launch, port)
        process = await asyncio.to_thread(_spawn, command, environment_of(config, number), log)
        return cls(process, f"http://127.0.0.1:{port}", log, on_exit)

    @property
    def ended(self) -> bool:
        return self._exited.done()

    async def stop(self) -> None:
        """End every process of the server and return when the guard, which goes last, is gone."""
        if not self.ended:
            self._process.terminate()
            try:
                await asyncio.wait_for(asyncio.shield(self._exited), _STOP_SECONDS)
            except TimeoutError:
                os.killpg(self._process.pid, 9)
        await self._exited

    def _on_exit(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        self._process.wait()
        if not self._exited.done():
            self._exited.set_result(None)
        self._tell()

    def last_words(self) -> str:
        """The last lines of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return "\n  ".join(["", *lines[-_LAST_LINES:]]) if lines else " nothing"


def check_python(config: SGLangConfig) -> None:
    """Refuse a config that names no Python with SGLang, or GPUs that do not suffice. Raises ConfigError."""
    how = (
        "run `make sglang` for CPU servers (.venv-sglang/bin/python), or install sglang into an environment of its own"
    )
    if not config.urls and not config.python:
        raise ConfigError(f"sampler.kind='sglang' needs sampler.sglang.python or sampler.sglang.urls; {how}")
    if config.urls:
        return
    if count(config) * config.tp > len(config.gpus) > 0:
        raise ConfigError(
            f"sampler.sglang: {count(config)} servers of tp={config.tp} need {count(config) * config.tp} GPUs, gpus "
            f"names {len(config.gpus)}"
        )
    try:
        found = subprocess.run(
            [_absolute(config.python), "-c", "import importlib.metadata as m; print(m.version('sglang'))"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd="/",
            env=environment_of(config, 0),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"sampler.sglang.python={config.python!r} cannot be run ({error}); {how}") from None
    if found.returncode != 0:
        last = found.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        raise ConfigError(f"sampler.sglang.python={config.python!r} has no sglang ({last[0]}); {how}")


def count(config: SGLangConfig) -> int:
    """How many servers are ours to start."""
    return config.servers or max(1, len(config.gpus) // config.tp)


def server_gpus(config: SGLangConfig, number: int) -> tuple[int, ...]:
    return config.gpus[number * config.tp : (number + 1) * config.tp]


def command_of(config: SGLangConfig, launch: Launch, port: int) -> list[str]:
    options = {
        "model-path": launch.model,
        "dtype": launch.dtype,
        "host": "127.0.0.1",
        "port": port,
        "tp-size": config.tp,
        "context-length": launch.context,
        "max-lora-rank": launch.rank,
        "max-loras-per-batch": launch.loras_per_batch,
    }
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    flags = ["--enable-lora", "--lora-target-modules", *launch.targets]
    if config.seeded:
        flags.append("--enable-deterministic-inference")
    # The config's own come last: of an option that is given twice, the last one counts.
    return [_absolute(config.python), "-m", "sglang.launch_server", *given, *flags, *config.args]


def environment_of(config: SGLangConfig, number: int) -> dict[str, str]:
    """This process's environment without what belongs to it alone, and with what the config adds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*_FOREIGN, "PYTHON"))}
    if config.gpus:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, server_gpus(config, number)))
    return {**kept, **config.environment}


def _absolute(python: str) -> str:
    """A path, not resolved: through its links a virtual environment's Python would be the one it was made from."""
    return os.path.abspath(python) if "/" in python else python


def _spawn(command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    trainer = os.pidfd_open(os.getpid())
    try:
        with log.open("ab") as output:
            output.write(f"\n[{time.strftime('%F %T')}] {' '.join(command)}\n".encode())
            output.flush()
            return subprocess.Popen(
                [sys.executable, "-S", "-E", str(_GUARD), str(trainer), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd="/",
                pass_fds=(trainer,),
                start_new_session=True,
            )
    finally:
        os.close(trainer)


def _free_port(ports: tuple[int, int], taken: set[int]) -> int:
    first, last = ports
    candidates = [port for port in range(first, last + 1) if port not in taken]
    for port in random.sample(candidates, len(candidates)):  # two runs at a time begin at different ones
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError(f"no port of sampler.sglang.ports={list(ports)} is free; name another range")
