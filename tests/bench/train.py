"""The cost of training: `python -m tests.bench.train [PART …] [--compile] [--device cuda] [--charts FOLDER]`.

Parts are step, memory, linear, batches, save and start; all by default, 30 minutes on 2 cores.

- step: FLOP/s of `Trainer.step`, from a batch as the loader delivers it to the updated teacher, as a share of a large
  matrix product's (the same process, the same threads), and seconds against a straightforward version of the same
  maths, see train_plain.py; before they race, both give the same loss and gradients for the same weights and images.
  The straightforward way has a process of its own, with the memory management that any script gets.
  For ViT-S/16 with 2 × 224² + 8 × 96² and 4,096 prototypes, and with 2 × 448² + 8 × 96² and 65,536.
- memory: the most that a step needs, against a dense two-view method built from the same blocks, each in a process of
  its own.
- linear: seconds and memory against batch size and against depth.
- batches: samples/s and memory over batch sizes, for ViT-S and ViT-B, against the dense method.
- save: how long a checkpoint of ViT-B stops the training.
- start: seconds from the start of `python -m pretrain` to the end of its first step.

Operations are counted by `pretrain.model.flops`, which tells how; its tests compare it with what torch counts. Steps,
products and yardstick take turns, and a ratio is the median of those of neighbours in time. With --compile the step is
also measured with compiled blocks, which takes some minutes more. Nothing fails for its speed.

On a CPU everything is float32, and memory is that of the process. With --device cuda the parts step and batches run on
a GPU in bfloat16, with larger batches, and memory is what torch allocated there.
"""

import argparse
from importlib import import_module

from shards.openmp import spin_shortly
from tests.bench.train_options import Options

PARTS = ("step", "memory", "linear", "batches", "save", "start")
_ON_A_GPU = ("step", "batches")


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser("python -m tests.bench.train", description="The cost of training.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--compile", action="store_true", help="also measure the step with compiled blocks")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--charts", metavar="FOLDER", help="where the part batches draws rate.svg and memory.svg")
    given = parser.parse_args()
    possible = PARTS if given.device == "cpu" else _ON_A_GPU
    if unknown := [name for name in given.parts if name not in possible]:
        parser.error(f"no such part on {given.device}: {', '.join(unknown)}; choose from {', '.join(possible)}")
    # Before torch starts threads: as pretrain does.
    spin_shortly()
    for name in given.parts or possible:
        import_module(f"tests.bench.train_{name}").print_tables(Options(given.compile, given.device, given.charts))


if __name__ == "__main__":
    main()
