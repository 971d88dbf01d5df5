"""What one rank does in the tests of several: `python -m tests.parallel.cases`, with torchrun's variables.

The leader learns every case once more alone, and prints a JSON object: for each case how far both are apart.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from slimrl.config.schema import TrainConfig
from slimrl.errors import NonFiniteError, SettingsError
from slimrl.learner.forward import Microbatcher
from slimrl.learner.imitation import Example, take_imitation_step
from slimrl.learner.learner import Learner
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.state import restore_state
from slimrl.machine.ranks import ALONE, Ranks
from slimrl.machine.signals import Stop, Stopped
from slimrl.machine.tensors import holds_finite, outline_of
from slimrl.parallel.follow import give_state, share_all
from slimrl.parallel.lead import whole_state
from slimrl.parallel.lookout import meeting
from slimrl.parallel.orders import Give
from slimrl.parallel.sampler import DividedSampler, Share
from slimrl.rollout.engine import RolloutEngine
from tests.learner.test_update import groups_of, settings
from tests.model.test_lora import adapted
from tests.rollout.test_engine import requests as requests_of
from tests.tiny import plan_of, read_state, tiny_policy

CASES: dict[str, dict[str, dict[str, object]]] = {
    "grpo": {"algorithm": {"kl_coef": 0.1}},
    "token mean, several updates": {
        "algorithm": {"aggregation": "token_mean", "clip_high": 0.3},
        "optimizer": {"minibatches": 2, "epochs": 2},
    },
    "overlong filtering": {"algorithm": {"overlong_filtering": True}},
    "more micro-batches than ranks": {"optimizer": {"microbatch_tokens": 40}},
    "fixed length": {"algorithm": {"aggregation": "fixed_length", "scale_rewards": "none"}},
    "micro-batch mean": {
        "algorithm": {"aggregation": "microbatch_token_mean"},
        "optimizer": {"microbatch_tokens": 60},
    },
    "exact KL, global weights": {"algorithm": {"kl_coef": 0.1, "kl_estimator": "gkl", "gkl": {"weights": "global"}}},
    "KL in the reward": {
        "algorithm": {"kl_coef": 0.1, "kl_place": "reward", "kl_estimator": "k1", "scale_rewards": "none"}
    },
    "entropy": {"algorithm": {"entropy_share": 0.2, "entropy_coef": 0.01}},
    "importance": {"algorithm": {"importance": "truncate"}, "optimizer": {"minibatches": 2}},
    "critic": {"algorithm": {"baseline": "critic", "scale_rewards": "none", "kl_coef": 0.0}},
    "gspo": {"algorithm": {"surrogate": "gspo", "kl_coef": 0.0}, "optimizer": {"minibatches": 2}},
    "recomputed": {"optimizer": {"activation_checkpointing": "on"}},
    "one problem": {"rollout": {"problems": 1, "group_size": 2, "max_new_tokens": 14}},
}

FEW = ["grpo", "token mean, several updates", "critic"]
"""Those of more than two ranks."""


def learned(config: TrainConfig, ranks: Ranks, *, lora: bool = False) -> tuple[list[Tensor], dict[str, float], Tensor]:
    """The flat gradients of the updates of a step, its metrics, and the weights after it."""
    policy = adapted() if lora else tiny_policy()
    groups = groups_of(policy, config)
    learner = Learner(policy, config, Microbatcher(config, plan_of(config), ranks=ranks), reward_weights={"a": 1.0})
    gradients: list[Tensor] = []
    norms: list[Callable[[], float]] = [optimizer.gradient_norm for optimizer in learner.optimizers]

    def caught(number: int) -> float:
        found = whole_gradients(learner.optimizers[number])
        gradients.append(torch.cat([found[index].flatten() for index in sorted(found)]).double())
        return norms[number]()

    for number, optimizer in enumerate(learner.optimizers):
        optimizer.gradient_norm = lambda number=number: caught(number)  # type: ignore[method-assign]
    updated = learner.update(groups, 0)
    assert updated.fault is None
    return gradients, updated.metrics, torch.cat([p.detach().flatten() for p in policy.trainable.values()])


def fully_sharded(**sections: dict[str, object]) -> TrainConfig:
    """Settings with which the layers are divided."""
    return settings(**sections).model_copy(update={"parallel": "fsdp"})


def whole_gradients(optimizer: MasterAdamW) -> dict[int, Tensor]:
    """The gradients, with the pieces of all ranks where layers are divided."""
    found = optimizer.gradients()
    pieces = optimizer.shards.ranks.exchange({number: found[number] for number in optimizer.in_layers})
    return found | {number: torch.cat([part[number] for part in pieces]) for number in optimizer.in_layers}


def compare(config: TrainConfig, ranks: Ranks, **options: Any) -> dict[str, Any]:
    """The largest relative differences of gradients and means; nothing but for the leader."""
    gradients, means, weights = learned(config, ranks, **options)
    equal = len({bytes(w) for w in ranks.exchange(weights.numpy().tobytes())}) == 1
    if not ranks.leads:
        return {}
    alone, expected, _ = learned(config, ALONE, **options)
    assert len(gradients) == len(alone)
    apart = [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(gradients, alone, strict=True)]
    unlike = {key for key in expected if not key.startswith("sampling/") and key != "update/microbatch_tokens"}
    scale = {key: max(abs(expected[key]), 1.0) for key in unlike}
    return {
        "gradient": max(apart),
        "updates": len(apart),
        "keys": sorted(means) == sorted(expected),
        "means": {key: abs(means[key] - expected[key]) / scale[key] for key in sorted(unlike)},
        "equal on all ranks": equal,
    }


def drawn(ranks: Ranks) -> dict[str, Any]:
    """Groups that all ranks sample for."""
    engine = RolloutEngine(tiny_policy(), slots=8)
    requests = requests_of(5, 3, 10)
    if not ranks.leads:
        order = ranks.hear()
        Share(engine, ranks).draw(order)
        return {}
    heard: list[int] = []
    found = DividedSampler(engine, ranks).generate(
        requests, max_new_tokens=10, on_group=lambda index, _: heard.append(index)
    )
    alone = RolloutEngine(tiny_policy(), slots=8).generate(requests, max_new_tokens=10)
    tokens = [[[c.token_ids for c in group] for group in groups] for groups in (found, alone)]
    return {"same tokens": tokens[0] == tokens[1], "heard": sorted(heard) == list(range(len(requests)))}


def imitated(ranks: Ranks) -> dict[str, Any]:
    examples = [Example((3, 4 + i), (7, 9, 11 + i, 2)[: 2 + i % 3]) for i in range(5)]
    losses = []
    for team in (ranks, ALONE):
        policy = tiny_policy()
        optimizer = MasterAdamW(policy.trainable, settings().optimizer)
        losses.append(take_imitation_step(policy, optimizer, examples, 1e-3, plan_of(settings()), team))
    return {key: abs(losses[0][key] - value) / max(abs(value), 1e-3) for key, value in losses[1].items()}


def failing(ranks: Ranks) -> dict[str, Any]:
    """What one rank raises, all raise, and memory that runs out on one of them is tried again by all."""
    found: dict[str, Any] = {}
    last = ranks.size - 1
    for error in (Stopped("SIGTERM", 75), NonFiniteError("the loss is nan"), SettingsError("no memory")):
        try:
            with ranks.together():
                if ranks.rank == last:
                    raise error
        except BaseException as raised:
            found[type(error).__name__] = [type(raised).__name__, str(raised) == str(error)]
    config = settings()
    microbatcher = Microbatcher(config, plan_of(config), ranks=ranks)
    tries = 0
    policy = tiny_policy()
    rows = learned_rows(config)
    for attempt in microbatcher.attempts(rows):
        with attempt:
            tries += 1
            if tries == 1 and ranks.rank == last:
                raise torch.OutOfMemoryError("CUDA out of memory")
    del policy
    found["tries"] = ranks.exchange(tries)
    found["tokens"] = ranks.exchange(microbatcher.plan.microbatch_tokens)
    return found


def learned_rows(config: TrainConfig) -> Any:
    from tests.learner.test_update import rows_of

    return rows_of(groups_of(tiny_policy(), config), config)


def shared(ranks: Ranks) -> dict[str, Any]:
    """A rank that has stepped gives weights, masters and moments to those that have not."""
    policy = tiny_policy(seed=ranks.rank)
    policy.model.to(torch.bfloat16)
    optimizer = MasterAdamW(policy.trainable, settings().optimizer)
    if ranks.leads:
        take_imitation_step(policy, optimizer, [Example((3, 4), (7, 2))], 1e-2, plan_of(settings()))
    share_all(ranks, policy, [optimizer])
    tables = {**policy.tensors(), **read_state(optimizer)}
    mine = {name: tensor.float().sum().item() for name, tensor in tables.items()}
    everyone = ranks.exchange(mine)
    return {"equal": all(other == everyone[0] for other in everyone), "moments": sum("exp_avg" in key for key in mine)}


def divided(ranks: Ranks) -> dict[str, dict[str, bool]]:
    """Steps with an optimizer that all ranks keep a part of, beside those with one that each keeps whole."""
    return {name: _divided(ranks, *case) for name, case in DIVIDED.items()}


DIVIDED = {
    "float32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, True),
    "without kernels": (torch.bfloat16, False),
}


def _divided(ranks: Ranks, dtype: torch.dtype, fused: bool) -> dict[str, bool]:
    plan, examples = plan_of(settings()), [Example((3, 4 + i), (7, 9, 11 + i, 2)) for i in range(4)]
    policies, states = [], []
    for sharded in (False, True):
        policy = tiny_policy()
        policy.model.to(dtype)
        config = settings(optimizer={"sharded": sharded}).optimizer
        for _ in range(2):  # of which the second begins where the first was left
            optimizer = MasterAdamW(policy.trainable, config, ranks)
            optimizer.fused = optimizer.fused and fused
            if states and len(states) % 2:
                if ranks.leads:
                    restore_state(optimizer, states[-1], (1.0, 0))
                share_all(ranks, policy, [optimizer])
            else:
                share_all(ranks, policy, [optimizer])
            for _ in range(2):
                take_imitation_step(policy, optimizer, examples, 1e-2, plan, ranks)
            states.append(read_state(optimizer))
        policies.append(policy)
        own = sum(master.numel() for master in optimizer.masters.values())
    whole, parts = (torch.cat([p.detach().flatten() for p in policy.trainable.values()]) for policy in policies)
    found = {
        "same weights": torch.equal(whole, parts),
        "a share each": own <= len(whole) / ranks.size + 64,
        "on all": len({bytes(part) for part in ranks.exchange(parts.float().numpy().tobytes())}) == 1,
    }
    if ranks.leads:
        for name, (one, other) in {"first": states[::2], "resumed": states[1::2]}.items():
            found[f"same state, {name}"] = one.keys() == other.keys() and all(
                torch.equal(one[key], other[key]) for key in one
            )
    return found


class Lent(Mapping[str, Tensor]):
    """Copies of tensors, and how many of those that were asked for are in memory at once."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.most = tensors, 0
        self.alive: list[weakref.ref[Tensor]] = []

    def __getitem__(self, name: str) -> Tensor:
        found = self.tensors[name].clone()
        self.alive.append(weakref.ref(found))
        self.most = max(self.most, sum(one() is not None for one in self.alive))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def given(ranks: Ranks) -> dict[str, bool]:
    """The leader reads a divided state, is interrupted while it does, and finds a number of another rank that is not finite; it
    takes the state up again, of which one tensor is in memory at once.
    """
    policy = tiny_policy()
    optimizer = MasterAdamW(policy.trainable, settings(optimizer={"sharded": True}).optimizer, ranks)
    share_all(ranks, policy, [optimizer])
    plan = plan_of(settings())
    take_imitation_step(policy, optimizer, [Example((3, 4), (7, 2)), Example((3, 5), (8, 2))], 1e-2, plan, ranks)
    if not ranks.leads:
        for _ in range(3):
            assert isinstance(ranks.hear(), Give)
            give_state([optimizer])
            if ranks.rank == ranks.size - 1:
                [*optimizer.optimizer.state.values()][-1]["exp_avg"][-1] = float("nan")
        share_all(ranks, policy, [optimizer])
        assert isinstance(ranks.hear(), Give)
        give_state([optimizer])
        return {}
    with whole_state([optimizer], ranks) as (table,):
        whole, alive, most = {}, list[weakref.ref[Tensor]](), 0
        for name, tensor in table.items():
            alive.append(weakref.ref(tensor))
            most = max(most, sum(one() is not None for one in alive))
            whole[name] = tensor.clone()
            del tensor
    own = sum(master.numel() for master in optimizer.masters.values())
    found = {"more than its own": sum(t.numel() for t in whole.values()) > 2 * own}
    with suppress(OSError), whole_state([optimizer], ranks) as (table,):
        read = [name for name, _ in islice(table.items(), 2)]
        raise OSError
    with whole_state([optimizer], ranks) as (table,):
        found["named"] = [*outline_of(table)] == [*whole] and read == [*whole][:2]
        found["not finite"] = not holds_finite(table)
        found["goes on behind an error"] = [name for name, _ in table.items()] == [*whole]
    restore_state(optimizer, lent := Lent(whole), (1.0, 0))
    share_all(ranks, policy, [optimizer])
    with whole_state([optimizer], ranks) as (table,):
        again = dict(table.items())
    found["taken up again"] = all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    found["one at a time"] = (most, lent.most) == (1, 1)
    return found


def main() -> None:
    torch.set_num_threads(1)
    with meeting(torch.device("cpu"), 60, Stop()) as ranks:
        names = CASES if ranks.size == 2 else FEW
        result: dict[str, Any] = {name: compare(settings(**CASES[name]), ranks) for name in names}
        result |= {f"{name}, fsdp": compare(fully_sharded(**CASES[name]), ranks) for name in names}
        if ranks.size == 2:
            result["adapter"] = compare(settings(algorithm={"kl_coef": 0.1}), ranks, lora=True)
        result |= {f.__name__: f(ranks) for f in (drawn, imitated, failing, shared, divided, given)}
        if ranks.leads:
            json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
