"""Two real SGLang servers on the CPU, started once for all tests here; the tests hold the same tiny model."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mappa.config import SGLangConfig
from mappa.model.attention import TreePlan, decode_layers
from mappa.model.base import load_base
from mappa.model.lora import Adapter, add_roles, new_adapter
from mappa.sampler.sglang.canary import Canary
from mappa.sampler.sglang.process import Launch
from mappa.sampler.sglang.sampler import SGLangSampler
from mappa.types import Generation
from tests.cpu_servers import PYTHON, cpu_servers
from tests.tiny import write_tiny_model

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROLES = ("solver", "coder", "verifier")
RANK, CONTEXT = 8, 1024


class Fleet:
    """A sampler over two servers, and the learner's side to compare them with."""

    def __init__(self, model: Path, logs: Path) -> None:
        self.model = model
        self.base = load_base(str(model), "float32")
        self.router, self.layers = add_roles(self.base.model, TARGETS, 1, 2.0)
        self.notices: list[str] = []
        self.versions: dict[str, int] = {}
        self.adapters: dict[str, Adapter] = {}
        """What was published, by name."""
        self._runner = asyncio.Runner()
        launch = Launch(
            model=str(model),
            dtype="float32",
            rank=RANK,
            targets=TARGETS,
            loras_per_batch=7,
            max_context=CONTEXT,
            context=CONTEXT,
        )
        prompts = {role: tuple(range(30 + 40 * i, 90 + 40 * i)) for i, role in enumerate(ROLES)}
        self._opening = SGLangSampler.open(
            self.base,
            self.layers,
            SGLangConfig(servers=2, health_interval=2.0, start_timeout=900.0, **cpu_servers()),
            launch,
            Canary(self.base, self.router, prompts),
            logs=logs,
            notice=self.notices.append,
        )
        self.sampler = self.run(self._opening.__aenter__())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run on the loop that the sampler belongs to."""
        return self._runner.run(work)

    def close(self) -> None:
        self.run(self._opening.__aexit__(None, None, None))
        self._runner.close()

    async def publish(self, role: str, rank: int = RANK) -> str:
        """Publish other weights as the role's next version."""
        version = self.versions[role] = self.versions.get(role, 0) + 1
        generator = torch.Generator().manual_seed(zlib.crc32(f"{role}@{version}".encode()))  # the same in every run
        adapter = new_adapter(self.layers, rank, generator)
        for _, b in adapter.values():
            b.data.normal_(0, 0.1, generator=generator)
        name = await self.sampler.publish(role, version, adapter)
        self.adapters[name] = adapter
        return name

    def gap(self, name: str | None, prompt: tuple[int, ...], result: Generation, temperature: float) -> float:
        """Largest distance of the result's log-probs from the learner's."""
        ids = torch.tensor(prompt + result.output_ids)
        adapters, ends = ([self.adapters[name]], [0, len(ids)]) if name is not None else ([], [0])
        with torch.inference_mode(), self.router.route(adapters, ends):
            embedded = self.base.decoder.embed_tokens(ids)[None]
            hidden = decode_layers(self.base.decoder, embedded, torch.arange(len(ids)), TreePlan([len(ids)], [-1]))
            logits = F.linear(self.base.decoder.norm(hidden[0, len(prompt) - 1 : -1]), self.base.head)
        chosen = torch.tensor(result.output_ids)[:, None]
        expected = torch.log_softmax(logits / (temperature or 1.0), -1).gather(1, chosen)[:, 0]
        return float((expected - torch.tensor(result.logprobs)).abs().max())


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if not PYTHON.exists():
        pytest.fail(f"no SGLang at {PYTHON}; run `make sglang`")
    # On a CPU SGLang pads a layer's width to a multiple of 32 and then refuses adapters of the real width.
    model = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", intermediate_size=96)
    fleet = Fleet(model, tmp_path_factory.mktemp("servers"))
    yield fleet
    fleet.close()


async def until(condition: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of another process, which sets no event here
            await asyncio.sleep(0.05)
