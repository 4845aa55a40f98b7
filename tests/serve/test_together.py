"""Clients that meet train in one packed step, and each gets what it would have got alone, bit for bit in float32."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import tinker
import torch

from mappa.config import LearnConfig
from mappa.model.base import load_base
from mappa.model.lora import add_roles, new_adapter
from mappa.serve import losses
from mappa.serve.model import Model, ModelWeights
from mappa.serve.step import Datum, Step, TrainRequest, TrainResult
from mappa.serve.wire import AdamParams
from tests.serve.server import Server
from tests.serve.talk import ADAM, logprobs, model, some_data

LIMIT = 16


class Bench:
    """Models of different ranks over one base, each with data of its own."""

    def __init__(self, folder: Path, budget: int, dtype: str = "float32") -> None:
        self.base = load_base(str(folder), dtype)
        self.config = LearnConfig(tokens_per_micro_batch=budget)
        self.router, self.layers = add_roles(self.base.model, self.config.targets, 0, 1.0)
        self.blank = ModelWeights({}, self.layers, rank=LIMIT, limit=LIMIT, alpha=1.0)

    def request(self, index: int, *, backward: bool = True) -> TrainRequest:
        generator = torch.Generator().manual_seed(index)
        rank = 2 + 3 * index
        adapter = new_adapter(self.layers, rank, generator)
        for _, b in adapter.values():
            b.data.normal_(std=0.05, generator=generator)
        weights = ModelWeights(adapter, self.layers, rank=rank, limit=LIMIT, alpha=32.0)
        shared = torch.randint(2, 250, (18 + index,), generator=generator).tolist()
        data = []
        for n in range(1 if index == 0 else 5):
            own = torch.randint(2, 250, (1 + 6 * n * index,), generator=generator).tolist()
            tokens = (*(shared if index else ()), *own)
            weight = torch.rand(len(tokens), generator=generator)
            data.append(Datum(tokens, torch.tensor([*tokens[1:], 7]), {"weights": weight}))
        return TrainRequest(Model(f"client-{index}", weights), tuple(data), losses.cross_entropy, backward)

    def run(self, *requests: TrainRequest) -> tuple[int, list[TrainResult]]:
        step = Step(requests, self.base, self.router, self.blank, self.config)
        return sum(1 for _ in step.passes()), step.results


@pytest.mark.parametrize(("budget", "passes"), [(4096, 1), (128, 3)])
@pytest.mark.parametrize("family", ["tiny_model", "tiny_qwen"])
def test_alone_and_in_company_bit_for_bit(
    family: str, budget: int, passes: int, request: pytest.FixtureRequest
) -> None:
    """Log-probs, loss and the weights after the step; one client has a single token, and all have different ranks."""
    bench = Bench(request.getfixturevalue(family), budget)
    count, together = bench.run(*(bench.request(index) for index in range(4)))
    assert count == 1 if passes == 1 else count >= passes, "four models, one packed step"
    lone_passes = 0
    for index, ours in enumerate(together):
        count, (alone,) = bench.run(bench.request(index))
        lone_passes += count
        assert ours.loss == alone.loss and not ours.fault
        assert all(torch.equal(a, b) for a, b in zip(ours.logprobs, alone.logprobs, strict=True))
        norms = [result.request.model.optim_step(AdamParams()) for result in (ours, alone)]
        assert norms[0] == norms[1] and norms[0]["grad_norm"] > 0
        pairs = zip(ours.request.model.parameters, alone.request.model.parameters, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert lone_passes > len(together) or budget == 4096


def test_a_fault_of_one_is_none_of_the_others(tiny_model: Path) -> None:
    """A client whose weights are NaN gets nothing but the blame; the other's bits stay what they are."""
    bench = Bench(tiny_model, 4096)
    broken = bench.request(1)
    with torch.no_grad():
        broken.model.parameters[0].fill_(float("nan"))
    _, (ours, theirs) = bench.run(bench.request(2), broken)
    _, (alone,) = bench.run(bench.request(2))
    assert "log-prob of datum 0 is NaN" in theirs.fault and not theirs.request.model.has_gradient
    assert ours.loss == alone.loss and not ours.fault
    norms = [result.request.model.optim_step(AdamParams()) for result in (ours, alone)]
    assert norms[0] == norms[1]


def test_four_clients_are_one_step(tiny_model: Path, tmp_path: Path) -> None:
    """Requests of four real clients within the time that one waits for others: one step of four models."""
    server = Server(f"model={tiny_model}", "name=tiny", f"state={tmp_path}", "gather=4")
    clients = [server.client() for _ in range(4)]
    trainings = [model(client, rank=2 + 2 * n, seed=n) for n, client in enumerate(clients)]
    asked = [training.forward_backward(some_data(n), "cross_entropy") for n, training in enumerate(trainings)]
    assert [future.result().metrics["models_in_step:max"] for future in asked] == [4.0] * 4
    for client in clients:
        client.close("success").result()
    server.close()


def test_four_clients_at_once(server: Server) -> None:
    """Four real clients train side by side and meet; each has the log-probs of one that trains alone."""

    def train(index: int, client: tinker.ServiceClient, barrier: threading.Barrier | None) -> None:
        training = model(client, rank=2 + 2 * index, seed=index)
        sizes, found = [], []
        for step in range(4):
            if barrier is not None:
                barrier.wait(60)
            forward = training.forward_backward(some_data(10 * index + step), "cross_entropy")
            optim = training.optim_step(ADAM)
            result = forward.result()
            optim.result()
            sizes.append(result.metrics["models_in_step:max"])
            found.append(logprobs(result))
        results[index, barrier is not None] = sizes, found

    results: dict[tuple[int, bool], tuple[list[float], list[list[list[float]]]]] = {}
    clients = [server.client() for _ in range(4)]
    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=train, args=(n, client, barrier)) for n, client in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for index, client in enumerate(clients):
        train(index, client, None)
        client.close("success").result()
    assert max(max(results[index, True][0]) for index in range(4)) >= 2, "they never met"
    for index in range(4):
        assert results[index, True][1] == results[index, False][1]
        assert set(results[index, False][0]) == {1.0}
