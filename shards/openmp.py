"""How OpenMP's threads wait for their next piece of work, in processes that compute with torch on a CPU.

A step of training is thousands of pieces, 10 to 1,000 µs each. Threads that sleep after each of them must be woken,
which costs a fifth to a third of the samples/s; threads that spin until there is work (OMP_WAIT_POLICY=ACTIVE, while
there are no more threads than cores) make a step ten times slower as soon as another process wants a core. Those that
spin for some 10 µs and then sleep have most of the first and little of the second: `python -m tests.bench.threads`.
"""

import os

_SPINS = 1000
"""GNU's own number where there are more threads than cores, as there are here: the backward pass has threads of its
own."""


def spin_shortly() -> None:
    """Have threads spin shortly before they sleep; to be called before torch loads OpenMP.

    What the environment says already stays. torch's wheels have GNU's OpenMP; LLVM's and Intel's, in other builds,
    would spin for ever or for 200 ms: there threads sleep at once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        # The policy gives those 1,000 where threads are more than cores, GOMP_SPINCOUNT limits it elsewhere.
        os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))
        os.environ.setdefault("KMP_BLOCKTIME", "0")
