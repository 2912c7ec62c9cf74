from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.runs.checkpoint import list_checkpoints
from pretrain.training.loop import train
from pretrain.training.newest import newest_checkpoint
from pretrain.training.ranks import Ranks, ToldElsewhereError


def second_of_two(url):
    """The second rank, which hears from the first one that it goes on from a checkpoint."""

    class Second(Ranks):
        def first(self, value):
            return url

        def collected(self, value):
            return [None, value]

    return Second(rank=1, world=2)


def test_a_checkpoint_that_only_the_first_rank_reads_is_refused(tiny):
    train(replace(tiny, max_steps=1))
    url = list_checkpoints(tiny.run)[1]
    assert newest_checkpoint(second_of_two(url), tiny).step == 1
    content = bytearray(Path(url).read_bytes())
    content[100] ^= 1
    Path(url).write_bytes(content)
    with pytest.raises(ToldElsewhereError, match=r"this one does not .*is damaged.*: all ranks must reach") as caught:
        newest_checkpoint(second_of_two(url), tiny)
    assert caught.value.is_users
    Path(url).unlink()
    with pytest.raises(ToldElsewhereError, match=r"this one does not .*No such file.*: all ranks must reach"):
        newest_checkpoint(second_of_two(url), tiny)
