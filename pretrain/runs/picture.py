"""A run's curves as a small PNG, for places that show pictures but no pages: a model hub's card.

A function of the figures alone. Costs some milliseconds and about 15 kB.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pretrain.pages.figures import Column, scaled

PANEL_PX = (300, 170)
"""Width and height of a panel."""
_SCALE = 2
"""Drawn so many times as large, which smooths the lines when it is made smaller."""
_MARGIN_PX = (8, 34, 8, 22)
"""Of the plot in its panel: left, top, right, bottom."""
_LINE, _TEXT, _EDGE = (31, 98, 163), (60, 60, 60), (205, 205, 205)


def draw_curves(columns: Mapping[str, Column], names: Sequence[str]) -> bytes:
    """Return a PNG with a panel for each figure side by side, over optimiser steps; b"" where none has two points.

    Args:
        columns: figures by name, see `pretrain.pages.figures.read_columns`.
        names: of those to draw, in order; what is not there is left out.
    """
    drawn = [name for name in names if name in columns and len(set(columns[name].steps)) > 1]
    if not drawn:
        return b""
    width_px, height_px = PANEL_PX
    image = Image.new("RGB", (width_px * len(drawn) * _SCALE, height_px * _SCALE), "white")
    draw = ImageDraw.Draw(image)
    for place, name in enumerate(drawn):
        _draw_panel(draw, name, columns[name], left_px=place * width_px)
    file = io.BytesIO()
    small = image.resize((width_px * len(drawn), height_px), Image.Resampling.LANCZOS)
    small.quantize(64).save(file, "PNG", optimize=True)
    return file.getvalue()


def points(column: Column, size_px: tuple[int, int]) -> list[tuple[float, float]]:
    """Return a figure as points in a box of this size, y downwards; neighbours on one pixel are one, their mean."""
    width_px, height_px = size_px
    steps, values = np.asarray(column.steps), np.asarray(column.values)
    x = (steps - steps.min()) / np.ptp(steps) * (width_px - 1)
    y = (values.max() - values) / (np.ptp(values) or 1.0) * (height_px - 1)
    places, groups = np.unique(np.round(x).astype(np.int64), return_inverse=True)
    means = np.bincount(groups, y) / np.bincount(groups)
    return [(float(place), float(mean)) for place, mean in zip(places, means, strict=True)]


def _draw_panel(draw: ImageDraw.ImageDraw, name: str, column: Column, left_px: int) -> None:
    left, top, right, bottom = _MARGIN_PX
    x0, y0 = (left_px + left) * _SCALE, top * _SCALE
    x1, y1 = (left_px + PANEL_PX[0] - right) * _SCALE, (PANEL_PX[1] - bottom) * _SCALE
    draw.rectangle((x0, y0, x1, y1), outline=_EDGE, width=_SCALE)
    line = [(x0 + x, y0 + y) for x, y in points(column, (x1 - x0, y1 - y0))]
    draw.line(line, fill=_LINE, width=2 * _SCALE, joint="curve")
    font = ImageFont.load_default(size=11 * _SCALE)
    low, high, last = min(column.values), max(column.values), column.values[-1]
    texts = [
        ((x0, 4 * _SCALE), "la", f"{name}: {last:.4g} in the end"),
        ((x0, y0 - 2 * _SCALE), "ld", f"{high:.4g}"),
        ((x0, y1 + 3 * _SCALE), "la", f"{low:.4g}"),
        ((x1, y1 + 3 * _SCALE), "ra", f"step {scaled(column.steps[-1], 4).strip()}"),
    ]
    for place, anchor, text in texts:
        draw.text(place, text, fill=_TEXT, font=font, anchor=anchor)
