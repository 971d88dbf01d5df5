"""Layers whose weights are divided among the ranks while an update is computed, by torch's FSDP2 (`fully_shard`).

    whole weights -> divided -> each micro-batch: a layer is gathered when a pass reaches it, its gradient is summed and divided
                             -> optimizer, on each rank's part -> whole weights, in which rollouts and checkpoints find them

The policy's own layers hold the whole weights. A second set of the same layers, without weights of its own but for this rank's
part, computes the loss; everything that is no layer (embedding, last norm, head) is shared by both.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from slimrl.algorithm.batch import balanced
from slimrl.config.schema import RootConfig
from slimrl.errors import DivergedError, SettingsError
from slimrl.learner.recompute import layers_of
from slimrl.machine.limits import is_out_of_memory
from slimrl.machine.ranks import LocalError, OutOfStepError, Ranks, in_step
from slimrl.model.policy import Policy
from slimrl.records import Plan


class DividedLayers:
    """The trained weights of a policy's layers, in float32, divided by rows of their first axis.

    Attributes:
        policy: computes what the policy does, with gradients, from weights that are divided; every rank has to call it as often
            as the others.
        whole: the policy's own weights that are divided, by name.
        released: the whole weights have no memory.
    """

    released = False

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        self.ranks, self.whole = ranks, divisible(policy)
        model = copy.deepcopy(policy.model, {id(t): t for t in _tensors_of(policy)})
        self.policy = replace(policy, model=model, head=replace(policy.head, projection=model.get_output_embeddings()))
        self._parts = _divide(self.policy, {*self.whole.values()}, init_device_mesh(policy.device.type, (ranks.size,)))

    def add_gradient(
        self, loss: Callable[[], Tensor], check: Callable[[], object], backward: Callable[[Tensor], None]
    ) -> None:
        """A forward pass, which `loss` makes, and its `backward` pass: all ranks go through the layers together.

        Between them all raise what one of them raises: DivergedError of `loss`, which it may raise behind its pass alone, or what
        `check` raises.
        """
        with self.ranks.together():
            with in_step(DivergedError):
                found = loss()
            check()
        with in_step():
            backward(found)

    def part(self, name: str) -> Tensor:
        """[n] float32: this rank's part of a weight, which the layers read; empty where there are fewer rows than ranks."""
        return _local(self._parts[name])

    def gradient(self, name: str) -> Tensor | None:
        """[n] float32: this rank's part of the sum over ranks and micro-batches; None for an untouched weight."""
        gradient = self._parts[name].grad
        return None if gradient is None else _local(gradient)

    def drop(self) -> None:
        """Forget the gradients."""
        for part in self._parts.values():
            part.grad = None

    def release(self) -> None:
        """Give back the memory of the whole weights."""
        for weight in self.whole.values():
            storage = weight.untyped_storage()
            # of a mapped file or of several weights, or lent to NumPy
            if not storage.resizable() or storage.nbytes() != weight.nbytes:
                weight.data = torch.empty_like(weight)
            weight.untyped_storage().resize_(0)
        self.released = True

    def allocate(self) -> None:
        """Memory for the whole weights, which hold nothing until they are gathered."""
        for weight in self.whole.values():
            weight.untyped_storage().resize_(weight.nbytes)
        self.released = False


def divides(config: RootConfig, policy: Policy, ranks: Ranks) -> bool:
    """True where the layers of a run are divided: an adapter leaves nothing of size to divide.

    Raises SettingsError for a model whose layers cannot be divided.
    """
    divided = config.parallel == "fsdp" and ranks.size > 1 and policy.lora is None
    if divided and not divisible(policy):
        raise SettingsError(
            f"{type(policy.model).__name__} has no layers whose weights are trained and can be divided; set parallel=ddp"
        )
    if divided and any(
        name.endswith("experts") and isinstance(m, nn.ModuleList) for name, m in policy.trunk.named_modules()
    ):
        # an expert that no token of a rank is sent to has no gradient there, and each rank would add up those that it has
        raise SettingsError(
            f"{type(policy.model).__name__} keeps its experts as separate modules, which parallel=fsdp cannot divide; set "
            "parallel=ddp"
        )
    return divided


@contextmanager
def demand_memory(ranks: Ranks, plan: Plan) -> Iterator[None]:
    """Raises the error of a pass in which this rank fell out of step: LocalError where memory ran out."""
    try:
        yield
    except OutOfStepError as error:
        cause = error.__cause__
        if cause is not None and not is_out_of_memory(cause):
            raise cause from None
        raise LocalError(
            f"memory ran out on rank {ranks.rank} in the update with optimizer.microbatch_tokens={plan.microbatch_tokens}; set a "
            "smaller number, which a run with parallel=fsdp does not do by itself"
        ) from None


def extra_parts(tokens: Sequence[int], ranks: Ranks) -> list[int]:
    """The number of the smallest part, as often as another rank has more parts than this one, where `balanced` deals parts of so
    many `tokens`.
    """
    counts = [len(dealt) for dealt in balanced(tokens, ranks.size)]
    smallest = min(range(len(tokens)), key=tokens.__getitem__)
    return [smallest] * (max(counts) - counts[ranks.rank])


def divisible(policy: Policy) -> dict[str, nn.Parameter]:
    """The weights that can be divided, by name: those of the model's type that are trained and belong to one module alone, which
    is part of a layer.
    """
    modules = policy.model.modules()
    holders = Counter(
        id(p) for module in modules for _, p in module.named_parameters(recurse=False, remove_duplicate=False)
    )
    inside = {id(p) for layer in layers_of(policy.trunk) for p in layer.parameters()}
    own = {name: p for name, p in policy.trainable.items() if id(p) in inside and holders[id(p)] == 1}
    return {name: p for name, p in own.items() if p.ndim and p.dtype == policy.model.dtype}


def _tensors_of(policy: Policy) -> Iterator[Tensor]:
    yield from policy.model.parameters()
    yield from policy.model.buffers()


def _local(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    sharded: Any = tensor.detach()
    local: Tensor = sharded.to_local()
    return local.view(-1)


def _divide(policy: Policy, weights: set[nn.Parameter], mesh: DeviceMesh) -> dict[str, Tensor]:
    """Let the policy's layers hold this rank's parts of `weights` in place of them, a layer at a time; the parts by name."""
    narrow = None if policy.model.dtype == torch.float32 else policy.model.dtype
    precision = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers_of(policy.trunk):
        taken: set[nn.Parameter] = set()
        for module in layer.modules():
            for name, weight in [*module.named_parameters(recurse=False)]:
                if weight in weights:
                    setattr(module, name, wide := nn.Parameter(weight.detach().to(torch.float32, copy=True)))
                    taken.add(wide)
        _shard(layer, mesh, precision, taken)
    # The root, under which layers are gathered ahead of their use. Nobody writes into what it returns, of which FSDP warns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    _shard(policy.trunk, mesh, precision, set())
    return {name: p for name, p in policy.model.named_parameters() if isinstance(p, DTensor)}


def _shard(module: nn.Module, mesh: DeviceMesh, precision: MixedPrecisionPolicy, weights: set[nn.Parameter]) -> None:
    ignored = {p for p in module.parameters() if p not in weights}
    fsdp: FSDPModule = fully_shard(module, mesh=mesh, mp_policy=precision, ignored_params=ignored)
    # the sum over ranks, since the weights of tokens are those of the whole update
    fsdp.set_gradient_divide_factor(1.0)
    fsdp.set_force_sum_reduction_for_comms(True)
