"""Views per core: from a 512² JPEG to all 2 × 448² + 8 × 96² views of both sides, normalised. Run it as a module.

The yardstick is the common way: Pillow decodes; for each view and side torchvision crops, resizes and flips Pillow's
image with the view's geometry, makes it a float tensor, and jitters and normalises that. Shares and ranges are the
same. A second one crops once for both sides.

Ours is measured twice: with the patches that are looked at, which is what a trainer makes, and with all patches on both
sides, which are as many pixels as the yardsticks make.

All take turns in one process with one thread, and what they take is the process's own time: others on the machine may
wait for a core, too. The C library keeps what it was given once: pages that come again and again would cost each about
as much as its arithmetic.
"""

import ctypes
import io
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from pretrain.batches.batch import Batch, ViewBatch, make_batch
from pretrain.batches.colour import Colour
from pretrain.batches.masks import Visit, draw_patch_sets, set_sizes
from pretrain.batches.views import Tile, draw_colours, draw_crops, group_bands
from pretrain.config import Config, ModelConfig, ViewsConfig
from shards.images import decode_image
from tests.bench.stream_data import ImageSet, draw_jpegs

_IMAGES = ImageSet(name="512² at q95", side_px=512, quality=95, count=24)
_TURNS = 11
_ASKED = 6.0
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CONFIG = Config(
    data="", run="", model=ModelConfig(image_px=448, patch_px=16), views=ViewsConfig(num_local=8, local_px=96)
)
_COLOUR = Colour(value_range=255.0, mean=_MEAN, std=_STD, rgb=(0, 1, 2))
_CPU = torch.device("cpu")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


