"""What the C library does with memory that tensors give back.

By default glibc returns large pieces to the system at once, and each step gets them again page by page, filled with
zeros. On a CPU that is 3 to 15 % of a training step's time, most with many prototypes (`python -m tests.bench.train
step`), and 12 to 19 % of the features of a ViT-S/16 in batches of 64. The process needs as much at its peak as before;
between the peaks it keeps it.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_NEVER, _LARGEST_KEPT_BYTES = -1, 2**30


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for what comes next; without glibc do nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _NEVER)
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
