"""Part of tests/bench/train.py: FLOP/s of a step as a share of a matrix product's, and against the yardstick."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from pretrain.config import Config
from pretrain.model.flops import step_flops
from pretrain.model.inputs import ViewPatches
from pretrain.model.losses import koleo_and_gradient
from pretrain.model.pera import PerA
from pretrain.training.peak import product_seconds, wait_for
from tests.bench.train_options import Options
from tests.bench.train_plain import DenseViews, PlainPerA, PlainTrainer, our_names
from tests.bench.train_setup import (
    COLOUR,
    CONFIGS,
    NUM_BANDS,
    SMALL,
    make_trainer,
    noise_batch,
    on_device,
    with_batch,
    with_depth,
)
from tests.pretrain.patches import gather

_ROUNDS, _PRODUCTS = 5, 3
_SIDE = {"cpu": 2048, "cuda": 8192}
_TIMES_AS_MANY_ON_A_GPU = 8
"""Images in a batch."""
_ASKED = {"2 × 224², K 4,096": 0.70, "2 × 448², K 65,536": 0.60}
_ASKED_OF_PLAIN = 1.3
_OURS, _PLAIN = "ours", "straightforward"

Step = Callable[[int], object]


def print_tables(options: Options) -> None:
    """Measure and print."""
    require_equal(with_depth(with_batch(SMALL, 2), 4))
    where = f"{torch.get_num_threads()} threads" if options.device == "cpu" else torch.cuda.get_device_name()
    print(f"\nA step, {where}, median of {_ROUNDS}")
    titles = ("batch", "GFLOP", "s", "GFLOP/s", "product", "share", "asked", "it / ours", "asked")
    print(" " * 36 + "".join(f"{title:>10}" for title in titles))
    for name, config in CONFIGS.items():
        if options.device != "cpu":
            config = with_batch(config, _TIMES_AS_MANY_ON_A_GPU * config.loader.batch)
        print_race(name, on_device(config, options), options.compile)


def print_race(name: str, config: Config, compiled: bool) -> None:
    """Let the ways to make a step take turns, with products between them."""
    ways = make_ways(config, compiled)
    device = torch.device(config.device)
    times, products = race(list(ways.values()), device)
    flops, product_flops = step_flops(config, NUM_BANDS, config.loader.batch).total, 2 * _SIDE[config.device] ** 3
    for way, seconds, product_s in zip(ways, times, products, strict=True):
        shares = [flops / product_flops * p / s for s, p in zip(seconds, product_s, strict=True)]
        ratio = statistics.median(s / ours for s, ours in zip(seconds, times[0], strict=True))
        second, product = statistics.median(seconds), product_flops / statistics.median(product_s)
        cells = [
            f"{config.loader.batch}",
            f"{flops / 1e9:.0f}",
            f"{second:.2f}",
            f"{flops / second / 1e9:.1f}",
            f"{product / 1e9:.1f}",
            f"{statistics.median(shares):.0%}",
            f"≥ {_ASKED[name]:.0%}" if way == _OURS else "",
            f"{ratio:.2f}×",
            f"≥ {_ASKED_OF_PLAIN}×" if way == _PLAIN else "",
        ]
        print(f"{name:20}{way:16}" + "".join(f"{cell:>10}" for cell in cells), flush=True)


def make_ways(config: Config, compiled: bool) -> dict[str, Step]:
    """Return what makes a step, ours first."""
    batch = noise_batch(config)
    ours = make_trainer(config)
    ways: dict[str, Step] = {_OURS: lambda step: ours.step(step, batch)}
    if compiled:
        other = make_trainer(replace(config, compile=True))
        ways["ours, compiled"] = lambda step: other.step(step, batch)
    ways[_PLAIN] = _plain_step(config)
    return ways


def _plain_step(config: Config) -> Step:
    """Return the straightforward way's step, made in a process of its own: our trainer sets up the memory of this one.

    See `shards.allocation`; the threads are as many, and wait as ours do.
    """
    here, there = (context := get_context("spawn")).Pipe()
    context.Process(target=_make_plain_steps, args=(config, torch.get_num_threads(), there), daemon=True).start()
    there.close()  # so that the process ends with what is returned

    def step(number: int) -> None:
        here.send(number)
        here.recv()

    return step


def _make_plain_steps(config: Config, num_threads: int, pipe: Connection) -> None:
    torch.set_num_threads(num_threads)
    plain, batch = PlainTrainer(config, NUM_BANDS, COLOUR), noise_batch(config)
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        plain.step(batch)
        wait_for(torch.device(config.device))
        pipe.send(number)


def race(steps: Sequence[Step], device: torch.device) -> tuple[list[list[float]], list[list[float]]]:
    """Return the seconds of each way's steps, and of the products just before and after each, after one to warm up."""
    times: list[list[float]] = [[] for _ in steps]
    products: list[list[float]] = [[] for _ in steps]
    for number in range(_ROUNDS + 1):
        order = range(len(steps))
        for place in order if number % 2 else order[::-1]:
            before = product_times(device)
            begin_s = time.perf_counter()
            steps[place](number)
            wait_for(device)
            seconds = time.perf_counter() - begin_s
            if number:
                times[place].append(seconds)
                products[place].append(statistics.median(before + product_times(device)))
    return times, products


