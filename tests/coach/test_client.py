"""The client against an endpoint in another process, over real sockets: every answer, every fault, every limit."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import logging
import os
import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any

import pytest

from bench.parts.coach_server import VERDICT, Server
from mappa.coach.budget import Budget
from mappa.coach.client import ChatClient
from mappa.coach.client_wire import Key, Refusal, retry_after
from mappa.coach.store import ChatRequest, MemoryStore, Purchase, Spending
from mappa.config import ChatConfig
from mappa.errors import CoachError, ConfigError
from mappa.types import Message
from tests.ports import free_port

Result = Purchase | Refusal


def config_for(server: Server, **changes: Any) -> ChatConfig:
    return ChatConfig(**{"url": server.url, "model": "stand-in", "deadline": 20.0, "backoff": 0.01, **changes})


def request(number: int = 0) -> ChatRequest:
    messages = (Message("system", "Score."), Message("user", f"Action {number}."))
    return ChatRequest(key=f"key-{number}", messages=messages, max_tokens=100, tokens_in=100)


class Run:
    """Some requests at once through one client; what came of them, and the client's counts."""

    def __init__(self, config: ChatConfig, *, budget: Budget | None = None, store: MemoryStore | None = None) -> None:
        self.config, self.budget, self.store = config, budget or Budget(), store or MemoryStore()

    def __call__(self, requests: Sequence[ChatRequest]) -> list[Result]:
        return asyncio.run(self._run(requests))

    async def _run(self, requests: Sequence[ChatRequest]) -> list[Result]:
        client = ChatClient(self.config, budget=self.budget, store=self.store)
        self.counts = client.counts
        deadline = asyncio.get_running_loop().time() + self.config.deadline
        try:
            return await asyncio.gather(*(client.complete(r, deadline) for r in requests))
        finally:
            await client.close()


def one(config: ChatConfig) -> Result:
    return Run(config)([request()])[0]


def refusal(config: ChatConfig) -> Refusal:
    found = one(config)
    assert isinstance(found, Refusal)
    return found


# --- replies and the store -------------------------------------------------------------------------------------------


def test_a_reply_with_its_cost(server: Server) -> None:
    server.script(tokens=50)
    budget = Budget()
    run = Run(config_for(server, dollars_in=2.0, dollars_out=10.0), budget=budget)
    (found,) = run([request()])
    assert found == Purchase(
        text=VERDICT, tokens_in=50, tokens_out=50, dollars=0.0006, finish_reason="stop", model="stand-in"
    )
    assert budget.spent == Spending(100, 0.0006) and budget.reserved.tokens == 0


def test_what_is_kept_is_never_asked_for_again(server: Server) -> None:
    store = MemoryStore()
    run = Run(config_for(server), store=store)
    first = run([request(1), request(1), request(2)])
    assert first[0] == first[1]
    assert run([request(1), request(2)]) == [first[0], first[2]] and run.counts["sent"] == 0
    assert set(server.stats()["answered"].values()) == {1}, "two askers of one reply at once bought it twice"


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["too_many", "error", "drop"])
def test_what_passes_is_tried_again(server: Server, fault: str) -> None:
    server.script(**{fault: 0.4}, seed=1)
    run = Run(config_for(server, attempts=30, concurrency=8))
    found = run([request(n) for n in range(20)])
    assert all(isinstance(reply, Purchase) for reply in found), found
    assert run.counts["failed"] > 0 and server.stats()["counts"][fault] == run.counts["failed"]


def test_an_endpoint_that_hangs_is_given_up_and_asked_again(server: Server) -> None:
    server.script(hang=0.5, seed=3)
    run = Run(config_for(server, attempt_timeout=1.0, attempts=30, hedge=0.0, deadline=120.0))
    assert all(isinstance(reply, Purchase) for reply in run([request(n) for n in range(6)]))
    assert run.budget.spent.tokens > 6 * 100, "a request that was given up may have been billed"
    assert run.store.spent() == run.budget.spent


def test_nothing_waits_past_its_deadline(server: Server) -> None:
    server.script(hang=1.0)
    started = time.monotonic()
    found = refusal(config_for(server, deadline=0.6, attempt_timeout=30.0))
    assert found.kind == "deadline" and "deadline of 0.6 s" in found.reason
    assert time.monotonic() - started < 5


def test_a_pause_that_would_pass_the_deadline_is_not_waited_for(server: Server) -> None:
    server.script(status=503, body="{}", retry_after="3600")
    started = time.monotonic()
    found = refusal(config_for(server))
    assert found.kind == "unavailable" and "past the deadline" in found.reason
    assert time.monotonic() - started < 5


def test_retry_after_in_both_forms() -> None:
    assert retry_after("2.5") == 2.5
    assert retry_after(formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=3)
    assert retry_after(formatdate(time.time() - 60, usegmt=True)) == 0.0
    assert retry_after("nan") is retry_after("soon") is retry_after(None) is None


