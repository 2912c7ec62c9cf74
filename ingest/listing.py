"""The files of a folder or bucket prefix, and the members of its zip files, as rows of FOUND.

Cost: one listing; per zip file its directory (two ranged reads), several archives at once. Memory: one batch.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa

from ingest.reasons import SceneRejectedError
from ingest.sources import batched, found, kind_of, rejecting, scenes_root, text
from shards import storage
from shards.storage import FileInfo

_ARCHIVES_AT_ONCE = 16  # reading a remote directory is waiting


def read_folder(scenes: str) -> Iterator[pa.Table]:
    """Yield the files below a folder or prefix, or inside one zip file; hidden names are left out.

    A zip file is a folder: its members' paths begin with its own. One that cannot be listed is one row with a reason.

    Raises:
        UserError: there is no such folder, bucket or permission.
        PermissionError: a store refuses one of the zip files.
    """
    root = scenes_root(scenes)
    with ThreadPoolExecutor(_ARCHIVES_AT_ONCE) as pool:
        for files in batched(_files(scenes)):
            archives = [file for file in files if _is_archive(root, file)]
            packed = {file.path for file in archives}
            plain = [file for file in files if file.path not in packed]
            if plain:
                yield _rows(plain, [text(file.path) for file in plain])
            yield from pool.map(partial(_read_archive, root), archives)


def _files(scenes: str) -> Iterator[FileInfo]:
    if kind_of(scenes) == "folder":
        yield from storage.iter_files(scenes)
        return
    with storage.user_errors(scenes):
        file = storage.stat(scenes)
    yield FileInfo(path=scenes.rpartition("/")[2], size=file.size, etag=file.etag, modified_s=file.modified_s)


def _is_archive(root: str, file: FileInfo) -> bool:
    if not file.path.lower().endswith(".zip"):
        return False
    if not storage.is_local(root):
        return True
    path = storage.local_path(storage.child(root, file.path))
    # A pipe would be waited for, a link to a folder is none; both are rejected when they are probed.
    return path.is_file() or not path.exists()


def _read_archive(root: str, archive: FileInfo) -> pa.Table:
    """Return the members of one zip file, or one row that says why there are none."""
    url = storage.child(root, archive.path)
    try:
        with rejecting(url):
            tables = [_members(archive, batch) for batch in batched(storage.list_zip(url))]
    except SceneRejectedError as rejection:
        # The row names the file; where it lies is no part of what is wrong with it.
        return _refused(archive, rejection.code, rejection.detail.removeprefix(url))
    return pa.concat_tables(tables) if tables else _refused(archive, "bad_archive", "holds no files")


def _members(archive: FileInfo, members: Sequence[FileInfo]) -> pa.Table:
    paths = [text(f"{archive.path}/{member.path}") for member in members]
    return _rows(members, paths, [text(archive.path)] * len(members))


def _rows(files: Sequence[FileInfo], paths: list[str], archives: list[str] | None = None) -> pa.Table:
    sizes, etags = [file.size for file in files], [file.etag for file in files]
    return found(path=paths, size=sizes, etag=etags, archive=archives)


def _refused(archive: FileInfo, reason: str, detail: str) -> pa.Table:
    path = text(archive.path)
    return found(
        path=[path],
        size=[archive.size],
        etag=[archive.etag],
        archive=[path],
        reason=[reason],
        detail=[text(" ".join(detail.split()))],
    )
