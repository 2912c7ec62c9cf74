"""Command line of the evaluation: `python -m eval --models M [M …] --data name=PATH [name=PATH …] --out DIR`."""

import shlex
from collections.abc import Sequence

from eval.config import EvalConfig
from shards import cli
from shards.errors import UserError

_DESCRIPTION = "Say what backbones are worth: k-NN and linear probe with intervals, against floors, in one report."


def parse(argv: Sequence[str]) -> EvalConfig:
    """Build the config from the command line; `--models` and `--data` take one or more values each.

    Raises:
        UserError: an unknown flag, a wrong type, a missing or refused value.
    """
    parser = cli.make_parser("eval", _DESCRIPTION)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_argument(
        "--models", nargs="+", type=str, required=True, metavar="M",
        help="export folders, runs (their newest valid export), timm:NAME (weights on disk), floor:NAME",
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", type=str, required=True, metavar="NAME=PATH",
        help="labelled data: a folder or URL with one folder of images for every class",
    )  # fmt: skip
    parser.add_argument("--redo", action="store_true", help="compute again what the output folder already has")
    parser.add_class_arguments(EvalConfig, skip={"models", "data", "redo"})
    values = vars(cli.parse(parser, argv))
    try:
        return EvalConfig(**{name: value for name, value in values.items() if name != "config"})
    except ValueError as error:
        raise UserError(str(error)) from error


def main(argv: list[str]) -> int:
    """Evaluate, write the report, print the table; see `exit_with` for the exit codes."""
    config = parse(argv)
    from rich.console import Console

    from eval.console import print_summary
    from eval.evaluate import evaluate
    from eval.report import write_report

    console = Console(soft_wrap=True)
    report = evaluate(config, shlex.join(["python", "-m", "eval", *argv]), console)
    write_report(report, config.out)
    print_summary(report, config.out, console)
    return 0


if __name__ == "__main__":
    cli.exit_with("eval", main)
