"""Samples, their log-probs and those of prompts."""

from __future__ import annotations

import numpy as np
import pytest
import tinker
from tinker import types

from tests.serve.talk import ADAM, logprobs, model, some_data, supervised, text

PROMPT = list(range(40, 60))


@pytest.fixture
def trained(client: tinker.ServiceClient) -> tinker.TrainingClient:
    training = model(client)
    training.forward_backward(some_data(0), "cross_entropy").result()
    training.optim_step(ADAM).result()
    return training


def test_log_probs_are_the_learners(trained: tinker.TrainingClient) -> None:
    """Of what was sampled and of the prompt: what `forward` says of the same weights."""
    sampling = trained.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=12, seed=1, stop=[])
    found = sampling.sample(text(PROMPT), 3, params, include_prompt_logprobs=True).result()
    assert len(found.sequences) == 3 and len({tuple(sequence.tokens) for sequence in found.sequences}) == 3
    data = [supervised(PROMPT, sequence.tokens) for sequence in found.sequences]
    expected = logprobs(trained.forward(data, "cross_entropy").result())
    assert found.prompt_logprobs is not None and found.prompt_logprobs[0] is None
    for sequence, values in zip(found.sequences, expected, strict=True):
        assert sequence.stop_reason == "length" and len(sequence.tokens) == 12
        np.testing.assert_allclose(sequence.logprobs, values[len(PROMPT) - 1 :], atol=1e-4)
        np.testing.assert_allclose(found.prompt_logprobs[1:], values[: len(PROMPT) - 1], atol=1e-4)
    last = sampling.compute_logprobs(text(PROMPT), prompt_logprobs_last_n=4).result()
    assert last == [None] * 16 + found.prompt_logprobs[-4:]


def test_seeds_temperature_and_lengths(client: tinker.ServiceClient) -> None:
    """The same seed, the same samples, in any number; greedy has no choice; the base has no adapter."""
    base = client.create_sampling_client(base_model="tiny").result()

    def sample(count: int, **more: object) -> list[list[int]]:
        params = types.SamplingParams(**{"max_tokens": 8, "stop": [], **more})
        return [found.tokens for found in base.sample(text(PROMPT), count, params).result().sequences]

    four = sample(4, seed=7)
    assert sample(2, seed=7) == four[:2] and sample(4, seed=8) != four
    assert len({tuple(tokens) for tokens in sample(4)}) > 1  # no seed: a new one each
    greedy = sample(2, temperature=0.0)
    assert greedy[0] == greedy[1]
    assert sample(1, temperature=0.0, max_tokens=3) == [greedy[0][:3]]


def test_where_a_text_ends(client: tinker.ServiceClient) -> None:
    """At a token, at a string, at the base's own end, or nowhere; what ended it is part of it."""
    base = client.create_sampling_client(base_model="tiny").result()

    def write(stop: object, tokens: int = 30) -> types.SampledSequence:
        params = types.SamplingParams(max_tokens=tokens, seed=3, stop=stop)
        return base.sample(text(PROMPT), 1, params).result().sequences[0]

    free = write([])
    assert free.stop_reason == "length" and len(free.tokens) == 30
    cut = write([free.tokens[5], free.tokens[9]])
    ends = min(free.tokens.index(free.tokens[5]), free.tokens.index(free.tokens[9]))
    assert cut.tokens == free.tokens[: ends + 1] and cut.stop_reason == "stop"
    from tests.tiny import tokenizer

    letters = [(n, tokenizer().decode([token])) for n, token in enumerate(free.tokens)]
    place, letter = next((n, letter) for n, letter in letters if letter.isascii() and letter.isprintable())
    word = write(letter)
    assert word.tokens == free.tokens[: place + 1] and word.stop_reason == "stop"


def test_saved_by_name_and_inflight(client: tinker.ServiceClient, trained: tinker.TrainingClient) -> None:
    """Weights saved under a name stay what they were; an inflight sampler follows its model."""
    path = trained.save_weights_for_sampler("first").result().path
    following = trained.save_weights_and_get_sampling_client(kind="inflight").result()
    before = following.compute_logprobs(text(PROMPT)).result()
    trained.forward_backward(some_data(1), "cross_entropy").result()
    trained.optim_step(ADAM).result()
    assert following.compute_logprobs(text(PROMPT)).result() == before
    newer = trained.save_weights_and_get_sampling_client(kind="inflight").result()
    after = newer.compute_logprobs(text(PROMPT)).result()
    assert after != before and following.compute_logprobs(text(PROMPT)).result() == after
    named = client.create_sampling_client(model_path=path).result()
    assert named.get_base_model() == "tiny" and named.compute_logprobs(text(PROMPT)).result() == before


def test_what_is_not_offered_is_refused(client: tinker.ServiceClient) -> None:
    base = client.create_sampling_client(base_model="tiny").result()
    asked: list[tuple[dict[str, object], str]] = [
        ({"top_p": 0.9}, "whole distribution"),
        ({"top_k": 5}, "whole distribution"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_tokens": 100_000}, "max_context"),
        ({"seed": -1}, "seed"),
    ]
    for settings, message in asked:
        params = types.SamplingParams(**{"max_tokens": 2, **settings})
        with pytest.raises(tinker.RequestFailedError, match=message) as caught:
            base.sample(text(PROMPT), 1, params).result()
        assert caught.value.category is types.RequestErrorCategory.User
    with pytest.raises(tinker.RequestFailedError, match="topk_prompt_logprobs"):
        base.sample(text(PROMPT), 1, types.SamplingParams(max_tokens=1), topk_prompt_logprobs=3).result()
    with pytest.raises(tinker.RequestFailedError, match=r"outside 0\.\.259"):
        base.sample(text([5, 260]), 1, types.SamplingParams(max_tokens=1)).result()
