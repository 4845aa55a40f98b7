"""A stand-in for an OpenAI-compatible endpoint, with scripted faults, in a process of its own.

    python -m bench.parts.coach_server [--script JSON]

It prints its port on the first line of its output and ends with its standard input. Replies are verdicts; `POST
/script` changes the script while it runs (the same names, as JSON); `GET /stats` says what it answered: replies per
idempotency key, and the counts of each fault. `bench.coach` and the tests use it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import msgspec
from aiohttp import web
from msgspec import Struct

ROOT = Path(__file__).resolve().parents[2]

VERDICT = '{"evidence":["the code ran to its end"],"fault":"none","reason":"all that is required is there","score":8}'


class Script(Struct, kw_only=True, forbid_unknown_fields=True):
    """What the endpoint does. Shares of requests; the rest is answered well."""

    latency: tuple[float, float] = (0.0, 0.0)
    """Seconds, drawn evenly."""
    too_many: float = 0.0
    """429, every other one with Retry-After: as a number and as a date in turn."""
    error: float = 0.0
    """500."""
    hang: float = 0.0
    """No answer at all."""
    hang_first: int = 0
    """The first so many requests get none."""
    drop: float = 0.0
    """The connection is cut."""
    malformed: float = 0.0
    """In turn: a verdict cut short, prose with a score line, prose without one, a body that is no JSON."""
    content: str = VERDICT
    replies: list[str] = []
    """Given one after the other, before `content`."""
    status: int = 200
    body: str = ""
    """Given as it is with `status`, where it is not 200 or `body` is not empty."""
    retry_after: str = ""
    key: str = ""
    """The API key that a request must bring; empty: none."""
    model: str = ""
    """The only model there is; empty: any."""
    window: int = 0
    """Prompts of more bytes are refused as too long; 0: none is."""
    tokens: int = 0
    """Tokens of prompt and of reply as billed; 0: a quarter of the bytes."""
    seed: int = 0


MALFORMED = (
    VERDICT[: len(VERDICT) // 2],
    "The code ran and everything is there.\n\nSCORE: 7/10",
    "I would say this was rather good work.",
    "",
)


class Endpoint:
    def __init__(self, script: Script) -> None:
        self.begin(script)

    def begin(self, script: Script) -> None:
        self.script = script
        self.answered: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.prompts: deque[bytes] = deque(maxlen=8)
        """The last requests' bodies, newest last."""
        self.tokens = 0
        self.in_flight: set[int] = set()  # one of its own for every script: what hung under the last one stays there
        self.most_in_flight = 0
        self._random = random.Random(script.seed)
        self._replied = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/script", self.change)
        app.router.add_get("/stats", self.stats)
        return app

    async def complete(self, request: web.Request) -> web.StreamResponse:
        in_flight = self.in_flight
        in_flight.add(id(request))
        self.most_in_flight = max(self.most_in_flight, len(in_flight))
        try:
            return await self._complete(request)
        finally:
            in_flight.discard(id(request))

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        script, body = self.script, await request.read()
        self.counts["requests"] += 1
        self.prompts.append(body)
        low, high = script.latency
        if high:
            await asyncio.sleep(self._random.uniform(low, high))
        draw, fault = self._random.random(), ""
        for name in ("too_many", "error", "hang", "drop", "malformed"):
            share: float = getattr(script, name)
            if draw < share:
                fault = name
                break
            draw -= share
        if self.counts["requests"] <= script.hang_first:
            fault = "hang"
        if fault:
            self.counts[fault] += 1
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "drop" and request.transport is not None:
            request.transport.abort()
        if fault in ("error", "drop"):
            return _problem(500, "the server had an error while processing your request", "server_error")
        if fault == "too_many":
            kind = self.counts["too_many"] % 4
            after = {0: "0.05", 2: formatdate(time.time() + 1, usegmt=True)}.get(kind, "")
            return _problem(429, "rate limit reached", "rate_limit_exceeded", after)
        refusal = self._refusal(request, body)
        return refusal if refusal is not None else self._answer(request, body, fault == "malformed")

    def _refusal(self, request: web.Request, body: bytes) -> web.Response | None:
        script = self.script
        if script.key and request.headers.get("authorization") != f"Bearer {script.key}":
            sent = request.headers.get("authorization", "")
            return _problem(401, f"Incorrect API key provided: {sent.removeprefix('Bearer ')}", "invalid_api_key")
        if script.model and json.loads(body)["model"] != script.model:
            return _problem(404, "the model does not exist or you do not have access to it", "model_not_found")
        if script.window and len(body) > script.window:
            return _problem(400, "this model's maximum context length is exceeded", "context_length_exceeded")
        if script.status != 200 or script.body:
            headers = {"retry-after": script.retry_after} if script.retry_after else {}
            kind = "application/json" if script.body.startswith("{") else "text/html"
            return web.Response(status=script.status, text=script.body, content_type=kind, headers=headers)
        return None

    def _answer(self, request: web.Request, body: bytes, malformed: bool) -> web.Response:
        script, content = self.script, self.script.content
        if script.replies:
            content = script.replies[min(self._replied, len(script.replies) - 1)]
            self._replied += 1
        if malformed:
            content = MALFORMED[self.counts["malformed"] % len(MALFORMED)]
            if not content:
                return web.Response(text="<html>upstream connect error</html>", content_type="text/html")
        tokens_in = script.tokens or len(body) // 4
        tokens_out = script.tokens or max(1, len(content) // 4)
        self.tokens += tokens_in + tokens_out
        key = request.headers.get("idempotency-key") or hashlib.blake2b(body, digest_size=8).hexdigest()
        self.answered[key] += 1
        answer = {
            "id": f"chatcmpl-{self.counts['requests']}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": script.model or "stand-in",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"},
            ],
            "usage": {
                "prompt_tokens": tokens_in,
                "completion_tokens": tokens_out,
                "total_tokens": tokens_in + tokens_out,
            },
        }
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def models(self, request: web.Request) -> web.Response:
        found = {"id": self.script.model or "stand-in", "object": "model", "created": 0, "owned_by": "bench"}
        return web.json_response({"object": "list", "data": [found]})

    async def change(self, request: web.Request) -> web.Response:
        """Another script, and every count from zero."""
        self.begin(msgspec.json.decode(await request.read(), type=Script))
        return web.json_response({})

    async def stats(self, request: web.Request) -> web.Response:
        found = {"answered": self.answered, "counts": self.counts, "prompts": [body.decode() for body in self.prompts]}
        return web.json_response({**found, "tokens": self.tokens, "most_in_flight": self.most_in_flight})


