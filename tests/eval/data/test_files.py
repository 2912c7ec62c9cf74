import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.data.decode import UnreadableImageError
from eval.data.files import probe, read_all, read_image
from shards.errors import UserError


def test_every_file_is_read_once_and_named_in_the_digest(tmp_path: Path):
    paths = [f"{number} %23#.bin" for number in range(9)]
    for path in paths:
        (tmp_path / path).write_bytes(path.encode() * 3)
    seen: dict[str, bytes] = {}
    digest = read_all(str(tmp_path), paths, 3, seen.__setitem__)
    assert seen == {path: path.encode() * 3 for path in paths}
    lines = [f"{hashlib.sha256(path.encode() * 3).hexdigest()}  {path}\n" for path in paths]
    assert digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert digest == read_all(str(tmp_path), paths, 1)
    with pytest.raises(UserError, match="gone does not exist"):
        read_all(str(tmp_path), ["gone"], 1)


def test_the_first_readable_image_says_what_the_others_must_be(tmp_path: Path):
    out = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(out, "PNG")
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.png").write_bytes(out.getvalue())
    assert probe("d", str(tmp_path), ["a.png", "b.png"]) == (("red", "green", "blue"), "uint8")
    with pytest.raises(UserError, match=r"none of the 1 images of d can be read, the first of them a.png \("):
        probe("d", str(tmp_path), ["a.png"])
    assert read_image(str(tmp_path), "b.png", ("red", "green", "blue"), "uint8").shape == (4, 5, 3)
    with pytest.raises(UnreadableImageError, match="the data set is uint16 nir"):
        read_image(str(tmp_path), "b.png", ("nir",), "uint16")
