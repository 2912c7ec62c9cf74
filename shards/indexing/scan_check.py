"""What all samples of all tars must have in common before they can be one dataset.

One pass over the scans, tar by tar: keys (none twice, the same in every series), exactly one image, a label if any.
Memory: the scan of one tar, and 12 bytes per key and series.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards.errors import UserError
from shards.indexing.faults import Faults
from shards.indexing.key_places import KeyPlaces, find_lacking_keys, find_repeated_keys
from shards.indexing.measure import Image, spread
from shards.indexing.scan_rows import Members
from shards.indexing.scan_store import KeptScan, read_scan
from shards.indexing.sources import Source

_IMAGE_KINDS = (("jpg", "jpeg", "png"), ("webp",), ("npy",), ("tif", "tiff"))
"""Extensions that are images; one dataset has those of one group, unless the user names them."""
_DEFAULT_LABEL = "cls"
_NUM_MEMBERS_TOLD = 8


@dataclass(frozen=True, kw_only=True)
class Series:
    """The tars of one modality."""

    name: str
    """The beginning of its members' names; empty: they have none."""
    sources: Sequence[Source]
    scans: Sequence[KeptScan]
    """One for each source."""
    places: KeyPlaces = field(default_factory=KeyPlaces)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which members are image and label, by series."""

    images: tuple[str, ...]
    """Names of members in the first series, its own name before them; one of them in each sample."""
    is_given: bool
    """By the user: then they may be of several kinds."""
    labels: Mapping[str, str]
    """Extension of the label member in each series; empty: none."""
    must_have_label: bool
    """Else labels are taken only where every sample has one."""

    @classmethod
    def of(cls, names: Sequence[str], image: str | None, label: str | None) -> "Choice":
        """Take what the user wrote: extensions, separated by commas, perhaps with a series' name before them.

        Args:
            names: of the series, in order.
            image: extensions; None: all that can be decoded.
            label: extension; None: cls.

        Raises:
            UserError: the image is not in the first series.
        """
        first = names[0]
        given = [_split(each.strip(), names) for each in (image or "").split(",") if each.strip()]
        for name, extension in given:
            if name != first:
                raise UserError(f"--image {name}.{extension} is not in the first series {first!r}: name {name!r} first")
        extensions = [extension for _, extension in given] or [name for kind in _IMAGE_KINDS for name in kind]
        label_series, label_extension = _split(label or _DEFAULT_LABEL, names)
        return cls(
            images=tuple(f"{first}.{extension}" if first else extension for extension in extensions),
            is_given=bool(given),
            labels={name: label_extension if name == label_series else "" for name in names},
            must_have_label=label is not None,
        )

    @property
    def label_series(self) -> str:
        """Name of the series that holds the label."""
        return next(name for name, extension in self.labels.items() if extension)


def _split(extension: str, names: Sequence[str]) -> tuple[str, str]:
    """Return (series, extension) of an extension that may begin with the name of a series; else it is the first's."""
    extension = extension.removeprefix(".")
    head, _, tail = extension.partition(".")
    return (head, tail.lower()) if head in names and tail else (names[0], extension.lower())


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the pass found out; of no use where there are faults."""

    label_series: str | None
    """None: no labels."""
    to_measure: Sequence[Image]


def check(series: Sequence[Series], choice: Choice, faults: Faults, *, complete: bool) -> Checked:
    """Read all scans once; make the series' `places` ready and tell every fault.

    Args:
        series: the first one is that of the rows.
        choice: of image and label.
        faults: takes what is wrong.
        complete: no tar is missing for its own faults; else keys that a series lacks are not told.
    """
    images, labels = _Images(series[0], choice, faults), _Labels(choice, faults)
    for each in series:
        for number, (source, scan) in enumerate(zip(each.sources, each.scans, strict=True)):
            samples = read_scan(scan)
            each.places.add(samples["key"], number)
            if each is series[0]:
                images.add(source.url, samples)
            if each.name == choice.label_series:
                labels.add(source.url, samples)
        each.places.sort()
        find_repeated_keys(each.places, each.scans, [source.url for source in each.sources], faults)
    if complete:
        _check_lacking(series, faults)
    images.check_kinds()
    return Checked(label_series=choice.label_series if labels.end() else None, to_measure=images.to_measure)


def _check_lacking(series: Sequence[Series], faults: Faults) -> None:
    first = series[0]
    for other in series[1:]:
        find_lacking_keys(other.name, other.places, first.name, first.places, first.scans, faults)
        find_lacking_keys(first.name, first.places, other.name, other.places, other.scans, faults)


class _Images:
    """Counts the images of the first series and chooses those to measure."""

    def __init__(self, series: Series, choice: Choice, faults: Faults) -> None:
        self._choice, self._faults = choice, faults
        self._prefix = f"{series.name}." if choice.images[0].startswith(f"{series.name}.") else ""
        self._rows = spread(sum(scan.num_samples for scan in series.scans))
        self._num_samples = 0
        self._names: Counter[str] = Counter()
        self.to_measure: list[Image] = []

    def add(self, url: str, samples: pa.Table) -> None:
        members = Members.of(samples["members"], self._prefix)
        is_image = members.named(self._choice.images)
        counts = members.counts(is_image)
        remedy = "; say which by --image EXT"
        self._tell(url, samples, np.flatnonzero(counts == 0), f"have no image{remedy}")
        self._tell(url, samples, np.flatnonzero(counts > 1), f"have several images{remedy}")
        found = pc.value_counts(members.names.filter(pa.array(is_image)))
        self._names.update(dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)))
        if (counts == 1).all():
            self._choose(url, samples["key"], members, np.flatnonzero(is_image))
        self._num_samples += samples.num_rows

    def _tell(self, url: str, samples: pa.Table, rows: NDArray[np.int64], what: str) -> None:
        if len(rows):
            key = samples["key"][int(rows[0])].as_py()
            names = [member["name"] for member in samples["members"][int(rows[0])].as_py()]
            told = ", ".join(names[:_NUM_MEMBERS_TOLD] + ["…"] * (len(names) > _NUM_MEMBERS_TOLD))
            self._faults.add(
                f"{url}: {len(rows)} of {samples.num_rows} samples {what} (such as {key!r} with the members {told})"
            )

    def _choose(self, url: str, keys: pa.ChunkedArray, members: Members, images: NDArray[np.int64]) -> None:
        """Take those of the rows to measure that are in this tar; `images` are the places of its images."""
        rows = [row - self._num_samples for row in self._rows if 0 <= row - self._num_samples < len(images)]
        for row in rows:
            place = int(images[row])
            self.to_measure.append(
                Image(
                    url=url,
                    key=keys[row].as_py(),
                    extension=members.names[place].as_py().rpartition(".")[2],
                    offset=members.offsets[place].as_py(),
                    size=members.sizes[place].as_py(),
                    sha256=members.sha256[place].as_py(),
                )
            )

    def check_kinds(self) -> None:
        """Tell images of several kinds, where the user has not named them."""
        kinds = {kind for kind in _IMAGE_KINDS for name in self._names if name.removeprefix(self._prefix) in kind}
        if len(kinds) > 1 and not self._choice.is_given:
            told = ", ".join(f"{count} {name}" for name, count in sorted(self._names.items()))
            self._faults.add(f"images are of several kinds ({told}): say which by --image EXT")


class _Labels:
    """Finds out whether every sample has a label."""

    def __init__(self, choice: Choice, faults: Faults) -> None:
        self._choice, self._faults = choice, faults
        self._num_missing = 0
        self._bad = Faults()

    def add(self, url: str, samples: pa.Table) -> None:
        name = self._choice.labels[self._choice.label_series]
        bad = samples.filter(pc.is_valid(samples["label_fault"]))
        if bad.num_rows:
            key, fault = bad["key"][0].as_py(), bad["label_fault"][0].as_py()
            self._bad.add(f"{url}: {bad.num_rows} members {name} are no label, such as that of {key!r}: it {fault}")
        is_missing = pc.and_(pc.is_null(samples["label"]), pc.is_null(samples["label_fault"]))
        missing = samples["key"].filter(is_missing)
        self._num_missing += len(missing)
        if len(missing) and self._choice.must_have_label:
            key = missing[0].as_py()
            count = f"{len(missing)} of {samples.num_rows} samples"
            self._faults.add(f"{url}: {count} have no label {name}, such as {key!r}; leave out --label")

    def end(self) -> bool:
        """Say whether there are labels; tell those that are none."""
        if self._num_missing and not self._choice.must_have_label:
            return False
        self._faults.add_many(self._bad.told, self._bad.count)
        return True
