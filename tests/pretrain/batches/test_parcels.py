import io
import os
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.batches import parcels
from pretrain.batches.parcels import Packer
from shards.errors import UserError

DTYPES = (torch.uint8, torch.int64, torch.float32, torch.bool, torch.complex128)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    parcels.forget([os.getpid()])


def tensor_of(shape, dtype, number=0):
    return (torch.arange(torch.Size(shape).numel()) + number).reshape(shape).to(dtype)


def pack(packer, value):
    packer.begin()
    return packer.pack(value)


def same(values, others):
    return len(values) == len(others) and all(
        one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(values, others, strict=True)
    )


@given(
    st.lists(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES), st.sampled_from(["in place", "copied", "strided"]))))
)
def test_what_is_opened_is_what_was_packed(batches):
    packer, kept = Packer(), []
    for number, batch in enumerate(batches):
        packer.begin()
        made = []
        for shape, dtype, how in batch:
            tensor = tensor_of(shape, dtype, number)
            if how == "in place":
                tensor = packer.empty(shape, dtype=dtype).copy_(tensor)
            elif how == "strided" and shape:
                tensor = torch.stack([tensor, tensor])[:, ::2].transpose(0, 1)
            made.append(tensor)
        wanted = [each.clone() for each in made]
        name, opened = packer.pack((f"parcel {number}", made)).open()
        assert name == f"parcel {number}"
        kept.append((opened, wanted))
    # All are still there, whatever was packed after them.
    assert all(same(opened, wanted) for opened, wanted in kept)


def test_a_slab_is_used_again_when_its_last_view_is_gone():
    packer = Packer()
    first = pack(packer, [tensor_of((9, 5), torch.int64), tensor_of((3,), torch.uint8)])
    opened = first.open()
    view = opened[0].flatten()[7:].numpy()
    del opened
    second = pack(packer, [tensor_of((9, 5), torch.int64, 1)])
    assert second.slab != first.slab
    assert view.tolist() == list(range(7, 45))
    del view
    third = pack(packer, [tensor_of((9, 5), torch.int64, 2)])
    assert third.slab == first.slab
    assert third.memory is None
    assert same(second.open(), [tensor_of((9, 5), torch.int64, 1)])
    assert same(third.open(), [tensor_of((9, 5), torch.int64, 2)])


def test_what_is_made_in_a_slab_is_not_copied():
    packer = Packer()
    pack(packer, torch.zeros(1000)).open()
    packer.begin()
    made = packer.empty((10, 100), dtype=torch.float32)
    opened = packer.pack(made).open()
    made[3, 4] = 5
    assert opened[3, 4] == 5
    assert not packer.empty((1,), dtype=torch.float32).is_shared(), "no parcel was begun"


def test_a_parcel_that_was_given_up_takes_no_room():
    packer = Packer()
    pack(packer, torch.zeros(1000)).open()
    for _ in range(5):
        packer.begin()
        packer.empty((900,), dtype=torch.float32).fill_(1)
    packer.begin()
    ones = packer.empty((1000,), dtype=torch.float32).fill_(1)
    assert ones.is_shared()
    assert same([packer.pack(ones).open()], [torch.ones(1000)])


def test_a_larger_parcel_takes_a_larger_slab():
    packer = Packer()
    small = pack(packer, torch.zeros(10))
    small.open()
    packer.begin()
    part = packer.empty((10,), dtype=torch.float32).fill_(3)
    assert part.is_shared()
    parcel = packer.pack([part, torch.ones(10_000)])
    assert parcel.slab != small.slab
    assert same(parcel.open(), [torch.full((10,), 3.0), torch.ones(10_000)])


def test_ended_processes_are_forgotten_but_not_what_is_used():
    parcel = pack(Packer(), torch.ones(10))
    opened = parcel.open()
    parcels.forget([parcel.slab[0]])
    assert not parcels._known
    assert torch.equal(opened, torch.ones(10))


def test_each_tensor_is_for_itself():
    packer = Packer()
    packer.begin()
    big, weight = torch.ones(10_000), torch.ones(4, requires_grad=True)
    opened = packer.pack([big, torch.arange(4), torch.arange(4.0), big, weight]).open()
    product = (weight * opened[2]).sum()
    opened[0] += 1  # of no concern to the gradient of the third
    product.backward()
    assert torch.equal(weight.grad, torch.arange(4.0))
    assert torch.equal(opened[3], torch.ones(10_000))
    assert type(opened[4]) is torch.Tensor
    assert not opened[4].requires_grad
    file = io.BytesIO()
    torch.save(opened[1:3], file)
    assert file.tell() < 5_000


def test_what_a_tensor_only_says_of_its_memory_is_done_to_it():
    packer = Packer()
    pack(packer, torch.zeros(100)).open()
    packer.begin()
    made = packer.empty((3,), dtype=torch.complex64).fill_(1 + 2j)
    assert packer.pack([made.conj(), made.conj().imag]).open()[0].tolist() == [1 - 2j] * 3


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_slabs_come_back_from_any_mode(mode, monkeypatch):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    packer = Packer()
    with mode():
        opened = pack(packer, torch.ones(10)).open()
    del opened
    assert not complaints
    assert packer._slabs[0].is_free


def test_a_forked_process_gives_nothing_back():
    packer = Packer()
    opened = pack(packer, torch.ones(10)).open()
    child = os.fork()
    if not child:
        del opened
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    pack(packer, torch.zeros(10)).open()
    assert torch.equal(opened, torch.ones(10))


def test_slabs_that_nobody_needs_go_on_both_sides():
    packer = Packer()
    kept = [pack(packer, torch.ones(100)).open() for _ in range(50)]
    assert len(packer._slabs) == len(parcels._known) == 50
    kept.clear()
    pack(packer, torch.ones(100)).open()
    assert len(packer._slabs) == len(parcels._known) == 5
    for number in range(100):
        pack(packer, torch.ones(1000 + 100 * number)).open()
    assert len(packer._slabs) <= len(parcels._known) <= 2


def test_no_room_for_shared_memory_is_told_with_the_remedy(monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(UserError, match=r"^no shared memory for 4\.0 MB, .*No space.*lower loader\.workers"):
        pack(Packer(), torch.ones(10**6))
