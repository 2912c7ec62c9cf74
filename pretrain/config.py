"""What a pre-training run can be told; the defaults are a small model for 64 px chips on a CPU."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass

from pretrain.batches.masks import SetSizes, set_sizes
from pretrain.training.schedules import parse_duration


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _floats(name: str, value: object) -> Iterator[tuple[str, float]]:
    """Yield the floating-point numbers of a configuration, with their dotted names."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, tuple):
        for item in value:
            yield from _floats(name, item)
    elif is_dataclass(value):
        for each in fields(value):
            yield from _floats(f"{name}.{each.name}".removeprefix("."), getattr(value, each.name))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The backbone: a pre-norm vision transformer under timm's names."""

    image_px: int = 64
    """Side of a global crop, pixels."""
    patch_px: int = 8
    """Side of a patch, pixels; divides the sides of all crops."""
    width: int = 192
    """Channels of a token."""
    depth: int = 6
    """Transformer blocks."""
    join: int | None = None
    """Blocks before the mask tokens join; 0: at the input; by default half of them."""
    heads: int = 3
    """Attention heads; divide the width."""
    drop_path: float = 0.0
    """Stochastic depth of the student: share of the images that each residual branch leaves out."""

    def __post_init__(self) -> None:
        _require(self.patch_px >= 1, f"model.patch_px {self.patch_px} is below 1")
        _require(
            self.image_px >= self.patch_px and self.image_px % self.patch_px == 0,
            f"model.image_px {self.image_px} is not a multiple of model.patch_px {self.patch_px}",
        )
        _require(
            self.heads >= 1 and self.width >= 1 and self.width % self.heads == 0,
            f"model.width {self.width} is not a multiple of model.heads {self.heads}",
        )
        _require(self.depth >= 2, f"model.depth {self.depth} is below 2: mask tokens join at half depth")
        _require(
            self.join is None or 0 <= self.join < self.depth,
            f"model.join {self.join} is outside 0…{self.depth - 1}: one of {self.depth} blocks sees the mask tokens",
        )
        _require(0 <= self.drop_path < 1, f"model.drop_path {self.drop_path} is outside [0, 1)")

    @property
    def join_block(self) -> int:
        """Number of the first block that sees the mask tokens."""
        return self.depth // 2 if self.join is None else self.join


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Both heads: an MLP of three layers, L2 normalisation, a weight-normalised linear layer."""

    hidden: int = 512
    """Width of the MLP."""
    bottleneck: int = 128
    """Width of the normalised vector before the last layer."""
    prototypes: int = 2048
    """Outputs of the cls head."""

    def __post_init__(self) -> None:
        _require(
            min(self.hidden, self.bottleneck) >= 1 and self.prototypes >= 2,
            f"head sizes {self.hidden}, {self.bottleneck}, {self.prototypes} are too small: "
            "at least 1, 1 and 2 prototypes",
        )


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """The crops of an image; both sides share the geometry."""

    num_global: int = 2
    """Global crops of each image, model.image_px wide."""
    num_local: int = 4
    """Local crops of each image; 0 is allowed."""
    local_px: int = 32
    """Side of a local crop, pixels."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Area of a global crop as a share of the tile: lowest and highest."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Area of a local crop as a share of the tile."""
    ratio: tuple[float, float] = (0.75, 1.33)
    """Width by height of a crop before it is resized: lowest and highest."""
    flip: float = 0.5
    """Probability of each of the two flips, horizontal and vertical."""

    @property
    def num_views(self) -> int:
        """Crops of each image."""
        return self.num_global + self.num_local

    def __post_init__(self) -> None:
        _require(self.num_global >= 1, f"views.num_global {self.num_global} is below 1")
        _require(self.num_local >= 0, f"views.num_local {self.num_local} is negative")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            _require(0 < low <= high <= 1, f"views.{name} {low}…{high} is not within 0…1, lowest first")
        low, high = self.ratio
        _require(0 < low <= high, f"views.ratio {low}…{high} is not positive, lowest first")
        _require(0 <= self.flip <= 1, f"views.flip {self.flip} is outside [0, 1]")


@dataclass(frozen=True, kw_only=True)
class MasksConfig:
    """How the patches of a view are shared out; what remains is predicted from mask tokens.

    The defaults are PerA. The rest is there to find out what a part of it is worth.
    """

    student: float = 0.2
    """Share of the patches that the student sees."""
    teacher: float = 0.6
    """Share of the patches that the teacher sees."""
    learnable: float | None = None
    """Share of the patches of a global view that the student predicts; by default all that are left."""
    independent: bool = False
    """Draw the teacher's patches on their own: some are also the student's, by chance."""


@dataclass(frozen=True, kw_only=True)
class ColourConfig:
    """Colour perturbation, drawn for each view and side on its own, and normalisation."""

    brightness: float = 0.4
    """Factors are drawn from 1 ± this."""
    contrast: float = 0.4
    """Factors are drawn from 1 ± this."""
    saturation: float = 0.2
    """Factors are drawn from 1 ± this; red, green and blue only."""
    hue: float = 0.1
    """Shifts are drawn from ± this, in turns of the colour circle; red, green and blue only."""
    student: float = 0.8
    """Share of the student's views that are perturbed."""
    teacher: float = 0.1
    """Share of the teacher's views that are perturbed."""
    grey: float = 0.1
    """Share of the perturbed views that become grey instead."""
    mean: tuple[float, ...] | None = None
    """Per band, as a share of the value range 0…1; by default the dataset's own."""
    std: tuple[float, ...] | None = None
    """Per band, as the mean."""
    perturb_targets: bool = True
    """Whether the pixels to predict have the student's colours; else they stay as they are in the image."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "student", "teacher", "grey"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"colour.{name} {value} is outside [0, 1]")
        _require(0 <= self.hue <= 0.5, f"colour.hue {self.hue} is outside [0, 0.5]")
        _require(
            all(0 <= mean <= 1 for mean in self.mean or ()),
            f"colour.mean {self.mean} is outside [0, 1]: give shares of the value range, such as 120 / 255 = 0.47",
        )
        _require((self.mean is None) == (self.std is None), "colour.mean and colour.std: give both or neither")
        _require(all(std > 0 for std in self.std or ()), f"colour.std {self.std} is not positive")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The three terms and the teacher's centre."""

    cls: float = 1.0
    """Weight of the cross-entropy between student and teacher; with 0 there is no teacher but the student's average."""
    crossed: bool = False
    """Compare each of the student's views with the teacher's other global views, as DINO does, instead of with the same
    view; the teacher then sees no local views."""
    koleo: float = 0.1
    """Weight of KoLeo, summed over the global views."""
    pixel: float = 0.01
    """Weight of the pixel loss."""
    student_temperature: float = 0.1
    """Divides the student's prototype scores."""
    centre_momentum: float = 0.9
    """Momentum of the running mean of teacher scores."""
    koleo_on_head: bool = False
    """As the official code: KoLeo on the head's outputs instead of the backbone's cls feature."""

    def __post_init__(self) -> None:
        for name in ("cls", "koleo", "pixel"):
            _require(getattr(self, name) >= 0, f"loss.{name} {getattr(self, name)} is negative")
        _require(self.cls + self.pixel > 0, "loss.cls and loss.pixel are both 0: nothing is left to learn from")
        _require(self.student_temperature > 0, "loss.student_temperature must be positive")
        _require(0 <= self.centre_momentum < 1, f"loss.centre_momentum {self.centre_momentum} outside [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """What changes over the run; durations are written "20 epochs", "500 steps", "1e6 samples" or "10 %"."""

    length: str = "100 epochs"
    """Of the run: every schedule ends there."""
    lr: float = 5e-4
    """Peak learning rate."""
    lr_end: float = 1e-6
    """Learning rate at the end, by cosine."""
    lr_warmup: str = "10 %"
    """Linear rise of the learning rate."""
    weight_decay: tuple[float, float] = (0.04, 0.2)
    """Start and end, by cosine."""
    ema: tuple[float, float] = (0.992, 1.0)
    """Momentum of the teacher, start and end, by cosine."""
    teacher_temperature: tuple[float, float] = (0.04, 0.05)
    """Start and end of the linear warm-up."""
    teacher_temperature_warmup: str = "15 %"
    """Duration of that warm-up."""

    def __post_init__(self) -> None:
        for name in ("length", "lr_warmup", "teacher_temperature_warmup"):
            try:
                parse_duration(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"schedule.{name}: {error}") from error
        _require(parse_duration(self.length)[1] != "%", f"schedule.length {self.length!r} is a share of itself")
        _require(self.lr > 0, f"schedule.lr {self.lr} is not positive")
        _require(
            min(self.lr_end, *self.weight_decay) >= 0,
            f"schedule.lr_end {self.lr_end} or schedule.weight_decay {self.weight_decay} is negative",
        )
        _require(min(self.teacher_temperature) > 0, "schedule.teacher_temperature must be positive")
        _require(all(0 <= m <= 1 for m in self.ema), f"schedule.ema {self.ema} is outside [0, 1]")


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moments."""
    eps: float = 2e-5
    """Added to the root of the second moment."""
    clip: float = 3.0
    """Largest norm of the gradient; 0 turns clipping off."""
    decay_all: bool = False
    """As the official code: weight decay on biases, norms, tokens, position embedding and gains, too."""

    def __post_init__(self) -> None:
        _require(all(0 <= beta < 1 for beta in self.betas), f"optimiser.betas {self.betas} are outside [0, 1)")
        _require(self.eps >= 0, f"optimiser.eps {self.eps} is negative")
        _require(self.clip >= 0, f"optimiser.clip {self.clip} is negative: 0 turns clipping off")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How samples become batches."""

    batch: int = 64
    """Samples per optimiser step, over all ranks."""
    workers: int = 0
    """Processes that read and crop; 0 does it in the training process. The batches are the same."""
    on_bad: str = "stop"
    """What a sample that is damaged or does not decode does: stop the run, or replace: another sample of its block
    takes its place, and the run lists it in bad_samples.jsonl."""
    cache: str | None = None
    """Folder on a local disk for parts of datasets that lie in a bucket; by default the temporary folder (TMPDIR).
    Local datasets are read in place."""
    cache_gb: float | None = None
    """Gigabytes (10⁹ bytes) that the cache may hold; by default as many as the run needs. A run that needs more is
    refused, see `python -m shards plan`."""
    lanes: int | None = None
    """Of the order of samples, see shards/streaming/order.py; by default the largest divisor of the batch up to 256."""
    block_mb: float | None = None
    """Size of the order's blocks, which are read as a whole, in MiB."""
    window: int | None = None
    """Blocks of a lane that are shuffled together."""

    def __post_init__(self) -> None:
        _require(self.batch >= 2, f"loader.batch {self.batch} is below 2: KoLeo needs a neighbour in the batch")
        _require(self.workers >= 0, f"loader.workers {self.workers} is negative")
        _require(self.on_bad in ("stop", "replace"), f"loader.on_bad {self.on_bad!r} is none of stop, replace")
        for name in ("cache_gb", "lanes", "block_mb", "window"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"loader.{name} {value} is not above 0")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved; the end of the run is always."""

    every: str = "1 epochs"
    """Duration between two checkpoints and exports, see schedule."""
    keep_last: int = 2
    """Newest checkpoints to keep; exports are all kept."""
    keep_every: str | None = None
    """Duration between checkpoints that are kept for good, beside the newest: the nearest multiple of every."""
    deadline_s: float = 25.0
    """Seconds from SIGTERM until a step that is still under way is given up, and the run leaves without saving. What
    remains of the time until the machine is taken away is for saving; Kubernetes kills after 30 s."""

    def __post_init__(self) -> None:
        _require(self.keep_last >= 1, f"checkpoint.keep_last {self.keep_last} is below 1")
        _require(self.deadline_s > 0, f"checkpoint.deadline_s {self.deadline_s} is not above 0")
        for name in ("every", "keep_every"):
            try:
                number, _ = parse_duration(getattr(self, name) or "1 step")
            except ValueError as error:
                raise ValueError(f"checkpoint.{name}: {error}") from error
            _require(number > 0, f"checkpoint.{name} {getattr(self, name)!r} is not above 0")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """A further dataset to train on."""

    data: str
    """Dataset: folder or URL."""
    version: int | None = None
    """As version of data."""
    weight: float | None = None
    """Its share of the samples, beside the other weights; 0: paused."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pre-train a backbone with PerA."""

    data: str
    """Dataset: folder or URL, as `python -m ingest --out` or `python -m shards index --out` made it."""
    version: int | None = None
    """Version of data; by default the newest, and later on the one that the run began with."""
    mix: tuple[MixConfig, ...] = ()
    """Further datasets, with the bands and the type of data: [{data: URL, weight: 1}, …]."""
    weight: float | None = None
    """Share of data among the samples, beside the weights in mix; 0 pauses it. By default a dataset's share is that of
    its samples. A run that goes on may be given other weights, and keeps its own without any."""
    run: str
    """Folder or URL of the run; when it holds a run of the same configuration, that run goes on."""
    seed: int = 0
    """Of everything that is drawn."""
    max_steps: int | None = None
    """Stop after this many steps of the schedule; a later start with more goes on from there."""
    bands: tuple[str, ...] | None = None
    """Bands to train on, in this order; by default all of the dataset's."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    precision: str = "float32"
    """float32, or bfloat16: automatic mixed precision."""
    accumulate: int = 1
    """Micro-batches of a step (gradient accumulation): less memory for the same update. KoLeo looks at the whole batch,
    which costs a forward pass more of the student's global views."""
    activation_checkpointing: bool = False
    """Keep only what goes into the blocks, and compute their insides again in the backward pass: less memory, about a
    third more computation."""
    compile: bool = False
    """Compile the blocks with torch.compile: the first steps take minutes, all others less time."""
    shard: bool = False
    """Share parameters and moments out among the ranks (FSDP2), for models that outgrow a GPU."""
    init_from: str | None = None
    """Weights of the backbone to start from: an export of ours, a timm checkpoint (safetensors, or timm:NAME where its
    weights are on this disk), or official PerA weights. By default they are drawn."""
    log_every: int = 10
    """Steps between two rows of metrics."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The backbone."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Sizes of the two heads."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Crops."""
    masks: MasksConfig = field(default_factory=MasksConfig)
    """Who sees which patches."""
    colour: ColourConfig = field(default_factory=ColourConfig)
    """Colour perturbation and normalisation."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights and temperatures."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """What changes over the run."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """AdamW."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Batches."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""

    def __post_init__(self) -> None:
        for name, value in _floats("", self):
            # YAML has .inf.
            _require(math.isfinite(value), f"{name} {value} is not a finite number")
        _require(self.seed >= 0, f"seed {self.seed} is negative")
        _require(self.max_steps is None or self.max_steps >= 1, f"max_steps {self.max_steps} is below 1")
        _require(self.log_every >= 1, f"log_every {self.log_every} is below 1")
        _require(self.device in ("auto", "cpu", "cuda"), f"device {self.device!r} is none of auto, cpu, cuda")
        _require(
            self.precision in ("float32", "bfloat16"),
            f"precision {self.precision!r} is none of float32, bfloat16",
        )
        _require(self.accumulate >= 1, f"accumulate {self.accumulate} is below 1")
        _require(self.bands is None or len(self.bands) > 0, "bands is empty: name one at least, or leave it")
        _require(len(set(self.bands or ())) == len(self.bands or ()), f"bands {self.bands} name one twice")
        self._require_weights()
        patch_px, local_px = self.model.patch_px, self.views.local_px
        _require(
            not self.views.num_local or (local_px >= patch_px and local_px % patch_px == 0),
            f"views.local_px {local_px} is not a multiple of model.patch_px {patch_px}",
        )
        for side_px in {self.model.image_px, *([local_px] if self.views.num_local else [])}:
            self._require_patches(side_px)
        _require(
            bool(self.loss.cls) or not (self.views.num_local or self.loss.koleo_on_head),
            "loss.cls 0 leaves local views and cls heads without use: set views.num_local 0, loss.koleo_on_head false",
        )
        _require(
            not self.loss.crossed or self.views.num_global >= 2,
            f"loss.crossed: views.num_global {self.views.num_global} leaves no other view to compare with, take 2",
        )

    def set_sizes(self, side_px: int) -> SetSizes:
        """Return how many patches of a view go into each set.

        Args:
            side_px: of the view.
        """
        masks, num_patches = self.masks, (side_px // self.model.patch_px) ** 2
        return set_sizes(num_patches, masks.student, masks.teacher, masks.learnable, independent=masks.independent)

    @property
    def teacher_sizes(self) -> tuple[str, ...]:
        """Return the sizes of the views that the teacher looks at, of "global" and "local"."""
        if not self.loss.cls:
            return ()
        return ("global",) if self.loss.crossed or not self.views.num_local else ("global", "local")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Return the pairs (student's view, teacher's view) that are compared; views are numbered, global ones first.

        Pairs with a global view of the student's come first.
        """
        if not self.loss.cls:
            return ()
        views = range(self.views.num_views)
        if self.loss.crossed:
            return tuple((own, other) for own in views for other in range(self.views.num_global) if own != other)
        return tuple((view, view) for view in views)

    def _require_patches(self, side_px: int) -> None:
        sizes = self.set_sizes(side_px)
        _require(
            sizes.teacher > 0 or not self.loss.cls,
            f"masks.teacher {self.masks.teacher} of {sizes.patches} patches leaves the teacher none: raise it, or set "
            "loss.cls 0",
        )
        _require(
            sizes.learnable > 0 or side_px != self.model.image_px or not self.loss.pixel,
            f"masks.student {self.masks.student} and masks.teacher {self.masks.teacher} leave none of {sizes.patches} "
            "patches to predict: lower one, or set loss.pixel 0",
        )

    def _require_weights(self) -> None:
        weights = [self.weight, *[each.weight for each in self.mix]]
        given = [weight for weight in weights if weight is not None]
        _require(len(given) in (0, len(weights)), f"weight and mix: {len(given)} of {len(weights)} weights are given")
        _require(not given or (min(given) >= 0 and max(given) > 0), f"weights {given} are not ≥ 0, one of them above 0")
