"""From the CPU's memory to a device."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor that lies in the CPU's memory on a device, without waiting for what that was given before.

    CUDA waits for a stream before it reads memory that is not pinned, however small: dozens of such waits in a step
    leave a GPU idle for most of it.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
