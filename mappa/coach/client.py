"""A client of one OpenAI-compatible chat endpoint: a reply, or a typed reason why there is none, by a deadline.

    store -> budget -> slots -> pace -> request (and its hedge) -> store

What holds: a reply that is kept is never asked for again; a reply is kept before it is used; nothing waits past its
deadline; what is in flight plus what was spent stays within the budget; what was billed is kept, reply or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakValueDictionary

import httpx

from mappa.coach.budget import Budget, price
from mappa.coach.client_flow import Breaker, Latency, Pace, Slots
from mappa.coach.client_wire import LARGEST_ANSWER, Again, Key, Refusal, Sent, body_of, meaning
from mappa.coach.store import CallStore, ChatRequest, Purchase, Spending
from mappa.config import ChatConfig
from mappa.errors import CoachError, ConfigError

LONGEST_PAUSE = 30.0


class ChatClient:
    """Any number of `complete` at a time, on one event loop. Raises ConfigError if `config` cannot be used."""

    def __init__(self, config: ChatConfig, *, budget: Budget, store: CallStore) -> None:
        import aiohttp
        import httpx_aiohttp

        _check(config)
        self.config = config
        self.counts: Counter[str] = Counter()
        """Replies from the store (`kept`), requests sent, and of these those retried, hedged, failed and bought."""
        self._budget, self._store = budget, store
        self._key = Key(config.key_env)
        self._url = httpx.URL(f"{config.url.rstrip('/')}/chat/completions")
        self._headers = {"content-type": "application/json", **self._key.headers()}
        # httpx's own pool costs 5 ms of CPU per request at 200 in flight, aiohttp's a tenth of that; and httpx's client
        # above the transport (redirects, cookies, merging of headers) costs more than all of our own code.
        limits = httpx.Limits(max_connections=2 * config.concurrency)
        self._transport = httpx_aiohttp.AiohttpTransport(limits=limits, proxy=_proxy(config.url))
        self._never_met = aiohttp.ClientConnectorError
        self._broken = (httpx.TransportError, aiohttp.ClientError, OSError)
        self._slots = Slots(config.concurrency)
        self._requests, self._tokens = Pace(config.requests_per_minute), Pace(config.tokens_per_minute)
        self._breaker, self._latency = Breaker(), Latency()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._random = random.Random()
        self._failing_since: float | None = None

    async def complete(self, request: ChatRequest, deadline: float) -> Purchase | Refusal:
        """The reply to `request` by `deadline` (the loop's time). Raises CoachError where no request can succeed."""
        lock = self._locks.setdefault(request.key, asyncio.Lock())
        try:
            async with asyncio.timeout_at(deadline), lock:  # two askers of one reply: the second finds it kept
                kept = await self._store.find(request.key)
                if kept is not None:
                    self.counts["kept"] += 1
                    return kept
                return await self._buy(request, deadline)
        except TimeoutError:
            return Refusal("deadline", f"no reply by its deadline of {self.config.deadline:g} s (coach deadline)")

    def failing(self) -> float:
        """Seconds for which no request has succeeded, since the first that failed; 0 where the last one did succeed."""
        if self._failing_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._failing_since

    async def close(self) -> None:
        await self._transport.aclose()

    async def _buy(self, request: ChatRequest, deadline: float) -> Purchase | Refusal:
        clock = asyncio.get_running_loop().time
        reason = "the endpoint failed too often in a row"
        for attempt in range(self.config.attempts):
            while (wait := self._breaker.wait(clock())) > 0:
                if clock() + wait >= deadline:
                    return Refusal("unavailable", f"not asked, or not again, before the deadline: {reason}")
                await asyncio.sleep(wait)
            result = await self._attempt(request)
            if not isinstance(result, Again):
                return result
            reason = result.reason
            self.counts["retried"] += 1
            pause = self._pause(attempt, result.after)
            if clock() + pause >= deadline:
                return Refusal("unavailable", f"the next try would come {pause:.1f} s on, past the deadline: {reason}")
            await asyncio.sleep(pause)
        if not self.counts["bought"]:
            raise CoachError(f"no request of {self.counts['sent']} succeeded, the last one because {reason}")
        return Refusal("unavailable", f"{self.config.attempts} requests failed; the last one: {reason}")

    def _pause(self, attempt: int, after: float | None) -> float:
        """Full jitter: anywhere up to a bound that doubles, but no earlier than the endpoint asked for."""
        bound = min(LONGEST_PAUSE, self.config.backoff * 2**attempt)
        return (after or 0.0) + self._random.uniform(0, bound)

    async def _attempt(self, request: ChatRequest) -> Sent:
        """One request, and a second one beside it if it takes longer than nearly all do: the first success counts."""
        await self._slots.acquire()
        try:
            await self._keep_pace(request)
            running = {asyncio.create_task(self._send(request))}
            try:
                done, running = await asyncio.wait(running, timeout=self._latency.p95() if self.config.hedge else None)
                if not done and self._may_hedge(request):
                    running.add(asyncio.create_task(self._hedge(request)))
                while True:
                    for task in done:
                        if not isinstance(result := task.result(), Again) or not running:
                            return result
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in running:
                    task.cancel()
                if running:
                    await asyncio.gather(*running, return_exceptions=True)
        finally:
            self._slots.release()

    def _may_hedge(self, request: ChatRequest) -> bool:
        """A hedge is never what makes others wait, and at most so many are sent."""
        if self.counts["hedged"] + 1 > self.config.hedge * self.counts["sent"] or not self._slots.try_acquire():
            return False
        if self._take(request) > 0:
            self._give_back(request, request.tokens_in + request.max_tokens, requests=1)
            self._slots.release()
            return False
        self.counts["hedged"] += 1
        return True

    async def _hedge(self, request: ChatRequest) -> Sent:
        try:
            return await self._send(request)
        finally:
            self._slots.release()

    async def _keep_pace(self, request: ChatRequest) -> None:
        wait = self._take(request)
        if wait > 0:
            try:
                await asyncio.sleep(wait)
            except asyncio.CancelledError:
                self._give_back(request, request.tokens_in + request.max_tokens, requests=1)
                raise

    def _take(self, request: ChatRequest) -> float:
        now = asyncio.get_running_loop().time()
        tokens = request.tokens_in + request.max_tokens
        return max(self._requests.take(1, now), self._tokens.take(tokens, now))

    def _give_back(self, request: ChatRequest, tokens: int, *, requests: int = 0) -> None:
        self._tokens.give_back(tokens)
        self._requests.give_back(requests)

    async def _send(self, request: ChatRequest) -> Sent:
        """One request with its place in the budget."""
        worst = price(self.config, request.tokens_in, request.max_tokens)
        if not await self._budget.reserve_or_wait(worst):
            return Refusal("budget", f"the run's coach has spent {self._budget}")
        result, cost = None, worst  # until its end is known: a request that is given up may have been billed
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            self.counts["sent"] += 1
            result, cost = await self._post(request, worst)
            if isinstance(result, Purchase):
                await self._store.keep(request.key, result)
            self._learn(request, result, started, clock())
            return result
        except CoachError:
            cost = Spending()  # a wrong key, a wrong model: nothing was done
            raise
        except BaseException:
            self.counts["given up"] += 1
            raise
        finally:
            self._budget.settle(worst, cost)
            if cost.tokens and not isinstance(result, Purchase):
                self._store.book(request.key, cost)

    def _learn(self, request: ChatRequest, result: Sent, started: float, now: float) -> None:
        if isinstance(result, Again):
            self._failing_since = started if self._failing_since is None else self._failing_since
            self.counts["failed"] += 1
            if result.overload:
                self._slots.overloaded(now, self._latency.mean)
            else:
                self._breaker.failed(now)
            return
        self._failing_since = None
        self._breaker.succeeded()  # it answers, whatever it says
        if isinstance(result, Purchase):
            self.counts["bought"] += 1
            self._slots.succeeded()
            self._latency.add(now - started)
            unused = request.tokens_in + request.max_tokens - result.tokens_in - result.tokens_out
            self._give_back(request, unused)

    async def _post(self, request: ChatRequest, worst: Spending) -> tuple[Sent, Spending]:
        """What the endpoint makes of a request, and what that cost; `worst` where it may have been billed in full."""
        config = self.config
        headers = {**self._headers, "idempotency-key": request.key}
        outgoing = httpx.Request("POST", self._url, content=body_of(request, config), headers=headers)
        content = bytearray()
        try:
            async with (
                asyncio.timeout(config.attempt_timeout),
                contextlib.aclosing(await self._transport.handle_async_request(outgoing)) as response,
            ):
                # httpx's decoders cost as much as the transport, and there is hardly ever anything to decode.
                encoded = "content-encoding" in response.headers
                async for chunk in response.aiter_bytes() if encoded else response.stream:  # type: ignore[union-attr]
                    content += chunk
                    if len(content) > LARGEST_ANSWER:
                        return Refusal("malformed", f"a reply of more than {LARGEST_ANSWER >> 20} MiB"), worst
        except TimeoutError:
            return Again(f"{config.url} gave no answer within {config.attempt_timeout:g} s"), worst
        except httpx.DecodingError as error:
            return Again(f"{config.url} sent a damaged answer: {self._key.redact(str(error))}"), worst
        except self._broken as error:
            what = self._key.redact(str(error)) or "connection lost"
            refused = isinstance(error.__cause__ or error, self._never_met)  # nobody was there to bill
            return Again(f"{config.url}: {type(error).__name__}: {what}"), Spending() if refused else worst
        return meaning(
            response.status_code,
            response.headers,
            bytes(content),
            config=config,
            key=self._key,
            request=request,
        )


def _proxy(url: str) -> httpx.Proxy | None:
    """The proxy that the environment names for `url`."""
    parts = urlsplit(url)
    found = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
    return httpx.Proxy(found) if found else None


def _check(config: ChatConfig) -> None:
    parts = urlsplit(config.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"coach url {parts.scheme}://{parts.hostname or ''} is not the address of an endpoint")
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            f"the coach's url (host {parts.hostname}) holds credentials or a query; give the key in the environment "
            "variable that key_env names, so that it is never written anywhere"
        )
    if not config.model:
        raise ConfigError("coach model is empty; name the model as the endpoint knows it (its /models lists them)")
