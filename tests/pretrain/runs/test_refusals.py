import errno
import os

import pytest

from pretrain.runs.refusals import refusals_told
from shards import storage
from shards.errors import UserError


def refused(error, run="/tmp/run", **harm):
    with refusals_told(run, **harm):
        raise error


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "Permission denied"), NotADirectoryError(errno.ENOTDIR, "Not a directory")],
)
def test_what_the_user_may_mend_is_the_users(error, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}.*{error.strerror}") as caught:
        refused(error, str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_token_that_expired_is_the_users():
    answer = OSError("The provided token has expired.")
    answer.__cause__ = RuntimeError()
    answer.__cause__.response = {"Error": {"Code": "InvalidToken"}}
    with pytest.raises(UserError, match=r"the store refuses s3://b/run .*a token may have expired"):
        refused(answer, "s3://b/run")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_disk_out_of_order_is_one_line(code):
    with pytest.raises(storage.StorageError, match=r"^/tmp/run: the disk or store refuses") as caught:
        refused(OSError(code, os.strerror(code)), harm="nothing was begun")
    assert caught.value.kind == "refused"
    assert os.strerror(code) in str(caught.value)
    assert ": nothing was begun: " in str(caught.value)


def test_a_full_disk_is_told_also_before_there_is_a_folder(tmp_path):
    with pytest.raises(storage.StorageError, match=r"No space left.* MB free.*: free some space, or lower") as caught:
        refused(OSError(errno.ENOSPC, "No space left on device"), str(tmp_path / "not" / "there"))
    assert caught.value.kind == "disk_full"


def test_what_is_told_already_stays(tmp_path):
    for error in (UserError("no such band"), storage.StorageError("503", "server")):
        with pytest.raises(type(error), match=f"^{error}$"):
            refused(error)


def test_a_defect_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError):
        refused(KeyError("step"))
