"""The checkpoint that all ranks go on from: the first one chooses, the others read the same. Costs its size on each."""

from pretrain.config import Config
from pretrain.runs.checkpoint import Checkpoint, DamagedCheckpointError, load_newest, read_checkpoint
from pretrain.runs.record import identity_sha256
from pretrain.runs.refusals import refusals_told
from pretrain.training.ranks import Ranks
from shards.errors import UserError

_HARM = "nothing was begun"


def newest_checkpoint(ranks: Ranks, config: Config) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, the same on all ranks; None where there is none yet. All must call.

    Raises:
        UserError: it is one of another run, or not all ranks can read it; or none is whole.
        StorageError: the store kept failing, or the scratch disk is full.
    """
    found = ranks.agree(lambda: _load(config.run) if ranks.is_first else None)
    url = ranks.first(found[1] if found else None)
    if url is None:
        return None
    checkpoint = ranks.agree(lambda: found[0] if found else _read(config.run, url))
    if checkpoint.record["config_sha256"] != identity_sha256(config):
        raise UserError(f"{url} is of a run of another configuration: remove it, or choose another --run")
    return checkpoint


def _load(run: str) -> tuple[Checkpoint, str] | None:
    with refusals_told(run, _HARM):
        return load_newest(run)


def _read(run: str, url: str) -> Checkpoint:
    """Read what the first rank has read."""
    with refusals_told(run, _HARM):
        try:
            return read_checkpoint(url)
        except (FileNotFoundError, DamagedCheckpointError) as error:
            raise UserError(
                f"{url}: the first rank reads it, this one does not ({error}): all ranks must reach the run, in a "
                "bucket or on a disk that they share"
            ) from error
