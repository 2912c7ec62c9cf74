"""What the parts of tests/bench/train.py are asked for; imports nothing, because torch reads the environment first."""

from typing import NamedTuple


class Options(NamedTuple):
    """The words of the command line."""

    compile: bool
    """Whether compiled blocks are measured, too."""
    device: str
    """"cpu", in float32, or "cuda", in bfloat16."""
    charts: str | None = None
    """Folder for the charts of the part batches."""
