"""What every folder of labelled images needs: one reading of all files, the first image's bands, checked images.

Cost: each file is read once (its sha256 enters the data's digest); memory holds one file per thread.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from eval.data.decode import UnreadableImageError, decode, labelled_chips
from shards import storage
from shards.errors import UserError

Look = Callable[[str, bytes], None]


def read_all(url: str, paths: Sequence[str], workers: int, look: Look | None = None) -> str:
    """Read every file once and return the sha256 over their names and contents.

    Args:
        url: the folder.
        paths: relative, in the order that the digest has.
        workers: threads.
        look: is given each path and its bytes, in any order and from any thread.

    Raises:
        UserError: a file that was listed is not there any more or may not be read; or what `look` raises.
    """

    def fingerprint(path: str) -> str:
        with storage.user_errors(storage.child(url, path)):
            data = storage.read_bytes(storage.child(url, path))
        if look is not None:
            look(path, data)
        return hashlib.sha256(data).hexdigest()

    total = hashlib.sha256()
    with labelled_chips(), ThreadPoolExecutor(workers) as pool:
        for path, fingerprint_hex in zip(paths, pool.map(fingerprint, paths), strict=True):
            total.update(f"{fingerprint_hex}  {path}\n".encode())
    return total.hexdigest()


def probe(where: str, url: str, paths: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return bands and type of the first image that can be read: the others must be alike.

    Raises:
        UserError: none can be read; tells why the first cannot.
    """
    first = ""
    for path in paths:
        try:
            with labelled_chips():
                pixels, bands = decode(path, storage.read_bytes(storage.child(url, path)))
        except UnreadableImageError as error:
            first = first or f"{path} ({error})"
            continue
        return bands, str(pixels.dtype)
    raise UserError(
        f"none of the {len(paths)} images of {where} can be read, the first of them {first}: mend or convert them"
    )


def read_image(url: str, path: str, bands: tuple[str, ...], dtype: str) -> NDArray[np.generic]:
    """Read and decode one image [H, W, C].

    Raises:
        UnreadableImageError: it is damaged, or has other bands or another type than the data set.
    """
    pixels, found = decode(path, storage.read_bytes(storage.child(url, path)))
    if found != bands or str(pixels.dtype) != dtype:
        raise UnreadableImageError(f"{pixels.dtype} {','.join(found)}: the data set is {dtype} {','.join(bands)}")
    return pixels
