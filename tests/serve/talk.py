"""What clients of the API say."""

from __future__ import annotations

from collections.abc import Sequence

import tinker
import torch
from tinker import types

ADAM = types.AdamParams(learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8)
STILL = types.AdamParams(learning_rate=0.0)
"""Changes nothing, and tells the norm of the gradient."""


def model(client: tinker.ServiceClient, rank: int = 8, seed: int = 0, **more: bool) -> tinker.TrainingClient:
    return client.create_lora_training_client("tiny", rank=rank, seed=seed, **more).result()


def text(tokens: Sequence[int]) -> types.ModelInput:
    return types.ModelInput.from_ints(list(tokens))


def supervised(prompt: Sequence[int], completion: Sequence[int]) -> types.Datum:
    """All but the last token in, all but the first out; the prompt has no weight."""
    tokens = [*prompt, *completion]
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(completion)
    return types.Datum(model_input=text(tokens[:-1]), loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights})


def reinforced(
    prompt: Sequence[int], completion: Sequence[int], logprobs: Sequence[float], advantage: float
) -> types.Datum:
    """Targets, log-probs and advantages are zeros over the prompt, as the public RL loop has them."""
    before = len(prompt) - 1
    return types.Datum(
        model_input=text([*prompt, *completion[:-1]]),
        loss_fn_inputs={
            "target_tokens": torch.tensor([0] * before + list(completion)),
            "logprobs": torch.tensor([0.0] * before + list(logprobs)),
            "advantages": torch.tensor([0.0] * before + [advantage] * len(completion)),
        },
    )


def some_data(seed: int, count: int = 4) -> list[types.Datum]:
    """Supervised data that share a beginning, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(2, 250, (20,), generator=generator).tolist()
    return [
        supervised(prompt, torch.randint(2, 250, (3 + 4 * n + seed % 3,), generator=generator).tolist())
        for n in range(count)
    ]


def logprobs(output: types.ForwardBackwardOutput) -> list[list[float]]:
    return [found["logprobs"].tolist() for found in output.loss_fn_outputs]
