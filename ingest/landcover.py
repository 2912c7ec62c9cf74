"""Land seen from above, drawn: the textures of the sample scenes.

Each land-cover class is a texture, a pure function (shape, look, generator) -> reflectance float32 [H, W, 4] in
band order red, green, blue, nir. A scene is a mosaic of warped Voronoi parcels with a class each, lakes, rivers
and tracks. Season, light, haze, colour cast and contrast differ by acquisition (`Look`), so that a class is known
by its texture as much as by its mean colour.

Legend: shape (H, W) in px; angles in radians, image axes (x right, y down); reflectance about 0..1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.keyed import generator

Field = NDArray[np.float32]
Spectrum = tuple[float, float, float, float] | Field
Shape = tuple[int, int]
Random = np.random.Generator

CHIP_PX = 64
CELL_TABLE = 64  # random values of lattice cells repeat after this many cells along each axis

# Least reflectance of display values 1..255: the nearest to 255 (reflectance / 0.6)**0.6. To compare is the same on
# every processor; numpy's powers of float32 depend on its vector units.
TONES = np.array([0.6 * ((value - 0.5) / 255) ** (1 / 0.6) for value in range(1, 256)], np.float32)

# Reflectance in red, green, blue, nir: rounded from the usual spectral curves of each material.
# fmt: off
SOIL, DRY_SOIL, SAND = (0.13, 0.10, 0.07, 0.19), (0.29, 0.23, 0.17, 0.36), (0.38, 0.32, 0.24, 0.44)
CROP, STRAW = (0.05, 0.10, 0.04, 0.45), (0.27, 0.23, 0.14, 0.34)
LUSH, DRY_GRASS = (0.08, 0.13, 0.06, 0.42), (0.21, 0.19, 0.11, 0.31)
CONIFER, BROADLEAF, AUTUMN = (0.04, 0.07, 0.04, 0.28), (0.07, 0.12, 0.05, 0.45), (0.18, 0.13, 0.05, 0.36)
CLEAR, TURBID = (0.025, 0.045, 0.06, 0.012), (0.12, 0.12, 0.08, 0.04)
ASPHALT, CONCRETE, SLATE = (0.13, 0.13, 0.13, 0.14), (0.29, 0.28, 0.26, 0.31), (0.17, 0.18, 0.20, 0.20)
TILE, WHITE = (0.31, 0.18, 0.13, 0.35), (0.52, 0.52, 0.51, 0.52)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one acquisition sees the land."""

    grain: float
    """Pixels per unit of texture: finer GSD, larger features."""
    sun: float
    """Direction towards the sun in image axes (x right, y down)."""
    month: int
    """Month of acquisition, 1 to 12."""
    lushness: float
    """0 in the dormant season to 1 in the growing one."""
    gain: tuple[float, ...]
    """Factor on reflectance by band: illumination and colour cast."""
    haze: float
    """Path radiance added to red, as reflectance; stronger towards blue, weaker in nir."""
    blur: float
    """Share of the 3 x 3 binomial smoothing of the optics."""


# --- primitives ---


def sine(angle: Field) -> Field:
    """Return the sine, rounded from double precision: that of float32 depends on the processor's vector units."""
    return np.sin(angle.astype(np.float64)).astype(np.float32)


def noise(
    shape: Shape, scale: float, rng: Random, *, slope: float = 2.0, stretch: float = 1.0, angle: float = 0.0
) -> Field:
    """Draw a Matérn field by filtering white noise: float32 [H, W], about zero mean and unit standard deviation.

    Its amplitude spectrum is flat below 1/(2π scale) cycles per px and falls as f**-slope above; `stretch` > 1 draws
    the features out along `angle`.
    """
    h, w = (-(-side // 64) * 64 for side in shape)  # round sizes: fast transforms, no degenerate ones
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None]
    along, across = fx * math.cos(angle) + fy * math.sin(angle), fy * math.cos(angle) - fx * math.sin(angle)
    f2 = (along * stretch) ** 2 + across**2
    amplitude = ((1.0 + f2 * (2 * math.pi * scale) ** 2) ** (-slope / 2)).astype(np.float32)
    amplitude[0, 0] = 0.0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((h, w), np.float32)) * amplitude, s=(h, w))
    return np.asarray(field[: shape[0], : shape[1]] / field.std(), np.float32)


