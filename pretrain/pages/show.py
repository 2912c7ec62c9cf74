"""`python -m pretrain show`: its options and its `main`; the work is in `pretrain.pages.display`.

Kept apart, so that `--help` and wrong use need not wait for torch.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from pretrain.config import Config
from shards import cli, storage
from shards.errors import UserError

_DESCRIPTION = """Show some samples as training sees them: each view's patches, who gets which, what the loss compares;
with --run also what the run's newest checkpoint makes of them. Without --config the configuration is the run's."""


@dataclass(frozen=True, kw_only=True)
class ShowConfig(Config):
    """Show what training sees, as one HTML page."""

    run: str = ""
    """Folder or URL of a run whose newest checkpoint is shown, too; by default none."""
    out: str
    """The page to write: file or URL."""
    samples: int = 4
    """Samples to show, at most loader.batch."""
    step: int = 0
    """The step of a run whose samples are shown, from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.samples <= self.loader.batch:
            raise ValueError(f"samples {self.samples} is outside 1…{self.loader.batch}, the samples of a step")
        if self.step < 0:
            raise ValueError(f"step {self.step} is negative")

    def training(self) -> Config:
        """Return the configuration of the training that is shown."""
        return Config(**{field.name: getattr(self, field.name) for field in fields(Config)})


def main(argv: list[str]) -> int:
    """Run `python -m pretrain show`; see `shards.cli.exit_with` for the exit codes."""
    with _with_config_of_run(argv) as arguments:
        show = cli.parse_config("pretrain show", _DESCRIPTION, ShowConfig, arguments)
    from pretrain.pages.display import write_show

    print(f"wrote {write_show(show)}")
    return 0


@contextmanager
def _with_config_of_run(argv: Sequence[str]) -> Iterator[list[str]]:
    """Yield the arguments, with the configuration of the run where none is named."""
    names = [item.partition("=")[0] for item in argv]
    url = ""
    if "--run" in names and "--config" not in names:
        place = names.index("--run")
        # Where there is no value, the parser says so.
        url = argv[place].partition("=")[2] or "".join(argv[place + 1 : place + 2])
    with tempfile.TemporaryDirectory() as folder:
        path, arguments = Path(folder, "config.yaml"), list(argv)
        if url:
            with storage.user_errors(url):
                if storage.exists(storage.join(url, "config.yaml")):
                    path.write_bytes(storage.read_bytes(storage.join(url, "config.yaml")))
                    arguments = ["--config", str(path), *arguments]
                elif "--data" not in names and not url.startswith("--"):
                    # Else the parser would ask for what the run should have told.
                    raise UserError(
                        f"{url} holds no run: give the folder that `python -m pretrain --run` wrote, or leave --run"
                    )
        yield arguments
