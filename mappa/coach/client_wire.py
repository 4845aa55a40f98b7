"""One request over the wire: what is sent, and what each answer of an endpoint means.

An answer is a `Purchase`, something to try `Again`, a `Refusal` of this request, or a CoachError where no request can
ever succeed (a wrong key, a wrong model). Whatever has the status 200 was billed, also where it holds no text: a model
that thinks until its limit has been paid. No message holds an API key, wherever the endpoint may have put it.
"""

from __future__ import annotations

import os
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec
from msgspec import Struct

from mappa.coach.budget import price
from mappa.coach.store import ChatRequest, Purchase, Spending
from mappa.config import ChatConfig
from mappa.errors import CoachError, ConfigError
from mappa.types import Missing

AGAIN = frozenset({408, 409, 429})
LARGEST_ANSWER = 8 << 20
SHOWN = 300
_BEARER = re.compile(r"(?i)(bearer\s+|\bsk-|\bkey\s*[=:]\s*)[\w\-.~+/]{6,}")


class Again(Struct, frozen=True):
    """Worth another try: `after` seconds at the earliest, where the endpoint said so."""

    reason: str
    after: float | None = None
    overload: bool = False
    """The endpoint has too much to do."""


class Refusal(Struct, frozen=True):
    """No use to try again."""

    kind: Missing
    reason: str


Sent = Purchase | Again | Refusal


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Message(Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(Struct):
    message: _Message
    finish_reason: str | None = None


class _Answer(Struct):
    choices: list[_Choice]
    usage: _Usage | None = None
    model: str = ""


class _Problem(Struct):
    message: str = ""
    code: str | int | None = None
    type: str | None = None


class _Fault(Struct):
    error: _Problem | str = ""


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_fault = msgspec.json.Decoder(_Fault).decode
_encode = msgspec.json.Encoder().encode


class Key:
    """An API key out of the environment. It has no text form but the header it is sent in."""

    def __init__(self, variable: str) -> None:
        self._value = os.environ.get(variable, "") if variable else ""
        if variable and not self._value:
            raise ConfigError(
                f"the environment variable {variable} (coach key_env) is not set; export the endpoint's API key under "
                "that name, or set key_env='' for an endpoint that asks for none"
            )

    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._value}"} if self._value else {}

    def redact(self, text: str) -> str:
        """`text` without this key, or anything else that looks like one, on one line and not too long."""
        if self._value:
            text = text.replace(self._value, "[key]")
        text = " ".join(_BEARER.sub(r"\1[key]", text).split())
        return text if len(text) <= SHOWN else text[:SHOWN] + "..."

    def __repr__(self) -> str:
        return "Key([key])"


def body_of(request: ChatRequest, config: ChatConfig) -> bytes:
    """The JSON body of a chat completion request."""
    body: dict[str, Any] = {
        "model": config.model,
        "messages": request.messages,
        "max_tokens": request.max_tokens,
        "temperature": config.temperature,
    }
    if request.schema is not None and config.structured != "off":
        form: dict[str, Any] = {"type": config.structured}
        if config.structured == "json_schema":
            form["json_schema"] = {"name": request.schema_name, "strict": True, "schema": request.schema}
        body["response_format"] = form
    return _encode(body)


def meaning(
    status: int, headers: Any, content: bytes, *, config: ChatConfig, key: Key, request: ChatRequest
) -> tuple[Sent, Spending]:
    """What an answer comes to, and what it cost. Raises CoachError where no request can succeed."""
    if status == 200:
        return _bought(content, config, key, request)
    return _unpaid(status, headers, content, config, key), Spending()


def _unpaid(status: int, headers: Any, content: bytes, config: ChatConfig, key: Key) -> Again | Refusal:
    text = key.redact(_message(content))
    what = f"{config.url} answered {status}: {text}"
    if "insufficient_quota" in text or "insufficient_quota" in _code(content):
        raise CoachError(f"{what}; the account of the key in {config.key_env} has no credit left")
    if status in AGAIN or status >= 500:
        return Again(what, after=retry_after(headers.get("retry-after")), overload=status in (429, 503, 529))
    if status in (401, 403):
        raise CoachError(f"{what}; check the key in the environment variable {config.key_env or '(key_env is empty)'}")
    if status == 404:
        raise CoachError(
            f"{what}; check the model {config.model!r} and that url ends where /chat/completions goes on (often /v1)"
        )
    if status == 413 or "context" in _code(content) or "context length" in text or "maximum context" in text:
        return Refusal("too-long", what)
    return Refusal("refused", what)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, in either of its forms: a number, or a date."""
    if not value:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _bought(content: bytes, config: ChatConfig, key: Key, request: ChatRequest) -> tuple[Sent, Spending]:
    try:
        answer = _decode_answer(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        shown = key.redact(content[:SHOWN].decode(errors="replace"))
        what = f"{config.url} did not answer like an OpenAI-compatible endpoint ({error}): {shown}"
        return Again(what), price(config, request.tokens_in, request.max_tokens)
    choice = answer.choices[0] if answer.choices else None
    text = choice.message.content if choice is not None else None
    tokens_in, tokens_out = _tokens(answer.usage or _Usage(), text, request)
    cost = price(config, tokens_in, tokens_out)
    if choice is None:
        return Again(f"{config.url} answered without a choice"), cost
    if text is None:
        why = choice.message.refusal or choice.finish_reason or "no reason given"
        return Refusal("refused", key.redact(f"the model gave no text: {why}")), cost
    bought = Purchase(
        text=text,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        dollars=cost.dollars,
        finish_reason=choice.finish_reason or "",
        model=answer.model,
    )
    return bought, cost


def _tokens(usage: _Usage, text: str | None, request: ChatRequest) -> tuple[int, int]:
    """Of prompt and reply as billed; estimated from above where the endpoint does not say: a reply without text may
    have been thoughts up to its limit."""
    shown = request.max_tokens if text is None else max(1, len(text.encode()) // 3)
    return (
        request.tokens_in if usage.prompt_tokens is None else usage.prompt_tokens,
        shown if usage.completion_tokens is None else usage.completion_tokens,
    )


def _fault(content: bytes) -> _Problem | None:
    try:
        found = _decode_fault(content).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return _Problem(message=found) if isinstance(found, str) else found


def _message(content: bytes) -> str:
    fault = _fault(content)
    return fault.message if fault is not None and fault.message else content[: 2 * SHOWN].decode(errors="replace")


def _code(content: bytes) -> str:
    fault = _fault(content)
    return f"{fault.code or ''} {fault.type or ''}" if fault is not None else ""
