"""HTTP: routes, the key, and how errors look. Everything is answered in JSON but for what clients want as protobuf."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from mappa.errors import MappaError
from mappa.serve import wire
from mappa.serve.errors import Refused
from mappa.serve.service import Service

_PREFIX = "/api/v1"
_LONG_POLL = 30.0  # seconds; clients give up after 45
_LARGEST_BODY = 256 * 2**20  # clients divide what they send into pieces of 5 MB, but never one sequence
_HEALTH = f"{_PREFIX}/healthz"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
S = TypeVar("S", bound=Struct)

_log = logging.getLogger(__name__)


def application(service: Service, key: str) -> web.Application:
    """The server's routes. All but the health check want `key` in the header X-API-Key."""
    app = web.Application(middlewares=[_errors, _authentication(key)], client_max_size=_LARGEST_BODY)
    post = {
        "/client/config": _client_config,
        "/client/dynamic_config": _reads(wire.Ignored, _dynamic_config),
        "/telemetry": _reads(wire.Ignored, _accepted),
        "/create_session": _reads(wire.CreateSession, service.create_session),
        "/session_heartbeat": _reads(wire.Heartbeat, service.heartbeat),
        "/create_model": _reads(wire.CreateModel, service.create_model),
        "/get_info": _reads(wire.GetInfo, service.get_info),
        "/optim_step": _reads(wire.OptimStep, service.optim_step),
        "/save_weights": _reads(wire.SaveWeights, service.save_weights),
        "/load_weights": _reads(wire.LoadWeights, service.load_weights),
        "/save_weights_for_sampler": _reads(wire.SaveForSampler, service.save_for_sampler),
        "/weights_info": _reads(wire.WeightsInfo, service.weights_info),
        "/create_sampling_session": _reads(wire.CreateSamplingSession, service.create_sampling_session),
        "/join_sampling_session": _reads(wire.JoinSamplingSession, service.join_sampling_session),
        "/asample": _reads(wire.Sample, service.sample),
        "/cancel_future": _reads(wire.CancelFuture, service.cancel),
        "/forward_backward": _forward_backward(service),
        "/retrieve_future": _retrieve_future(service),
        "/sessions/{id}/finish": _finish_session(service),
    }
    app.add_routes([web.post(_PREFIX + path, handler) for path, handler in post.items()])

    async def health(_: web.Request) -> web.Response:
        service.health()
        return _json({"status": "ok"})

    async def capabilities(_: web.Request) -> web.Response:
        return _json(await service.capabilities())

    async def delete(request: web.Request) -> web.Response:
        await service.delete_checkpoint(request.match_info["id"], request.match_info["checkpoint"])
        return web.Response(status=204)

    app.add_routes(
        [
            web.get(_HEALTH, health),
            web.get(f"{_PREFIX}/get_server_capabilities", capabilities),
            web.get(f"{_PREFIX}/samplers/{{id}}", _shows(service.get_sampler)),
            web.get(f"{_PREFIX}/training_runs/{{id}}", _shows(service.training_run)),
            web.get(f"{_PREFIX}/training_runs/{{id}}/checkpoints", _shows(service.checkpoints)),
            web.delete(f"{_PREFIX}/training_runs/{{id}}/checkpoints/{{checkpoint:.+}}", delete),
        ]
    )
    app.cleanup_ctx.append(_sweeping(service))
    return app


def _reads(kind: type[S], method: Callable[[S], Awaitable[dict[str, Any] | None]]) -> Handler:
    """A handler that reads a message in JSON and sends back what `method` makes of it."""

    async def handle(request: web.Request) -> web.Response:
        answer = await method(_decode(await request.read(), kind))
        return web.Response(status=204) if answer is None else _json(answer)

    return handle


def _shows(method: Callable[[str], Awaitable[dict[str, Any]]]) -> Handler:
    """A handler that sends back what `method` says of what the path names."""

    async def handle(request: web.Request) -> web.Response:
        return _json(await method(request.match_info["id"]))

    return handle


def _forward_backward(service: Service) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        return _json(await service.forward_backward(await request.read()))

    return handle


def _retrieve_future(service: Service) -> Handler:
    """Waits for the answer; 408 asks the client to ask again."""

    async def handle(request: web.Request) -> web.Response:
        asked = _decode(await request.read(), wire.RetrieveFuture)
        answer = await service.futures.wait(asked.request_id, _LONG_POLL)
        if answer is None:
            return _json({"type": "try_again", "request_id": asked.request_id, "queue_state": "active"}, status=408)
        return web.Response(body=answer.body, content_type=answer.content_type)

    return handle


def _finish_session(service: Service) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        await service.end_session(request.match_info["id"], "its client is done")
        return web.Response(status=204)

    return handle


async def _client_config(_: web.Request) -> web.Response:
    """No settings: clients do as they do by default. They ask over a connection that they never close."""
    answer = _json({})
    answer.force_close()
    return answer


async def _dynamic_config(_: wire.Ignored) -> dict[str, Any]:
    return {"sample_cancel_enabled": True}


async def _accepted(_: wire.Ignored) -> dict[str, Any]:
    """Clients report how they fare; nobody here collects it."""
    return {"status": "accepted"}


def _authentication(key: str) -> Any:
    expected = key.encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-API-Key", "").encode("utf-8", "surrogateescape")  # it may be any bytes
        if request.path != _HEALTH and not hmac.compare_digest(given, expected):
            raise Refused(401, "the API key is missing or wrong; the server printed it or took it from MAPPA_SERVE_KEY")
        return await handler(request)

    return check


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as error:
        answer = _json({"detail": str(error)}, status=error.status)
        if error.status == 401:
            answer.force_close()
        return answer
    except MappaError as error:
        return _json({"detail": str(error)}, status=500)
    except web.HTTPException as error:  # no such route, a body that is too large
        return _json({"detail": error.text or error.reason}, status=error.status)
    except Exception as error:  # noqa: BLE001 - a fault of this server's, told in the form that clients read
        _log.exception("%s %s failed", request.method, request.path)
        return _json({"detail": f"the server failed at this: {type(error).__name__}: {error}"}, status=500)


def _sweeping(service: Service) -> Callable[[web.Application], AsyncIterator[None]]:
    async def run(_: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(service.sweep())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    return run


def _decode(body: bytes, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:  # RecursionError: nested too deeply
        raise Refused(422, f"the request cannot be read as {kind.__name__}: {error}") from None


def _json(content: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), status=status, content_type="application/json")
