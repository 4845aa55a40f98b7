"""The coach's client against a stand-in endpoint in a process of its own, over real sockets.

python -m bench.coach [--quick] [--json PATH]
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from msgspec.structs import replace

from bench.harness import Row, compare, environment, finish, parser
from bench.parts.coach_server import Server
from mappa.coach import ActionContext, LlmCoach
from mappa.coach.budget import Budget
from mappa.coach.client import ChatClient
from mappa.coach.client_wire import Refusal
from mappa.coach.store import CallStore, ChatRequest, MemoryStore, Purchase
from mappa.config import ChatConfig
from mappa.journal import Journal, read_calls
from mappa.rollout.purchases import JournalStore
from mappa.types import Action, Evidence, ExecutionResult, Message, Role, Task, Verdict

AT_ONCE = 200
FAULTS = {"too_many": 0.05, "error": 0.02, "hang": 0.01, "drop": 0.01, "malformed": 0.03, "latency": (0.02, 0.08)}
ROLE = Role(name="modeler", prompt="Fit a model and save it as model.pkl.", produces=("model.pkl",))
ACTION = ActionContext(
    task=Task(id="Boston", kind="regression", prompt="Target: medv (regression)."),
    role=ROLE,
    action=Action(
        role="modeler",
        turn=0,
        adapter="modeler@0",
        prompt_ids=(1,),
        output_ids=(2,),
        logprobs=(-0.1,),
        finish_reason="stop",
        text="```python\nmodel = RandomForestRegressor().fit(X, y)\npd.to_pickle(model, 'model.pkl')\n```",
        execution=ExecutionResult(outcome="ok", exit_code=0, created={"model.pkl": 8_000_000}),
        evidence=Evidence(success=True, facts={"model.pkl": True, "normalised": 0.8}),
    ),
    files={"X_train.pkl": 51_200, "model.pkl": 8_000_000},
    upstream={"data_engineer": True},
)
MESSAGES = (Message("system", "x" * 3000), Message("user", "y" * 4000))


def request(number: int) -> ChatRequest:
    return ChatRequest(key=f"key-{number}", messages=MESSAGES, max_tokens=400, tokens_in=2400)


def config(url: str, **changes: Any) -> ChatConfig:
    return ChatConfig(**{"url": url, "model": "stand-in", "concurrency": AT_ONCE, "attempt_timeout": 5.0, **changes})


async def calls(client: ChatClient, numbers: range, deadline: float) -> list[Purchase | Refusal]:
    clock, places = asyncio.get_running_loop().time, asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Purchase | Refusal:
        async with places:
            return await client.complete(request(number), clock() + deadline)

    return list(await asyncio.gather(*(one(number) for number in numbers)))


async def speed(server: Server, count: int) -> list[Row]:
    client = ChatClient(config(server.url, hedge=0.0), budget=Budget(), store=MemoryStore())
    await calls(client, range(2 * AT_ONCE), 60)
    cpu, theirs, wall = time.process_time(), server.cpu_seconds(), time.perf_counter()
    await calls(client, range(1000, 1000 + count), 60)
    wall = time.perf_counter() - wall
    cpu, theirs = (time.process_time() - cpu) / count, (server.cpu_seconds() - theirs) / count
    await client.close()
    what = f"{count} calls, {AT_ONCE} at once"
    note = f"the stand-in endpoint took {theirs * 1e3:.2f} ms CPU of each"
    return [
        compare(what, count / wall, 500.0, "the limit", "1/s", ">= 1", more_is_better=True, note=note),
        compare(f"{what}: client CPU of one", cpu * 1e3, 1.0, "the limit", "ms CPU", "<= 1"),
    ]


async def faults(server: Server, count: int) -> list[Row]:
    """Whole verdicts: what cannot be read is asked for once more, so that a malformed reply costs a request."""
    server.script(**FAULTS, seed=1)
    settings = config(server.url, deadline=60.0)
    coach, clock = LlmCoach(settings, budget=Budget(tokens=1 << 40), store=MemoryStore()), time.perf_counter
    places, longest = asyncio.Semaphore(AT_ONCE), 0.0

    async def one(number: int) -> Verdict:
        nonlocal longest
        async with places:
            started = clock()
            found = await coach.score(replace(ACTION, reading=str(number)))
            longest = max(longest, clock() - started)
            return found

    found = await asyncio.gather(*(one(number) for number in range(count)))
    await coach.close()
    ended = sum((verdict.score is None) == (verdict.missing is not None) for verdict in found)
    missing = sum(verdict.score is None for verdict in found)
    what = f"{count} actions, 5 % 429, 2 % 500, 1 % hang, 1 % dropped, 3 % malformed"
    hedged = coach.client.counts["hedged"] / coach.client.counts["sent"]
    return [
        compare(
            f"{what}: scored or missing with its reason",
            ended / count,
            1.0,
            "all",
            "share",
            ">= 1",
            more_is_better=True,
        ),
        compare(f"{what}: missing", missing / count, 0.005, "the limit", "share", "<= 1"),
        compare(f"{what}: longest", longest, settings.deadline, "its deadline", "s", "<= 1"),
        compare(f"{what}: hedged", hedged, 0.05, "the limit", "share", "<= 1.01"),
    ]


async def budgets(server: Server, count: int) -> Row:
    server.script(latency=(0.01, 0.03))
    limit = count * 1000
    budget = Budget(tokens=limit)
    client = ChatClient(config(server.url, hedge=0.0), budget=budget, store=MemoryStore())
    await calls(client, range(count), 60)
    await client.close()
    spent = float(server.stats()["tokens"])
    return compare("tokens bought under a budget", spent, float(limit), "the budget", "tokens", "<= 1")


async def buy(url: str, path: Path, count: int) -> None:
    """What the process that is killed does, and the one that goes on after it."""
    with Journal(path) as journal:
        store: CallStore = JournalStore(journal)
        client = ChatClient(config(url, hedge=0.0), budget=Budget(), store=store)
        await calls(client, range(count), 120)
        await client.close()


def killed(server: Server, count: int) -> list[Row]:
    """kill -9 half-way, then the same again: replies that had been kept and are bought a second time."""
    server.script(latency=(0.02, 0.08))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        command = [sys.executable, "-m", "bench.coach", "--buy", server.url, str(path), str(count)]
        process = subprocess.Popen(command)
        while len(httpx.get(f"{server.address}/stats", timeout=30).json()["answered"]) < count // 2:
            if process.poll() is not None:
                raise RuntimeError("the buying process ended before it could be killed")
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept = set(read_calls(path))
        subprocess.run(command, check=True, timeout=300)
        answered: dict[str, int] = server.stats()["answered"]
    twice = {key for key, times in answered.items() if times > 1}
    note = f"{len(kept)} were kept at the kill"
    return [
        compare("bought twice after kill -9", float(len(twice & kept)), 1.0, "one", "calls", "<= 0", note=note),
        compare(
            "in flight at the kill, bought again", float(len(twice - kept)), float(AT_ONCE), "at once", "calls", "<= 1"
        ),
    ]


def main() -> None:
    if sys.argv[1:2] == ["--buy"]:
        asyncio.run(buy(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
        return
    arguments = parser(__doc__ or "").parse_args()
    count = 600 if arguments.quick else 4000
    with Server(latency=(0.02, 0.08)) as server:
        rows = asyncio.run(speed(server, count))
        rows += asyncio.run(faults(server, count))
        rows.append(asyncio.run(budgets(server, count // 4)))
        rows += killed(server, count // 2)
    finish("coach", rows, arguments.json, environment(("httpx", "aiohttp", "httpx-aiohttp", "msgspec")))


if __name__ == "__main__":
    main()
