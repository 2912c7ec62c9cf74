"""What the figures of a run's metrics mean, how they are written, and which stand in one chart."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Rows = Sequence[Mapping[str, Any]]

MEANINGS = {
    "epoch": "samples consumed, in sizes of the dataset",
    "samples": "samples consumed, over all ranks",
    "loss": "the total that is minimised",
    "global_cls": "cross-entropy of the global pairs, their share of the mean over all pairs",
    "local_cls": "cross-entropy of the local pairs, likewise",
    "koleo": "spread loss, summed over the global views, before its weight",
    "pixel": "squared error of a predicted patch, summed over its values, before its weight",
    "divergence": "cross-entropy less the teacher's entropy: what the student can do something about",
    "teacher_entropy": "of an image's assignment to prototypes, nats; near ln K the teacher says nothing",
    "teacher_diversity": "entropy of the mean assignment, nats; near 0 all images look the same to the teacher",
    "feature_spread": "1: features fill the sphere evenly; 0: all images have the same one",
    "feature_rank": "effective number of directions that the features fill",
    "alarm": "symptoms of a collapse that have lasted",
    "lr": "learning rate",
    "weight_decay": "of the weights that decay",
    "ema": "momentum of the teacher",
    "teacher_temperature": "divides the teacher's scores",
    "grad_norm": "of the gradient, before clipping",
    "samples_per_s": "over all ranks, since the row before",
    "data_wait_share": "share of the time in which training waits for data",
    "save_blocked_s": "seconds since the row before in which training waited for a save",
    "flops_per_s": "floating-point operations per second, of the step's matrix products, on one rank",
    "peak_share": "of the rate of a large matrix product, measured when the run began",
    "memory_bytes": "the most that a rank had so far: of the GPU, on a CPU of the process",
    "cache_bytes": "blocks of datasets on the local disk",
    "gets": "requests to stores since the row before",
    "heads": "looks at whether shards have changed",
    "bytes_fetched": "bytes of their answers",
    "bytes_used": "of them bytes of samples",
    "retries": "requests that were made again",
    "bad_samples": "samples that were replaced",
}
"""By key of a row."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Figures that share one scale."""

    title: str
    names: tuple[str, ...]
    note: str = ""
    may_be_log: bool = False
    """Drawn on a logarithmic scale where the values span much."""
    is_told_if_constant: bool = False
    """Not drawn while nothing happens: a sentence says the value."""


SECTIONS: dict[str, tuple[Chart, ...]] = {
    "Losses": (
        Chart(title="Loss", names=("loss",), note="holds the teacher's own entropy, which may grow on the way"),
        Chart(title="Divergence", names=("divergence",), note="the part of the cross-entropy that can fall"),
        Chart(title="Cross-entropy", names=("global_cls", "local_cls"), note="shares of one mean over all pairs"),
        Chart(title="Pixel loss", names=("pixel",), note="before its weight"),
        Chart(title="KoLeo", names=("koleo",), note="before its weight"),
    ),
    "Collapse": (
        Chart(
            title="Entropy of the teacher, nats",
            names=("teacher_entropy", "teacher_diversity"),
            note="of an image at ln K: it says nothing; of all images at 0: they look the same",
        ),
        Chart(title="Spread of the features", names=("feature_spread",), note="0: all images have the same features"),
        Chart(title="Rank of the features", names=("feature_rank",), note="directions that they fill"),
        Chart(title="Alarms", names=("alarm",), note="symptoms that have lasted", is_told_if_constant=True),
    ),
    "Schedules": (
        Chart(title="Learning rate", names=("lr",)),
        Chart(title="Gradient norm", names=("grad_norm",), note="before clipping", may_be_log=True),
        Chart(title="Temperature of the teacher", names=("teacher_temperature",)),
        Chart(title="Momentum of the teacher", names=("ema",)),
        Chart(title="Weight decay", names=("weight_decay",)),
    ),
    "Speed": (
        Chart(title="Samples per second", names=("samples_per_s",)),
        Chart(title="Waiting for data", names=("data_wait_share",), note="share of the time"),
        Chart(
            title="Blocked by saves, seconds",
            names=("save_blocked_s",),
            note="since the row before",
            is_told_if_constant=True,
        ),
        Chart(title="FLOP/s", names=("flops_per_s",)),
        Chart(title="Share of the peak", names=("peak_share",), note="of the machine's matrix products"),
        Chart(title="Peak memory", names=("memory_bytes",), note="the most that a rank had so far"),
    ),
    "Reading from stores": (
        Chart(title="Bytes", names=("bytes_fetched", "bytes_used"), is_told_if_constant=True),
        Chart(title="Requests", names=("gets", "heads"), is_told_if_constant=True),
        Chart(title="Made again", names=("retries",), is_told_if_constant=True),
        Chart(title="Bad samples", names=("bad_samples",), is_told_if_constant=True),
        Chart(title="Cache", names=("cache_bytes",), is_told_if_constant=True),
    ),
}
"""Charts by what they are about; what stands in none of them is drawn under "Others"."""

AXES = ("step", "samples", "epoch")
"""Keys of a row that say where it stands."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure in the rows that tell it: finite numbers only."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    @property
    def is_constant(self) -> bool:
        """Whether all values are the same."""
        return min(self.values) == max(self.values)


def read_columns(rows: Rows) -> dict[str, Column]:
    """Return the figures of rows by name, in the order in which they first come up.

    What is no finite number is passed over: texts, nulls, NaN; a figure that is never told is not there.
    """
    columns: defaultdict[str, Column] = defaultdict(Column)
    for row in rows:
        step = float(row["step"])
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                columns[name].steps.append(step)
                columns[name].values.append(float(value))
    return dict(columns)


def told(name: str, value: float) -> str:
    """Return a figure with its unit, about four digits: "13.1 %", "1.2 GB", "0.0005", "12,800"."""
    if name.endswith("_share"):
        return f"{100 * value:.3g} %"
    if name.endswith("_bytes") or name.startswith("bytes_"):
        return f"{scaled(value, 4)}B"
    if name.startswith("flop"):
        return scaled(value, 3).rstrip()
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def scaled(value: float, digits: int) -> str:
    """Return a number of at most so many digits, 3 at least, with its power of a thousand, for a unit to follow.

    "12.5 M", "120 ".
    """
    for power, sign in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # What rounds up to a thousand belongs to the next power.
        if abs(value) >= power * (1 - 0.5 * 10**-digits):
            return f"{value / power:.{digits}g} {sign}"
    return f"{value:.{digits}g} "
