"""One stand-in endpoint for all tests of a process; every test gives it a script of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.parts.coach_server import Server


@pytest.fixture(scope="session")
def _server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def server(_server: Server) -> Server:
    _server.script()
    return _server
