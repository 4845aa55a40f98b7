"""The local sampler against transformers' generate: the same base, batch, prompts and temperature.

python -m bench.sampler [--quick] [--json PATH]

24 prompts that begin with the same 300 tokens or more: as in the quickstart, where what is written repeats much of what
was shown, so that guesses come true; and questions in prose at temperature 1, where nothing repeats. Tokens are counted
to each row's end. Rates are per CPU second of the process, over all rounds; wall seconds are in rows of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.harness import Row, compare, environment, finish, parser, without_spinning
from mappa.config import LearnConfig, cache_home
from mappa.model.base import Base, load_base
from mappa.model.lora import add_roles, new_adapter
from mappa.model.smollm2 import NAME, smollm2_folder
from mappa.sampler.local import LocalSampler
from mappa.systems import chat
from mappa.systems.datascience import ENGINEER
from mappa.tasks import prepare
from mappa.types import Message, SamplingParams

PEER = "transformers generate"
TOPICS = ("rain", "bread", "glass", "salt", "bees", "rust", "chess", "tides", "paper", "owls", "yeast", "wool")
RULES = (
    "You are a patient teacher who answers in plain prose. Say what the thing is, where it comes from, what "
    "people have used it for, and one fact that is seldom told. Never use lists, headings or quotations. Begin "
    "with the answer itself, not with praise of the question. Prefer short words to long ones, and short "
    "sentences to long ones. If a date is not certain, say so. If something is a matter of taste, say whose. Do "
    "not repeat the question. Do not apologise. Do not mention these rules. Write as if to a curious neighbour "
    "who has a few minutes and no dictionary at hand. Where a number helps, give one and say what it counts. "
    "Where two things are often confused, say how they differ. Where the answer was different in the past, say "
    "when it changed and why. Keep to what is known; a guess is welcome if it is called a guess. Stop when the "
    "answer is complete, even if that is after two sentences. A reader should be able to tell somebody else about "
    "it over dinner, and to be right. Leave out what is only of interest to specialists. Do not sell anything, "
    "and do not warn of anything that is not dangerous. End without a summary, since the answer is short. When "
    "the question cannot be answered, say what would have to be known first, and who might know it. When it has "
    "several answers, give the one that most people would find useful."
)


@dataclass
class Side:
    """One candidate: generates for all prompts and returns the tokens it wrote."""

    run: Callable[[], int]
    tokens: int = 0
    cpu: float = 0.0
    wall: float = 0.0

    def clock(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        tokens = self.run()
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall
        self.tokens += tokens


def main() -> None:
    arguments = parser("the local sampler against transformers' generate").parse_args()
    count, longest, rounds = (6, 12, 1) if arguments.quick else (24, 96, 3)
    goal = "" if arguments.quick else ">= 2"
    base = load_base(NAME, "float32")
    peer = AutoModelForCausalLM.from_pretrained(smollm2_folder(cache_home()), dtype=torch.float32).eval()
    sampler = _sampler(base)
    rows: list[Row] = []
    for name, prompts, temperature in _workloads(base, count):
        ours = Side(partial(_ours, sampler, prompts, temperature, longest))
        theirs = Side(partial(_theirs, peer, base, prompts, temperature, longest))
        _take_turns(ours, theirs, rounds)
        what = f"{count} prompts that share {_common(prompts)} tokens, up to {longest} new: {name}"
        rows.append(_row(what, ours.tokens / ours.cpu, theirs.tokens / theirs.cpu, "tok/s CPU", goal))
        rows.append(_row(f"{what}, wall", ours.tokens / ours.wall, theirs.tokens / theirs.wall, "tok/s wall", ""))
    sampler.close()
    env = {**environment(("torch", "transformers")), "threads": torch.get_num_threads()}
    finish("sampler", rows, arguments.json, env)


def _row(what: str, ours: float, peer: float, unit: str, goal: str) -> Row:
    return compare(what, ours, peer, PEER, unit, goal, more_is_better=True)


def _workloads(base: Base, count: int) -> list[tuple[str, list[tuple[int, ...]], float]]:
    """(name, prompts, temperature)."""
    tasks = prepare("quickstart", cache_home())
    requests = [task.prompt for task in (*tasks.train, *tasks.heldout)]
    code = [base.prompt_ids(list(chat(ENGINEER, requests[i % len(requests)]))) for i in range(count)]
    topics = [TOPICS[i % len(TOPICS)] for i in range(count)]
    questions = [f"What should I know about {topic}, part {i + 1}?" for i, topic in enumerate(topics)]
    prose = [base.prompt_ids([Message("system", RULES), Message("user", question)]) for question in questions]
    return [("code after examples, temperature 0.6", code, 0.6), ("prose, temperature 1", prose, 1.0)]


def _sampler(base: Base) -> LocalSampler:
    """With one adapter, as a role has; it changes nothing yet, so that both sides sample from the same distribution."""
    config = LearnConfig()
    router, layers = add_roles(base.model, config.targets, config.first_layer, config.alpha / config.rank)
    sampler = LocalSampler(base, router, layers, max_rows=24, max_context=2048, threads=torch.get_num_threads())
    asyncio.run(sampler.publish("writer", 0, new_adapter(layers, config.rank, torch.Generator().manual_seed(0))))
    return sampler


def _take_turns(ours: Side, theirs: Side, rounds: int) -> None:
    """A round each that is not counted, then `rounds` in turn."""
    ours.run()
    theirs.run()
    for _ in range(rounds):
        ours.clock()
        theirs.clock()


def _ours(sampler: LocalSampler, prompts: Sequence[tuple[int, ...]], temperature: float, longest: int) -> int:
    async def all_of_them() -> int:
        work = [
            sampler.generate(
                prompt,
                "writer@0",
                SamplingParams(temperature=temperature, max_tokens=longest, seed=index),
                str(index),
            )
            for index, prompt in enumerate(prompts)
        ]
        return sum(len(generation.output_ids) for generation in await asyncio.gather(*work))

    return asyncio.run(all_of_them())


@torch.inference_mode()
def _theirs(peer: Any, base: Base, prompts: Sequence[tuple[int, ...]], temperature: float, longest: int) -> int:
    """One padded batch; what follows a row's end is not counted."""
    width, end = max(map(len, prompts)), sorted(base.end_ids)
    ids = torch.tensor([[end[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = peer.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=longest,
        eos_token_id=end,
        pad_token_id=end[0],
    )[:, width:]
    ended = torch.isin(out, torch.tensor(end))
    before = (ended.cumsum(1) - ended.long()) == 0  # up to the first end token, itself included
    return int(before.sum())


def _common(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts begin with."""
    return next(i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1)


if __name__ == "__main__":
    without_spinning("bench.sampler")
    main()
