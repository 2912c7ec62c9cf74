"""The model as ranks share it: whole on each of them (DDP), or shared out among them (FSDP2).

Both give every rank the mean of all ranks' gradients. What is saved is whole and by name, so that a run goes
on with any number of ranks, shared out or not.
"""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # it is, though not by name; DDP looks at it
from torch.nn.parallel import DistributedDataParallel

from pretrain.config import Config
from pretrain.model.backbone import DropPath
from pretrain.model.inputs import ViewPatches
from pretrain.model.pera import PerA, PeraOutput
from pretrain.training.ranks import Ranks

Moments = dict[str, dict[str, Tensor]]
"""The optimiser's state by the names of parameters."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model, and how its gradients reach the other ranks."""

    model: PerA
    replicas: DistributedDataParallel | None
    """Around the model, where each of several ranks has a whole one."""
    sharded: bool
    """Whether the model is shared out among the ranks."""

    def __call__(
        self, global_views: ViewPatches, local_views: ViewPatches | None, temperature: float, drop_path: DropPath
    ) -> PeraOutput:
        """Run `PerA.forward`, so that the gradients of what it returns are shared."""
        output: PeraOutput = (self.replicas or self.model)(global_views, local_views, temperature, drop_path)
        return output

    def communicating(self, now: bool) -> AbstractContextManager[None]:
        """Return a context for a forward and a backward pass, whose gradients reach the other ranks only if `now`.

        Then those of the passes before go with them.
        """
        if self.sharded:
            self.model.set_requires_gradient_sync(now)  # type: ignore[operator]  # fully_shard adds it
        return self.replicas.no_sync() if self.replicas and not now else nullcontext()

    def clip_gradient(self, largest: float) -> Tensor:
        """Scale the gradient down to a norm; return the norm that it had."""
        return _whole(torch.nn.utils.clip_grad_norm_(self.model.trainable().values(), largest))

    def state(self, ranks: Ranks) -> dict[str, Tensor]:
        """Return parameters and buffers, whole; all ranks must call.

        What is shared out is put together piece by piece, in the first rank's CPU memory; the others get nothing.
        """
        return _gathered(self.model.state_dict(), ranks)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Set parameters and buffers."""
        ours = self.model.state_dict()
        assert ours.keys() == state.keys()
        with torch.no_grad():
            for name, tensor in ours.items():
                tensor.copy_(_shared_out(state[name], tensor))

    def moments(self, optimiser: torch.optim.Optimizer, ranks: Ranks) -> Moments:
        """Return the optimiser's state as `state` returns the model's; all ranks must call."""
        parameters = self.model.trainable()
        return {name: _gathered(optimiser.state[parameter], ranks) for name, parameter in parameters.items()}

    def load_moments(self, moments: Moments, optimiser: torch.optim.Optimizer) -> None:
        """Set the optimiser's state."""
        parameters = self.model.trainable()
        assert parameters.keys() == moments.keys()
        for name, parameter in parameters.items():
            optimiser.state[parameter] = {
                key: _shared_out(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)
                for key, value in moments[name].items()
            }


def make_network(model: PerA, config: Config, ranks: Ranks) -> Network:
    """Prepare a model that lies on this rank's device for training; its weights must be the same on all ranks."""
    if config.compile:
        # The views' and sets' sizes, with and without a gradient and stochastic depth; 8 would be too few.
        torch._dynamo.config.recompile_limit = 32
    for branch in (model.student, model.teacher):
        branch.backbone.recompute = config.activation_checkpointing
        for block in branch.backbone.blocks:
            if config.compile:
                block.compile(dynamic=False)
    if config.shard:
        _share_out(model)
        return Network(model=model, replicas=None, sharded=True)
    if ranks.world == 1:
        return Network(model=model, replicas=None, sharded=False)
    # The centre is the same on all ranks: there is nothing to send.
    replicas = DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)
    if ranks.world > 2 and next(model.parameters()).device.type == "cpu":
        replicas.register_comm_hook(ranks, _mean_of_each)
    return Network(model=model, replicas=replicas, sharded=False)


def _mean_of_each(ranks: Ranks, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Replace gradients by their means over the ranks, one by one, so that no sum depends on where a gradient lies.

    DDP packs gradients together, in another order after a process's first step, and gloo adds up three parts and more
    in an order that depends on a value's place in the pack. So the first step after a stop would differ in the last
    bits. Costs a message for each parameter; two parts make the same sum in any order, and are sent packed.
    """
    bucket.buffer().div_(ranks.world)
    sums = [torch.distributed.all_reduce(gradient, async_op=True) for gradient in bucket.gradients()]
    return torch.futures.collect_all([each.get_future() for each in sums]).then(lambda _: bucket.buffer())


def _share_out(model: PerA) -> None:
    # Here: to import it takes seconds, and few need it.
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for branch in (model.student, model.teacher):
        for block in branch.backbone.blocks:
            fully_shard(block)
    fully_shard(model)
    register_fsdp_forward_method(model, "spread")
    # Of in-place operations on what comes out, of which there are none.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)


def _whole(tensor: Tensor) -> Tensor:
    """Put a tensor together that is shared out (a DTensor); all ranks must call."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _gathered(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        whole = _whole(tensor.detach())
        if whole is tensor or not hasattr(tensor, "full_tensor"):
            found[name] = whole
        elif ranks.is_first:
            found[name] = whole.cpu()
    return found


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the same shapes and types that have no values; of what is shared out, the whole's."""
    return {name: torch.empty(value.shape, dtype=value.dtype, device="meta") for name, value in tensors.items()}


def _shared_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor on a device, or this rank's part of it, as another one is."""
    tensor = tensor.to(like.device)
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)  # type: ignore[attr-defined]
