"""The state of a run: with weights and optimizers everything that its next step depends on, to a checkpoint and back.

Problems and draws are functions of (seed, step), so the rest is small: counters, groups that dynamic sampling carries over, the
success rates of a curriculum, and the memory sizes and faults that were met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from slimrl.config.schema import TrainConfig
from slimrl.errors import DataError, NonFiniteError
from slimrl.learner.learner import Learner
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.state import restore_state
from slimrl.machine.limits import free_memory
from slimrl.machine.tensors import Tensors, TensorStream, holds_finite
from slimrl.model.adapter_files import WEIGHTS_FILE
from slimrl.model.policy import Policy
from slimrl.parallel.lead import whole_state
from slimrl.preflight.observed import NOTHING_OBSERVED, Observed
from slimrl.preflight.setup import Setup
from slimrl.records import Group
from slimrl.runs.checkpoints import Checkpoint, begin_checkpoint
from slimrl.runs.directory import RunDirectory
from slimrl.runs.durable import digest


@dataclass(frozen=True)
class Progress:
    """The state of a run after `step` steps; a step makes a new one, so a step that is dropped half-way changes nothing."""

    step: int = 0
    tokens: int = 0
    """Sampled, or imitated, in all steps."""
    seconds: float = 0.0
    """Spent in steps by all processes that worked on the run."""


@dataclass(frozen=True)
class RunState(Progress):
    """The state of a training run.

    Example: RunState(step=2, tokens=5120, seconds=3.5, carried=(Group(...),), unscorable={"timed out": 1})
    """

    carried: tuple[Group, ...] = ()
    """Surplus groups of dynamic sampling."""
    seen: Observed = field(default=NOTHING_OBSERVED)
    """Observations that decide which switches were inert."""
    faults: int = 0
    """Consecutive steps, up to this one, with a number that was not finite."""
    suspects: tuple[str, ...] = ()
    """Ids of the problems of these steps."""
    rolled_back: bool = False
    excluded: tuple[str, ...] = ()
    """Ids of the problems that a roll-back left behind."""
    unscorable: Mapping[str, int] = field(default_factory=dict)
    """Number of completions without a reward, by reason."""
    unmeasured: Mapping[str, int] = field(default_factory=dict)
    """Number of completions that a reward of weight 0 could not score, by reason."""


Write = Callable[[], Checkpoint]
"""Finishes a checkpoint that was begun."""
State = TypeVar("State", bound=Progress)
HOST_SHARE = 0.5
"""Of the free memory of the host that a copy of the state may take."""
RUN_STATE = TypeAdapter(RunState)
NOT_STORED: Any = {
    "carried": {"__all__": {"rollouts": {"__all__": {"problem": {"columns", "turns", "episode"}, "calls": True}}}}
}
"""Data columns of carried groups, which may hold anything, their prompts, demonstrations and calls: nothing reads them again."""


def save(run: RunDirectory, setup: Setup[TrainConfig], learner: Learner, state: RunState) -> Write:
    """Begin a checkpoint of the run in this state; raises as `save_policy` does."""
    learner.drop()  # gradients of a step that was stopped half-way
    tensors: dict[str, Tensors] = {}
    plain = {
        "run": as_json(state),
        "curriculum": setup.curriculum.state,
        "slots": setup.engine.slots,
        "microbatch_tokens": learner.plan.microbatch_tokens,
    }
    plain["scale"] = learner.optimizer.scale
    with whole_state(learner.optimizers, learner.microbatcher.ranks) as (optimizer, *others):
        if learner.critic is not None:
            tensors = {"critic": dict(learner.critic.trainable), "critic_optimizer": others[0]}
            plain["critic_scale"] = learner.critic.optimizer.scale
        return save_policy(run, setup.policy, state.step, {"optimizer": optimizer, **tensors}, plain)


def save_policy(
    run: RunDirectory,
    policy: Policy,
    step: int,
    tensors: Mapping[str, Tensors],
    plain: Mapping[str, Any],
) -> Write:
    """Begin a checkpoint of a policy and the rest of the state: `tensors` by file, that of the optimizer among them, and
    `plain` data with the optimizer's `scale`.

    The function that is returned writes what is large; until it has returned no tensor may change. It only reads the host's
    memory, so that it disturbs no work on a GPU; what comes as a stream, or has no room there, is written at once. Raises
    OSError where the checkpoint cannot be written, and NonFiniteError, nothing written, for weights that are not finite.
    """
    whole: dict[str, Tensors] = {weights_file(policy): policy.tensors(), **tensors}
    if not all(holds_finite(table) for table in whole.values()):
        raise NonFiniteError("a weight or a moment is not finite")
    run.sync()

    plain = {**plain, "evaluated": [*run.measured.summaries]}
    copied = on_host(whole)
    write = begin_checkpoint(
        run.checkpoints, step, whole if copied is None else copied, plain, policy.save_descriptions
    )
    if copied is not None:
        return write
    written = write()  # at once, a tensor at a time
    return lambda: written


def on_host(files: Mapping[str, Tensors]) -> dict[str, dict[str, Tensor]] | None:
    """The tensors of every file in the host's memory: its own as they are, copies of others; None without room for these, and
    where one is a stream.
    """
    tables = {name: table for name, table in files.items() if not isinstance(table, TensorStream)}
    foreign = sum(t.numel() * t.element_size() for table in tables.values() for t in table.values() if not is_hosts(t))
    if len(tables) < len(files) or foreign > HOST_SHARE * free_memory(torch.device("cpu")):
        return None
    return {
        name: {key: t.detach() if is_hosts(t) else t.detach().to("cpu", copy=True) for key, t in table.items()}
        for name, table in tables.items()
    }


def is_hosts(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def restore(checkpoint: Checkpoint, setup: Setup[TrainConfig], learner: Learner) -> RunState:
    """Bring policy, optimizers, critic, curriculum and memory sizes back to a checkpoint; returns its state."""
    plain = restore_policy(checkpoint, setup.policy, learner.optimizer)
    if learner.critic is not None:
        _copy(checkpoint, "critic", dict(learner.critic.trainable))
        restore_state(learner.critic.optimizer, checkpoint.tensors("critic_optimizer"), tuple(plain["critic_scale"]))
    setup.curriculum.restore(plain["curriculum"])
    setup.engine.limit_slots(int(plain["slots"]))  # memory ran out, or settings want fewer now
    setup.engine.weights_changed()
    # memory ran out, or settings want smaller ones now
    learner.keep_microbatches(min(int(plain["microbatch_tokens"]), learner.plan.microbatch_tokens))
    return read_run_state(checkpoint, from_json)


def restore_policy(checkpoint: Checkpoint, policy: Policy, optimizer: MasterAdamW) -> dict[str, Any]:
    """Bring policy and optimizer back to a checkpoint; returns its plain data."""
    plain = checkpoint.state()
    _copy(checkpoint, weights_file(policy), policy.tensors())
    restore_state(optimizer, checkpoint.tensors("optimizer"), tuple(plain["scale"]))
    return plain


def read_run_state(checkpoint: Checkpoint, read: Callable[[Any], State]) -> State:
    """The state of the run in a checkpoint; raises DataError for one of another version of SlimRL."""
    try:
        return read(checkpoint.state()["run"])
    except (KeyError, TypeError, ValidationError):
        raise DataError(
            f"{checkpoint.path}/state.json was written by another version of SlimRL; resume with that version, or start the run "
            "anew under another name"
        ) from None


def weights_file(policy: Policy) -> str:
    """The name of a policy's file in a checkpoint, without its ending: transformers' or peft's own."""
    return "model" if policy.lora is None else Path(WEIGHTS_FILE).stem


