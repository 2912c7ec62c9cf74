"""Uncertainty of figures over test images, and the verdict between two models in words.

A bootstrap draws N images with replacement and takes the metric of what was drawn. Images with equal scores are
exchangeable, so the number of times each distinct score is drawn is multinomial: few distinct scores cost
O(draws × distinct), any others O(draws × N). Draws are made in chunks: memory stays below 200 MB.

Resampling cannot show faults that no test image has: of 100 right images every draw is 100 % right. So one right and
one wrong image are added before drawing, as Agresti and Caffo (2000) do for proportions; N right images of N then
have a lower end near 1 − 3/N, the rule of three. Per-pixel metrics vary less from image to image than such an image
would add; there the pair joins only where nothing varies.

Images of one place are alike, so where a split keeps places whole it is places that are drawn, each with all of its
images (the cluster bootstrap of Davison and Hinkley 1997, 3.8): 50 images each of 20 places say about new places what
20 to 1,000 images of places of their own would say. Percentiles of G drawn places are too narrow by √(G / (G − 1)) and
by Student's quantile over the normal one, and are widened by that. Where places do not vary, the added pair are a
right and a wrong place of mean size: of 20 right places the lower end is near 1 − 3/20.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Verdict = Literal["better", "worse", "no difference"]
RATIOS = ("miou", "iou", "f1")
"""Metrics of pooled confusion counts; all others are means."""

_TAILS = (2.5, 97.5)
_NORMAL_QUANTILE = 1.959964
_CHUNK = 4_000_000  # float64 values of a chunk of draws: 32 MB, a few of which are alive at a time


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a metric was made of, image by image: enough for intervals and for comparisons."""

    metric: str
    units: NDArray[np.float64] | NDArray[np.int64]
    """float64 [N]: scores 0…1 of N test images, whose mean is the metric; float64 [R, N]: scores in R draws of the
    training images; int64 [N, K, K]: pixels of each image by (true, predicted) class, for the metrics of RATIOS."""
    places: NDArray[np.int64] | None = None
    """Place of each test image, any numbers [N]; None where each is a place of its own. One place alone says nothing
    of others: of its images the intervals tell."""

    def __post_init__(self) -> None:
        assert (self.units.ndim == 3) == (self.metric in RATIOS), (self.metric, self.units.shape)
        assert self.units.size, f"no test images for {self.metric}"
        assert self.places is None or self.places.shape == (self.num_images,)

    @property
    def num_images(self) -> int:
        """Return the number of test images."""
        return len(self.units) if self.units.ndim == 3 else self.units.shape[-1]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better the first of two models is on the same images, with the verdict."""

    value: float
    low: float
    high: float
    verdict: Verdict


def value(evidence: Evidence) -> float:
    """Return the metric, 0…1.

    "miou" is the mean IoU of the classes that occur or are predicted; "iou" and "f1" are those of class 1, and 0 if it
    neither occurs nor is predicted, as in scikit-learn.
    """
    if evidence.units.ndim < 3:
        return float(evidence.units.mean())
    return float(np.nan_to_num(_ratio(evidence.metric, _pixels(evidence.units).sum(axis=0))))


def per_class_iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the IoU of each class [K] of confusion counts [N, K, K]; NaN for one that is nowhere."""
    return _ious(_pixels(counts).sum(axis=0))


def bootstrap_interval(evidence: Evidence, num_draws: int, draw: np.random.Generator) -> Interval:
    """Return the metric with its interval; images or places are drawn again and, where there are several, draws too."""
    figure, sampled = value(evidence), _sampled(evidence.units, evidence.places)
    if evidence.units.ndim == 3:
        varies = (sampled.sums != sampled.sums[:1]).any() and 0 < figure < 1
        drawn = _ratio_draws(
            evidence.metric, _pixels(sampled.sums if varies else _with_extremes(sampled.sums)), num_draws, draw
        )
    else:
        drawn = _mean_draws(_with_pair(sampled, 0.0, 1.0), num_draws, draw)
    if not np.isfinite(drawn).any():
        return Interval(value=figure, low=0.0, high=1.0)
    low, high = np.clip(sampled.widened(figure, np.nanpercentile(drawn, _TAILS)), 0, 1)
    return Interval(value=figure, low=min(float(low), figure), high=max(float(high), figure))


