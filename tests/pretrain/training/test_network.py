import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from pretrain.model.backbone import DropPath
from pretrain.model.pera import PerA
from pretrain.training.network import Network, make_network, shapes
from pretrain.training.ranks import Ranks
from tests.pretrain.model.test_pera import draw_views


@pytest.fixture
def group():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_gradients_reach_other_ranks_with_the_last_micro_batch_alone(tiny, group):
    generator, sent = torch.Generator().manual_seed(0), []
    views = draw_views(tiny, 2, 32, generator), draw_views(tiny, 2, 24, generator)
    model = PerA(tiny, 3)
    replicas = DistributedDataParallel(model, forward_sync_buffers=False)

    def count(state, bucket):
        sent.append(bucket.index())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    replicas.register_comm_hook(None, count)
    network = Network(model=model, replicas=replicas, sharded=False)
    for last in (False, False, True):
        with network.communicating(last):
            network(*views, 0.05, DropPath(rate=0.0, generator=generator)).loss.backward()
        assert bool(sent) == last


def test_state_and_moments_come_back_by_name(tiny):
    torch.manual_seed(0)
    first, second = (make_network(PerA(tiny, 3), tiny, Ranks()) for _ in range(2))
    optimisers = [torch.optim.AdamW(network.model.trainable().values(), lr=0.1) for network in (first, second)]
    for parameter in first.model.trainable().values():
        parameter.grad = torch.randn_like(parameter)
    optimisers[0].step()
    state, moments = first.state(Ranks()), first.moments(optimisers[0], Ranks())
    second.load_state(state)
    second.load_moments(moments, optimisers[1])
    assert all(torch.equal(value, second.state(Ranks())[name]) for name, value in state.items())
    copied = second.moments(optimisers[1], Ranks())
    assert all(torch.equal(value, copied[name][key]) for name in moments for key, value in moments[name].items())
    assert {name: value.shape for name, value in shapes(state).items()} == {n: v.shape for n, v in state.items()}