def test_a_dead_endpoint_is_left_alone_for_a_while() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    run = Run(ChatConfig(url=url, model="m", deadline=0.8, backoff=0.001, attempts=1000))
    found = run([request(n) for n in range(20)])
    assert {reply.kind for reply in found if isinstance(reply, Refusal)} <= {"unavailable", "deadline"}
    assert len(found) == 20 and run.counts["sent"] < 100, "the breaker did not open"
    assert run.budget.spent.tokens == 0, "nobody was there to bill"


def test_a_second_request_beside_a_slow_one(server: Server) -> None:
    """A request that hangs is overtaken by its hedge; at most one in twenty requests has one."""
    run = Run(config_for(server, concurrency=8, attempt_timeout=50.0))

    async def work() -> list[Result]:
        client = ChatClient(run.config, budget=run.budget, store=run.store)
        clock = asyncio.get_running_loop().time
        for n in itertools.count():  # until a hedge may be sent: on a busy machine some have had one by now
            if n >= 60 and client.counts["hedged"] + 1 <= run.config.hedge * client.counts["sent"]:
                break
            await client.complete(request(n), clock() + 60)
        await asyncio.to_thread(server.script, hang_first=1)
        found = [await client.complete(request(-1), clock() + 60)]
        run.counts = client.counts
        await client.close()
        return found

    assert all(isinstance(reply, Purchase) for reply in asyncio.run(work()))
    assert run.counts["given up"] >= 1 and run.counts["retried"] == 0, "it waited for a request that hangs"
    assert 1 <= run.counts["hedged"] <= 0.05 * run.counts["sent"] + 1


# --- refusals and bad endpoints --------------------------------------------------------------------------------------


def fatal(config: ChatConfig) -> str:
    with pytest.raises(CoachError) as error:
        one(config)
    return str(error.value)


def test_a_wrong_key_stops_the_run_and_shows_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "tok-very-secret-0123456789"
    monkeypatch.setenv("COACH_KEY", secret)
    server.script(key="sk-right")
    caplog.set_level(logging.DEBUG)
    message = fatal(config_for(server, key_env="COACH_KEY"))
    assert "401" in message and "COACH_KEY" in message and "[key]" in message
    assert secret not in message and secret not in caplog.text and secret not in repr(Key("COACH_KEY"))
    server.script(key=secret)
    assert isinstance(one(config_for(server, key_env="COACH_KEY")), Purchase)


def test_a_key_that_is_not_there_is_refused_before_anything_runs() -> None:
    assert "NO_SUCH_KEY" not in os.environ
    with pytest.raises(ConfigError, match="NO_SUCH_KEY .* is not set; export"):
        one(ChatConfig(url="http://127.0.0.1:1/v1", model="m", key_env="NO_SUCH_KEY"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "localhost:8000"}, "is not the address of an endpoint"),
        ({"url": "http://me:secret@127.0.0.1/v1"}, "holds credentials"),
        ({"url": "http://127.0.0.1/v1?key=secret"}, "holds credentials"),
        ({"model": ""}, "coach model is empty"),
    ],
)
def test_a_config_that_cannot_be_used(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        one(ChatConfig(**{"url": "http://127.0.0.1:1/v1", "model": "m", **changes}))
    assert "secret" not in str(error.value)


def test_a_wrong_model(server: Server) -> None:
    server.script(model="another")
    assert "check the model 'stand-in'" in fatal(config_for(server))


def test_an_account_without_credit_is_not_asked_again(server: Server) -> None:
    server.script(status=429, body='{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}')
    assert "has no credit left" in fatal(config_for(server))
    assert server.stats()["counts"]["requests"] == 1


@pytest.mark.parametrize("body", ["<html>hello</html>", '{"result": "fine"}', '{"choices": []}', "[]"])
def test_a_server_that_is_no_chat_endpoint(server: Server, body: str) -> None:
    server.script(body=body)
    message = fatal(config_for(server, attempts=3))
    assert "no request of 3 succeeded" in message


def test_a_server_that_does_not_speak_http() -> None:
    async def work() -> Result:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail ready\r\n")
            writer.close()

        server = await asyncio.start_server(babble, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        config = ChatConfig(url=f"http://127.0.0.1:{port}/v1", model="m", attempts=2, backoff=0.01)
        client = ChatClient(config, budget=Budget(), store=MemoryStore())
        try:
            return await client.complete(request(), asyncio.get_running_loop().time() + 10)
        finally:
            await client.close()
            server.close()

    with pytest.raises(CoachError, match="no request of 2 succeeded"):
        asyncio.run(work())


def test_a_compressed_answer_is_read() -> None:
    """Nobody asked for one; some proxies send it all the same."""

    async def work() -> Result:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            body = gzip.compress(b'{"choices": [{"message": {"content": "fine"}}]}')
            head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        config = ChatConfig(url=f"http://127.0.0.1:{port}/v1", model="m")
        client = ChatClient(config, budget=Budget(), store=MemoryStore())
        try:
            return await client.complete(request(), asyncio.get_running_loop().time() + 10)
        finally:
            await client.close()
            server.close()

    found = asyncio.run(work())
    assert isinstance(found, Purchase) and found.text == "fine"


def test_a_request_that_is_refused_for_itself(server: Server) -> None:
    server.script(status=400, body='{"error": {"message": "unsupported parameter"}}')
    assert refusal(config_for(server)) == Refusal("refused", f"{server.url} answered 400: unsupported parameter")
    server.script(window=10)
    assert refusal(config_for(server)).kind == "too-long"
    server.script(body='{"choices": [{"message": {"content": null, "refusal": "I cannot"}}]}')
    assert refusal(config_for(server)) == Refusal("refused", "the model gave no text: I cannot")


# --- what it cost -----------------------------------------------------------------------------------------------------

NULL = '{"choices": [{"message": {"content": null}, "finish_reason": "length"}]'
FINE = '{"choices": [{"message": {"content": "123456"}}]'


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (NULL + ', "usage": {"prompt_tokens": 1000, "completion_tokens": 700}}', 1700),
        (NULL + ', "usage": {"prompt_tokens": 1000}}', 1000 + 100),  # a model that thinks until its limit
        (NULL + "}", 100 + 100),
        (FINE + ', "usage": {}}', 100 + 2),
        (FINE + ', "usage": {"prompt_tokens": 70, "completion_tokens": null}}', 70 + 2),
        (FINE + ', "usage": {"prompt_tokens": 70, "completion_tokens": 0}}', 70),
        (FINE + ', "usage": null}', 100 + 2),
    ],
)
def test_every_reply_counts_whether_or_not_it_holds_a_text_or_a_bill(server: Server, body: str, tokens: int) -> None:
    server.script(body=body)
    run = Run(config_for(server, dollars_in=5.0, dollars_out=5.0))
    (found,) = run([request()])
    assert isinstance(found, Purchase) == body.startswith(FINE)
    assert run.budget.spent == run.store.spent() and run.budget.spent.tokens == tokens
    assert run.budget.spent.dollars == pytest.approx(5e-6 * tokens)
    assert server.stats()["counts"]["requests"] == 1, "it was bought again"


