"""What a method is worth: figures over runs that differ in nothing but their seed. Pure functions of the rows.

The interval is that of the difference of two methods' means, by Welch's t. It is about training again: by how much the
methods would differ with other seeds, on the same data and the same test images. It leaves out what other test images
would do; that is in the intervals of `eval.statistics`, which in turn know one run of each method. One pass over the
rows and microseconds for each figure.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev, variance
from typing import Any

from scipy.special import stdtrit

from eval.models.names import short_names
from eval.models.record import Record
from eval.protocols import TITLES
from eval.results import Row
from eval.statistics import Difference, verdict_of
from eval.summary import HEADLINES, VERBS, in_points, validation

_Key = tuple[str, int | None]
_END = re.compile(r"[-_. /]*(seed)?[-_. /]*$")


@dataclass(frozen=True, kw_only=True)
class Against:
    """A method's mean against that of another."""

    other: str
    other_seeds: int
    value: float
    """Difference of the means."""
    difference: Difference | None
    """The same with its interval and verdict; None where the runs tell none."""


@dataclass(frozen=True, kw_only=True)
class MethodFigure:
    """A metric over the runs of a method, 0…1."""

    data: str
    protocol: str
    method: str
    models: tuple[str, ...]
    features: str
    """One kind for all runs: the best on the validation part, by its mean over them."""
    num_seeds: int
    mean: float
    sd: float | None
    """Sample standard deviation; None of one run."""
    lowest: float
    highest: float
    against: Against | None
    """None of the method that the others are compared with, and where there is no such method."""

    def figures(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return asdict(self)


def over_seeds(
    rows: Sequence[Row], runs: Mapping[str, str], records: Mapping[str, Record], baseline: str | None = None
) -> list[MethodFigure]:
    """Return a figure for each (data, protocol, method); nothing where no method has several seeds.

    Methods are compared with the baseline's, without a baseline with the first that has several seeds.

    Args:
        rows: of any data sets, models and protocols, models in the order of the report.
        runs: name of each exported model → its run; exports of a run in the order of their steps.
        records: name of each exported model → what its run was made from, where that is known.
        baseline: name of the model that all others are compared with.
    """
    newest = {runs[row.model]: row for row in rows if row.model in records}
    # A run that is still behind is not yet what the others are.
    keys = {run: (records[row.model].method, row.step) for run, row in newest.items()}
    by_seed: dict[_Key, dict[int, str]] = {}
    for run, key in keys.items():
        model = newest[run].model
        # A seed that was trained twice is one seed.
        by_seed.setdefault(key, {}).setdefault(records[model].seed, model)
    groups = {key: list(models.values()) for key, models in by_seed.items()}
    several = [key for key, models in groups.items() if len(models) > 1]
    if not several:
        return []
    names = _names(groups, runs)
    base = several[0] if baseline is None else keys.get(runs.get(baseline, ""))
    methods = {names[key]: models for key, models in groups.items()}
    return _figures(rows, methods, None if base is None else names[base])


def _names(groups: Mapping[_Key, Sequence[str]], runs: Mapping[str, str]) -> dict[_Key, str]:
    """Return a name for each group of models: what the folder names of its runs have in common.

    Where two groups would be called the same, what the paths of their runs have in common; and where that is the same,
    too, the name of a model.
    """
    short = short_names(runs.values())
    names = {
        key: common_name([runs[model].rstrip("/").rpartition("/")[2] for model in models])
        for key, models in groups.items()
    }
    paths = {key: _common_path([short[runs[model]] for model in models]) for key, models in groups.items()}
    for others in (paths, {key: models[0] for key, models in groups.items()}):
        told = Counter(names.values())
        names = {key: others[key] if told[name] > 1 else name for key, name in names.items()}
    return names


def _common_path(runs: Sequence[str]) -> str:
    """Return what the paths of runs begin with: whole folders, of runs in one folder their names' beginning, too."""
    if len({run.rpartition("/")[0] for run in runs}) == 1:
        return common_name(runs)
    parts = zip(*[run.split("/") for run in runs], strict=False)
    same = itertools.takewhile(lambda each: len(set(each)) == 1, parts)
    return "/".join(each[0] for each in same) or runs[0]


def common_name(runs: Sequence[str]) -> str:
    """Return what the names of runs begin with, as in "base" of base-seed9 and base-seed10; else the first of them."""
    # A number counts whole: 10 and 11 have no 1 in common.
    parts = zip(*[re.findall(r"\d+|\D", name) for name in runs], strict=False)
    same = itertools.takewhile(lambda each: len(set(each)) == 1, parts)
    return _END.sub("", "".join(each[0] for each in same)) or runs[0]


def _figures(rows: Sequence[Row], methods: Mapping[str, Sequence[str]], base: str | None) -> list[MethodFigure]:
    method_of = {model: name for name, models in methods.items() for model in models}
    places: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        if row.model in method_of:
            places.setdefault((row.data, row.protocol), {}).setdefault(method_of[row.model], []).append(row)
    figures = []
    for found in places.values():
        chosen = {name: _of_one_kind(found[name]) for name in methods if name in found}
        figures += [_figure(name, mine, base, chosen.get(base or "", [])) for name, mine in chosen.items()]
    return figures


def _figure(method: str, rows: Sequence[Row], base: str | None, base_rows: Sequence[Row]) -> MethodFigure:
    values, others = ([row.value for row in each] for each in (rows, base_rows))
    return MethodFigure(
        data=rows[0].data, protocol=rows[0].protocol, method=method, models=tuple(row.model for row in rows),
        features=rows[0].features, num_seeds=len(rows), mean=mean(values),
        sd=stdev(values) if len(rows) > 1 else None, lowest=min(values), highest=max(values),
        against=None if base is None or base == method or not others else Against(
            other=base, other_seeds=len(others), value=mean(values) - mean(others),
            difference=welch_difference(values, others),
        ),
    )  # fmt: skip


def _of_one_kind(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the features that most of a method's runs have, and of these the best on validation."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row.features, []).append(row)
    return max(kinds.values(), key=lambda found: (len(found), mean(map(validation, found))))


def welch_difference(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Return mean(first) − mean(second) with its 95 % interval by Welch's t (1947), for unequal variances.

    None where a side has one value, or neither varies: nothing then says what another seed would do.
    """
    if min(len(first), len(second)) < 2:
        return None
    # The standard library's variance is exact: that of equal values is 0.
    error, other_error = (variance(values) / len(values) for values in (first, second))
    if error + other_error == 0:
        return None
    # Welch-Satterthwaite, in shares: no square underflows.
    share = error / (error + other_error)
    freedom = 1 / (share**2 / (len(first) - 1) + (1 - share) ** 2 / (len(second) - 1))
    value, half = mean(first) - mean(second), float(stdtrit(freedom, 0.975)) * math.sqrt(error + other_error)
    low, high = value - half, value + half
    return Difference(value=value, low=low, high=high, verdict=verdict_of(low, high))


def method_sentences(figures: Sequence[MethodFigure]) -> list[str]:
    """Say in words how methods compare under the headline protocols, where their runs tell an interval."""
    return [
        _sentence(figure, figure.against, figure.against.difference)
        for figure in figures
        if figure.protocol in HEADLINES and figure.against is not None and figure.against.difference is not None
    ]


def _sentence(figure: MethodFigure, against: Against, difference: Difference) -> str:
    same = figure.num_seeds == against.other_seeds
    seeds = f"{figure.num_seeds} seeds each" if same else f"{figure.num_seeds} and {against.other_seeds} seeds"
    return (
        f"On {figure.data}, over {seeds}, {figure.method} {VERBS[difference.verdict]} {against.other}: "
        f"{in_points(difference, ' points')}, {TITLES[figure.protocol]}."
    )
