"""The control socket to a server, on the event loop: small JSON packets with descriptors, both ways."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

_PACKET = 1 << 16
_DESCRIPTORS = 8


class Channel:
    """One end of a SOCK_SEQPACKET pair. All methods belong on the event loop; none blocks.

    `on_message` gets each message with the descriptors that came along, which are then its own.
    `on_end` is called once when the other end is gone, not when this one is closed.
    """

    def __init__(
        self, end: socket.socket, on_message: Callable[[dict[str, Any], list[int]], None], on_end: Callable[[], None]
    ) -> None:
        end.setblocking(False)
        self._socket = end
        self._on_message = on_message
        self._on_end = on_end
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end, self._receive)

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send, now or when there is room. Takes over the descriptors: they are closed once sent."""
        if self._socket.fileno() < 0:
            _close(descriptors)
            return
        self._unsent.append((json.dumps(message).encode(), descriptors))
        if len(self._unsent) == 1:
            self._flush()

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        with contextlib.suppress(OSError):  # the other end may be gone already
            self._socket.shutdown(socket.SHUT_RDWR)  # seen even where a fork of this process holds a copy
        self._socket.close()
        for _, descriptors in self._unsent:
            _close(descriptors)
        self._unsent.clear()

    def _flush(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._socket, [data], descriptors)
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._flush)
                return
            except ConnectionError:
                pass  # the other end is gone: reading tells, after what it sent before
            self._unsent.popleft()
            _close(descriptors)
        self._loop.remove_writer(self._socket)

    def _receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _PACKET, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, ConnectionError):
            return  # a reset is told once, before what was sent earlier and the end, which are read next
        if data:
            self._on_message(json.loads(data), descriptors)
        else:
            self.close()
            self._on_end()


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
