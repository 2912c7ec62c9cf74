"""Command line of the evaluation: `python -m eval --models M [M …] --data name=PATH [name=PATH …] --out DIR`."""

import shlex
import time
from collections.abc import Sequence

from eval.config import QUICK, EvalConfig
from shards import cli
from shards.allocation import keep_freed_memory
from shards.errors import UserError
from shards.openmp import spin_shortly

_DESCRIPTION = "Say what backbones are worth: many protocols with intervals, against floors, in one report."


def parse(argv: Sequence[str]) -> EvalConfig:
    """Build the config from the command line; `--models`, `--data` and `--protocols` take one or more values each.

    Raises:
        UserError: an unknown flag, a wrong type, a missing or refused value.
    """
    parser = cli.make_parser("eval", _DESCRIPTION)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_argument(
        "--models", nargs="+", type=str, required=True, metavar="M",
        help="export folders, RUN (its newest valid export), RUN@all, RUN@STEP, timm:NAME (weights on disk), "
        "official:FILE.pth[?mean=R,G,B&std=R,G,B&heads=N], floor:NAME",
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", type=str, required=True, metavar="NAME=PATH",
        help="labelled data: a folder or URL with one folder of images for every class and no folders inside it, with "
        "images/ and masks/, or with A/, B/ and label/; a dataset of ours with labels; torchgeo:NAME. PATH#bands=1-7 "
        "leaves out other bands",
    )  # fmt: skip
    parser.add_argument(
        "--protocols", nargs="+", type=str, default=list(QUICK), metavar="P",
        help="knn, linear, retrieval, few_shot, multi_scale, fine_tune; segmentation; change; or all, which is "
        f"everything but fine_tune (default: {' '.join(QUICK)})",
    )  # fmt: skip
    parser.add_argument("--redo", action="store_true", help="compute again what the output folder already has")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="go on with new exports of the runs among --models until these are complete",
    )
    parser.add_class_arguments(EvalConfig, skip={"models", "data", "protocols", "redo", "watch"})
    values = vars(cli.parse(parser, argv))
    try:
        return EvalConfig(**{name: value for name, value in values.items() if name != "config"})
    except ValueError as error:
        raise UserError(str(error)) from error


def main(argv: list[str]) -> int:
    """Evaluate, write the report, print the table; see `exit_with` for the exit codes."""
    spin_shortly()
    keep_freed_memory()
    config = parse(argv)
    from rich.console import Console

    from eval.console import print_summary
    from eval.data.decode import labelled_chips
    from eval.evaluate import Evaluation
    from eval.report.page import write_report
    from eval.watch import watch

    console = Console(soft_wrap=True)
    with labelled_chips():
        evaluation = Evaluation(config, shlex.join(["python", "-m", "eval", *argv]), console)
        evaluation.run()

        def write() -> None:
            write_report(evaluation.report(), config.out)

        write()
        if config.watch:
            watch(evaluation, write, console, time.sleep)
    print_summary(evaluation.report(), config.out, console)
    return 0


if __name__ == "__main__":
    cli.exit_with("eval", main)
