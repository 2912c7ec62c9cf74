"""A forwarder that makes a store on this machine as far away as a real one: every request comes some time later.

`python -m tests.bench.stream_latency PORT SECONDS` listens on a port of 127.0.0.1, prints it, and forwards to PORT.
What a client sends is passed on that many seconds later, what the store answers at once; no byte is looked at. A small
request is one piece, so it is late once. Costs 15 to 20 % of a core at 100 MB/s: a proxy that parses would cost more
than the decoder that it is to be compared with.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator


class _Side(asyncio.Protocol):
    """One of the two connections of a client; hands on to the other."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        assert self.other.transport is not None
        if self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, self.other.transport.write, data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()


class _Client(_Side):
    """The side that waits, once for every piece."""

    def __init__(self, port: int, delay_s: float) -> None:
        super().__init__(delay_s)
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        assert self.transport is not None
        upstream = _Side(0)
        upstream.other, self.other = self, upstream
        try:
            await asyncio.get_running_loop().create_connection(lambda: upstream, "127.0.0.1", self._port)
        except OSError:
            self.transport.close()
        else:
            self.transport.resume_reading()


async def _serve(port: int, delay_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Client(port, delay_s), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def forwarder(port: int, delay_s: float) -> Iterator[tuple[int, int]]:
    """Run a forwarder in a process of its own; gives (its port, its process id)."""
    command = [sys.executable, "-m", "tests.bench.stream_latency", str(port), str(delay_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
