"""The control socket: what was said last is heard, even by one who was speaking at the time."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Any

from mappa.sandbox.channel import Channel


def test_last_words_are_heard_by_one_who_sends_to_the_dead() -> None:
    async def main() -> list[Any]:
        heard: list[Any] = []
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ended = asyncio.Event()
        channel = Channel(ours, lambda message, _: heard.append(message["op"]), ended.set)
        channel.send({"op": "never read"})
        theirs.send(json.dumps({"op": "failed"}).encode())
        theirs.close()
        channel.send({"op": "to nobody"}, [os.open("/dev/null", os.O_RDONLY)])
        await asyncio.wait_for(ended.wait(), 60)
        channel.send({"op": "after the end"}, [os.open("/dev/null", os.O_RDONLY)])
        channel.close()
        return heard

    before = len(os.listdir("/proc/self/fd"))
    assert asyncio.run(main()) == ["failed"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_than_the_socket_holds_is_sent_in_order() -> None:
    async def main() -> list[int]:
        heard: list[int] = []
        done = asyncio.Event()

        def hear(message: dict[str, Any], descriptors: list[int]) -> None:
            heard.append(message["number"])
            for descriptor in descriptors:
                os.close(descriptor)
            if len(heard) == 2000:
                done.set()

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sender, receiver = Channel(ours, hear, lambda: None), Channel(theirs, hear, lambda: None)
        for number in range(2000):
            sender.send({"number": number}, [os.open("/dev/null", os.O_RDONLY)])
        await asyncio.wait_for(done.wait(), 60)
        sender.close()
        receiver.close()
        return heard

    before = len(os.listdir("/proc/self/fd"))
    assert asyncio.run(main()) == list(range(2000))
    assert len(os.listdir("/proc/self/fd")) == before
