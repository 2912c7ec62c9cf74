"""Part of tests/bench/train.py: how long a checkpoint stops the training.

A run of the paper's ViT-B/16 with 131,072 prototypes, in float32 with a batch of two small images, saves after every
sixth step, which leaves a disk some time to write. What is told is `save_blocked_s` of its own metrics: putting the
state together, copying it, and waiting for the save before where that is not done yet. Files are written to the folder
of temporary files.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.stream_data import ImageSet, draw_jpegs, write_ours
from tests.bench.train_options import Options

_TILES = ImageSet(name="tiles", side_px=256, quality=91, count=16)
_STEPS, _EVERY, _ASKED_S = 19, 6, 2.0
_ARGUMENTS = (
    *("--config", "pretrain/configs/vit_b16.yaml", "--device", "cpu", "--precision", "float32"),
    *("--model.image_px", "224", "--views.num_local", "0", "--loader.batch", "2", "--loader.workers", "0"),
    *("--schedule.length", f"{_STEPS} steps", "--schedule.lr_warmup", "1 step"),
    *("--schedule.teacher_temperature_warmup", "1 step", "--log_every", "1"),
    *("--checkpoint.every", f"{_EVERY} steps", "--checkpoint.keep_last", "1"),
)


def print_tables(_: Options) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="pera-bench-") as name:
        folder = Path(name)
        data, run = folder / _TILES.name, folder / "run"
        write_ours(data, draw_jpegs(_TILES), _TILES.side_px)
        command = [sys.executable, "-m", "pretrain", "--data", str(data), "--run", str(run), *_ARGUMENTS]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        size = max(file.stat().st_size for file in (run / "checkpoints").iterdir())
    # A save is told by the row after it.
    blocked = [row["save_blocked_s"] for row in rows[1:] if row["step"] % _EVERY == 1]
    each = ", ".join(f"{seconds:.2f}" for seconds in blocked)
    print(
        f"\n{'A checkpoint of ViT-B':24}{size / 1e9:.2f} GB; stops training for {statistics.median(blocked):.2f} s",
        end="",
    )
    print(f" (asked < {_ASKED_S:g}); each save: {each} s", flush=True)
