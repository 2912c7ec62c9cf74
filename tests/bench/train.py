"""The cost of training on a CPU, in float32: `python -m tests.bench.train [PART …] [--compile]`.

Parts are step, memory, linear, batches and start; all by default, 25 minutes on 2 cores.

- step: FLOP/s of `Trainer.step`, from a batch as the loader delivers it to the updated teacher, as a share of a large
  matrix product's (2048³, the same process, the same threads), and seconds against a straightforward version of the
  same maths, see train_plain.py; before they race, both give the same loss and gradients for the same weights and
  images. For ViT-S/16 with 2 × 224² + 8 × 96² and 4,096 prototypes, and with 2 × 448² + 8 × 96² and 65,536.
- memory: the most that a step needs, against a dense two-view method built from the same blocks, each in a process of
  its own.
- linear: seconds and memory against batch size and against depth.
- batches: samples/s and memory over batch sizes, for ViT-S and ViT-B, against the dense method.
- start: seconds from the start of `python -m pretrain` to the end of its first step.

Operations are counted by `pretrain.model.flops`, which tells how; its tests compare it with what torch counts. Steps,
products and yardstick take turns, and a ratio is the median of those of neighbours in time. With --compile the step is
also measured with compiled blocks, which takes some minutes more. Nothing fails for its speed.
"""

import os
import sys
from importlib import import_module

PARTS = ("step", "memory", "linear", "batches", "start")


def main() -> None:
    """Run the chosen parts."""
    compiled = "--compile" in sys.argv[1:]
    chosen = [argument for argument in sys.argv[1:] if argument != "--compile"] or list(PARTS)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        raise SystemExit(f"no such part: {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    # Before torch starts threads: as pretrain does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in chosen:
        import_module(f"tests.bench.train_{name}").print_tables(compiled)


if __name__ == "__main__":
    main()
