"""The two loops of the API's public quick start, with the real client over a real socket."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pytest
import tinker
from tinker import types

from tests.serve.server import KEY, Server
from tests.serve.talk import ADAM, model, reinforced, supervised, text

PAIRS = {"banana split": "anana-bay plit-say", "quantum physics": "uantum-qay ysics-phay", "code": "ode-cay"}


def test_supervised(client: tinker.ServiceClient) -> None:
    """Examples are learned by heart; the saved weights then write them."""
    training = model(client)
    tokenizer = training.get_tokenizer()
    prompts = {english: tokenizer.encode(f"English: {english}\nPig Latin:") for english in PAIRS}
    answers = {english: [*tokenizer.encode(f" {latin}"), tokenizer.eos_token_id] for english, latin in PAIRS.items()}
    data = [supervised(prompts[english], answers[english]) for english in PAIRS]
    losses = []
    for _ in range(30):
        forward = training.forward_backward(data, "cross_entropy")
        step = training.optim_step(ADAM)
        losses.append(forward.result().metrics["loss:sum"])
        assert step.result().metrics["grad_norm"] > 0
    assert losses[-1] < 0.05 * losses[0]
    sampling = training.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=24, temperature=0.0, stop=["\n"])
    for english, prompt in prompts.items():
        written = sampling.sample(text(prompt), num_samples=1, sampling_params=params).result().sequences[0]
        assert written.tokens == answers[english] and written.stop_reason == "stop"


def test_reinforcement(client: tinker.ServiceClient) -> None:
    """Groups of samples, centred rewards, one step a batch: what is rewarded, half by chance, becomes likely.

    Over six seeds the last three steps came to 0.9 and more: the bound is far from the noise of one sampling.
    """
    training = model(client)
    prompt = training.get_tokenizer().encode("Say something:")
    rewards = []
    for step in range(12):
        sampling = training.save_weights_and_get_sampling_client().result()
        params = types.SamplingParams(max_tokens=3, seed=step, stop=[])
        group = sampling.sample(text(prompt), 64, params).result().sequences
        scores = [sum(token % 2 == 0 for token in sequence.tokens) / 3 for sequence in group]
        rewards.append(sum(scores) / len(scores))
        data = [
            reinforced(prompt, sequence.tokens, sequence.logprobs or [], score - rewards[-1])
            for sequence, score in zip(group, scores, strict=True)
        ]
        forward = training.forward_backward(data, "importance_sampling")
        step_done = training.optim_step(types.AdamParams(learning_rate=2e-2))
        forward.result()
        step_done.result()
    assert rewards[0] < 0.6 and sum(rewards[-3:]) / 3 > 0.75, rewards


def test_the_program_of_the_page(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/embedding.md: the client finds the server by its environment and learns that 2 + 3 = 5."""
    page = Path(__file__).resolve().parents[2] / "docs" / "embedding.md"
    (program,) = (text for text in re.findall(r"```python\n(.*?)```", page.read_text(), re.S) if "tinker" in text)
    monkeypatch.setattr(sys, "argv", ["program.py", "tiny"])
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    exec(program, {})
    *losses, wrote, saved = capsys.readouterr().out.splitlines()
    assert len(losses) == 10 and float(losses[-1].split()[0]) < float(losses[0].split()[0]) / 2
    assert wrote == " 5" and saved.endswith("/weights/five")


def test_the_older_way_to_wait(server: Server) -> None:
    """Clients that know the deprecated names get the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with server.client() as client:
            assert [known.model_name for known in client.get_server_capabilities().supported_models] == ["tiny"]
