"""What one rank does in the tests of divided layers: `python -m tests.parallel.fsdp [memory]`, with torchrun's variables.

The leader prints a JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from slimrl.config.schema import TrainConfig
from slimrl.errors import NonFiniteError
from slimrl.learner.forward import Microbatcher
from slimrl.learner.imitation import Example, imitating_optimizer, take_imitation_step
from slimrl.learner.learner import Learner, UpdateResult
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.state import restore_state
from slimrl.machine.ranks import ALONE, LocalError, Ranks
from slimrl.machine.signals import NEVER, Stop, Stopped
from slimrl.model.policy import Policy
from slimrl.parallel.follow import share_all
from slimrl.parallel.lookout import meeting
from tests.learner.test_update import groups_of
from tests.parallel.cases import fully_sharded
from tests.tiny import plan_of, read_state, tiny_policy

EXAMPLES = [Example((3, 4 + i), (7, 9, 11 + i, 2)[: 2 + i % 3]) for i in range(5)]


def weights_of(policy: Policy) -> Tensor:
    return torch.cat([p.detach().float().flatten() for p in policy.trainable.values()])


def same_everywhere(ranks: Ranks, tensor: Tensor) -> bool:
    return len({bytes(other) for other in ranks.exchange(tensor.float().numpy().tobytes())}) == 1


def imitated(ranks: Ranks) -> dict[str, Any]:
    """Steps of imitation, beside those of one process, of which one rank has more micro-batches than the other."""
    config = fully_sharded(optimizer={"microbatch_tokens": 9})
    found = []
    for team in (ranks, ALONE):
        policy = tiny_policy()
        optimizer = imitating_optimizer(policy, config, team)
        found.append([take_imitation_step(policy, optimizer, EXAMPLES, 1e-3, plan_of(config), team) for _ in range(2)])
    return {
        key: max(
            abs(ours[key] - theirs[key]) / max(abs(theirs[key]), 1e-3) for ours, theirs in zip(*found, strict=True)
        )
        for key in found[1][0]
    }


def kept(ranks: Ranks) -> dict[str, dict[str, bool]]:
    """What a checkpoint holds of divided layers, and what becomes of it."""
    cases = {"float32": (torch.float32, True), "bfloat16": (torch.bfloat16, True), "plain": (torch.bfloat16, False)}
    return {name: _kept(ranks, *case) for name, case in cases.items()}


def _kept(ranks: Ranks, dtype: torch.dtype, fused: bool) -> dict[str, bool]:
    config = fully_sharded()

    def begun(team: Ranks) -> tuple[Policy, MasterAdamW]:
        policy = tiny_policy()
        policy.model.to(dtype)
        optimizer = imitating_optimizer(policy, config, team)
        optimizer.fused = optimizer.fused and fused
        return policy, optimizer

    def step(policy: Policy, optimizer: MasterAdamW, team: Ranks) -> None:
        take_imitation_step(policy, optimizer, EXAMPLES, 1e-2, plan_of(config), team)

    policy, optimizer = begun(ranks)
    share_all(ranks, policy, [optimizer])
    step(policy, optimizer, ranks)
    layers, state = optimizer.layers, read_state(optimizer)
    assert layers is not None
    own = sum(layers.part(name).numel() for name in layers.whole)
    rows = sum(-(-len(weight) // ranks.size) * weight[0].numel() for weight in layers.whole.values())
    saved = {name: tensor.clone() for name, tensor in policy.tensors().items()}
    found = {"a share each": 0 < own <= rows < sum(weight.numel() for weight in layers.whole.values())}
    step(policy, optimizer, ranks)

    again, other = begun(ranks)
    again.model.load_state_dict(saved, strict=False)
    if ranks.leads:
        restore_state(other, state, (1.0, 0))
    share_all(ranks, again, [other])
    step(again, other, ranks)
    found["resumed to the bit"] = torch.equal(weights_of(policy), weights_of(again))
    found["on all"] = same_everywhere(ranks, weights_of(again))
    if ranks.leads:  # one process goes on with the same checkpoint
        alone, last = begun(ALONE)
        alone.model.load_state_dict(saved, strict=False)
        restore_state(last, state, (1.0, 0))
        step(alone, last, ALONE)
        apart = (weights_of(alone) - weights_of(policy)).abs().max()
        found["goes on alone"] = float(apart) < (1e-5 if dtype == torch.float32 else 2e-2)
        found["whole"] = all(state[f"{name}:exp_avg"].shape == p.shape for name, p in policy.trainable.items())
    return found


@contextmanager
def spoiled(learner: Learner, error: BaseException, when: int) -> Iterator[None]:
    """Within the block the loss number `when` of this rank raises, after its forward pass."""
    own: Callable[..., Tensor] = learner._loss
    calls = iter(range(1 << 30))

    def loss(*arguments: Any) -> Tensor:
        found = own(*arguments)
        if next(calls) == when:
            raise error
        return found

    learner._loss = loss  # type: ignore[method-assign]
    yield
    learner._loss = own  # type: ignore[method-assign]


class HeardByOne(Stop):
    """A stop that the leader hears of at its second look in an update, and the others not yet."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.leads, self.looks = ranks.leads, 0

    def check(self) -> None:
        self.looks += 1
        if self.leads and self.looks > 1:
            raise Stopped("SIGTERM", 75)


