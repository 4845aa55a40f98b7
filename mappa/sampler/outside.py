"""A role's words from a model outside of the run: an OpenAI-compatible chat endpoint. Nothing of it is trained on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Literal

import httpx
import msgspec
from msgspec import Struct

from mappa.config import OutsideConfig
from mappa.errors import ConfigError, SamplerError
from mappa.types import Message, SamplingParams

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 20.0


class Written(Struct, frozen=True, kw_only=True):
    """What an outside model answered."""

    text: str
    finish_reason: Literal["stop", "length"]


class _Said(Struct):
    content: str | None = None


class _Choice(Struct):
    message: _Said
    finish_reason: str | None = None


class _Answer(Struct):
    choices: list[_Choice]


class OutsideModel:
    """One endpoint. `name` is the section of the config that describes it."""

    def __init__(self, name: str, config: OutsideConfig) -> None:
        self.name = name
        self._config = config
        self._slots = asyncio.Semaphore(config.concurrency)
        key = os.environ.get(config.key_env, "") if config.key_env else ""
        if config.key_env and not key:
            raise ConfigError(
                f"outside.{name}: the environment variable {config.key_env} is empty; put the API key in it"
            )
        self._client = httpx.AsyncClient(
            base_url=config.url.rstrip("/") + "/",
            timeout=config.timeout,
            headers={"authorization": f"Bearer {key}"} if key else {},
        )

    async def write(self, messages: Sequence[Message], params: SamplingParams) -> Written:
        """One answer. Overload and lost connections are tried again; raises SamplerError when that is of no use."""
        body = {
            "model": self._config.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": params.temperature,
            "max_tokens": params.max_tokens,
            "seed": params.seed & 0x7FFFFFFF,
        }
        fault = ""
        async with self._slots:
            for attempt in range(self._config.attempts):
                if attempt:
                    await asyncio.sleep(min(_LONGEST_WAIT, 0.25 * 2**attempt))
                try:
                    reply = await self._client.post("chat/completions", json=body)
                except httpx.HTTPError as error:
                    fault = f"{type(error).__name__} {error}".strip()
                    continue
                if reply.status_code == 200:
                    return self._read(reply.content)
                fault = f"{reply.status_code}: {reply.text[:200]}"
                if reply.status_code not in _RETRIED:
                    break
        raise SamplerError(f"outside.{self.name} at {self._config.url} gave no answer: {fault}")

    async def close(self) -> None:
        await self._client.aclose()

    def _read(self, data: bytes) -> Written:
        try:
            choice = msgspec.json.decode(data, type=_Answer).choices[0]
        except (msgspec.DecodeError, IndexError) as error:
            raise SamplerError(f"outside.{self.name} answered what is no chat completion: {error}") from error
        return Written(
            text=choice.message.content or "", finish_reason="length" if choice.finish_reason == "length" else "stop"
        )