def paired_difference(first: Evidence, second: Evidence, num_draws: int, draw: np.random.Generator) -> Difference:
    """Compare two models by a paired bootstrap over their evidence on the same N images, or on their places.

    One image won and one lost are added before drawing: with a handful of differing images the plain bootstrap
    finds differences in noise (4 wins to 0 would be enough, p = 0.13 by the sign test); with more it changes nothing
    (the adjustment of Bonett and Price 2012 for paired proportions). For metrics over pixels the two are the image of
    the median difference, once as it is and once with the models exchanged.

    Args:
        first: evidence of the first model.
        second: evidence of the second model on the same images, in the same order and the same draws.
        num_draws: bootstrap draws.
        draw: source of the draws.
    """
    assert first.metric == second.metric
    assert first.units.shape == second.units.shape
    difference = value(first) - value(second)
    if first.units.ndim == 3:
        sampled, other = (_sampled(each.units, first.places) for each in (first, second))
        drawn = _ratio_differences(first.metric, sampled.sums, other.sums, num_draws, draw)
    else:
        sampled = _sampled(first.units - second.units, first.places)
        drawn = _mean_draws(_with_pair(sampled, -1.0, 1.0), num_draws, draw)
    # Where no pixel has a class, no draw says anything.
    ends = np.nanpercentile(drawn, _TAILS) if np.isfinite(drawn).any() else np.zeros(2)
    low, high = (float(end) for end in sampled.widened(difference, ends))
    return Difference(value=difference, low=low, high=high, verdict=verdict_of(low, high))


