"""Chromium without a window, driven over its DevTools protocol: pages opened, keys pressed, what is there read."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page. A context manager; everything waits for its answer."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAM is not None
        self.trouble: list[str] = []
        """Errors and violations of the content security policy that the page has reported."""
        self._loaded = 0
        self._loop = asyncio.new_event_loop()
        self._ids = itertools.count(1)
        self._process = subprocess.Popen(
            [
                PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-extensions", "--disable-background-networking", "--remote-debugging-port=0",
                f"--user-data-dir={folder}", "--window-size=1200,900", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(folder)},
        )  # fmt: skip
        self._run(self._connect(self._port(folder / "DevToolsActivePort")))

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._process.terminate()
        self._process.wait()
        self._loop.close()

    def open(self, url: str) -> None:
        """Go there, and wait until the page has loaded."""
        before = self._loaded
        self._call("Page.navigate", url=url)
        while self._loaded == before:
            self._run(self._hear())

    def look(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises waited for."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60.0) -> Any:
        """The expression's value once it is true."""
        deadline = time.monotonic() + seconds
        while not (found := self.look(expression)):
            assert time.monotonic() < deadline, (
                f"{expression} has not come true; {self.look('document.body.innerText')}"
            )
            time.sleep(0.05)
        return found

    def press(self, key: str, text: str = "") -> None:
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text or (key if len(key) == 1 else ""))
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def dark(self, on: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def size(self, width: int, height: int) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def picture(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._run(self._ask(method, params))

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, 90))

    def _port(self, file: Path) -> str:
        while not (file.exists() and file.read_text().count("\n")):
            assert self._process.poll() is None, "chromium did not start"
            time.sleep(0.05)
        return file.read_text().split()[0]

    async def _connect(self, port: str) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as reply:
            (page,) = [one for one in await reply.json() if one["type"] == "page"]
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log"):
            await self._ask(f"{domain}.enable", {})

    async def _close(self) -> None:
        await self._socket.close()
        await self._session.close()

    async def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        id = next(self._ids)
        await self._socket.send_json({"id": id, "method": method, "params": params})
        while (message := await self._hear()).get("id") != id:
            pass
        assert "error" not in message, message["error"]
        return message["result"]

    async def _hear(self) -> dict[str, Any]:
        message = await self._socket.receive_json()
        self._loaded += message.get("method") == "Page.loadEventFired"
        if message.get("method") == "Runtime.exceptionThrown":
            self.trouble.append(message["params"]["exceptionDetails"]["text"])
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.trouble.append(message["params"]["entry"]["text"])
        return message
