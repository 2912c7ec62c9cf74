"""What a run trains on: one dataset, or a mixture of several that have the same bands and type; and their stream.

Opening costs the tables of places (see `shards.dataset`) and, for data in a bucket, space on a local disk.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pretrain.batches.colour import Colour
from pretrain.config import Config
from pretrain.training.ranks import node_world
from shards import storage
from shards.dataset import Dataset, open_dataset
from shards.errors import UserError
from shards.schema import canonical_json, sha256_hex
from shards.streaming.ahead import cached
from shards.streaming.footprint import opening_need
from shards.streaming.mix import proportional_weights
from shards.streaming.order import BLOCK_BYTES, WINDOW
from shards.streaming.room import cache_folder, is_remote, require_fits
from shards.streaming.state import StreamState, begin, open_stream
from shards.streaming.stream import Stream
from shards.tables import list_versions

VALUE_RANGES = {"uint8": 255.0, "uint16": 65535.0}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The datasets of a run."""

    datasets: tuple[Dataset, ...]
    weights: tuple[float, ...] | None
    """Of each, as configured."""
    bands: tuple[str, ...]
    """Trained on, in this order."""
    places: tuple[tuple[int, ...], ...]
    """Of these bands in the images of each dataset."""

    @property
    def num_samples(self) -> int:
        """Samples of an epoch: as many as all datasets have, whatever their weights."""
        return sum(dataset.num_samples for dataset in self.datasets)

    @property
    def digests(self) -> tuple[str, ...]:
        """Digests of the datasets."""
        return tuple(dataset.digest for dataset in self.datasets)

    @property
    def digest(self) -> str:
        """64 hex digits: of the dataset, or of several in their order."""
        return self.digests[0] if len(self.digests) == 1 else sha256_hex(canonical_json(self.digests))


def open_sources(config: Config, recorded: Sequence[int] = ()) -> Sources:
    """Open the configured datasets.

    Args:
        config: datasets, versions, bands.
        recorded: versions of the datasets that the run began with: taken where they are there and none is configured.

    Raises:
        UserError: one is not there, has other bands or another type than the first, or tiles smaller than a crop.
    """
    given = [(config.data, config.version), *[(each.data, each.version) for each in config.mix]]
    datasets = tuple(
        open_dataset(url, _if_there(url, recorded[number]) if version is None and recorded else version)
        for number, (url, version) in enumerate(given)
    )
    for dataset in datasets:
        _require_alike(dataset, datasets[0], config)
    bands = config.bands or tuple(band.name for band in datasets[0].bands)
    places = tuple(choose_bands(dataset, bands) for dataset in datasets)
    for dataset in datasets:
        if config.model.image_px > dataset.tile_px:
            raise UserError(
                f"{dataset.url} has tiles of {dataset.tile_px} px, too small for crops of model.image_px "
                f"{config.model.image_px}: lower it, or ingest with a larger tile_px"
            )
    weights = (config.weight, *[each.weight for each in config.mix])
    return Sources(
        datasets=datasets,
        weights=tuple(weight for weight in weights if weight is not None) or None,
        bands=bands,
        places=places,
    )


def _if_there(url: str, version: int) -> int | None:
    with storage.user_errors(url):
        return version if version in list_versions(url) else None


def _require_alike(dataset: Dataset, first: Dataset, config: Config) -> None:
    if dataset.dtype not in VALUE_RANGES:
        raise UserError(
            f"{dataset.url} holds {dataset.dtype}, but training takes {' or '.join(VALUE_RANGES)}: "
            "ingest with another normalisation"
        )
    if dataset.dtype != first.dtype:
        raise UserError(f"{dataset.url} holds {dataset.dtype}, but {first.url} {first.dtype}: mix data of one type")
    names, first_names = ([band.name for band in each.bands] for each in (dataset, first))
    if config.bands is None and set(names) != set(first_names):
        raise UserError(
            f"{dataset.url} has the bands {', '.join(names)}, but {first.url} {', '.join(first_names)}: "
            "choose common ones with bands"
        )


