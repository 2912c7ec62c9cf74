"""Part of tests/bench/train.py: the memory that a step needs, and a dense two-view method's at the same crops.

Each is measured in a process of its own: the most that was resident in three steps, less what was before the model was
made. So parameters, gradients, moments and the teacher are in it, equal on both sides.
"""

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from pretrain.batches.batch import Batch, ViewBatch, patchify
from pretrain.config import Config
from pretrain.model.backbone import DropPath
from pretrain.model.losses import koleo_and_gradient, prototype_cross_entropy
from pretrain.model.pera import Branch
from pretrain.training.trainer import Trainer
from tests.bench.train_setup import CONFIGS, make_trainer, noise_batch

_STEPS, _ASKED = 3, 0.45


def print_tables(_: bool) -> None:
    """Measure and print."""
    print(f"\n{'Memory of a step':20}{'batch':>6}{'ours':>10}{'dense':>10}{'ours / dense':>14}{'asked':>9}")
    for name, config in CONFIGS.items():
        ours, dense = peak_bytes(config), peak_bytes(config, is_dense=True)
        figures = f"{ours / 2**20:>6.0f} MiB{dense / 2**20:>6.0f} MiB{ours / dense:>13.2f}×"
        print(f"{name:20}{config.loader.batch:>6}{figures}{f'≤ {_ASKED}×':>9}", flush=True)


def peak_bytes(config: Config, is_dense: bool = False) -> int:
    """Return what steps need at most, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_bytes, config, is_dense).result()


def _peak_bytes(config: Config, is_dense: bool) -> int:
    batch = noise_batch(config)
    before = _resident_bytes("VmRSS")
    trainer = make_trainer(config)
    # From here on the largest value is a new one: the process may have had more while it started.
    Path("/proc/self/clear_refs").write_text("5")
    for step in range(_STEPS):
        if is_dense:
            dense_step(trainer, step, batch)
        else:
            trainer.step(step, batch)
    return _resident_bytes("VmHWM") - before


def _resident_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def dense_step(trainer: Trainer, step: int, batch: Batch) -> None:
    """Make a step of a dense two-view method: all patches on both sides, cls loss and KoLeo, no pixels.

    Blocks, stochastic depth and losses are PerA's own, so that what is compared is the patches alone.
    """
    model, config = trainer.model, trainer.config
    drop_path = DropPath(rate=config.model.drop_path, generator=torch.Generator().manual_seed(step))
    trainer.optimiser.zero_grad()
    student = _features(model.student, trainer, batch, "student_colours", drop_path)
    student_NZ = model.student.cls_head.bottleneck(torch.cat(student))
    with torch.no_grad():
        teacher = _features(model.teacher, trainer, batch, "teacher_colours", None)
        teacher_NZ = model.teacher.cls_head.bottleneck(torch.cat(teacher))
        teacher_KZ = model.teacher.cls_head.last_layer.weight()
    cross_entropy = prototype_cross_entropy(
        student_NZ,
        model.student.cls_head.last_layer.weight(),
        teacher_NZ,
        teacher_KZ,
        model.centre,
        student_temperature=config.loss.student_temperature,
        teacher_temperature=0.05,
    )
    spread_VBW = student[0].unflatten(0, (config.views.num_global, -1))
    _, gradient_VBW = koleo_and_gradient(spread_VBW)
    torch.autograd.backward([cross_entropy.mean, spread_VBW], [None, config.loss.koleo * gradient_VBW])
    trainer.network.clip_gradient(config.optimiser.clip)
    trainer.optimiser.step()
    model.update_teacher(0.99, teacher_KZ @ teacher_NZ.mean(0))


def _features(branch: Branch, trainer: Trainer, batch: Batch, colours: str, drop_path: DropPath | None) -> list[Tensor]:
    """Return the cls features [N, W] of the global and of the local views."""
    features = []
    for views in (batch.global_views, batch.local_views):
        assert views is not None
        patches_NPD, indices_NP = _all_patches(views, trainer, colours)
        features.append(branch.encode(patches_NPD, indices_NP, round(indices_NP.shape[1] ** 0.5), drop_path))
    return features


def _all_patches(views: ViewBatch, trainer: Trainer, colours: str) -> tuple[Tensor, Tensor]:
    patches_NLD = patchify(views.crops_NCHW, views.patch_px)
    indices_NP = torch.arange(patches_NLD.shape[1]).expand(len(patches_NLD), -1)
    (patches_NPD,) = trainer.colour(patches_NLD, (indices_NP,), getattr(views, colours))
    return patches_NPD, indices_NP
