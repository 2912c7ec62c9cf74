"""Which faults of the data stop a run, and the last row of metrics that counts them."""

from pretrain.batches.loader import WorkerKilledError
from pretrain.runs.checkpoint import Position
from pretrain.runs.metrics import STOPPED, Row
from pretrain.training.gauge import Stretch
from shards.dataset import CorruptSampleError
from shards.errors import UserError
from shards.storage.retry import StorageError

FAULTS = (UserError, CorruptSampleError, StorageError, WorkerKilledError)
"""That come up while data are waited for."""


def fault_kind(error: Exception) -> str:
    """Return the kind of one of `FAULTS`: a StorageError's own; "unreadable" is what no repetition mends.

    That is a shard that is missing, has changed or may not be read, or a cache without room.
    """
    if isinstance(error, StorageError):
        return error.kind
    if isinstance(error, CorruptSampleError):
        return "corrupt"
    return "worker_killed" if isinstance(error, WorkerKilledError) else "unreadable"


def stop_row(error: Exception, position: Position, stretch: Stretch, *, num_samples: int) -> Row:
    """Return the last row of a start: where it stood, what was asked of stores since the row before, and the fault.

    Args:
        error: one of `FAULTS`.
        position: after the last step that was made.
        stretch: of this rank, since the last row.
        num_samples: of an epoch.
    """
    return {
        "step": position.step,
        "samples": position.samples,
        "epoch": position.samples / num_samples,
        **stretch.counts,
        STOPPED + fault_kind(error): 1,
    }
