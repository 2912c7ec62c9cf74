"""How fast this machine multiplies large matrices, measured: what a step's rate of work is held against.

Less than half a second on a CPU or an accelerator; meant for once per run, when nothing else runs.
"""

import time

import torch

_TIME_S = 0.2
_LARGEST_SIDE = {"cpu": 2048}
_LARGEST_SIDE_ELSEWHERE = 8192
_FIRST_SIDE = 128


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a product of large square matrices, the best of those made in a fifth of a second.

    Args:
        device: where the matrices are; on a CPU with the threads that torch has now.
        dtype: of the matrices, what a step multiplies in.
    """
    # The first product starts threads or loads kernels. Then larger ones, as long as the next takes a part of the time:
    # a CPU that cannot multiply in a type makes them a hundred times slower.
    side, largest = _FIRST_SIDE, _LARGEST_SIDE.get(device.type, _LARGEST_SIDE_ELSEWHERE)
    product_seconds(device, dtype, side)
    while side < largest and 8 * product_seconds(device, dtype, side) < _TIME_S:
        side *= 2
    best_s, end_s = product_seconds(device, dtype, side), time.perf_counter() + _TIME_S
    while time.perf_counter() < end_s:
        best_s = min(best_s, product_seconds(device, dtype, side))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return 2 * side**3 / best_s


def product_seconds(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return the time of one product of two square matrices."""
    left, right = torch.ones(2, side, side, device=device, dtype=dtype)
    result = torch.empty_like(left)
    wait_for(device)
    begin_s = time.perf_counter()
    torch.mm(left, right, out=result)
    wait_for(device)
    return time.perf_counter() - begin_s


def wait_for(device: torch.device) -> None:
    """Return when a device has done all that it was given; a CPU has already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
