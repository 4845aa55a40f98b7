"""What a server has to prove before anything is asked of it, and an adapter before it is routed to."""

from __future__ import annotations

import secrets

from msgspec import Struct

from mappa.errors import AdapterError, ServerError
from mappa.sampler.sglang.canary import distance
from mappa.sampler.sglang.process import Launch
from mappa.sampler.sglang.weights import Published
from mappa.sampler.sglang.wire import Client

CONTROL_SECONDS = 120.0
"""How long loading, unloading, scoring and the like may take."""


class Proof(Struct, frozen=True, kw_only=True):
    """What the learner knows, for servers to agree with. Its methods raise Unreachable and Refused as `Client` does."""

    launch: Launch
    seeded: bool
    tokenizer_probe: tuple[str, list[int]]
    """A text and its tokens by the learner's tokenizer."""
    base_canary: tuple[tuple[int, ...], tuple[float, ...]]
    """A prompt and what the learner says of it without an adapter."""
    tolerance: float
    """How far a server's log-probs may lie from the learner's, mean nats."""
    run: str
    """Begins every request id and ends every adapter name of this run, on servers that others may use too."""

    async def of_server(self, client: Client, name: str) -> None:
        """It can do what this run needs, with this tokenizer and this base. Raises ServerError."""
        await self._facts(client, name)
        await self._tokenizer(client, name)
        ids, expected = self.base_canary
        gap = distance(expected, await self._score(client, ids, None))
        if gap > self.tolerance:
            raise ServerError(
                f"{name} serves another base than {self.launch.model}: log-probs of a known prompt differ by {gap:.2g} "
                f"nats on average, {self.tolerance:.2g} are allowed (sampler.sglang.canary_tolerance); start it with "
                "this model in this dtype"
            )

    async def of_adapter(self, client: Client, name: str, published: Published) -> None:
        """What it serves under this name is this adapter. Raises AdapterError."""
        gap = distance(published.canary, await self._score(client, published.canary_ids, published.served))
        if gap > self.tolerance:
            raise AdapterError(
                f"{name} does not serve adapter {published.name!r} as the learner has it: log-probs of its canary "
                f"differ by {gap:.2g} nats on average, {self.tolerance:.2g} are allowed; nothing is routed to it"
            )

    async def _facts(self, client: Client, name: str) -> None:
        facts, launch = await client.facts(CONTROL_SECONDS), self.launch
        if facts.enable_lora is False:
            raise ServerError(f"{name} was started without LoRA; start it with --enable-lora")
        if facts.dp_size != 1:
            raise ServerError(
                f"{name} has dp_size={facts.dp_size}, with which SGLang loads no adapters at run time; start one "
                "server per data-parallel rank and give all their URLs"
            )
        if facts.max_lora_rank is not None and facts.max_lora_rank < launch.rank:
            raise ServerError(
                f"{name} takes adapters up to rank {facts.max_lora_rank}, learn.rank is {launch.rank}; start it with "
                f"--max-lora-rank {launch.rank} or set learn.rank"
            )
        if facts.context_length is not None and facts.context_length < launch.max_context:
            raise ServerError(
                f"{name} has a context of {facts.context_length} tokens, sampler.max_context asks for "
                f"{launch.max_context}; start it with --context-length {launch.max_context} or set sampler.max_context"
            )
        if self.seeded and not facts.enable_deterministic_inference:
            raise ServerError(
                f"{name} ignores seeds, and sampler.sglang.seeded asks for them; start it with "
                "--enable-deterministic-inference"
            )

    async def _tokenizer(self, client: Client, name: str) -> None:
        text, ours = self.tokenizer_probe
        theirs = await client.tokenize(text, CONTROL_SECONDS)
        if theirs != ours:
            raise ServerError(
                f"{name} has another tokenizer than {self.launch.model}: it reads {text!r} as {theirs[:8]}..., not "
                f"{ours[:8]}...; start it with --model-path {self.launch.model}"
            )

    async def _score(self, client: Client, ids: tuple[int, ...], served: str | None) -> list[float]:
        return await client.score(ids, served, f"{self.run}/canary!{served}!{secrets.token_hex(4)}.", CONTROL_SECONDS)
