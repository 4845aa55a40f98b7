"""What goes wrong looks as the API has it: the client's own exceptions, with messages that say what to do."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec
import pytest
import tinker
import torch
from aiohttp.test_utils import TestClient, TestServer
from tinker import types

from mappa.serve.app import application
from mappa.serve.service import Service
from tests.serve.server import KEY, Server
from tests.serve.talk import ADAM, model, reinforced, some_data, text


def get(server: Server, path: str, key: str = "") -> tuple[int, bytes]:
    request = urllib.request.Request(f"{server.url}{path}", headers={"X-API-Key": key} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def post(server: Server, path: str, body: bytes) -> tuple[int, bytes]:
    headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{server.url}{path}", body, headers), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_key_is_needed(server: Server) -> None:
    with pytest.raises(tinker.AuthenticationError, match="API key"):
        server.client("tml-not-the-right-one-00000000").create_lora_training_client("tiny")
    assert get(server, "/api/v1/get_server_capabilities")[0] == 401
    assert get(server, "/api/v1/get_server_capabilities", KEY)[0] == 200
    assert get(server, "/api/v1/healthz") == (200, b'{"status":"ok"}')
    assert get(server, "/api/v1/nonsense", KEY)[0] == 404


def test_a_key_of_any_bytes_is_wrong(server: Server) -> None:
    address = urllib.parse.urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        head = b"GET /api/v1/get_server_capabilities HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        connection.sendall(head + b"X-API-Key: \xff\xfe\r\n\r\n")
        with connection.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"API key" in msgspec.json.decode(body)["detail"].encode()


def test_a_request_that_is_nested_too_deeply(server: Server) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    status, answer = post(server, "/api/v1/create_session", b'{"user_metadata":{"a":' + deep + b"}}")
    assert status == 422
    assert "cannot be read as CreateSession" in msgspec.json.decode(answer)["detail"]


class Broken:
    """A service that fails at everything in a way that nobody has thought of."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        async def fail(*_: object) -> None:
            raise ZeroDivisionError("oh")

        return fail

    async def sweep(self) -> None:
        await asyncio.sleep(60)


def test_a_fault_of_the_server_is_told_in_json() -> None:
    async def ask() -> tuple[int, dict[str, str]]:
        app = application(cast(Service, Broken()), KEY)
        async with TestClient(TestServer(app), headers={"X-API-Key": KEY}) as client:
            answer = await client.get("/api/v1/get_server_capabilities")
            return answer.status, await answer.json()

    assert asyncio.run(ask()) == (500, {"detail": "the server failed at this: ZeroDivisionError: oh"})


def test_more_samples_than_can_be_asked_for_at_once(client: tinker.ServiceClient) -> None:
    sampling = client.create_sampling_client(base_model="tiny").result()
    begin = time.monotonic()
    with pytest.raises(tinker.BadRequestError, match="at most 1024"):
        sampling.sample(
            text([5, 6]), num_samples=3_000_000, sampling_params=types.SamplingParams(max_tokens=1)
        ).result()
    assert time.monotonic() - begin < 5


def test_what_there_is_not(server: Server, client: tinker.ServiceClient) -> None:
    with pytest.raises(tinker.BadRequestError, match="no base model 'huge'; it has 'tiny'"):
        client.create_lora_training_client("huge").result()
    with pytest.raises(tinker.NotFoundError, match="no weights are saved"):
        client.create_training_client_from_state("tinker://nobody/weights/none").result()
    with pytest.raises(tinker.NotFoundError, match="no weights are saved"):
        client.create_sampling_client(model_path="tinker://nobody/sampler_weights/none").result()
    training = model(client)
    training.model_id = "session-0:train:9"
    with pytest.raises(tinker.NotFoundError, match="no model 'session-0:train:9'"):
        training.forward_backward(some_data(0), "cross_entropy").result()


@pytest.mark.parametrize("rank", [0, 9, 4096])
def test_a_rank_outside_the_limits(client: tinker.ServiceClient, rank: int) -> None:
    with pytest.raises(tinker.BadRequestError, match=rf"rank {rank} is not in 1\.\.8"):
        model(client, rank=rank)


def test_an_ended_session_is_over(server: Server) -> None:
    client = server.client()
    training = model(client)
    client.close("success").result()
    other = server.client()
    stray = tinker.TrainingClient(other.holder, 0, training.model_id, info=training.get_info())
    with pytest.raises(tinker.APIStatusError, match="has ended") as caught:
        stray.forward_backward(some_data(0), "cross_entropy").result()
    assert caught.value.status_code == 410
    other.close("success").result()