@pytest.mark.parametrize(
    ("body", "tokens"),
    [("<html>hello</html>", 200), ('{"choices": []}', 200), ('{"choices": [], "usage": {"prompt_tokens": 30}}', 130)],
)
def test_replies_that_are_none_count_each_time(server: Server, body: str, tokens: int) -> None:
    server.script(body=body)
    run = Run(config_for(server, attempts=3))
    with pytest.raises(CoachError, match="no request of 3 succeeded"):
        run([request()])
    assert run.budget.spent.tokens == run.store.spent().tokens == 3 * tokens


def test_what_the_endpoint_refuses_costs_nothing(server: Server) -> None:
    for script in ({"key": "sk-right"}, {"status": 400, "body": "{}"}, {"status": 503, "body": "{}"}):
        server.script(**script)
        run = Run(config_for(server, attempts=1))
        with contextlib.suppress(CoachError):
            run([request()])
        assert run.budget.spent == run.store.spent() == Spending()


# --- budget ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"tokens": 1000}, {"dollars": 1000 * 5e-6}])
def test_the_budget_is_never_passed(server: Server, limit: dict[str, Any]) -> None:
    server.script(tokens=50, latency=(0.01, 0.03))
    budget = Budget(**limit)
    run = Run(config_for(server, concurrency=16, dollars_in=5.0, dollars_out=5.0, hedge=0.0), budget=budget)
    found = run([request(n) for n in range(40)])
    bought = [reply for reply in found if isinstance(reply, Purchase)]
    refused = [reply for reply in found if isinstance(reply, Refusal)]
    assert len(bought) + len(refused) == 40
    assert {reply.kind for reply in refused} == {"budget"} and "has spent" in refused[0].reason
    assert server.stats()["tokens"] == budget.spent.tokens <= 1000
    assert budget.spent.tokens > 800, "room that requests in flight gave back was not used"
    assert budget.exhausted


# --- pace ------------------------------------------------------------------------------------------------------------


def test_requests_per_minute_are_kept_to(server: Server) -> None:
    run = Run(config_for(server, requests_per_minute=600, hedge=0.0))
    started = time.monotonic()
    run([request(n) for n in range(75)])  # a burst of 60, then 9 a second
    assert time.monotonic() - started > 1.5


def test_concurrency_is_kept_to(server: Server) -> None:
    server.script(latency=(0.01, 0.03))
    Run(config_for(server, concurrency=5, hedge=0.0))([request(n) for n in range(30)])
    assert server.stats()["most_in_flight"] <= 5
