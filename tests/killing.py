"""A training run whose processes are killed at random moments, and what must hold of it in the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from mappa.journal import read_records
from tests.pages import dry_make

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
STEPS, EPISODES, ROLES = 3, 4, 3
TABLES = ("actions", "results", "verdicts")


def config_file(folder: Path, model: Path) -> Path:
    """A short run that is exact, so that two of it can be compared bit for bit.

    On a busy machine too, nothing is given up that a quiet one would wait for: it would change what is learned.
    """
    path = folder / "steady.toml"
    path.write_text(
        f'name = "steady"\nmodel = "{model}"\ndtype = "float32"\nsystem = "tests.teams:SteadyTeam"\n'
        f'runs = "{folder}/runs"\n'
        f"steps = {STEPS}\nseed = 3\nthreads = 1\nsave_every = 2\n[sampler]\ntemperature = 1.0\nexact = true\n"
        f"[sandbox]\ntimeout = 120\n[rollout]\nepisodes = {EPISODES}\ndeadline = 3000\n"
        "[learn]\nrank = 4\nlr = 1e-2\nfirst_layer = 1\n[evaluate]\nsamples = 0\n"
    )
    return path


class Job:
    """One run of the command, which may be killed. `ranks` > 1 goes through torchrun, as the Makefile calls it."""

    def __init__(self, config: Path, ranks: int, **variables: str) -> None:
        command = [sys.executable]
        if ranks > 1:
            called = next(line for line in dry_make(["train", f"N={ranks}"]) if "-m mappa.train" in line)
            command += ["-m", "torch.distributed.run", *called.partition(" -m ")[0].split()[1:]]
        self.journal = config.parent / "runs" / "steady" / "journal.sqlite"
        self.process = subprocess.Popen(
            [*command, "-m", "mappa.train", str(config)],
            env={**ENVIRONMENT, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )

    def wait_for(self, rows: int) -> bool:
        """Return True once the journal has that many rows of training, False if the run ended before."""
        while self.process.poll() is None:
            if training_rows(self.journal) >= rows:
                return True
            time.sleep(0.01)
        return False

    def kill(self, victim: str) -> bool:
        """Kill `rank0`, `rank1` or `sandbox` with SIGKILL; False if it is not there."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            if role_of(pid) == victim:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=900)
        return self.process.returncode, output


def role_of(pid: int) -> str:
    """What a process of a run is, by its command line and rank."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    if b"serve" in words:
        return "sandbox"
    if b"mappa.train" in words and b"torch.distributed.run" not in words:
        rank = next((word[5:] for word in environment if word.startswith(b"RANK=")), b"0")
        return f"rank{rank.decode()}"
    return ""


def descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def training_rows(path: Path) -> int:
    return sum(len(rows) for rows in snapshot(path).values())


def snapshot(path: Path) -> dict[str, dict[tuple[str, int], float]]:
    """Per table, what training has bought so far and when it was written."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
            return {
                table: {
                    (episode, ordinal): written
                    for episode, ordinal, written in connection.execute(
                        f"select t.episode, t.ordinal, t.time from {table} t join episodes e on e.id = t.episode "
                        "where e.phase = 'train'"
                    )
                }
                for table in TABLES
            }
    except sqlite3.OperationalError:  # not there yet
        return {}


def run_killed(config: Path, kills: int, victims: tuple[str, ...], seed: int, ranks: int) -> list[str]:
    """Run to the end through that many kills, each at a random moment of what is left. Returns who was killed."""
    draw = random.Random(seed)
    total = STEPS * EPISODES * ROLES * len(TABLES)
    bounds = sorted(draw.sample(range(1, total - 1), kills))
    killed: list[str] = []
    bought: dict[str, dict[tuple[str, int], float]] = {}
    while True:
        job = Job(config, ranks)
        while bounds and job.wait_for(bounds[0]):
            time.sleep(draw.random() * 0.05)
            victim = victims[len(killed) % len(victims)]
            if not job.kill(victim):
                continue  # it is not up yet
            killed.append(victim)
            bounds.pop(0)
            if victim != "sandbox":
                break
        code, output = job.end()
        now = snapshot(job.journal)
        for table, rows in bought.items():
            assert rows.items() <= now[table].items(), f"{table}: something was bought again, or lost"
        bought = now
        if code == 0:
            assert not bounds, output
            return killed
        assert killed and killed[-1] != "sandbox", output


def check(folder: Path) -> None:
    """Nothing lost, nothing doubled."""
    records = [
        record for step in range(1, STEPS + 1) for record in read_records(folder / "journal.sqlite", "train", step=step)
    ]
    assert len(records) == STEPS * EPISODES
    for record in records:
        assert record.state == "done", record.episode.error
        assert len(record.entries) == ROLES
        assert all(e.observation is not None and e.action.verdict is not None for e in record.entries.values())
        assert {action.adapter.rpartition("@")[2] for action in record.episode.actions} == {
            str(record.episode.step - 1)
        }


def assert_same_adapters(one: Path, other: Path) -> None:
    """Bit for bit."""
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert len(files) == ROLES
    for name in files:
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        assert all(bool((ours[key] == theirs[key]).all()) for key in ours), name
