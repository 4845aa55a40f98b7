"""The rollout loop against a barrier per batch with an inline coach, and what the loop itself costs.

python -m bench.rollout [--quick] [--json PATH]

The loop, its scheduler and its journal are the real ones; generation, tools and coach only take simulated time, on a
clock that jumps (bench/parts/rollout_simulation.py has the distributions). So hours and shares below are simulated,
while microseconds and actions/s are CPU and wall time of this machine.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.harness import Row, compare, environment, finish, parser
from bench.parts import virtual
from bench.parts.rollout_simulation import (
    LEARN_SECONDS,
    LONGEST,
    PROMPT_TOKENS,
    Server,
    Team,
    Text,
    actions_of,
    coach,
    latency,
    make_jobs,
    make_services,
    open_workspace,
    train,
)
from mappa.journal import WINDOW, Journal, Observation
from mappa.rollout.scheduler import Batch, Scheduler
from mappa.rollout.stage import Rules, Services
from mappa.rollout.thread import relax_collector
from mappa.types import Action, Episode, ExecutionResult, SamplingParams, Verdict

STALENESS = 1
DEADLINE = 3600.0


@dataclass(frozen=True)
class Workload:
    steps: int
    episodes: int
    slots: int
    """Requests that the server decodes at once."""

    @property
    def actions(self) -> list[list[str]]:
        """Names of every episode's actions."""
        return [actions_of(f"{step}-{index}") for step in range(1, self.steps + 1) for index in range(self.episodes)]

    @property
    def serving(self) -> float:
        """Seconds that the server needs if it is never idle."""
        return sum(latency(action).generate for actions in self.actions for action in actions) / self.slots

    @property
    def longest(self) -> float:
        """Seconds of the longest chain: an episode's generations and tools, and its last verdict."""
        return max(
            sum(latency(action).generate + latency(action).tool for action in actions) + latency(actions[-1]).coach
            for actions in self.actions
        )


def main() -> None:
    arguments = parser("the rollout loop against a barrier with an inline coach").parse_args()
    env = environment(("msgspec",))
    quick = arguments.quick
    workload = Workload(4, 32, 18) if quick else Workload(16, 128, 64)
    rows = [*throughput_rows(workload, full=not quick), *overhead_rows(512 if quick else 4096, full=not quick)]
    rows += journal_rows(1_000 if quick else 10_000, full=not quick)
    finish("rollout", rows, arguments.json, env)


def throughput_rows(workload: Workload, *, full: bool) -> list[Row]:
    """The same episodes, step for step, in both designs."""
    seconds = _ours(workload)
    barrier = virtual.run(_barrier(workload))
    episodes = workload.steps * workload.episodes
    bound = max(workload.serving, workload.longest)
    what = f"{workload.steps} steps of {workload.episodes} episodes, staleness at most {STALENESS}"
    return [
        compare(
            f"episodes/hour, {what}",
            3600 * episodes / seconds,
            3600 * episodes / barrier,
            "barrier, inline coach",
            "1/h, simulated",
            ">= 2.0" if full else "",
            more_is_better=True,
        ),
        compare(
            f"episodes/hour against the bound, {what}",
            3600 * episodes / seconds,
            3600 * episodes / bound,
            f"max(serving {workload.serving:.0f} s, longest chain {workload.longest:.0f} s)",
            "1/h, simulated",
            ">= 0.92" if full else "",
            more_is_better=True,
        ),
    ]


def overhead_rows(episodes: int, *, full: bool) -> list[Row]:
    """CPU time per action with that many episodes in flight, on the loop's thread and in the whole process."""
    loop, process, actions = _overhead(episodes)
    bare = virtual.run(_bare(episodes)) / actions
    goal = "<= 1" if full else ""
    what = f"CPU per action, {episodes} episodes in flight"
    note = f"less {1e6 * bare:.0f} us that the simulated waits take alone"
    return [
        compare(f"{what}: the loop's thread", 1e6 * (loop / actions - bare), 150.0, "the limit", "us", goal, note=note),
        compare(f"{what}: with the journal's thread", 1e6 * (process / actions - bare), 150.0, "the limit", "us"),
    ]


def journal_rows(actions: int, *, full: bool) -> list[Row]:
    """One writer: prompts and outputs of 1,000 tokens each, with log-probs, the tool's result and the verdict."""
    rate, size = _journal(actions)
    return [
        compare(
            "journal: actions of 1,000 + 1,000 tokens, one writer",
            rate,
            2000.0,
            "the least",
            "1/s",
            ">= 1" if full else "",
            more_is_better=True,
            note=f"{size / actions:.0f} bytes per action",
        )
    ]


def _services(journal: Journal, slots: int) -> Services:
    return make_services(
        journal,
        Text(),
        Server(slots),
        coach(),
        open_workspace,
        tokens=slots * (PROMPT_TOKENS + LONGEST),
        roles=len(Team.roles),
    )


def _ours(workload: Workload) -> float:
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite", window=0) as journal:
        return virtual.run(_overlapping(workload, journal, Path(folder)), lambda: journal.pending > 0)