def axes(shape: Shape, angle: float, rng: Random) -> tuple[Field, Field]:
    """Return float32 [H, W] coordinates in px along and across `angle`, from a random origin."""
    y, x = np.mgrid[: shape[0], : shape[1]] + rng.uniform(1e3, 2e3, (2, 1, 1))
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return along.astype(np.float32), across.astype(np.float32)


def mix(a: Spectrum, b: Spectrum, share: Field | float) -> Field:
    """Blend spectra [..., 4] by a share clipped to 0..1: float32 [H, W, 4] for a field, [4] for a number."""
    t = np.clip(np.asarray(share, np.float32), 0, 1)[..., None]
    return np.asarray(np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t, np.float32)


def pick(rng: Random, *choices: Spectrum) -> Field:
    """Draw one of the spectra: float32 [4]."""
    return np.asarray(choices[rng.integers(len(choices))], np.float32)


def hillshade(height: Field, sun: float, strength: float) -> Field:
    """Return light [H, W] about 1 on a surface of that height, by its slope towards the sun."""
    right, down = np.diff(height, axis=1, prepend=height[:, :1]), np.diff(height, axis=0, prepend=height[:1])
    slope = -right * math.cos(sun) - down * math.sin(sun)
    return np.asarray(1 + np.clip(strength * slope, -0.5, 0.5), np.float32)


def cell_index(u: Field | NDArray[np.int32], v: Field | NDArray[np.int32]) -> NDArray[np.int32]:
    """Number the unit cells of a lattice in which u, v are coordinates: [0, CELL_TABLE**2), repeating."""
    column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    return np.asarray(row % CELL_TABLE * CELL_TABLE + column % CELL_TABLE, np.int32)


@dataclass(frozen=True)
class Cells:
    """Nearest jittered lattice point of every pixel (Worley 1996), arrays [H, W]."""

    index: NDArray[np.int32]
    """Cell of the point, see `cell_index`."""
    dx: Field
    dy: Field
    """Offset of the pixel from the point, px."""
    gap: Field
    """Distance of the second nearest point less that of the nearest, px."""


