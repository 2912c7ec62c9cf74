"""Pictures for the report: patch features as colours, and galleries of nearest neighbours. Pure: arrays in, arrays out.

A picture of four tiles of 256 px costs 40 to 100 kB in the page.

Shape legend: N images, h and w patches of an image, D width of the features, H and W pixels.
"""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from eval.protocols.task import Picture
from eval.report.contents import Contents, Figures, title_of
from eval.report.markup import section

Pixels = NDArray[np.uint8]

PCA = "pca"
"""What the report's pictures of patch features have as their protocol."""
_TITLES = {PCA: "Patch features"}
_LEADS = {
    PCA: "The first three principal components of the patch features as red, green and blue; what has one colour in "
    "several pictures of a model is alike to it.",
}
_RIGHT, _WRONG = (31, 111, 139), (190, 92, 50)
_PAPER = 255
_GAP_PX, _FRAME_PX = 6, 4
_QUALITY = 90


def pca_picture(patches: NDArray[np.float32]) -> Pixels:
    """Return the first three principal components of one image's patches [h, w, D] as colours, uint8 [h, w, 3]."""
    colours: Pixels = pca_pictures(patches[None])[0]
    return colours


def pca_pictures(patches: NDArray[np.float32]) -> Pixels:
    """Return the first three principal components of patches as red, green and blue.

    The components are those of all images together, so that a colour means the same in all of them. Each is stretched
    between its 2nd and 98th percentile. Its sign, which means nothing, is chosen so that its largest weight is
    positive. Where there are fewer than three components, the others are medium.

    Args:
        patches: [N, h, w, D], finite.

    Returns:
        uint8 [N, h, w, 3].
    """
    num_features = patches.shape[-1]
    rows = patches.reshape(-1, num_features).astype(np.float64)
    centred = rows - rows.mean(axis=0)
    # The eigenvectors of D × D: the patches may be many thousands.
    strengths, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    axes = vectors[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    scores = centred @ axes
    low, high = np.percentile(scores, [2, 98], axis=0)
    # What has no extent but rounding errors is no component.
    is_empty = high - low <= 1e-6 * max(np.sqrt(max(float(strengths[-1]), 0.0)), 1e-12)
    shares = np.where(is_empty, 0.5, (scores - low) / np.where(is_empty, 1.0, high - low))
    colours = np.full((len(rows), 3), 128, np.uint8)
    colours[:, : shares.shape[1]] = (255 * shares).round().clip(0, 255)
    return colours.reshape(*patches.shape[:3], 3)


def beside(parts: Sequence[Pixels], height_px: int = 224) -> Pixels:
    """Lay pictures [H, W, 3] of any sizes side by side on white, all of one height.

    Small ones, such as a pixel for each patch, grow without smoothing.
    """
    gap = np.full((height_px, _GAP_PX, 3), _PAPER, np.uint8)
    pieces = [piece for part in parts for piece in (gap, _of_height(part, height_px))]
    return np.concatenate(pieces[1:], axis=1)


def _of_height(pixels: Pixels, height_px: int) -> Pixels:
    height, width = pixels.shape[:2]
    size = (max(1, round(width * height_px / height)), height_px)
    return _resized(pixels, size, Image.Resampling.NEAREST if height < height_px else Image.Resampling.BOX)


def _resized(pixels: Pixels, size: tuple[int, int], how: Image.Resampling) -> Pixels:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, how))


def gallery(
    images: Mapping[int, Pixels],
    rows: Sequence[Sequence[int]],
    labels: NDArray[np.int64] | None = None,
    tile_px: int = 80,
) -> Picture:
    """Lay out queries and what was found for each: a line for a query, the query at its left, apart from the rest.

    Args:
        images: place in the data set → uint8 [H, W, 3] of any size, for all places in `rows`.
        rows: for each query its place, then those of its nearest, the most similar first; one query at least.
        labels: class of each place; what is found has a blue frame where it is of the query's class, and else an
            orange one and a cross. None: no frames.
        tile_px: side of an image in the picture.
    """
    num_columns, pitch = max(map(len, rows)), tile_px + _GAP_PX
    size = (num_columns * pitch + 2 * _GAP_PX, len(rows) * pitch - _GAP_PX)
    sheet = Image.new("RGB", size, (_PAPER,) * 3)
    for line, places in enumerate(rows):
        for column, place in enumerate(places):
            is_right = None if labels is None or column == 0 else bool(labels[place] == labels[places[0]])
            # A wider gap sets the query apart.
            corner = (column * pitch + (3 * _GAP_PX if column else 0), line * pitch)
            sheet.paste(_tile(images[place], tile_px, is_right), corner)
    caption = "Left of each line a test image, then the nearest of the archive"
    frames = "; blue frame: of its class, orange and crossed: of another" if labels is not None else ""
    return Picture(caption=caption + frames, pixels=np.asarray(sheet))


def _tile(pixels: Pixels, tile_px: int, is_right: bool | None) -> Image.Image:
    tile = Image.fromarray(_square(pixels, tile_px))
    if is_right is None:
        return tile
    draw, last = ImageDraw.Draw(tile), tile_px - 1
    draw.rectangle((0, 0, last, last), outline=_RIGHT if is_right else _WRONG, width=_FRAME_PX)
    if not is_right:
        # For those who cannot tell the colours apart.
        draw.line((0, last, last, 0), fill=_WRONG, width=2)
    return tile


def _square(pixels: Pixels, side_px: int) -> Pixels:
    """Cut the middle square out of a picture and scale it."""
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    how = Image.Resampling.NEAREST if side < side_px else Image.Resampling.LANCZOS
    return _resized(pixels[top : top + side, left : left + side], (side_px, side_px), how)


def figures(data: str, model: str, protocol: str, picture: Picture) -> dict[str, str]:
    """Return a picture as the report's dict holds it, JSON-able: WebP in base 64."""
    out = io.BytesIO()
    # A fifth of the bytes of PNG; the colours of classes stay what they are but at their borders.
    Image.fromarray(picture.pixels).save(out, "WEBP", quality=_QUALITY, method=4)
    webp = b64encode(out.getvalue()).decode()
    return {"data": data, "model": model, "protocol": protocol, "caption": picture.caption, "webp": webp}


def shown(contents: Contents) -> str:
    """Return the pictures of the newest backbones, or of floors where there are no others, by protocol and data set."""
    models = (contents.newest - contents.floors) or contents.newest
    groups: dict[tuple[str, str], dict[str, list[Figures]]] = {}
    for each in (each for each in contents.report.get("pictures", []) if each["model"] in models):
        groups.setdefault((each["protocol"], each["data"]), {}).setdefault(each["model"], []).append(each)
    return "\n".join(
        section(
            f"{data}: {_TITLES.get(protocol) or title_of(protocol)}",
            "\n".join(_of_model(model, found) for model, found in by_model.items()),
            level=3,
            lead=_LEADS.get(protocol, ""),
        )
        for (protocol, data), by_model in groups.items()
    )


def _of_model(model: str, found: Sequence[Figures]) -> str:
    return f"<h4>{escape(model)}</h4>" + f'<div class="pictures">{"".join(map(_figure, found))}</div>'


def _figure(each: Figures) -> str:
    name = f"{each['model']} on {each['data']}: {each['caption']}"
    kind = "webp" if "webp" in each else "png"
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/{kind};base64,{escape(each[kind])}">'
        f"<figcaption>{escape(each['caption'])}</figcaption></figure>"
    )