def product_times(device: torch.device) -> list[float]:
    """Return the seconds of some large matrix products."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return [product_seconds(device, dtype, _SIDE[device.type]) for _ in range(_PRODUCTS)]


def to_patches(views: DenseViews, patch_px: int) -> ViewPatches:
    """Sort the patches of both sides into their sets, as our model wants them."""

    def pick(images_NCHW: Tensor, mask_NL: Tensor) -> tuple[Tensor, Tensor]:
        indices_NP = mask_NL.nonzero()[:, 1].unflatten(0, (len(mask_NL), -1))
        return gather(images_NCHW, patch_px, indices_NP), indices_NP

    student_NPD, student_indices_NP = pick(views.student_NCHW, views.student_NL)
    learnable_NPD, learnable_indices_NP = pick(views.student_NCHW, views.learnable_NL)
    teacher_NPD, teacher_indices_NP = pick(views.teacher_NCHW, views.teacher_NL)
    return ViewPatches(
        student_NPD=student_NPD,
        student_indices_NP=student_indices_NP,
        learnable_NPD=learnable_NPD,
        learnable_indices_NP=learnable_indices_NP,
        teacher_NPD=teacher_NPD,
        teacher_indices_NP=teacher_indices_NP,
    )


def require_equal(config: Config) -> None:
    """Stop where ours and the yardstick differ in loss or gradient, without stochastic depth, in float64."""
    config = replace(config, model=replace(config.model, drop_path=0.0))
    ours, plain = PerA(config, NUM_BANDS).double(), PlainPerA(config, NUM_BANDS).double()
    plain.load(ours.state_dict())
    batch = noise_batch(config)
    assert batch.local_views is not None
    both = (batch.global_views, batch.local_views)
    global_views, local_views = (DenseViews.of(views, COLOUR, torch.device("cpu")).double() for views in both)
    output = ours(to_patches(global_views, 16), to_patches(local_views, 16), 0.05)
    koleo, gradient = koleo_and_gradient(output.spread_VBX)
    weight = config.loss.koleo
    torch.autograd.backward([output.loss, output.spread_VBX], [None, weight * gradient])
    loss = plain(global_views, local_views, 0.05)
    loss.backward()
    torch.testing.assert_close(output.loss + weight * koleo, loss, rtol=1e-9, atol=0)
    theirs = {our_names(name): parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in ours.trainable().items():
        torch.testing.assert_close(parameter.grad, theirs[name], rtol=1e-6, atol=1e-9)
    ours.update_teacher(1.0, output.teacher_mean_K)
    torch.testing.assert_close(ours.centre, plain.centre)
