"""Ports for servers that tests start in other processes."""

import contextlib
import os
import random
import socket

# Below Linux's ephemeral ports: of those, another process's connection may take one before the server is there. Ray's
# workers have 10002 to 19999.
_RANGE = range(20_000, 32_000)
_MOST_WORKERS = 16


def free_ports(count: int) -> list[int]:
    """Return different ports of 127.0.0.1 that nobody listens at."""
    # Between here and the server's start nobody holds a port, so each process of pytest-xdist has ports of its own.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _MOST_WORKERS
    mine = _RANGE[worker::_MOST_WORKERS]
    # Not of numpy's or the tests' seed: runs that are beside each other must not draw the same.
    candidates = random.SystemRandom().sample(mine, len(mine))
    ports: list[int] = []
    while len(ports) < count:
        port = candidates.pop()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    return ports
