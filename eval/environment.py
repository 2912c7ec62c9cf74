"""Where figures were made: hardware and versions, for the report's provenance."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow", "rasterio", "safetensors")


def describe_hardware(device: torch.device) -> str:
    """Return processor, cores and, if one is used, the GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{_processor()}, {cores} cores"
    return f"{text}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else text


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can move a figure."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}