def optimizer_digest(learner: Learner) -> str:
    """The digest of masters and moments of the policy, and of the critic where there is one."""
    with whole_state(learner.optimizers, learner.microbatcher.ranks) as (policy, *critic):
        of_critic = ((f"critic:{name}", tensor) for table in critic for name, tensor in table.items())
        return digest(chain(policy.items(), of_critic))


@torch.no_grad()
def _copy(checkpoint: Checkpoint, name: str, targets: Mapping[str, Tensor]) -> None:
    saved = checkpoint.tensors(name)
    if saved.keys() != targets.keys():
        odd = sorted(saved.keys() ^ targets.keys())[0]
        raise DataError(f"{checkpoint.path}/{name}.safetensors is not of this model ({odd})")
    for key, target in targets.items():
        target.copy_(saved[key])


def as_json(state: RunState) -> dict[str, Any]:
    """Plain data; `from_json` gives an equal state but for what carried groups do not store: data columns, prompts, calls, and
    right answers besides the first.

    Each carried group holds its problem once: {"step", "problem", "rollouts": [{"text", "reward", ...}]}.
    """
    plain: dict[str, Any] = RUN_STATE.dump_python(state, mode="json", exclude=NOT_STORED)
    plain["seen"]["alphas"].sort()  # a set has no order, a file should
    _without_empty(plain["seen"])
    for group in plain["carried"]:
        _without_empty(group)
        for rollout in group["rollouts"]:
            _without_empty(rollout)
            _without_empty(rollout["completion"])
        group["problem"], *_ = [rollout.pop("problem") for rollout in group["rollouts"]]
    _without_empty(plain)
    return plain


def _without_empty(part: dict[str, Any]) -> None:
    """Leave out what functions logged, what failed unpaid, and what there is only of episodes with several turns, where there is
    none: checkpoints had none of them at first.
    """
    for key in ("metrics", "logged", "unmeasured", "turns", "given", "turn_rewards", "returns", "paid_by_turn"):
        if not part.get(key, True):
            del part[key]
    if part.get("environment_score", 0) is None:
        del part["environment_score"]


def from_json(data: Mapping[str, Any]) -> RunState:
    """The inverse of `as_json`; raises KeyError, TypeError or ValidationError for data of another shape."""
    carried = [
        group | {"rollouts": [rollout | {"problem": group["problem"]} for rollout in group["rollouts"]]}
        for group in data["carried"]
    ]
    return RUN_STATE.validate_python({**data, "carried": carried})
