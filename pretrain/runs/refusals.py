"""What a disk or store says when it does not take a run's files, in one line that names the place and the remedy.

Costs a listing of the exports where a disk is full, and nothing while all goes well.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shards import storage
from shards.storage.scratch import is_disk_full

_LOST = "what was being saved is lost, earlier checkpoints are whole"


@contextlib.contextmanager
def refusals_told(run: str, harm: str = _LOST) -> Iterator[None]:
    """Turn errors of writing to a run, or of reading it, that no repetition mends into one line.

    Args:
        run: URL of the run.
        harm: what the error has done, as a part of the line.

    Raises:
        UserError: no permission, or credentials that do not hold (any more).
        StorageError: the run's disk is full, or the scratch disk that files for a bucket pass; or it is read-only or
            out of order; or a store kept failing.
    """
    try:
        with storage.user_errors(run):
            yield
    except storage.StorageError:
        raise
    except OSError as error:
        if is_disk_full(error):
            raise storage.StorageError(_full(run, error, harm), "disk_full") from error
        told = f"{run}: the disk or store refuses ({error}): {harm}: mend it, and start again"
        raise storage.StorageError(told, "refused") from error


def _full(run: str, error: OSError, harm: str) -> str:
    local = storage.is_local(run)
    folder = storage.local_path(run) if local else Path(tempfile.gettempdir())
    room = f"{shutil.disk_usage(_there(folder)).free / 1e6:.1f} MB free"
    remedy = f"free some space{_exports_told(run)}, or lower --checkpoint.keep_last"
    if not local:
        remedy = "let TMPDIR name a larger disk"
    return f"{folder}: {error.strerror} ({room}): {harm}: {remedy}, and start again"


def _there(folder: Path) -> Path:
    """Return the folder, or the nearest around it that there is."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def _exports_told(run: str) -> str:
    exports = storage.join(run, "exports")
    if not (storage.is_local(run) and storage.exists(exports)):
        return ""
    num_bytes = sum(info.size for info in storage.iter_files(exports))
    return f" ({exports} has {num_bytes / 1e6:.1f} MB, and none of it is ever removed here)"
