"""One server for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from tests.serve.server import Server


@pytest.fixture(scope="package")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(f"model={tiny_model}", "name=tiny", f"state={tmp_path_factory.mktemp('serve')}")
    yield running
    running.close()


@pytest.fixture
def client(server: Server) -> Iterator[tinker.ServiceClient]:
    with server.client() as service:
        yield service
