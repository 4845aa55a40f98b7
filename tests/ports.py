"""A port for a server that a test starts later."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """One that nobody listens on. The system gives it to no server that asks for any port, and to no outgoing
    connection (net.ipv4.ip_local_port_range): between this look and the server's start nothing comes by it, not even a
    client that is waiting for that server and would be connected with itself.
    """
    while True:
        port = random.randrange(30_000, 32_768)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
