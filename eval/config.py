"""The options of `python -m eval`; imports nothing heavy, so that `--help` is instant."""

from dataclasses import dataclass, field
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Normalisation = Literal["model", "dataset"]
SplitMethod = Literal["auto", "given", "stratified", "grouped"]
QUICK = ("knn", "linear", "retrieval", "segmentation", "change")
"""Protocols that run unless --protocols says otherwise: seconds on cached features, a minute for classes of pixels."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What to evaluate, on what, and how the figures are made."""

    models: list[str]
    """Backbones: export folders, RUN (its newest valid export), RUN@all, RUN@STEP, timm:NAME (weights on disk),
    official:FILE.pth, floor:NAME."""
    data: list[str]
    """Labelled data as name=PATH: class folders, images/ and masks/, A/ B/ and label/, a dataset of ours, or
    torchgeo:NAME."""
    out: str
    """Folder or URL for the report, the results and the cached features."""
    baseline: str | None = None
    """One of --models, of RUN@all its newest export: all other backbones are compared with it and with the floors,
    not with each other. Without it each is compared with every one before it."""
    protocols: list[str] = field(default_factory=lambda: list(QUICK))
    """What is asked of the features: knn, linear, retrieval, segmentation, change; few_shot, multi_scale and fine_tune
    if named; all for everything but fine_tune. Those for another kind of data are left out."""
    redo: bool = False
    """Compute again what the output folder already has."""
    watch: bool = False
    """Go on evaluating new exports of the runs among --models until these are complete."""
    poll_s: float = 30
    """How often --watch looks for new exports, seconds."""
    floors: bool = True
    """Add the floors that --models lacks: image_stats, random_conv and, where an export is given, random_init."""
    normalisation: Normalisation = "model"
    """Whose mean and deviation of each band normalise the images: the model's own, as it was trained, or those of the
    pixels of the data's training part. The wrong ones cost points. image_stats and random_conv have none."""
    split: SplitMethod = "auto"
    """The split that came with the data, one by classes, or one by whole places; auto takes what there is: given,
    else by groups.txt, else by classes. Where no place is both tested and trained, intervals are over places."""
    test_share: float = 0.2
    """Share of each class that is tested."""
    validation_share: float = 0.2
    """Share of each class's remaining images that choose C, rates and features; part of the training bank after."""
    seed: int = 0
    """Keys the split, what protocols draw and the bootstrap."""
    num_draws: int = 2000
    """Bootstrap draws of each interval."""
    batch_size: int = 64
    """Images in a forward pass."""
    workers: int = 2
    """Threads that read, decode and resize images."""
    device: Device = "auto"
    """Where backbones run; auto takes the GPU if there is one."""

    def __post_init__(self) -> None:
        for name in ("models", "data", "protocols"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is empty: give at least one")
        if self.baseline is not None and self.baseline not in self.models:
            raise ValueError(f"--baseline {self.baseline} is none of --models: give one of {' '.join(self.models)}")
        for name in ("test_share", "validation_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not between 0 and 1: try 0.2")
        for name in ("batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1: give at least 1")
        if self.num_draws < 1000:
            raise ValueError(f"num_draws {self.num_draws} is below 1000: ends of a 95 % interval need as many")
        if self.poll_s <= 0:
            raise ValueError(f"poll_s {self.poll_s} is not above 0: give seconds")