class CommonWay:
    """Pillow and torchvision, image by image, view by view, side by side."""

    def __init__(self, *, crop_once: bool) -> None:
        colour = _CONFIG.colour
        self._crop_once = crop_once
        self._jitter = v2.ColorJitter(colour.brightness, colour.contrast, colour.saturation, colour.hue)
        self._grey = v2.Grayscale(num_output_channels=3)
        self._normalise = v2.Normalize(_MEAN, _STD)

    def __call__(self, jpegs: Sequence[bytes]) -> list[Tensor]:
        """Return the views of each size and side, stacked."""
        views = _CONFIG.views
        made: list[list[Tensor]] = [[], [], [], []]
        for jpeg in jpegs:
            image = Image.open(io.BytesIO(jpeg)).convert("RGB")
            sizes = (views.num_global, 448, views.global_scale), (views.num_local, 96, views.local_scale)
            for number, (count, side_px, scale) in enumerate(sizes):
                for _ in range(count):
                    student, teacher = self._sides(image, side_px, scale)
                    made[2 * number].append(student)
                    made[2 * number + 1].append(teacher)
        return [torch.stack(each) for each in made]

    def _sides(self, image: Image.Image, side_px: int, scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
        window = v2.RandomResizedCrop(side_px, scale, _CONFIG.views.ratio).make_params([image])
        flips = random.random() < _CONFIG.views.flip, random.random() < _CONFIG.views.flip

        def crop() -> Image.Image:
            place = (window["top"], window["left"], window["height"], window["width"])
            cropped = functional.resized_crop(image, *place, [side_px, side_px], v2.InterpolationMode.BILINEAR)
            cropped = functional.horizontal_flip(cropped) if flips[0] else cropped
            return functional.vertical_flip(cropped) if flips[1] else cropped

        first = crop()
        second = first if self._crop_once else crop()
        return self._coloured(first, _CONFIG.colour.student), self._coloured(second, _CONFIG.colour.teacher)

    def _coloured(self, image: Image.Image, share: float) -> Tensor:
        values: Tensor = functional.to_dtype(functional.to_image(image), torch.float32, scale=True)
        if random.random() < share:
            values = self._grey(values) if random.random() < _CONFIG.colour.grey else self._jitter(values)
        normalised: Tensor = self._normalise(values)
        return normalised


def decode(jpegs: Sequence[bytes]) -> list[Tile]:
    """Do what the worker does first."""
    return [group_bands(decode_image("jpg", jpeg)) for jpeg in jpegs]


def colour_batch(batch: Batch) -> None:
    """Do what the trainer does with a batch."""
    for views in (batch.global_views, batch.local_views):
        assert views
        views.to_patches(_CPU, _COLOUR)


def with_all_patches(batch: Batch) -> Batch:
    """Return the batch with every patch on both sides."""

    def widen(views: ViewBatch) -> ViewBatch:
        n, side_px = views.crops_NCHW.shape[0], views.crops_NCHW.shape[-1]
        every_NL = torch.arange((side_px // views.patch_px) ** 2).expand(n, -1)
        return replace(
            views, student_indices_NP=every_NL, learnable_indices_NP=every_NL[:, :0], teacher_indices_NP=every_NL
        )

    assert batch.local_views
    return Batch(global_views=widen(batch.global_views), local_views=widen(batch.local_views))


def draw(visits: Sequence[Visit]) -> None:
    """Draw masks, crops and colours alone, as `make_batch` does among other things."""
    for size, num_views, side_px in (("global", 2, 448), ("local", 8, 96)):
        draw_patch_sets(set_sizes((side_px // 16) ** 2, 0.2, 0.6), visits, size, num_views)
        draw_colours(_CONFIG.colour, visits, size, num_views)
        for visit in visits:
            draw_crops(_CONFIG.views, 512, 512, visit, size, num_views)


def _ms_per_sample(function: Callable[[], object]) -> float:
    begin = time.process_time()
    function()
    return (time.process_time() - begin) * 1000 / _IMAGES.count


def measure(jpegs: Sequence[bytes]) -> dict[str, list[float]]:
    """Return ms per sample of each stage and candidate, turn by turn; the first turn warms up and is left out."""
    once, twice = CommonWay(crop_once=True), CommonWay(crop_once=False)
    turns: dict[str, list[float]] = {}
    for turn in range(_TURNS + 1):
        visits = [(0, turn, str(image)) for image in range(len(jpegs))]
        tiles = decode(jpegs)
        batch = make_batch(_CONFIG, tiles, visits, 3)
        every = with_all_patches(batch)
        stages: Mapping[str, Callable[[], object]] = {
            "decode": lambda: [decode_image("jpg", jpeg) for jpeg in jpegs],
            "decode, lay out": lambda: decode(jpegs),
            "draw": lambda visits=visits: draw(visits),
            "draw, crop": lambda tiles=tiles, visits=visits: make_batch(_CONFIG, tiles, visits, 3),
            "colour": lambda batch=batch: colour_batch(batch),
            "colour all": lambda every=every: colour_batch(every),
            "common": lambda: twice(jpegs),
            "common, one crop": lambda: once(jpegs),
        }
        for name in stages if turn % 2 else reversed(stages):
            taken = _ms_per_sample(stages[name])
            if turn:
                turns.setdefault(name, []).append(taken)
    return turns


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def main() -> None:
    """Measure and print."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    jpegs = draw_jpegs(_IMAGES)
    turns = measure(jpegs)
    middle = {name: statistics.median(values) for name, values in turns.items()}
    mean_kb = sum(map(len, jpegs)) / len(jpegs) / 1000
    print(
        f"{_IMAGES.name} ({mean_kb:.0f} kB) to 2 × 448² + 8 × 96² of both sides, {_TURNS} turns of {len(jpegs)} images"
    )
    lay_out, crop = (
        middle[whole] - middle[part] for whole, part in (("decode, lay out", "decode"), ("draw, crop", "draw"))
    )
    print(f"one core, ms per sample: decode {middle['decode']:.2f}, lay out {lay_out:.2f}, ", end="")
    print(f"draw {middle['draw']:.2f}, crop {crop:.2f}, ", end="")
    print(f"colour {middle['colour']:.2f} (all pixels {middle['colour all']:.2f})")
    print(f"\n{'':40}{'ms':>8}{'common / it':>13}{'middle half':>15}{'one crop / it':>15}{'asked':>8}")
    for title, colour, asked in (
        ("ours, patches that are looked at", "colour", f"≥ {_ASKED:g}"),
        ("ours, all pixels of both sides", "colour all", "–"),
    ):
        parts = [turns[name] for name in ("decode, lay out", "draw, crop", colour)]
        ours = [sum(each) for each in zip(*parts, strict=True)]
        low, ratio, high = _quartiles([theirs / mine for theirs, mine in zip(turns["common"], ours, strict=True)])
        once = statistics.median(t / mine for t, mine in zip(turns["common, one crop"], ours, strict=True))
        print(
            f"{title:40}{statistics.median(ours):>8.2f}{ratio:>13.2f}{f'{low:.2f}…{high:.2f}':>15}{once:>15.2f}{asked:>8}"
        )
    for name in ("common", "common, one crop"):
        print(f"{name:40}{middle[name]:>8.2f}")


if __name__ == "__main__":
    main()
