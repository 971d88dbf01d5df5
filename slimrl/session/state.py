"""Where a run stands: with the weights and the optimizers, everything that its next step depends on.

Problems and draws are functions of (seed, step), so what is left is little: counters, groups that dynamic sampling carries over,
what a curriculum has learned, and what was found out about memory and faults on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from slimrl.errors import DataError, NonFiniteError
from slimrl.learner.learner import Learner
from slimrl.learner.optimizer import MasterAdamW
from slimrl.model.policy import Policy
from slimrl.preflight.effects import NOTHING_SEEN, Seen
from slimrl.preflight.setup import TrainSetup
from slimrl.records import Completion, Group, Problem, Rollout
from slimrl.runs.checkpoints import Checkpoint, write_checkpoint
from slimrl.runs.directory import RunDirectory


@dataclass(frozen=True)
class RunState:
    """After `step` steps; a step makes a new one, so one that is dropped half-way has changed nothing."""

    step: int = 0
    tokens: int = 0
    """Sampled."""
    seconds: float = 0.0
    """Spent in steps, by all processes that worked on the run."""
    carried: tuple[Group, ...] = ()
    """Surplus groups of dynamic sampling."""
    seen: Seen = field(default=NOTHING_SEEN)
    """What decides which switches were inert."""
    faults: int = 0
    """Steps in a row, up to this one, with a number that was not finite."""
    suspects: tuple[str, ...] = ()
    """Ids of the problems of these steps."""
    rolled_back: bool = False
    excluded: tuple[str, ...] = ()
    """Ids of the problems that a roll-back left behind."""
    unscorable: Mapping[str, int] = field(default_factory=dict)
    """Completions that no reward could be found for, by reason."""


def save(run: RunDirectory, setup: TrainSetup, learner: Learner, state: RunState) -> Checkpoint:
    """A checkpoint of the run as it stands; raises as `save_policy` does."""
    tensors: dict[str, Mapping[str, Tensor]] = {}
    plain = {
        "run": as_json(state),
        "curriculum": setup.curriculum.state,
        "slots": setup.engine.slots,
        "microbatch_tokens": learner.plan.microbatch_tokens,
    }
    if learner.critic is not None:
        tensors = {"critic": dict(learner.critic.critic.state_dict())}
        tensors["critic_optimizer"] = learner.critic.optimizer.tensors()
        plain["critic_scale"] = learner.critic.optimizer.scale
    return save_policy(run, setup.policy, learner.optimizer, state.step, tensors, plain)


def save_policy(
    run: RunDirectory,
    policy: Policy,
    optimizer: MasterAdamW,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    plain: Mapping[str, Any],
) -> Checkpoint:
    """A checkpoint of a policy, its optimizer, and what else the next step depends on: `tensors` by file, `plain` data.

    Raises OSError where it cannot be written, and NonFiniteError, nothing written, for weights that are not finite.
    """
    whole = {"model": model_tensors(policy), "optimizer": optimizer.tensors(), **tensors}
    for table in whole.values():
        if not are_finite(table.values()):
            raise NonFiniteError("a weight or a moment is not finite")
    run.sync()

    def beside(folder: Path) -> None:  # so that the checkpoint is a model that loads like any other
        policy.model.config.save_pretrained(folder)
        policy.model.generation_config.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)

    plain = {**plain, "scale": optimizer.scale, "evaluated": [*run.measured.summaries]}
    return write_checkpoint(run.checkpoints, step, whole, plain, beside)


def are_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def restore(checkpoint: Checkpoint, setup: TrainSetup, learner: Learner) -> RunState:
    """Bring policy, optimizers, critic, curriculum and what was found of memory back to where a checkpoint was written."""
    plain = restore_policy(checkpoint, setup.policy, learner.optimizer)
    if learner.critic is not None:
        _copy(checkpoint, "critic", dict(learner.critic.critic.state_dict()))
        learner.critic.optimizer.restore(checkpoint.tensors("critic_optimizer"), _scale(plain["critic_scale"]))
    setup.curriculum.restore(plain["curriculum"])
    setup.engine.limit_slots(int(plain["slots"]))  # what was found too many, or is wanted fewer now
    setup.engine.weights_changed()
    learner.keep_microbatches(int(plain["microbatch_tokens"]))
    return from_json(plain["run"])


def restore_policy(checkpoint: Checkpoint, policy: Policy, optimizer: MasterAdamW) -> dict[str, Any]:
    """Bring both back to where the checkpoint was written; its plain data."""
    plain = checkpoint.state()
    _copy(checkpoint, "model", model_tensors(policy))
    optimizer.restore(checkpoint.tensors("optimizer"), _scale(plain["scale"]))
    return plain


def _scale(saved: Sequence[float]) -> tuple[float, int]:
    scale, updates = saved
    return float(scale), int(updates)


def model_tensors(policy: Policy) -> dict[str, Tensor]:
    """The module's tensors by name, shared ones once, as transformers' own files have them; without frozen weights."""
    seen = {p.data_ptr() for p in policy.model.parameters() if not p.requires_grad}
    found = {}
    for name, tensor in policy.model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor
    return found


def optimizer_tensors(learner: Learner) -> dict[str, Tensor]:
    """Masters and moments of the policy, and of the critic where there is one."""
    critic = {} if learner.critic is None else learner.critic.optimizer.tensors()
    return learner.optimizer.tensors() | {f"critic:{name}": tensor for name, tensor in critic.items()}


@torch.no_grad()
def _copy(checkpoint: Checkpoint, name: str, targets: Mapping[str, Tensor]) -> None:
    saved = checkpoint.tensors(name)
    if saved.keys() != targets.keys():
        odd = sorted(saved.keys() ^ targets.keys())[0]
        raise DataError(f"{checkpoint.path}/{name}.safetensors is not of this model ({odd})")
    for key, target in targets.items():
        target.copy_(saved[key])


def as_json(state: RunState) -> dict[str, Any]:
    """Plain data; `from_json` gives an equal state, but for the data columns of carried groups, which nothing reads again."""
    seen = asdict(state.seen) | {"alphas": sorted(state.seen.alphas)}
    plain = {f.name: getattr(state, f.name) for f in fields(RunState)}
    return plain | {"seen": seen, "carried": [_group_as_json(group) for group in state.carried]}


def from_json(data: Mapping[str, Any]) -> RunState:
    """The inverse of `as_json`."""
    seen = Seen(**{**data["seen"], "alphas": frozenset(data["seen"]["alphas"])})
    carried = tuple(_group_from_json(group) for group in data["carried"])
    names = {key: tuple(data[key]) for key in ("suspects", "excluded")}
    return RunState(**{**data, **names, "seen": seen, "carried": carried})


def _group_as_json(group: Group) -> dict[str, Any]:
    problem = group.problem
    return {
        "step": group.step,
        "problem": {f.name: getattr(problem, f.name) for f in fields(Problem) if f.name != "columns"},
        "rollouts": [
            {f.name: getattr(rollout, f.name) for f in fields(Rollout) if f.name not in ("problem", "completion")}
            | {"scores": dict(rollout.scores), "completion": asdict(rollout.completion)}
            for rollout in group.rollouts
        ],
    }


def _group_from_json(data: Mapping[str, Any]) -> Group:
    problem = Problem(**data["problem"])
    rollouts = []
    for saved in data["rollouts"]:
        drawn = {key: tuple(value) if isinstance(value, list) else value for key, value in saved["completion"].items()}
        rollouts.append(Rollout(**{**saved, "problem": problem, "completion": Completion(**cast(Any, drawn))}))
    return Group(tuple(rollouts), data["step"])
