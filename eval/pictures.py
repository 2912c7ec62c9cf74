"""Pictures for the report: what the retrieval found, what patch features see, and those that protocols bring.

They lie in OUT/pictures, a file for each (data, model, protocol, features), so that an evaluation that goes on need
not make them again. Costs the reading of the images that are shown.
"""

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from eval.data.kinds import LabelledData
from eval.data.missing import filled
from eval.features import in_bands_of
from eval.models.model import Model, digest_of
from eval.models.windows import embed_large
from eval.protocols.task import Outcome, Picture
from eval.report.pictures import beside, figures, gallery, pca_pictures
from shards import storage
from shards.images import Pixels
from shards.preview import displayable

Stored = dict[str, str]
"""A picture as the report has it: data, model, protocol, caption, and png in base 64."""


def for_the_eye(data: LabelledData, place: int) -> tuple[NDArray[np.uint8], ...]:
    """Return the image of a sample, or both of a pair, as uint8 [H, W, 3]."""
    images = (cast(Pixels, filled(image, None)) for image in data.read(place).images)
    return tuple(displayable(image, list(data.bands)) for image in images)


def gallery_picture(data: LabelledData, rows: Sequence[Sequence[int]]) -> Picture:
    """Return queries with what was found for them.

    Args:
        data: the data set.
        rows: places in it: of a query, then of its nearest.
    """
    places = sorted({place for row in rows for place in row})
    return gallery({place: for_the_eye(data, place)[0] for place in places}, rows, data.labels)


def pictures_of(data: LabelledData, outcome: Outcome) -> list[Picture]:
    """Return the pictures that an outcome brings, and the gallery of what its retrieval found."""
    rows = outcome.detail.get("gallery")
    return [*outcome.pictures, gallery_picture(data, rows)] if rows else outcome.pictures


def spread(places: NDArray[np.int64], number: int) -> list[int]:
    """Return some places at even distances: of sorted class folders some of different classes."""
    chosen = np.linspace(0, len(places) - 1, min(number, len(places))).round().astype(int)
    return [int(places[position]) for position in chosen]


def pictures_of_patches(model: Model, data: LabelledData, places: Sequence[int]) -> list[Picture]:
    """Return images beside the three main directions of their patch features; none for a model without a grid."""
    grids = []
    for place in places:
        sample = in_bands_of(model, data, data.read(place))
        image = torch.from_numpy(np.array(sample.images[0]))
        side_px = model.image_px or min(image.shape[:2])
        if model.embed(torch.zeros(1, side_px, side_px, image.shape[2], dtype=image.dtype)).patches is None:
            return []
        grids.append(embed_large(model, [image])[0].values.numpy())
    if len({grid.shape for grid in grids}) == 1:
        coloured = list(pca_pictures(np.stack(grids)))
    else:
        coloured = [pca_pictures(grid[None])[0] for grid in grids]
    return [
        Picture(caption=data.ids[place], pixels=beside([for_the_eye(data, place)[0], colours]))
        for place, colours in zip(places, coloured, strict=True)
    ]


class Pictures:
    """The pictures in OUT/pictures."""

    def __init__(self, out: str) -> None:
        self._folder = storage.join(out, "pictures")

    def put(self, pictures: Sequence[Picture], data: str, model: str, protocol: str, *key: Any) -> None:
        """Store pictures under (protocol, key); data and model are named by what the key says of their content."""
        content = json.dumps([figures(data, model, protocol, picture) for picture in pictures])
        storage.write_bytes(self._url(protocol, *key), content.encode())

    def get(self, protocol: str, *key: Any) -> list[Stored] | None:
        """Return the pictures of (protocol, key), None if none were ever stored."""
        url = self._url(protocol, *key)
        if not storage.exists(url):
            return None
        stored: list[Stored] = json.loads(storage.read_bytes(url))
        return stored

    def _url(self, *key: Any) -> str:
        return storage.join(self._folder, f"{digest_of(*key)[:32]}.json")
