"""The process that the loader's workers are forked from; it may begin long before them, and needs no torch here.

To import what workers need takes it some seconds, in which the training process imports its own, on another core.
"""

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask the training process to stop, and that its other processes do not heed."""


def fork_server() -> Any:
    """Return the way to start workers, with the server running or about to.

    Forking this process would copy the locks that its threads hold (OpenMP, Arrow, clients of object stores) and the
    workers would wait for them forever. The fork server is a process of its own that has only imported the loader, so
    that workers need not: no client, no file is open there, and its few threads (OpenBLAS, jemalloc) stand forks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pretrain.batches.loader", "pretrain.batches.preloaded"])
    # It unblocks signals when it begins, and the server would have it begin.
    resource_tracker.ensure_running()
    # The server begins with what this thread blocks, and stays so; its last import frees what it forks.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
