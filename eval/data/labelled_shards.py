"""A dataset of ours whose samples have labels: scene classification on shards.

Opening reads five columns of the samples table and no image. A label, a key and a place are Python objects for each
labelled sample: about 300 bytes, as the report wants their names anyway.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from eval.data.decode import GEO_EXTENSIONS, UnreadableImageError, decode, reason
from eval.data.kinds import LabelledData, Sample
from eval.data.split import TEST, TRAIN, VALIDATION
from shards.columns import iter_columns
from shards.dataset import CorruptSampleError, Dataset, open_dataset
from shards.errors import UserError
from shards.images import decode_image

_PARTS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
_MIN_GROUPS = 3  # one for each part


def open_labelled_shards(name: str, url: str) -> LabelledData:
    """Open the labelled samples of a dataset's newest version.

    Where ingest has split the dataset, its split is the given one, and tiles across the border of two parts are left
    out. Groups are the cells of the split grid, of samples without a place their scenes.

    Raises:
        UserError: no sample has a label, fewer than two classes, or a damaged dataset.
    """
    dataset = open_dataset(url)
    labelled = _labelled(dataset)
    table = _in_parts(labelled)
    classes = tuple(sorted(pc.unique(table["label"]).to_pylist()))
    if len(classes) < 2:
        found = ", ".join(classes) or f"no label on any of the {dataset.num_samples} samples"
        raise UserError(
            f"dataset {name} ({url}) needs labels of two or more classes, found {found}: "
            "ingest it with label_from: folder, or with a column label in its list of files"
        )
    bands, rows = tuple(band.name for band in dataset.bands), table["row"].to_numpy()

    def read(index: int) -> Sample:
        return Sample(images=(_read(dataset, int(rows[index]), bands),))

    return LabelledData(
        name=name, url=url, kind="classes", classes=classes, ids=tuple(table["key"].to_pylist()), bands=bands,
        dtype=dataset.dtype, digest=_digest(dataset.digest, table), read=read,
        labels=pc.index_in(table["label"], pa.array(classes)).to_numpy().astype(np.int64),
        given_parts=_parts(table), groups=_groups(table),
        num_unlisted=len(labelled) - len(table),
    )  # fmt: skip


def _labelled(dataset: Dataset) -> pa.Table:
    """Return row, key, label, split, place of the labelled samples by key."""
    columns = ["key", "label", "split", "cell", "scene"]
    plain = pa.schema([(column, pa.string()) for column in columns])
    tables = [table.cast(plain) for table in iter_columns(dataset.url, dataset.version, "samples", columns)]
    table = pa.concat_tables(tables).append_column("row", pa.array(np.arange(dataset.num_samples)))
    return table.filter(pc.is_valid(table["label"])).sort_by("key")


def _in_parts(table: pa.Table) -> pa.Table:
    """Leave out the samples across a split's borders."""
    return table if _parts(table) is None else table.filter(pc.is_in(table["split"], pa.array(list(_PARTS))))


def _parts(table: pa.Table) -> NDArray[np.int64] | None:
    """Return the split of ingest [N], −1 for borders; None if all samples are in one part."""
    found = pc.fill_null(pc.index_in(table["split"], pa.array(list(_PARTS))), -1).to_numpy()
    there = set(np.unique(found).tolist()) - {-1}
    if 0 not in there or len(there) < 2:
        return None
    return np.where(found < 0, -1, np.array(list(_PARTS.values()))[found]).astype(np.int64)


def _groups(table: pa.Table) -> tuple[str, ...] | None:
    """Return the place of each sample; None if there are too few places to split by, or one for each sample."""
    places = pc.coalesce(table["cell"], table["scene"])
    num_places = pc.count_distinct(places).as_py()
    return tuple(places.to_pylist()) if _MIN_GROUPS <= num_places < len(places) and not places.null_count else None


def _digest(content: str, table: pa.Table) -> str:
    """Return the sha256 over the dataset's content and which samples have which labels."""
    total = hashlib.sha256(f"{content}\n".encode())
    for chunk in table.select(["key", "label"]).to_batches(max_chunksize=2**16):
        lines = pc.binary_join_element_wise(chunk["key"], chunk["label"], "\t")
        total.update("".join(f"{line}\n" for line in lines.to_pylist()).encode())
    return total.hexdigest()


def _read(dataset: Dataset, row: int, bands: tuple[str, ...]) -> NDArray[np.generic]:
    try:
        sample = dataset.read(row)
        if f".{sample.ext}" in GEO_EXTENSIONS:
            pixels, _ = decode(f"{sample.key}.{sample.ext}", bytes(sample.image))
        else:
            pixels = decode_image(sample.ext, sample.image)
    except (CorruptSampleError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UnreadableImageError(reason(error)) from error
    if pixels.shape[2] != len(bands) or str(pixels.dtype) != dataset.dtype:
        raise UnreadableImageError(
            f"{pixels.dtype} with {pixels.shape[2]} bands: the dataset is {dataset.dtype} with {len(bands)}"
        )
    return pixels
