"""Stop patterns see characters, also those that take several tokens."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch

from mappa.model.base import Base, load_base
from mappa.model.lora import add_roles, new_adapter
from mappa.sampler.engine import Request
from mappa.sampler.local import LocalSampler
from mappa.sampler.sglang.answers import Answers
from mappa.sampler.sglang.wire import Finish, Meta, Reply
from mappa.sampler.stopping import Pieces, remembering
from mappa.types import Generation, SamplingParams

WORD = "答え"


@pytest.fixture
def base(tiny_model: Path) -> Base:
    """Its tokens are single bytes."""
    return load_base(str(tiny_model), "float32")


@pytest.mark.parametrize("seed", range(20))
def test_a_text_comes_in_whole_characters(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choices("ab \né答え🙂\N{REPLACEMENT CHARACTER}", k=200)) + "."
    encoded, tokens = text.encode(), [b""]
    while encoded:  # tokens of one to five bytes, which may end one character and begin the next
        size = chance.randint(1, 5)
        tokens.append(encoded[:size])
        encoded = encoded[size:]
    decode = remembering(lambda ids: b"".join(tokens[id] for id in ids).decode("utf-8", "replace"))
    pieces, so_far = Pieces(), ""
    for token in range(1, len(tokens)):
        so_far += pieces.add(token, decode)
        assert text.startswith(so_far)
    assert so_far == text


@pytest.mark.parametrize("seed", range(20))
def test_what_is_no_text_is_neither_held_for_ever_nor_lost(base: Base, seed: int) -> None:
    chance = random.Random(seed)
    ids = [chance.choice(range(100, 260)) for _ in range(300)]  # mostly bytes that are no character
    pieces = Pieces()
    told = "".join(pieces.add(token, base.text) for token in ids)
    assert base.text(tuple(ids)).startswith(told)
    assert len(told) >= len(base.text(tuple(ids))) - 17


def word_ids(base: Base) -> list[int]:
    ids = list(base.tokenizer(WORD, add_special_tokens=False)["input_ids"])
    assert len(ids) == 6
    return ids


def test_a_row_ends_with_the_token_that_completes_the_word(base: Base) -> None:
    request = Request("x", (2, 3), "a", SamplingParams(max_tokens=50, stop=WORD))
    for token in [40, *word_ids(base)]:
        assert request.finish is None
        request.take(token, -1.0, base.text, False)
    assert request.finish == "stop"


def test_a_servers_answer_ends_there_too(base: Base) -> None:
    ids = [40, *word_ids(base), 41, 42]
    found = Meta(id="x", finish_reason=Finish("length"), output_token_logprobs=[(-1.0, token, None) for token in ids])
    read = Answers(base, 100).read(Reply(found), SamplingParams(max_tokens=50, stop=WORD), "x")
    assert (read.output_ids, read.finish_reason) == (tuple(ids[:7]), "stop")


def test_a_character_of_two_tokens_ends_a_text_that_is_being_sampled(base: Base) -> None:
    router, layers = add_roles(base.model, ("q_proj",), 1, 1.0)
    base.end_ids = frozenset()
    sampler = LocalSampler(base, router, layers, max_rows=2, max_context=2000, threads=1)

    async def run() -> Generation:
        await sampler.publish("solver", 1, new_adapter(layers, 2, torch.Generator().manual_seed(0)))
        params = SamplingParams(max_tokens=1000, temperature=3.0, seed=1, stop="[\x80-\u07ff]")
        return await sampler.generate((5, 6, 7), "solver@1", params, "a")

    try:
        written = asyncio.run(run())
    finally:
        sampler.close()
    text = base.text(written.output_ids)
    assert written.finish_reason == "stop"
    assert [character for character in text if "\x80" <= character <= "\u07ff"] == [text[-1]]
