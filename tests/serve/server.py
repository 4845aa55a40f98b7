"""A real server on a loopback port, in a thread of this process, and its real client."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import tinker

from mappa.config import serve_config

KEY = "tml-0123456789abcdef0123456789"


class Server:
    """`settings` are those of the command line."""

    def __init__(self, *settings: str) -> None:
        from mappa.serve.start import serving

        self.url = ""
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

        async def run() -> None:
            async with serving(serve_config(["port=0", "dtype=float32", "threads=1", "rank=8", *settings]), KEY) as url:
                self.url = url
                self._up.set()
                await self._stop.wait()

        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(run(),), daemon=True)
        self._thread.start()
        assert self._up.wait(120)

    def client(self, key: str = KEY, **more: Any) -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=self.url, api_key=key, **more)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        self._loop.close()