def choose_bands(dataset: Dataset, wanted: Sequence[str]) -> tuple[int, ...]:
    """Return the places of bands in a dataset's tiles.

    Raises:
        UserError: the dataset lacks one.
    """
    names = [band.name for band in dataset.bands]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UserError(
            f"{dataset.url} has no band {', '.join(missing)}: its bands are {', '.join(names)}; "
            "choose from them with bands, or ingest again"
        )
    return tuple(names.index(name) for name in wanted)


def make_colour(sources: Sources, config: Config) -> Colour:
    """Return colours and, for a mixture by the sources' weights, normalisation of their bands.

    Raises:
        UserError: the configured mean and std have another number of bands.
    """
    value_range, num_bands = VALUE_RANGES[sources.datasets[0].dtype], len(sources.bands)
    weights = sources.weights or proportional_weights([dataset.num_samples for dataset in sources.datasets])
    mean, std = [], []
    for band in range(num_bands):
        chosen = [dataset.bands[places[band]] for dataset, places in zip(sources.datasets, sources.places, strict=True)]
        pooled = pool([each.mean for each in chosen], [each.std for each in chosen], weights)
        mean.append(pooled[0] / value_range)
        # A constant band would be divided by 0; its normalised values are 0 whatever it is divided by.
        std.append(pooled[1] / value_range or 1.0)
    colour = config.colour
    if colour.mean and colour.std and not len(colour.mean) == len(colour.std) == num_bands:
        raise UserError(
            f"colour.mean and colour.std have {len(colour.mean)} and {len(colour.std)} values for {num_bands} bands"
        )
    has_rgb = {"red", "green", "blue"} <= set(sources.bands)
    return Colour(
        value_range=value_range,
        mean=colour.mean or tuple(mean),
        std=colour.std or tuple(std),
        rgb=tuple(sources.bands.index(name) for name in ("red", "green", "blue")) if has_rgb else (),
    )


def pool(means: Sequence[float], stds: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation of a mixture, from those of its parts and their weights.

    The variance of a mixture is the mean of the parts' variances plus the variance of their means.
    """
    total = sum(weights)
    mean = math.fsum(weight / total * mean for weight, mean in zip(weights, means, strict=True))
    parts = zip(weights, means, stds, strict=True)
    variance = math.fsum(weight / total * (std**2 + (part - mean) ** 2) for weight, part, std in parts)
    return mean, math.sqrt(variance)


def begin_stream(config: Config, sources: Sources) -> StreamState:
    """Return the state of a run's stream before its first step.

    Raises:
        UserError: weights or order settings that do not work.
    """
    loader = config.loader
    return begin(
        sources.datasets,
        seed=config.seed,
        global_batch=loader.batch,
        weights=sources.weights,
        lanes=loader.lanes,
        block_bytes=round(loader.block_mb * 2**20) if loader.block_mb else BLOCK_BYTES,
        window=loader.window or WINDOW,
    )


@contextmanager
def continued_stream(
    config: Config,
    sources: Sources,
    state: StreamState,
    *,
    rank: int = 0,
    world: int = 1,
    queued_steps: int = 0,
) -> Iterator[Stream]:
    """Yield a rank's stream, from a state on, with a cache for what lies in a bucket.

    Args:
        config: batch, weights, cache.
        sources: the datasets of the state.
        state: of the stream.
        rank: in [0, world).
        world: number of ranks; divides the batch.
        queued_steps: that are read before they are used, by workers.

    Raises:
        UserError: the state is that of other data, or the caches of this machine's ranks do not fit.
    """
    loader = config.loader
    stream = open_stream(
        state,
        sources.datasets,
        global_batch=loader.batch,
        weights=sources.weights,
        rank=rank,
        world=world,
        on_bad=loader.on_bad,
    )
    if not any(map(is_remote, sources.datasets)):
        yield stream
        return
    folder = cache_folder(loader.cache, "--loader.")
    limit_bytes = round(loader.cache_gb * 1e9) if loader.cache_gb else None
    node_ranks = min(node_world(), world)
    need = opening_need(stream, node_ranks=node_ranks, queued_steps=queued_steps)
    require_fits(need, folder=folder, limit_bytes=limit_bytes, node_ranks=node_ranks, options="--loader.")
    with cached(stream, folder, limit_bytes or need.rank_bytes, queued_steps=queued_steps):
        yield stream
