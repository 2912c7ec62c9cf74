"""Ports for servers that tests start in other processes."""

import contextlib
import random
import socket

# Below Linux's ephemeral ports: of those, another process's connection may take one before the server is there. Ray's
# workers have 10002 to 19999.
_RANGE = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Return different ports of 127.0.0.1 that nobody listens at."""
    # Not of numpy's or the tests' seed: processes that run beside each other must not draw the same.
    candidates = random.SystemRandom().sample(_RANGE, len(_RANGE))
    ports: list[int] = []
    while len(ports) < count:
        port = candidates.pop()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    return ports
