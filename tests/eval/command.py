"""The evaluation as its command line runs it."""

import json
from pathlib import Path

from eval.__main__ import main


def run_eval(models, data, out, *flags):
    """Evaluate and return results.json."""
    arguments = ["--models", *map(str, models), "--data", *data, "--out", str(out), *flags]
    assert main(arguments) == 0
    return json.loads((Path(out) / "results.json").read_text())
