"""The process that the loader's workers are forked from; it may begin long before them, and needs no torch here.

To import what workers need takes it some seconds, in which the training process imports its own, on another core.
"""

from multiprocessing.context import ForkServerContext

from shards.streaming import processes
from shards.streaming.processes import STOPS

__all__ = ["STOPS", "fork_server"]


def fork_server() -> ForkServerContext:
    """Return the way to start workers, with the server running or about to.

    The fork server is a process of its own that has only imported the loader, so that workers need not: no client, no
    file is open there, and its few threads (OpenBLAS, jemalloc) stand forks.
    """
    return processes.fork_server(["pretrain.batches.loader"])