async def _overlapping(workload: Workload, journal: Journal, folder: Path) -> float:
    clock = asyncio.get_running_loop().time
    began = rolled = clock()

    def batch(step: int) -> Batch:
        jobs = make_jobs(folder, step + 1, workload.episodes)
        rules = Rules(temperature=1.0, repair=False, deadline=DEADLINE, oldest=step - STALENESS)
        return Batch(key=str(step), phase="train", jobs=jobs, rules=rules)

    async def learn(step: int, episodes: list[Episode]) -> None:
        nonlocal rolled
        _check(episodes)
        rolled = clock()
        if step + 1 < workload.steps:
            await asyncio.sleep(LEARN_SECONDS)

    async with AsyncExitStack() as stack:
        scheduler = Scheduler(Team(), _services(journal, workload.slots))
        stack.push_async_callback(scheduler.close)
        names = [role.name for role in Team.roles]
        await train(scheduler, names, steps=workload.steps, staleness=STALENESS, batch=batch, learn=learn)
    return rolled - began


async def _barrier(workload: Workload) -> float:
    """Each step waits for its slowest episode, each turn for its verdict, and generation for the learner."""
    clock = asyncio.get_running_loop().time
    places = asyncio.Semaphore(workload.slots)

    async def episode(actions: list[str]) -> None:
        for action in actions:
            drawn = latency(action)
            async with places:
                await asyncio.sleep(drawn.generate)
            await asyncio.sleep(drawn.tool)
            await asyncio.sleep(drawn.coach)

    began = clock()
    for step in range(1, workload.steps + 1):
        names = [f"{step}-{index}" for index in range(workload.episodes)]
        await asyncio.gather(*(episode(actions_of(name)) for name in names))
        rolled = clock()
        if step < workload.steps:
            await asyncio.sleep(LEARN_SECONDS)
    return rolled - began


def _check(episodes: list[Episode]) -> None:
    for episode in episodes:
        complete = [action for action in episode.actions if action.verdict is not None]
        assert episode.error is None and not episode.cut and len(complete) == len(actions_of(episode.id)), episode


def _overhead(episodes: int) -> tuple[float, float, int]:
    """CPU seconds of the loop's thread and of the process, and actions, of one batch that is all in flight."""
    for index in range(episodes):
        for action in actions_of(f"1-{index}"):
            latency(action)
    relax_collector()
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite", window=0) as journal:
        return virtual.run(_one_batch(episodes, journal, Path(folder)), lambda: journal.pending > 0, WINDOW)


async def _bare(episodes: int) -> float:
    """CPU seconds of tasks that call the simulated server, tools and coach as the batch does, and do nothing else."""
    server, workspace = Server(episodes), await open_workspace()
    params = SamplingParams(temperature=1.0, max_tokens=LONGEST, seed=0)

    async def episode(name: str) -> None:
        scoring = []
        for action in actions_of(name):
            await server.generate((), "", params, action)
            await workspace.run(action)
            scoring.append(asyncio.create_task(asyncio.sleep(latency(action).coach)))
        await asyncio.gather(*scoring)

    began = time.thread_time()
    await asyncio.gather(*(episode(f"1-{index}") for index in range(episodes)))
    return time.thread_time() - began


async def _one_batch(episodes: int, journal: Journal, folder: Path) -> tuple[float, float, int]:
    services = _services(journal, episodes)
    services.published.set(0, {role.name: f"{role.name}@0" for role in Team.roles})
    scheduler = Scheduler(Team(), services)
    jobs = make_jobs(folder, 1, episodes)
    thread, process = time.thread_time(), _process_time()
    scheduler.begin(
        Batch(key="1", phase="train", jobs=jobs, rules=Rules(temperature=1.0, repair=False, deadline=DEADLINE))
    )
    ended = await scheduler.finish("1")
    spent = time.thread_time() - thread, _process_time() - process
    assert ended is not None
    _check(ended)
    return *spent, sum(len(episode.actions) for episode in ended)


def _process_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _journal(actions: int) -> tuple[float, int]:
    """Actions per second of wall time, and bytes on disk."""
    action = Action(
        role="modeler",
        turn=0,
        adapter="modeler@3",
        prompt_ids=tuple(range(1000, 2000)),
        output_ids=tuple(range(2000, 3000)),
        logprobs=tuple(-1 / 2 ** (index % 30) for index in range(1000)),
        finish_reason="stop",
        text="x = 1\n" * 600,
    )
    observation = Observation(code="x = 1\n" * 600, execution=ExecutionResult(outcome="ok", stdout="1\n" * 100))
    verdict = Verdict(score=8.0, reason="fine", coach="rubric@1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        with Journal(path) as journal:
            began = time.perf_counter()
            for index in range(actions):
                journal.add_action(f"1-{index // 12}", index % 12, action)
                journal.add_result(f"1-{index // 12}", index % 12, observation)
                journal.add_verdict(f"1-{index // 12}", index % 12, verdict)
            journal.flush()
            seconds = time.perf_counter() - began
        return actions / seconds, path.stat().st_size


if __name__ == "__main__":
    main()