def wrong(name: str) -> tuple[types.LossFnType, list[types.Datum], str]:
    good = some_data(0)
    tokens = text([5, 6, 7])

    def datum(**inputs: object) -> types.Datum:
        return types.Datum(model_input=tokens, loss_fn_inputs={"target_tokens": torch.tensor([6, 7, 8]), **inputs})

    nan = torch.tensor([1.0, float("nan"), 1.0])
    cases: dict[str, tuple[types.LossFnType, list[types.Datum], str]] = {
        "weights": ("cross_entropy", [*good, datum(weights=nan)], "datum 4: weights holds a NaN"),
        "advantages": ("ppo", [datum(logprobs=torch.zeros(3), advantages=nan)], "datum 0: advantages holds a NaN"),
        "overflow": ("importance_sampling", [reinforced([5, 6], [7], [-1e4], 1.0)], "loss of datum 0 is NaN or inf"),
        "lacking": ("cispo", [datum(advantages=torch.ones(3))], "datum 0: cispo needs 'logprobs'"),
        "unknown": ("cross_entropy", [datum(mask=torch.ones(3))], "cross_entropy takes no 'mask'"),
        "shape": ("cross_entropy", [datum(weights=torch.ones(2))], r"weights has shape \[2\]"),
        "loss": ("dro", good, "no loss 'dro' here"),
        "vocabulary": (
            "cross_entropy",
            [types.Datum(model_input=text([5, 260]), loss_fn_inputs={"target_tokens": torch.tensor([6, 7])})],
            r"outside 0\.\.259",
        ),
        "targets": (
            "cross_entropy",
            [types.Datum(model_input=tokens, loss_fn_inputs={"target_tokens": torch.tensor([6, 7, 999])})],
            r"target_tokens are outside 0\.\.259",
        ),
        "long": (
            "cross_entropy",
            [types.Datum(model_input=text([5] * 3000), loss_fn_inputs={"target_tokens": torch.tensor([5] * 3000)})],
            "max_context",
        ),
    }
    return cases[name]


@pytest.mark.parametrize(
    "name",
    ["weights", "advantages", "overflow", "lacking", "unknown", "shape", "loss", "vocabulary", "targets", "long"],
)
def test_data_that_cannot_be_learned_from(client: tinker.ServiceClient, name: str) -> None:
    """The request fails as the user's; nothing of it is accumulated, and the model goes on."""
    loss, data, message = wrong(name)
    training = model(client)
    with pytest.raises(tinker.RequestFailedError, match=message) as caught:
        training.forward_backward(data, loss).result()
    assert caught.value.category is types.RequestErrorCategory.User
    with pytest.raises(tinker.RequestFailedError, match="no gradient"):
        training.optim_step(ADAM).result()
    training.forward_backward(some_data(0), "cross_entropy").result()
    assert training.optim_step(ADAM).result().metrics["grad_norm"] > 0


def test_names_that_would_leave_the_folder(client: tinker.ServiceClient) -> None:
    training = model(client)
    for name in ("../escape", "a/b", ".hidden", ""):
        with pytest.raises(tinker.RequestFailedError, match="cannot name weights"):
            training.save_state(name).result()
    training.save_state("once").result()
    with pytest.raises(tinker.RequestFailedError, match="there already; pass overwrite"):
        training.save_state("once").result()
    assert training.save_state("once", overwrite=True).result().path.endswith("/weights/once")


@pytest.mark.parametrize("seconds", [10**12, 10**400, 0, -5])
def test_weights_expire_within_the_calendar(server: Server, client: tinker.ServiceClient, seconds: int) -> None:
    training = model(client)
    with pytest.raises(tinker.RequestFailedError, match=r"ttl_seconds is .*; give 1\.\."):
        training.save_state("long", ttl_seconds=seconds).result()
    with pytest.raises(tinker.RequestFailedError, match=r"ttl_seconds is .*; give 1\.\."):
        training.save_weights_for_sampler("long", ttl_seconds=seconds).result()
    training.save_state("a-century", ttl_seconds=100 * 365 * 24 * 3600).result()
    rest = tinker.RestClient(base_url=server.url, api_key=KEY)
    (listed,) = rest.list_checkpoints(training.model_id).result().checkpoints
    assert listed.expires_at is not None and listed.expires_at.year > 2100


def test_what_was_saved_is_listed_and_can_be_deleted(server: Server, client: tinker.ServiceClient) -> None:
    training = client.create_lora_training_client("tiny", rank=4, user_metadata={"renderer": "plain"}).result()
    rest = tinker.RestClient(base_url=server.url, api_key=KEY)
    saved = training.save_state("kept", ttl_seconds=3600, user_metadata={"note": "first"}).result().path
    sampler = training.save_weights_for_sampler("written").result().path
    training.save_weights_and_get_sampling_client().result()  # is nobody's to find
    run = rest.get_training_run_by_tinker_path(saved).result()
    assert (run.training_run_id, run.base_model, run.lora_rank) == (training.model_id, "tiny", 4)
    assert run.user_metadata == {"renderer": "plain"} and run.last_checkpoint and run.last_sampler_checkpoint
    assert rest.get_weights_info_by_tinker_path(saved).result().lora_rank == 4
    kept, written = rest.list_checkpoints(training.model_id).result().checkpoints
    assert (kept.tinker_path, kept.checkpoint_type, kept.checkpoint_id) == (saved, "training", "weights/kept")
    assert kept.user_metadata == {"note": "first"} and kept.expires_at is not None and kept.size_bytes
    assert (written.tinker_path, written.checkpoint_type, written.expires_at) == (sampler, "sampler", None)
    rest.delete_checkpoint_from_tinker_path(saved).result()
    assert [left.tinker_path for left in rest.list_checkpoints(training.model_id).result().checkpoints] == [sampler]
    with pytest.raises(tinker.NotFoundError, match="no weights are saved"):
        client.create_training_client_from_state(saved).result()