def verdict_of(low: float, high: float) -> Verdict:
    """Return what the interval of a difference says: better or worse where it leaves out zero."""
    return "better" if low > 0 else "worse" if high < 0 else "no difference"


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    """What is drawn with replacement: U images, or places with the sums over their images."""

    sums: NDArray[np.float64]
    """[R, U], or counts of pixels [U, K, K], exact below 2⁵³."""
    sizes: NDArray[np.float64]
    """Images of each [U]."""
    are_places: bool

    def widened(self, figure: float, ends: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the ends of a percentile interval about a figure, further apart where few places were drawn."""
        return figure + _expansion(len(self.sizes)) * (ends - figure) if self.are_places else ends


def _sampled(units: NDArray[np.float64] | NDArray[np.int64], places: NDArray[np.int64] | None) -> _Sampled:
    """Sum units [N, K, K], [R, N] or [N] by place."""
    axis = 0 if units.ndim == 3 else 1
    by_image: NDArray[np.float64] = (units if units.ndim == 3 else np.atleast_2d(units)).astype(np.float64)
    if places is not None:
        _, numbers, sizes = np.unique(places, return_inverse=True, return_counts=True)
        if 1 < len(sizes) < len(numbers):
            in_order = by_image.take(np.argsort(numbers, kind="stable"), axis=axis)
            sums: NDArray[np.float64] = np.add.reduceat(in_order, np.cumsum(sizes) - sizes, axis=axis)
            return _Sampled(sums=sums, sizes=sizes.astype(np.float64), are_places=True)
    return _Sampled(sums=by_image, sizes=np.ones(by_image.shape[axis]), are_places=False)


def _with_pair(sampled: _Sampled, low: float, high: float) -> _Sampled:
    """Add an image of the lowest and one of the highest score; places of mean size where all places score the same."""
    means = sampled.sums.mean(axis=0) / sampled.sizes
    size = sampled.sizes.mean() if np.ptp(means) < 1e-12 else 1.0
    pair = np.repeat([[low * size, high * size]], len(sampled.sums), axis=0)
    return replace(
        sampled,
        sums=np.concatenate([sampled.sums, pair], axis=1),
        sizes=np.concatenate([sampled.sizes, [size, size]]),
    )


def _weights(
    counts: NDArray[np.int64], num_draws: int, width: int, draw: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """Yield chunks [draws, U] of how often each of U distinct units is drawn; counts [U] says how often each is there.

    `width` is the number of values that the caller makes of one draw.
    """
    total, num_units = int(counts.sum()), len(counts)
    chunk = max(1, _CHUNK // max(total, width))
    for start in range(0, num_draws, chunk):
        num = min(chunk, num_draws - start)
        if num_units * 8 < total:
            yield draw.multinomial(total, counts / total, size=num).astype(np.float64)
            continue
        # Many distinct units: drawing images one by one is quicker than a binomial for each unit.
        unit_of = np.repeat(np.arange(num_units), counts)
        drawn = unit_of[draw.integers(0, total, (num, total))] + np.arange(num)[:, None] * num_units
        yield np.bincount(drawn.ravel(), minlength=num * num_units).reshape(num, num_units).astype(np.float64)


def _mean_draws(sampled: _Sampled, num_draws: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """Return the means [num_draws] of scores with images, or places, and draws drawn again.

    Images carry their mean over the draws, and draws their effect on the mean. To weight each score by both, as the
    pigeonhole bootstrap does, counts what is of neither three times (Owen 2007).
    """
    num_rows = len(sampled.sums)
    units, counts = np.unique(np.stack([sampled.sums.mean(axis=0), sampled.sizes]), axis=1, return_counts=True)
    chunks = _weights(counts, num_draws, len(counts), draw)
    means = np.concatenate([weights @ units[0] / (weights @ units[1]) for weights in chunks])
    rows = draw.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=num_draws) / num_rows
    drawn: NDArray[np.float64] = means + rows @ _draw_effects(sampled.sums.sum(axis=1) / sampled.sizes.sum())
    return drawn


def _draw_effects(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the effect of each of R draws on the mean [R], of their means [R], widened as `_expansion` says."""
    if len(means) == 1:
        return np.zeros(1)
    effects: NDArray[np.float64] = _expansion(len(means)) * (means - means.mean())
    return effects


def _expansion(num: int) -> float:
    """Return the factor by which the percentile interval of `num` resampled values is too narrow: 1.58 for 5 values.

    It is √(n / (n − 1)) for the bias and Student's quantile over the normal one (Hesterberg 2015, expanded
    percentiles).
    """
    return math.sqrt(num / (num - 1)) * float(stdtrit(num - 1, 0.975)) / _NORMAL_QUANTILE


def _pixels(counts: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return right, true and predicted pixels of each class side by side, [N, 3 K], of counts [N, K, K]."""
    right = np.diagonal(counts, axis1=1, axis2=2)
    return np.concatenate([right, counts.sum(axis=2), counts.sum(axis=1)], axis=1).astype(np.float64)


def _ious(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    right, true, predicted = np.split(pixels, 3, axis=-1)
    union = true + predicted - right
    ious: NDArray[np.float64] = np.divide(right, union, out=np.full_like(right, np.nan), where=union > 0)
    return ious


def _ratio(metric: str, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the metric [...] of summed pixels [..., 3 K]; NaN where it is undefined."""
    ious = _ious(pixels)
    if metric == "miou":
        present, total = np.isfinite(ious), np.nansum(ious, axis=-1)
        mean: NDArray[np.float64] = np.full_like(total, np.nan)
        np.divide(total, present.sum(axis=-1), out=mean, where=present.any(axis=-1))
        return mean
    iou: NDArray[np.float64] = ious[..., 1]
    return 2 * iou / (1 + iou) if metric == "f1" else iou


def _ratio_draws(
    metric: str, pixels: NDArray[np.float64], num_draws: int, draw: np.random.Generator
) -> NDArray[np.float64]:
    """Return the metric [num_draws] of drawn images of pixels [N, 3 K]."""
    counts = np.ones(len(pixels), np.int64)
    chunks = _weights(counts, num_draws, pixels.shape[1], draw)
    return np.concatenate([_ratio(metric, weights @ pixels) for weights in chunks])


def _ratio_differences(
    metric: str, first: NDArray[np.float64], second: NDArray[np.float64], num_draws: int, draw: np.random.Generator
) -> NDArray[np.float64]:
    """Return the differences [num_draws] of a metric between counts [U, K, K] of two models."""
    both = np.stack([_pixels(first), _pixels(second)])
    typical = _median_difference(first, second)
    if typical is not None:
        both = np.concatenate([both, both[:, [typical]], both[::-1, [typical]]], axis=1)
    counts = np.ones(both.shape[1], np.int64)
    drawn = [
        _ratio(metric, weights @ both[0]) - _ratio(metric, weights @ both[1])
        for weights in _weights(counts, num_draws, both.shape[2], draw)
    ]
    return np.concatenate(drawn)


def _median_difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> int | None:
    """Return the image whose counts differ by the median amount of those that differ at all."""
    sizes = np.abs(first - second).sum(axis=(1, 2))
    differing = np.flatnonzero(sizes)
    ordered = differing[np.argsort(sizes[differing], kind="stable")]
    return int(ordered[len(ordered) // 2]) if len(ordered) else None


def _with_extremes(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add to counts [U, K, K] those of a mean image or place all right, and of one all wrong."""
    num_classes = counts.shape[1]
    true = counts.sum(axis=2).mean(axis=0)
    right = np.diag(true)
    wrong = np.outer(true, np.ones(num_classes)) / max(num_classes - 1, 1)
    np.fill_diagonal(wrong, 0)
    return np.concatenate([counts, np.stack([right, wrong])])
