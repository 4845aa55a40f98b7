"""SGLang's HTTP interface, the part that is used: one client per server, typed answers, two kinds of failure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport
from msgspec import Struct

from mappa.types import SamplingParams

T = TypeVar("T")


class Unreachable(Exception):
    """The server gave no usable answer: it is dead, hangs or is in trouble. Another one may do better."""


class Refused(Exception):
    """The server understood and said no; so would any other."""


class Finish(Struct, frozen=True):
    """Why a text ended: `stop` (end token or pattern), `length` or `abort`."""

    type: str
    message: str | None = None


class Meta(Struct, frozen=True):
    id: str
    finish_reason: Finish | None = None
    output_token_logprobs: list[tuple[float | None, int, Any]] = []
    input_token_logprobs: list[tuple[float | None, int, Any]] = []
    cached_tokens: int = 0


class Reply(Struct, frozen=True):
    """An answer of /generate. Log-probs come with their tokens: (log-prob, token id, None)."""

    meta_info: Meta


class Facts(Struct, frozen=True):
    """What a server says about itself."""

    version: str = ""
    enable_lora: bool | None = None
    max_lora_rank: int | None = None
    dp_size: int = 1
    context_length: int | None = None
    max_req_input_len: int | None = None
    enable_deterministic_inference: bool = False


class _Model(Struct, frozen=True):
    id: str


class _Models(Struct, frozen=True):
    data: list[_Model]


class _Tokens(Struct, frozen=True):
    tokens: list[int]


class Client:
    """One server. Every method raises Unreachable or Refused."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # aiohttp's connections under httpx's interface: with 200 requests at a time httpx's own pool was measured to
        # cost ten times the CPU. 0 is aiohttp's word for no limit. SGLang closes a connection after 5 idle seconds, and
        # a request that set out just then would be lost.
        limits = httpx.Limits(max_connections=0, keepalive_expiry=2.0)
        self._http = httpx.AsyncClient(base_url=self.url, transport=AiohttpTransport(limits=limits), trust_env=False)

    async def generate(
        self,
        ids: Sequence[int],
        adapter: str,
        params: SamplingParams,
        end_ids: Sequence[int],
        rid: str,
        timeout: float,
    ) -> Reply:
        """Sample a continuation with `adapter`, from softmax(logits / temperature) and nothing else."""
        sampling = {
            "temperature": params.temperature,
            "max_new_tokens": params.max_tokens,
            "sampling_seed": params.seed % 2**63,
            "stop_token_ids": list(end_ids),
            "stop_regex": params.stop,
            "no_stop_trim": True,
            # Spelled out, so that no default of the server's or the model's reshapes the distribution.
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "repetition_penalty": 1.0,
        }
        body = {"input_ids": list(ids), "lora_path": adapter, "rid": rid, "return_logprob": True}
        return await self._post("/generate", {**body, "sampling_params": sampling}, Reply, timeout)

    async def score(self, ids: Sequence[int], adapter: str | None, rid: str, timeout: float) -> list[float]:
        """log p(ids[i] | ids[:i]) for i from 1, at temperature 1."""
        body = {
            "input_ids": list(ids),
            "lora_path": adapter,
            "rid": rid,
            "return_logprob": True,
            "logprob_start_len": 0,
            "sampling_params": {"temperature": 1.0, "max_new_tokens": 0},
        }
        reply = await self._post("/generate", body, Reply, timeout)
        logprobs = [logprob for logprob, _, _ in reply.meta_info.input_token_logprobs[1:]]
        if len(logprobs) != len(ids) - 1 or None in logprobs:
            raise Refused(f"scored {len(logprobs)} of {len(ids) - 1} tokens")
        return [float(logprob) for logprob in logprobs if logprob is not None]

    async def load_folder(self, name: str, folder: str, timeout: float) -> None:
        await self._post("/load_lora_adapter", {"lora_name": name, "lora_path": folder}, None, timeout)

    async def load_tensors(self, body: bytes, timeout: float) -> None:
        await self._send("POST", "/load_lora_adapter_from_tensors", timeout, body)

    async def unload(self, name: str, timeout: float) -> None:
        await self._post("/unload_lora_adapter", {"lora_name": name}, None, timeout)

    async def abort(self, rid: str, timeout: float) -> None:
        """End one request, by its whole id: this server knows no others' prefixes."""
        await self._post("/abort_request", {"rid": rid}, None, timeout)

    async def healthy(self, timeout: float) -> bool:
        """Whether it generates: it answers once something came out of its scheduler."""
        try:
            await self._send("GET", "/health_generate", timeout)
        except (Unreachable, Refused):
            return False
        return True

    async def adapters(self, timeout: float) -> set[str]:
        """Names it would answer to."""
        models = _decode(await self._send("GET", "/v1/models", timeout), _Models)
        return {model.id for model in models.data}

    async def facts(self, timeout: float) -> Facts:
        return _decode(await self._send("GET", "/server_info", timeout), Facts)

    async def tokenize(self, text: str, timeout: float) -> list[int]:
        body = {"model": "", "prompt": text, "add_special_tokens": False}
        return (await self._post("/tokenize", body, _Tokens, timeout)).tokens

    async def close(self) -> None:
        await self._http.aclose()

    async def _post(self, path: str, body: Mapping[str, Any], kind: type[T] | None, timeout: float) -> T:
        answer = await self._send("POST", path, timeout, msgspec.json.encode(body))
        return _decode(answer, kind) if kind is not None else None  # type: ignore[return-value]

    async def _send(self, method: str, path: str, timeout: float, body: bytes | None = None) -> bytes:
        headers = {"content-type": "application/json"} if body is not None else None
        try:
            answer = await self._http.request(method, path, content=body, headers=headers, timeout=timeout)
        except (httpx.RequestError, httpx.InvalidURL, aiohttp.ClientError) as error:  # aiohttp's: what came is no HTTP
            raise Unreachable(f"{path}: {type(error).__name__} {error}".strip()) from error
        if answer.status_code >= 500:
            raise Unreachable(f"{path}: {answer.status_code} {_message(answer.content)}")
        if answer.status_code >= 400:
            raise Refused(_message(answer.content))
        return answer.content


def _decode(answer: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as error:
        raise Unreachable(f"an answer that is not SGLang's: {error}") from error


def _message(content: bytes) -> str:
    """What an error says, wherever this endpoint puts it."""
    try:
        body = json.loads(content)
    except ValueError:
        return content[:500].decode("utf-8", "replace")
    for key in ("error_message", "message", "error", "detail"):
        if isinstance(body, dict) and body.get(key):
            found = body[key]
            return str(found.get("message", found) if isinstance(found, dict) else found)
    return str(body)[:500]
