"""Every loss against the formula that the API publishes, worked out by the client itself from log-probs it got."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import tinker
import torch
from tinker import types

from tests.serve.talk import ADAM, STILL, logprobs, model, some_data, text

Formula = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]


def clip(ratio: torch.Tensor, given: Mapping[str, torch.Tensor], low: float, high: float) -> torch.Tensor:
    return ratio.clamp(
        given.get("clip_low_threshold", torch.tensor(low)), given.get("clip_high_threshold", torch.tensor(high))
    )


def cross_entropy(x: torch.Tensor, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return -(x * given["weights"]).sum()


def importance_sampling(x: torch.Tensor, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return -((x - given["logprobs"]).exp() * given["advantages"]).sum()


def ppo(x: torch.Tensor, given: Mapping[str, torch.Tensor], low: float = 0.8, high: float = 1.2) -> torch.Tensor:
    ratio, advantages = (x - given["logprobs"]).exp(), given["advantages"]
    return -torch.min(ratio * advantages, clip(ratio, given, low, high) * advantages).sum()


def cispo(x: torch.Tensor, given: Mapping[str, torch.Tensor], low: float = 0.8, high: float = 1.2) -> torch.Tensor:
    ratio = (x - given["logprobs"]).exp()
    return -(clip(ratio, given, low, high).detach() * x * given["advantages"]).sum()


def rl_data(training: tinker.TrainingClient, *, per_token_clip: bool = False) -> list[types.Datum]:
    """Ratios on both sides of the clip."""
    generator = torch.Generator().manual_seed(1)
    plain = some_data(3)
    found = []
    for datum, values in zip(plain, logprobs(training.forward(plain, "cross_entropy").result()), strict=True):
        near = torch.tensor(values) + 0.4 * torch.randn(len(values), generator=generator)
        inputs = {
            "target_tokens": datum.loss_fn_inputs["target_tokens"],
            "logprobs": near,
            "advantages": torch.randn(len(values), generator=generator),
        }
        if per_token_clip:
            inputs["clip_low_threshold"] = torch.rand(len(values), generator=generator)
            inputs["clip_high_threshold"] = 1 + torch.rand(len(values), generator=generator)
        found.append(types.Datum(model_input=datum.model_input, loss_fn_inputs=inputs))
    return found


def gradient_norm(training: tinker.TrainingClient) -> float:
    return training.optim_step(STILL).result().metrics["grad_norm"]


@pytest.fixture
def trained(client: tinker.ServiceClient) -> tinker.TrainingClient:
    training = model(client)
    training.forward_backward(some_data(0), "cross_entropy").result()
    training.optim_step(ADAM).result()
    return training


@pytest.mark.parametrize(
    ("name", "formula", "settings", "per_token"),
    [
        ("cross_entropy", cross_entropy, None, False),
        ("importance_sampling", importance_sampling, None, False),
        ("ppo", ppo, None, False),
        ("ppo", ppo, {"clip_low_threshold": 0.5, "clip_high_threshold": 1.9}, False),
        ("ppo", ppo, None, True),
        ("cispo", cispo, None, False),
        ("cispo", cispo, None, True),
    ],
)
def test_value_and_gradient(
    trained: tinker.TrainingClient,
    name: types.LossFnType,
    formula: Formula,
    settings: dict[str, float] | None,
    per_token: bool,
) -> None:
    data = some_data(2) if name == "cross_entropy" else rl_data(trained, per_token_clip=per_token)

    def theirs(data: list[types.Datum], values: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        limits = {key: torch.tensor(value) for key, value in (settings or {}).items()}
        inputs = [{**limits, **{k: v.to_torch() for k, v in datum.loss_fn_inputs.items()}} for datum in data]
        return sum((formula(x, given) for x, given in zip(values, inputs, strict=True)), torch.zeros(())), {}

    ours = trained.forward_backward(data, name, settings).result()
    norm = gradient_norm(trained)
    expected = trained.forward_backward_custom(data, theirs).result()
    assert ours.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
    assert norm == pytest.approx(gradient_norm(trained), rel=1e-5) and norm > 1
    assert logprobs(ours) == logprobs(expected)


def test_gradients_add_up_until_the_step(trained: tinker.TrainingClient) -> None:
    """Two calls and one step are one call with all the data; what was gathered is then gone."""
    first, second = some_data(2), some_data(5)
    trained.forward_backward([*first, *second], "cross_entropy").result()
    together = gradient_norm(trained)
    trained.forward_backward(first, "cross_entropy").result()
    trained.forward(second, "cross_entropy").result()  # leaves no trace
    trained.forward_backward(second, "cross_entropy").result()
    assert gradient_norm(trained) == pytest.approx(together, rel=1e-5)
    with pytest.raises(tinker.RequestFailedError, match="no gradient"):
        trained.optim_step(STILL).result()


def test_several_targets_of_a_position(trained: tinker.TrainingClient) -> None:
    """[tokens, K] targets: the log-prob of each, as if it were asked for alone; sparse ones too."""
    tokens = [5, 9, 200, 31, 77, 4, 18]
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(2, 250, (len(tokens), 3), generator=generator)
    weights = torch.rand(targets.shape, generator=generator)
    weights[2:6, 1:] = 0.0
    sparse = torch.where(weights > 0, targets, 0)

    def ask(targets: torch.Tensor, weights: torch.Tensor) -> types.ForwardBackwardOutput:
        inputs = {"target_tokens": targets, "weights": weights}
        data = [types.Datum(model_input=text(tokens), loss_fn_inputs=inputs)]
        return trained.forward(data, "cross_entropy").result()

    whole = ask(targets, weights)
    found = np.array(logprobs(whole)[0])
    assert found.shape == targets.shape
    for column in range(3):
        alone = ask(targets[:, column], weights[:, column])
        np.testing.assert_allclose(found[:, column], logprobs(alone)[0], atol=1e-5)
    assert ask(sparse, weights).metrics["loss:sum"] == pytest.approx(whole.metrics["loss:sum"], rel=1e-5)


def test_clipping_weight_decay_and_no_gradient_in_what_is_not_trained(client: tinker.ServiceClient) -> None:
    """AdamParams do what they say: a clipped step is that of a smaller gradient, decay pulls weights to 0."""
    training = model(client, train_attn=False)
    assert training.get_info().lora_rank == 8
    before = training.forward(some_data(0), "cross_entropy").result().metrics["loss:sum"]
    training.forward_backward(some_data(0), "cross_entropy").result()
    clipped = types.AdamParams(learning_rate=1e-2, eps=1e-2, grad_clip_norm=1e-4)
    training.optim_step(clipped).result()
    after = training.forward(some_data(0), "cross_entropy").result().metrics["loss:sum"]
    assert abs(after - before) < 0.01 * before  # with eps far above the gradient, hardly a step
    training.forward_backward(some_data(0), "cross_entropy").result()
    training.optim_step(types.AdamParams(learning_rate=1e-2, eps=1e-8)).result()
    assert training.forward(some_data(0), "cross_entropy").result().metrics["loss:sum"] < 0.99 * before
    training.forward_backward(some_data(0), "cross_entropy").result()
    # lr times decay is 1: nothing is left of the adapter but the step itself, lr long in every weight
    training.optim_step(types.AdamParams(learning_rate=1e-6, weight_decay=1e6)).result()
    gone = training.forward(some_data(0), "cross_entropy").result().metrics["loss:sum"]
    assert gone == pytest.approx(before, rel=1e-3)