def _problem(status: int, message: str, code: str, retry_after: str = "") -> web.Response:
    headers = {"retry-after": retry_after} if retry_after else {}
    error = {"error": {"message": message, "type": code, "code": code, "param": None}}
    return web.json_response(error, status=status, headers=headers)


class Server:
    """The endpoint in a process of its own. A context manager.

    >>> with Server(too_many=0.05) as server:
    ...     config = ChatConfig(url=server.url, model="stand-in")
    """

    def __init__(self, **script: Any) -> None:
        command = [sys.executable, "-m", "bench.parts.coach_server", "--script", json.dumps(script)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"the stand-in endpoint did not start (exit status {self._process.wait()})")
        self.address = f"http://127.0.0.1:{port}"
        self.url = f"{self.address}/v1"
        self.pid = self._process.pid

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def script(self, **script: Any) -> None:
        """Another script, and every count from zero."""
        httpx.post(f"{self.address}/script", json=script, timeout=30).raise_for_status()

    def cpu_seconds(self) -> float:
        """What the endpoint has used of a core so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.address}/stats", timeout=30).raise_for_status().json()
        return found


async def serve(script: Script) -> None:
    runner = web.AppRunner(Endpoint(script).app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Nobody is left to answer when whoever started it is gone.
    loop.add_reader(sys.stdin, stop.set)
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", default="{}", help="a Script as JSON")
    asyncio.run(serve(msgspec.json.decode(parser.parse_args().script, type=Script)))


if __name__ == "__main__":
    main()