def cells(x: Field, y: Field, spacing: float, jitter: float, rng: Random) -> Cells:
    """Find each pixel's nearest point of a square lattice whose points are moved by up to jitter/2 of the spacing."""
    points = (0.5 + jitter * (rng.random((2, CELL_TABLE**2), np.float32) - 0.5)) * np.float32(spacing)
    column, row = np.floor(x / spacing).astype(np.int32), np.floor(y / spacing).astype(np.int32)
    best = np.full(x.shape, np.inf, np.float32)
    second, choice = best.copy(), np.zeros(x.shape, np.int32)

    def offset(i: int | NDArray[np.int32], j: int | NDArray[np.int32]) -> tuple[NDArray[np.int32], Field, Field]:
        index = cell_index(column + i, row + j)
        dx = x - (column + i) * np.float32(spacing) - points[0, index]
        return index, dx, y - (row + j) * np.float32(spacing) - points[1, index]

    for neighbour in range(9):
        _, dx, dy = offset(neighbour // 3 - 1, neighbour % 3 - 1)
        distance = dx * dx + dy * dy
        choice[distance < best] = neighbour
        second = np.minimum(second, np.maximum(best, distance))
        best = np.minimum(best, distance)
    return Cells(*offset(choice // 3 - 1, choice % 3 - 1), gap=np.sqrt(second) - np.sqrt(best))


def plant(
    ground: Field, at: Cells, radius: float, leaves: tuple[Spectrum, Spectrum], sun: float, keep: float, rng: Random
) -> Field:
    """Set a round tree crown on a share `keep` of the cells, lit on the sun's side, with its shadow on the ground."""
    size, tint, chance = rng.random((3, CELL_TABLE**2), np.float32)[:, at.index]
    r = np.where(chance < keep, radius * (0.7 + 0.6 * size), np.float32(1e-3))  # px
    towards = (at.dx * math.cos(sun) + at.dy * math.sin(sun)) / r
    d2 = (at.dx**2 + at.dy**2) / r**2
    shadow_d2 = d2 + 1.4 * towards + 0.49  # the crown's disc, moved by 0.7 radius away from the sun
    lit = ground * (1 - 0.6 * np.clip(1.6 * (1 - shadow_d2), 0, 1))[..., None]
    light = np.clip(0.75 + 0.45 * towards + 0.25 * (1 - d2), 0.3, 1.5)[..., None]
    return mix(lit, mix(*leaves, tint) * light, 2.5 * (1 - d2))


# --- land cover ---


def bare(shape: Shape, look: Look, rng: Random) -> Field:
    """Soil, rock or sand: fractal relief in hill shade, some with wind ripples."""
    wind = rng.uniform(0, math.pi)
    relief = noise(shape, 40 * look.grain, rng, slope=rng.uniform(1.5, 2.0))
    ripples = noise(shape, 2.2 * look.grain, rng, slope=4, stretch=5, angle=wind) * rng.choice([0.0, 0.5, 1.0])
    shade = hillshade(relief * 4 * look.grain + ripples, look.sun, rng.uniform(0.1, 0.3))
    ends = (SOIL, DRY_SOIL) if rng.random() < 0.5 else (DRY_SOIL, SAND)
    return mix(*ends, rng.uniform(0.1, 0.9) + 0.25 * noise(shape, 25 * look.grain, rng)) * shade[..., None]


def built_up(shape: Shape, look: Look, rng: Random) -> Field:
    """Street grid, roofs with shadows, yards with grass and trees."""
    angle, lot = rng.uniform(0, math.pi), look.grain * rng.uniform(8, 18)
    x, y = (axis / np.float32(lot) for axis in axes(shape, angle, rng))  # in lots
    half_x, half_y, kind, chance, height = rng.random((5, CELL_TABLE**2), np.float32)[:, cell_index(x, y)]
    half_x, half_y, height = 0.2 + 0.22 * half_x, 0.2 + 0.22 * half_y, 0.1 + 0.15 * height
    u, v, sun_u, sun_v = x % 1 - 0.5, y % 1 - 0.5, math.cos(look.sun - angle), math.sin(look.sun - angle)
    built = chance < rng.uniform(0.6, 0.95)
    roof = built & (abs(u) < half_x) & (abs(v) < half_y)
    shadow = built & ~roof & (abs(u + height * sun_u) < half_x) & (abs(v + height * sun_v) < half_y)
    paved = rng.random() + 0.2 * noise(shape, 5, rng)
    yard = mix(mix(DRY_GRASS, LUSH, look.lushness), pick(rng, CONCRETE, DRY_SOIL), paved)
    land = mix(yard, CONIFER, 2 * noise(shape, 1.5 * look.grain, rng, slope=3) - rng.uniform(0.5, 4))
    kinds = np.minimum(np.searchsorted(np.cumsum(rng.dirichlet(np.ones(5))), kind), 4)
    pitch = 1 + 0.25 * sun_u * np.sign(u)  # the two sides of a gable roof
    colour = np.array([TILE, SLATE, CONCRETE, WHITE, ASPHALT], np.float32)[kinds] * pitch[..., None]
    street = (x % rng.integers(4, 9) < rng.uniform(0.25, 0.5)) | (y % rng.integers(2, 4) < rng.uniform(0.25, 0.5))
    land = np.where(roof[..., None], colour, land)
    land = np.where((street & ~shadow)[..., None], mix(ASPHALT, CONCRETE, rng.uniform(0, 0.7)), land)
    return np.asarray(land * (1 - 0.6 * shadow)[..., None], np.float32)


def cropland(shape: Shape, look: Look, rng: Random) -> Field:
    """Rectangular fields, each with its own crop stage and row spacing."""
    x, y = axes(shape, rng.uniform(0, math.pi), rng)
    wide, long = look.grain * rng.uniform(25, 90), look.grain * rng.uniform(60, 220)
    u, v = x / wide, y / long
    v = v + rng.random(CELL_TABLE, np.float32)[cell_index(u, np.zeros_like(u))]  # strips of fields out of step
    stage, period, depth, turn = rng.random((4, CELL_TABLE**2), np.float32)[:, cell_index(u, v)]
    stage = np.clip(1.5 * (stage + rng.random()) + look.lushness - 0.5, 0, 3) + 0.2 * noise(shape, 30 * look.grain, rng)
    stages = np.array([SOIL, CROP, CROP, STRAW], np.float32)
    land = np.stack([np.interp(stage, [0, 0.9, 1.6, 2.6], band) for band in stages.T], axis=-1)
    across = np.where(turn < 0.25, y, x) / look.grain
    rows, tracks = sine(2 * math.pi * across / (2.4 + 4 * period)), across % 22 < 1
    edge = (u % 1 * wide < 1.2) | (v % 1 * long < 1.2)
    light = 1 + 0.05 * noise(shape, 1, rng) + (0.04 + 0.3 * depth) * rows - 0.25 * tracks - 0.3 * edge
    return np.asarray(land * light[..., None], np.float32)


def forest(shape: Shape, look: Look, rng: Random) -> Field:
    """Closed canopy of irregular crowns, with shadows between them and some clearings."""
    spacing = look.grain * rng.uniform(5, 10)
    warp = 1.5 * noise(shape, 8, rng, slope=3)
    x, y = axes(shape, 0.0, rng)
    at = cells(x + warp, y, spacing, 1.0, rng)
    leaf = mix(BROADLEAF, AUTUMN, max(0.0, rng.uniform(-0.5, 1.2) - look.lushness))
    stand = rng.random() + 0.3 * noise(shape, 50 * look.grain, rng)
    canopy = mix(CONIFER, leaf, stand)
    clearing = 3 * (noise(shape, 30 * look.grain, rng) - rng.uniform(1.2, 3))
    ground = mix(0.5 * canopy, mix(DRY_GRASS, LUSH, look.lushness), clearing)
    return plant(ground, at, 0.62 * spacing, (0.75 * canopy, 1.3 * canopy), look.sun, 0.96, rng)


def grassland(shape: Shape, look: Look, rng: Random) -> Field:
    """Mottled meadow or steppe with scattered shrubs and a path."""
    dryness = 1 - look.lushness + rng.uniform(-0.3, 0.3) + 0.2 * noise(shape, 20 * look.grain, rng, slope=1.5)
    dryness += 0.12 * noise(shape, 3 * look.grain, rng)
    ground = mix(LUSH, DRY_GRASS, dryness) * (1 + 0.06 * noise(shape, 1, rng))[..., None]
    path = abs(noise(shape, 60 * look.grain, rng, slope=3)) < rng.uniform(0, 0.04)
    ground = np.where(path[..., None], np.array(DRY_SOIL, np.float32), ground)
    at = cells(*axes(shape, 0.0, rng), look.grain * rng.uniform(9, 16), 1.0, rng)
    return plant(ground, at, 2.2 * look.grain, (CONIFER, BROADLEAF), look.sun, rng.uniform(0, 0.3), rng)


def orchard(shape: Shape, look: Look, rng: Random) -> Field:
    """Trees on a regular lattice over grass or bare soil."""
    angle, spacing = rng.uniform(0, math.pi), look.grain * rng.uniform(5.5, 9)
    at = cells(*axes(shape, angle, rng), spacing, 0.12, rng)
    grass = mix(DRY_GRASS, LUSH, look.lushness)
    wear = rng.random() + 0.25 * noise(shape, 20 * look.grain, rng)
    ground = mix(grass, pick(rng, SOIL, DRY_SOIL), wear)
    return plant(ground, at, spacing * rng.uniform(0.3, 0.42), (CONIFER, BROADLEAF), look.sun - angle, 0.95, rng)


def water(shape: Shape, look: Look, rng: Random) -> Field:
    """Smooth and dark: clear to turbid, faint waves, at times sun glint."""
    turbidity = rng.beta(0.8, 1.2) + 0.08 * noise(shape, 80 * look.grain, rng)
    wind = rng.uniform(0, math.pi)
    waves = noise(shape, 1.5 * look.grain, rng, slope=3, stretch=4, angle=wind)
    glint = rng.choice([0.0, 0.02, 0.08]) * rng.random()
    return np.asarray(mix(CLEAR, TURBID, turbidity) + (glint + (0.002 + 0.15 * glint) * waves)[..., None], np.float32)


TEXTURES: dict[str, Callable[[Shape, Look, Random], Field]] = {
    texture.__name__: texture for texture in (bare, built_up, cropland, forest, grassland, orchard, water)
}

CLASSES = tuple(sorted(TEXTURES))


# --- acquisition ---


def draw_look(gsd_m: float, south: bool, rng: Random) -> Look:
    """Draw the season, light and air of one acquisition."""
    month = int(rng.integers(1, 13))
    growing = 0.5 - 0.5 * math.cos(2 * math.pi * (month - (7 if south else 1)) / 12)
    noon = -math.pi / 2 if south else math.pi / 2  # the sun stands towards the equator: north is up, y is down
    return Look(
        grain=float(rng.uniform(0.85, 1.25) * gsd_m**-0.2),
        sun=float(noon + rng.uniform(-0.9, 0.9)),
        month=month,
        lushness=float(np.clip(growing + rng.uniform(-0.25, 0.25), 0, 1)),
        gain=tuple(float(g) for g in rng.uniform(0.6, 1.25) * rng.uniform(0.88, 1.14, 4)),
        haze=float(0.05 * rng.random() ** 2),
        blur=float(rng.random()),
    )


def expose(land: Field, look: Look, rng: Random) -> Field:
    """Turn reflectance of the ground [H, W, 4] into what the sensor measures: light, path radiance, optics, noise."""
    seen = land * np.array(look.gain, np.float32)
    for axis in (0, 1):
        before, after = np.roll(seen, 1, axis), np.roll(seen, -1, axis)
        seen = seen + look.blur * (0.25 * before + 0.25 * after - 0.5 * seen)
    air = np.float32(look.haze) * np.array([1.0, 1.25, 1.6, 0.4], np.float32)
    drift = 1 + 0.2 * noise(land.shape[:2], 150, rng, slope=3)
    return np.asarray(seen + drift[..., None] * air + 0.003 * rng.standard_normal(seen.shape, np.float32), np.float32)


def draw_land(shape: Shape, look: Look, rng: Random) -> Field:
    """Draw a mosaic of land-cover parcels with tracks or hedges between them, and one water for lakes and rivers."""
    x, y = axes(shape, rng.uniform(0, math.pi), rng)
    bend = rng.uniform(2, 14)
    warp_x, warp_y = (bend * noise(shape, 25, rng, slope=2.5) for _ in "xy")
    parcels = cells(x + warp_x, y + warp_y, rng.uniform(130, 240), 0.9, rng)
    shares = 0.4 / len(CLASSES) + 0.6 * rng.dirichlet(np.full(len(CLASSES), 0.7))
    land = np.zeros((*shape, 4), np.float32)
    wet = abs(noise(shape, 120, rng, slope=4)) < rng.choice([0.0, 1.0]) * rng.uniform(0.03, 0.12)
    for parcel in np.unique(parcels.index):
        inside = parcels.index == parcel
        name = CLASSES[rng.choice(len(CLASSES), p=shares)]
        if name == "water":
            wet |= inside
            continue
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        patch = TEXTURES[name]((box[0].stop - box[0].start, box[1].stop - box[1].start), look, rng)
        land[box][inside[box]] = patch[inside[box]]
    border = parcels.gap < rng.uniform(0, 5)
    land[border] = pick(rng, CONIFER, DRY_SOIL, ASPHALT)
    land[wet] = water(shape, look, rng)[wet]
    return land


def draw_chip(name: str, seed: int, number: int) -> NDArray[np.uint8]:
    """Draw one labelled chip uint8 [CHIP_PX, CHIP_PX, 3]; in a third of them another class covers a corner."""
    rng = generator(seed, "sample", "chip", name, number)
    look = draw_look(float(rng.choice([0.5, 1.0, 2.5, 5.0, 10.0])), bool(rng.integers(2)), rng)
    shape = (CHIP_PX, CHIP_PX)
    land = TEXTURES[name](shape, look, rng)
    if rng.random() < 1 / 3:
        x, _ = axes(shape, rng.uniform(0, 2 * math.pi), rng)
        corner = x + 3 * noise(shape, 10, rng) > np.quantile(x, rng.uniform(0.7, 0.95))
        land[corner] = TEXTURES[CLASSES[rng.integers(len(CLASSES))]](shape, look, rng)[corner]
    return to_uint8(expose(land, look, rng)[..., :3])


def to_uint8(seen: Field) -> NDArray[np.uint8]:
    """Map reflectance to display values 1..255 with the tone curve of image products (0 is kept for nodata)."""
    return np.clip(np.searchsorted(TONES, seen, side="right"), 1, 255).astype(np.uint8)


def to_uint16(seen: Field) -> NDArray[np.uint16]:
    """Map reflectance to 10,000ths, at least 1 (0 is kept for nodata), as surface reflectance products do."""
    return np.clip(np.round(seen * 1e4), 1, 65_535).astype(np.uint16)
