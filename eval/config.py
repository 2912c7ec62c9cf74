"""The options of `python -m eval`; imports nothing heavy, so that `--help` is instant."""

from dataclasses import dataclass
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What to evaluate, on what, and how the figures are made."""

    models: list[str]
    """Backbones: export folders, runs (their newest valid export), timm:NAME (weights on disk), floor:NAME."""
    data: list[str]
    """Labelled data as name=PATH; PATH is a folder or URL with one folder of images for every class."""
    out: str
    """Folder or URL for the report, the results and the cached features."""
    redo: bool = False
    """Compute again what the output folder already has."""
    floors: bool = True
    """Add the floors that --models lacks: image_stats, random_conv and, where an export is given, random_init."""
    test_share: float = 0.2
    """Share of each class that is tested."""
    validation_share: float = 0.2
    """Share of each class's remaining images that choose the linear probe's C; part of the training bank after."""
    seed: int = 0
    """Keys the split and the bootstrap draws."""
    num_draws: int = 2000
    """Bootstrap draws of each interval."""
    batch_size: int = 64
    """Images in a forward pass."""
    workers: int = 2
    """Threads that read, decode and resize images."""
    device: Device = "auto"
    """Where backbones run; auto takes the GPU if there is one."""

    def __post_init__(self) -> None:
        for name in ("models", "data"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is empty: give at least one")
        for name in ("test_share", "validation_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not between 0 and 1: try 0.2")
        for name in ("batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1: give at least 1")
        if self.num_draws < 1000:
            raise ValueError(f"num_draws {self.num_draws} is below 1000: ends of a 95 % interval need as many")