def learner_of(config: TrainConfig, ranks: Ranks) -> Learner:
    microbatcher = Microbatcher(config, plan_of(config), ranks=ranks)
    return Learner(tiny_policy(), config, microbatcher, reward_weights={"a": 1.0})


def failing(ranks: Ranks) -> dict[str, Any]:
    """What the last rank raises in a pass, all raise: an update is dropped, or the step is stopped, and the next is taken."""
    config = fully_sharded(optimizer={"minibatches": 2, "microbatch_tokens": 20}, algorithm={"kl_coef": 0.0})
    learner = learner_of(config, ranks)
    before, groups = weights_of(learner.policy), groups_of(tiny_policy(), config)
    found: dict[str, Any] = {}
    last = ranks.rank == ranks.size - 1

    def updated(error: BaseException) -> UpdateResult:
        with spoiled(learner, error, 1 if last else 1 << 29):
            return learner.update(groups, 0)

    for name, stop in {"in a pass": NEVER, "heard by one rank": HeardByOne(ranks)}.items():
        learner.microbatcher.stop = stop
        try:
            updated(Stopped("SIGTERM", 75)) if stop is NEVER else learner.update(groups, 0)
        except Stopped:
            found[f"stopped {name}"] = torch.equal(weights_of(learner.policy), before)
    learner.microbatcher.stop = NEVER
    dropped = updated(NonFiniteError("the loss is nan"))
    found["dropped"] = [dropped.metrics["update/nonfinite"], dropped.fault is not None]
    found["moved"] = not torch.equal(weights_of(learner.policy), before)
    found["next"] = learner.update(groups, 1).fault is None
    found["on all"] = same_everywhere(ranks, weights_of(learner.policy))
    return found


def out_of_memory(ranks: Ranks) -> dict[str, str]:
    """What the ranks say where memory runs out on the last one, in the middle of a pass."""
    learner = learner_of(fully_sharded(algorithm={"kl_coef": 0.0}), ranks)
    groups = groups_of(tiny_policy(), learner.config)
    if ranks.rank == ranks.size - 1:
        assert learner.layers is not None
        layer = learner.layers.policy.model.model.layers[1]
        layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    try:
        learner.update(groups, 0)
    except (Stopped, LocalError) as error:
        if isinstance(error, LocalError):
            sys.exit(str(error))
        return {"leader": f"{type(error).__name__}: {error}"}
    return {}


def main() -> None:
    torch.set_num_threads(1)
    with meeting(torch.device("cpu"), 60, Stop()) as ranks:
        functions: tuple[Callable[[Ranks], Any], ...] = (imitated, kept, failing)
        if sys.argv[1:] == ["memory"]:
            functions = (out_of_memory,)
        result = {f.__name__: f(ranks) for f in functions}
        if ranks.leads:
            json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
