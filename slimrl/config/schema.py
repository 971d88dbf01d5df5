"""The settings of each verb, as the command line, YAML files and Python build them; `config/files.py` reads them from files.

No torch is imported here, so settings can be checked and shown in a moment.
"""

import os
import re
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from slimrl.config.algorithm import AlgorithmConfig, CriticConfig
from slimrl.config.base import Count, CountOrZero, Section
from slimrl.config.environment import EnvironmentConfig, package_of, with_package
from slimrl.config.places import address_problem, is_address
from slimrl.config.rewards import PUNISHMENTS, RewardsConfig
from slimrl.config.sandbox import SandboxConfig
from slimrl.config.sections import (
    CheckpointConfig,
    CurriculumConfig,
    EvaluationConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    SftConfig,
)
from slimrl.config.task import TaskConfig
from slimrl.terms import Parallel


def seconds_of(text: str) -> float:
    """`3h50m`, `45m`, `90s`, `1d` as seconds; empty is 0. Raises ValueError for anything else."""
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if match is None:
        raise ValueError(f"{text!r} is not a time like 3h50m, 45m or 90s")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


class RootConfig(Section):
    """The settings that `train` and `sft` have in common."""

    name: Annotated[str, Field(max_length=64, pattern=r"^([a-z0-9][a-z0-9._-]*)?$")] = ""
    """Name of the run, lower case; empty: made from the task and the time."""
    output: str = "runs"
    """Folder in which run directories are made."""
    upload: str = ""
    """Place on object storage to which the run's folder is copied once the run has ended, as s3://bucket/runs (docs/scale.md)."""
    seed: CountOrZero = 0
    """Decides problems and draws; nothing else is random."""
    steps: Count = 30
    """Rollout batches (train) or optimizer updates (sft)."""
    devices: Count = 1
    """GPUs, or processes on the cores of a CPU, that share the work of a run or of a measurement on this machine; torchrun starts
    more machines."""
    parallel: Parallel = "ddp"
    """What a device holds during an update: all weights and gradients (ddp), or of every layer a part, with its gradient and the
    optimizer's state, and the layers that are computed just then (fsdp). docs/scale.md has the memory of both."""
    device_deadline: Annotated[float, Field(ge=10)] = 300.0
    """Seconds without a sign of life, or without a decode step, layer or micro-batch while it samples or updates, after which a
    process counts as hanging, and the run stops."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of the device's memory that `auto` settings may plan with; less than 1 where runs share a device."""
    model: ModelConfig = ModelConfig()
    """The policy."""
    task: TaskConfig = TaskConfig()
    """The problems, and the answers that count as right."""
    environment: EnvironmentConfig = EnvironmentConfig()
    """The answers between the turns of an episode, where a completion is more than one turn."""
    sandbox: SandboxConfig = SandboxConfig()
    """The processes in which programs of a model are run."""
    rollout: RolloutConfig = RolloutConfig()
    """The sampling of completions."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and how a batch is cut for it."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out measurement."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """The states from which an interrupted run continues."""
    log: LogConfig = LogConfig()
    """Output during the run, on the screen, on the disk and to trackers."""
    max_time: str = ""
    """Time after which the run stops by itself as at SIGTERM, with a checkpoint, like 3h50m or 90s; empty: never."""

    @model_validator(mode="before")
    @classmethod
    def _a_package_brings_its_environment(cls, settings: Any) -> Any:
        return with_package(settings, paid="rewards" in cls.model_fields)

    @model_validator(mode="after")
    def _a_package_plays_its_own_problems(self) -> Self:
        task, environment = self.task.name, self.environment.name
        if task != environment and package_of(environment):
            raise ValueError(
                f"environment.name={environment} plays the problems of its package only; set task.name={environment}"
            )
        if task != environment and package_of(task):
            raise ValueError(f"task.name={task} has an environment of its own; remove environment.name={environment}")
        return self

    @field_validator("output")
    @classmethod
    def _home(cls, place: str) -> str:
        return os.path.expanduser(place)

    @model_validator(mode="after")
    def _places_are_such(self) -> Self:
        if is_address(self.output):
            known = "" if address_problem(self.output) else f"={self.output}"
            raise ValueError(
                f"output is a folder of this machine; set upload{known}, and the run is copied there once it has ended"
            )
        if self.upload and (problem := address_problem(self.upload)):
            raise ValueError(f"upload: {problem}")
        return self

    @model_validator(mode="after")
    def _time_is_one(self) -> Self:
        if self.max_time.isdigit():
            raise ValueError(
                f"max_time={self.max_time} has no unit; write {self.max_time}s, {self.max_time}m or {self.max_time}h"
            )
        try:
            seconds_of(self.max_time)
        except ValueError as error:
            raise ValueError(f"max_time: {error}; write it so, or leave it empty") from None
        return self

    @model_validator(mode="after")
    def _harder_exists(self) -> Self:
        default = type(self.evaluation).model_fields["harder_problems"].default
        if self.task.name != "arithmetic" and self.evaluation.harder_problems not in (0, default):
            raise ValueError(
                f"evaluation.harder_problems has no effect: task {self.task.name} has no harder split; remove it"
            )
        return self

    @model_validator(mode="after")
    def _games_are_played(self) -> Self:
        if self.task.name == "guess" and not self.environment.name:
            raise ValueError("task.name=guess has no answer without an environment; set environment.name=guess")
        return self

    @model_validator(mode="after")
    def _twins_exist(self) -> Self:
        if self.evaluation.twins and self.task.name not in ("arithmetic", "svamp"):
            raise ValueError(
                f"evaluation.twins has no effect: nothing says what other numbers give in problems of task {self.task.name}; "
                "remove it"
            )
        return self

    @model_validator(mode="after")
    def _someone_runs_programs(self) -> Self:
        if self.task.name != "code" and self.sandbox != SandboxConfig():
            raise ValueError("the section sandbox has no effect without task.name=code, which runs programs; remove it")
        return self

    @model_validator(mode="after")
    def _engine_can_sample(self) -> Self:
        if self.rollout.engine != "vllm":
            return self
        for key, chosen in (
            (f"devices={self.devices}", self.devices > 1),
            ("environment.name", self.environment.name),
            (f"model.quantize={self.model.quantize}", self.model.quantize != "none"),
            ("model.trust_remote_code", self.model.trust_remote_code),
        ):
            if chosen:
                raise ValueError(f"{key} does not work with rollout.engine=vllm; remove one")
        return self

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        pinned = len(self.model.revision) == 40 and all(c in "0123456789abcdef" for c in self.model.revision)
        if self.model.trust_remote_code and not pinned:
            raise ValueError(
                "model.trust_remote_code=true needs model.revision=<40-digit commit>, so that code is pinned; for a local folder "
                "give any 40 digits, and the right ones are named"
            )
        return self


def demand_environment(rewards: RewardsConfig, environment: EnvironmentConfig) -> None:
    """Raises ValueError for a reward by an environment without one."""
    if "environment" in rewards.built_in and not environment.name:
        raise ValueError("rewards.environment has no effect without environment.name; remove one")


def _demand_turns(algorithm: AlgorithmConfig, environment: EnvironmentConfig) -> None:
    """Raises ValueError for credit by turn where episodes cannot have several."""
    if algorithm.credit == "turn" and not environment.name:
        raise ValueError("algorithm.credit=turn has no effect without environment.name; remove one")
    if algorithm.credit == "turn" and environment.turns == 1:
        raise ValueError("algorithm.credit=turn has no effect with environment.turns=1; remove one")


class EvalConfig(RootConfig):
    """`slimrl eval` and `slimrl compare`."""

    rewards: RewardsConfig = RewardsConfig()
    """The rewards that are measured held out, all that are paid or watched; `correct` is the accuracy."""

    @model_validator(mode="after")
    def _someone_scores(self) -> Self:
        demand_environment(self.rewards, self.environment)
        return self


class TrainConfig(RootConfig):
    """`slimrl train`: reinforcement learning from verifiable rewards."""

    max_tokens: CountOrZero = 0
    """Sampled tokens, for comparisons at equal cost: the run ends with the step that comes nearest; 0: `steps` decides."""
    rewards: RewardsConfig = RewardsConfig()
    """The rewards of a completion."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """The policy gradient; a method is a set of these."""
    critic: CriticConfig = CriticConfig()
    """PPO's value function."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """The order of the problems."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        split_matters = self.algorithm.aggregation == "microbatch_token_mean"
        if split_matters and self.optimizer.microbatch_tokens == "auto":
            raise ValueError(
                "algorithm.aggregation=microbatch_token_mean depends on the split, which microbatch_tokens=auto leaves to "
                "the machine; set optimizer.microbatch_tokens to a number"
            )
        paid = {*self.rewards.paid} - PUNISHMENTS  # which alone pay nothing
        if not paid and not self.algorithm.reference:
            raise ValueError(
                "every reward has weight 0; set rewards.correct=1 or another one, or a teacher (algorithm.reference)"
            )
        if self.optimizer.minibatches > self.rollout.problems:
            raise ValueError(
                f"optimizer.minibatches={self.optimizer.minibatches} exceeds rollout.problems={self.rollout.problems}, "
                "and groups are never split; lower it"
            )
        if self.rollout.max_new_tokens != "auto":
            self.rewards.check_buffer(self.rollout.max_new_tokens)
        if self.algorithm.baseline != "critic" and self.critic != CriticConfig():
            raise ValueError("the section critic has no effect without algorithm.baseline=critic; remove it")
        demand_environment(self.rewards, self.environment)
        _demand_turns(self.algorithm, self.environment)
        if self.rollout.group_size < 2 and self.algorithm.baseline in ("group_mean", "leave_one_out"):
            raise ValueError(
                f"rollout.group_size=1 has no group baseline, every advantage is 0; set 2 or more, or another "
                f"algorithm.baseline than {self.algorithm.baseline}"
            )
        if self.max_tokens and self.curriculum.order == "easy_first":
            raise ValueError(
                f"max_tokens={self.max_tokens} ends the run at a step that is not known before, and curriculum.order=easy_first "
                "moves over steps; set one"
            )
        if self.max_tokens and self.optimizer.schedule != "constant":
            raise ValueError(
                f"max_tokens={self.max_tokens} ends the run at a step that is not known before, so "
                f"optimizer.schedule={self.optimizer.schedule} would end anywhere; set optimizer.schedule=constant"
            )
        if self.model.init == "random":
            raise ValueError(
                "model.init=random starts from noise, where no completion earns a reward; use slimrl sft first"
            )
        return self


UNREAD_BY_SFT = {
    "rollout": ("problems", "group_size"),
    "optimizer": ("minibatches", "epochs", "reference_offload"),
    "evaluation": ("every",),
    "checkpoint": ("keep_best",),
    "log": ("samples_every", "samples", "rollouts", "tokens", "model", "profile"),
}
"""Settings of shared sections that only training reads: dropped from files, which both verbs share, refused as overrides."""


class SftRunConfig(RootConfig):
    """`slimrl sft`: warm start on a task's worked solutions or episodes, with the loss on what the policy is to write."""

    sft: SftConfig = SftConfig()
    """The imitation."""

    @model_validator(mode="after")
    def _no_dead_switch(self) -> Self:
        if package_of(self.task.name):
            raise ValueError(f"task.name={self.task.name} has no worked solutions to imitate; choose another task")
        for section, keys in UNREAD_BY_SFT.items():
            chosen = getattr(self, section)
            for key in keys:
                if getattr(chosen, key) != type(chosen).model_fields[key].default:
                    raise ValueError(f"{section}.{key} has no effect in slimrl sft; remove it")
        if not sum(self.sft.mixture.values()):
            raise ValueError("sft.mixture has no positive share; set sft.mixture.solution=1")
        return self
