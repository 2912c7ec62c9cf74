"""The part of the page for each sample: its tile with the crops, and each view as both sides get it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pretrain.batches.views import Crop
from pretrain.pages.pictures import Bytes, data_uri

_SMOOTH_PX = 160
"""Pictures with smaller sides show their pixels as they are."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """How both sides of a view choose prototypes."""

    cross_entropy: float
    """Nats."""
    choice: int
    """The teacher's nearest prototype."""
    place: int
    """Of that one at the student, from 1."""


@dataclass(frozen=True, kw_only=True)
class ShownView:
    """One view of a sample."""

    size: str
    """"global" or "local"."""
    number: int
    """Among the views of its size."""
    crop: Crop
    colours: tuple[str, str]
    """What was done with the student's and the teacher's, in words."""
    pictures: Mapping[str, Bytes]
    """By caption: uint8 [H, W, 3 or 4]."""
    pair: Pair | None
    """None where there is no model."""

    @property
    def name(self) -> str:
        """Size and number."""
        return f"{self.size} {self.number}"

    @property
    def geometry(self) -> str:
        """Where in the tile it lies, in words."""
        crop = self.crop
        flips = {"left to right": crop.flip_horizontal, "upside down": crop.flip_vertical}
        made = " and ".join(name for name, is_made in flips.items() if is_made)
        return f"{crop.width} × {crop.height} px at {crop.left}, {crop.top}{f', flipped {made}' if made else ''}"


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """A sample and all its views."""

    key: str
    origin: str
    """Dataset and epoch, in words."""
    tile: Bytes
    """uint8 [H, W, 3]."""
    views: Sequence[ShownView]


def sample_html(sample: ShownSample) -> str:
    """Return the section of a sample."""
    whole = "".join(_global(view) for view in sample.views if view.size == "global")
    local = "".join(_local(view) for view in sample.views if view.size == "local")
    return (
        f"<h2>{escape(sample.key)} <small>{escape(sample.origin)}</small></h2>"
        f'<div class="sample"><figure>{_tile(sample)}<p><small>The tile and its crops: of global views in white, '
        f"of local ones dashed; each is resized to its view.</small></p></figure><div>{whole}</div></div>"
        + (f'<h3>Local views</h3><div class="views small">{local}</div>' if local else "")
    )


def _tile(sample: ShownSample) -> str:
    height, width = sample.tile.shape[:2]
    # Global ones last: their letters stay readable.
    marks = "".join(_mark(view, width) for view in sorted(sample.views, key=lambda view: view.size, reverse=True))
    return (
        f'<div class="tile">{_picture("The tile", sample.tile)}'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Crops">{marks}</svg></div>'
    )


def _mark(view: ShownView, width: int) -> str:
    crop, letter_px = view.crop, width / 18
    place = f'x="{crop.left}" y="{crop.top}" width="{crop.width}" height="{crop.height}"'
    return (
        f'<rect class="under" {place}/><rect class="{view.size}" {place}><title>{view.name}: {view.geometry}</title>'
        f'</rect><text x="{crop.left + letter_px / 3:.1f}" y="{crop.top + letter_px * 1.1:.1f}" '
        f'font-size="{letter_px:.1f}" stroke-width="{letter_px / 5:.1f}">{view.size[0].upper()}{view.number}</text>'
    )


def _global(view: ShownView) -> str:
    shown = "".join(
        f"<figure><figcaption>{escape(caption)}</figcaption>{_picture(f'{view.name}: {caption}', pixels)}</figure>"
        for caption, pixels in view.pictures.items()
    )
    return (
        f"<section><h3>G{view.number} <small>{view.geometry}</small></h3><p><small>{_told(view)}</small></p>"
        f'<div class="views">{shown}</div></section>'
    )


def _local(view: ShownView) -> str:
    shown = "".join(_picture(f"{view.name}: {caption}", pixels) for caption, pixels in view.pictures.items())
    return (
        f"<figure><figcaption><b>L{view.number}</b> {view.geometry}. {_told(view)}</figcaption>"
        f'<div class="row">{shown}</div></figure>'
    )


def _told(view: ShownView) -> str:
    student, teacher = view.colours
    colours = f"Colours: student {student}; teacher {teacher}."
    if view.pair is None:
        return colours
    place = "the student's, too" if view.pair.place == 1 else f"number {view.pair.place:,} at the student"
    return (
        f"{colours} Cross-entropy {view.pair.cross_entropy:.2f}; the teacher's first choice, prototype "
        f"{view.pair.choice:,}, is {place}."
    )


def _picture(name: str, pixels: Bytes) -> str:
    kind = "view raw" if max(pixels.shape[:2]) < _SMOOTH_PX else "view"
    return f'<img class="{kind}" alt="{escape(name)}" title="{escape(name)}" src="{data_uri(pixels)}">'
