"""How fast this machine multiplies large matrices, measured: what a step's rate of work is held against.

Less than half a second on a CPU or an accelerator; meant for once per run, when nothing else runs.
"""

import time

import torch

_TIME_S = 0.25
_SIDE = {"cpu": 2048}
_SIDE_ELSEWHERE = 8192
_SMALL_SIDE = 512
_MIN_PRODUCTS = 2


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a product of large square matrices, the best of those made in a quarter of a second.

    Args:
        device: where the matrices are; on a CPU with the threads that torch has now.
        dtype: of the matrices, what a step multiplies in.
    """
    side = _SIDE.get(device.type, _SIDE_ELSEWHERE)
    # The first product starts threads or loads kernels; a machine to which a large one is much gets a smaller one.
    product_seconds(device, dtype, _SMALL_SIDE)
    if product_seconds(device, dtype, _SMALL_SIDE) * (side / _SMALL_SIDE) ** 3 > _TIME_S / _MIN_PRODUCTS:
        side //= 2
    best_s, end_s, num_products = float("inf"), time.perf_counter() + _TIME_S, 0
    while num_products < _MIN_PRODUCTS or time.perf_counter() < end_s:
        best_s = min(best_s, product_seconds(device, dtype, side))
        num_products += 1
    return 2 * side**3 / best_s


def product_seconds(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return the time of one product of two square matrices."""
    left, right = torch.ones(2, side, side, device=device, dtype=dtype)
    result = torch.empty_like(left)
    _wait(device)
    begin_s = time.perf_counter()
    torch.mm(left, right, out=result)
    _wait(device)
    return time.perf_counter() - begin_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
