"""A study file: base, arms, seeds and measure. Reads it, expands its design, and refuses arms that cannot be compared.

The settings of every arm are built and checked here, before the first run starts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError, field_validator, model_validator

from slimrl.config.base import Count, CountOrZero, Positive, Section
from slimrl.config.files import build, merge, parse_override, read_yaml
from slimrl.config.mistakes import nearest
from slimrl.config.places import anchored
from slimrl.config.recipes import named
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.preflight.effects import Remark, remarks
from slimrl.study.primary import read_primary

BASE, ALL, REPEAT = "base", "all", "_again"
RESERVED = {BASE, ALL, BASE + REPEAT, ALL + REPEAT}
REPEAT_SEED = 1_000_000
"""First seed of the A/A arm, far from those of all other arms."""
MOST_FACTORS = 6
LONGEST_STUDY_NAME = 100
ARM_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
FIXED = {
    "seed": "the study gives every arm the same seeds",
    "name": "the study names its runs",
    "output": "the study has a folder of its own",
    "upload": "all runs of a study are copied to one place; set it under settings",
    "log": "what is logged is the study's",
    "evaluation": "every arm is measured in the same way; set it under settings",
    "task": "arms with different tasks have no measure in common; set it under settings",
    "max_tokens": "the budget is the study's; see budget",
    "memory_share": "the study shares out the device",
    "devices": "the runs of a study are alike in that; set it under settings",
}
"""Settings that an arm may not change, and why."""
FREE = {"task.answers"}
"""Settings within those that an arm may change all the same: they leave everything that is held out as it is."""
SET_BY_THE_STUDY = {"seed", "name", "output", "max_tokens", "memory_share"}
"""Those of FIXED that may not be under settings either."""


class Budget(Section):
    equal: Literal["steps", "tokens"] = "steps"
    """`steps`: every arm takes the base's steps. `tokens`: every arm samples `tokens` tokens, in as many steps as that takes."""
    tokens: CountOrZero = 0
    """Sampled tokens of a run without evaluation; only with equal: tokens."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.equal == "tokens") != bool(self.tokens):
            raise ValueError("budget.tokens goes with budget.equal=tokens, and only with it; set both or neither")
        return self


class Study(Section):
    """The contents of a study file."""

    question: str = ""
    base: tuple[str, ...] = ()
    """Settings files, relative to this one, merged in order."""
    settings: Mapping[str, Any] = {}
    """Settings over those files, for all arms."""
    arms: dict[str, str | list[str]]
    """By name: the settings that the arm changes, as section.key=value."""
    design: Literal["one_at_a_time", "leave_one_out", "factorial"] = "one_at_a_time"
    """The base with each arm alone; all arms together without each; or every combination of arms."""
    seeds: Count = 5
    """Runs of every arm, with seeds 0, 1, 2 and so on."""
    primary: str = "test/sampled"
    """The held-out measure that verdicts rest on, declared before the first run: accuracy, or a reward (`test/rewards/NAME`)."""
    margin: Positive = 0.02
    """The smallest difference that matters to the reader; 0.02 is two points of accuracy."""
    spread: Positive = 0.02
    """Expected standard deviation of a difference over seeds, for planning until one is measured."""
    budget: Budget = Budget()
    """The cost at which arms are compared."""
    keep_models: bool = False

    @field_validator("primary")
    @classmethod
    def _primary_is_a_measure(cls, primary: str) -> str:
        read_primary(primary)
        return primary


@dataclass(frozen=True)
class Arm:
    """An arm with its settings."""

    name: str
    overrides: tuple[str, ...]
    config: TrainConfig
    """With seed 0; `Planned.config` gives the settings of a run."""
    is_repeat: bool
    """True for the A/A arm, which repeats the reference with other seeds."""
    remarks: tuple[Remark, ...]
    """Known before the first run: changes that have no effect, or more than one."""

    def seed(self, index: int) -> int:
        return REPEAT_SEED + index if self.is_repeat else index


@dataclass(frozen=True)
class Comparison:
    """A weighted sum of arms within a seed: an arm less its reference, or an effect of a factorial design."""

    name: str
    weights: Mapping[str, float]
    """By arm; they sum to 0."""
    kind: Literal["switch", "interaction", "together", "noise"]
    """`noise` is the A/A comparison; `together` is all switches at once. Neither is part of Holm's method."""

    @property
    def tested(self) -> bool:
        """True if Holm's method covers it."""
        return self.kind in ("switch", "interaction")

    @property
    def is_pair(self) -> bool:
        """True if it is one arm less another."""
        return sorted(self.weights.values()) == [-1.0, 1.0]


@dataclass(frozen=True)
class Expanded:
    """A study that is ready to run."""

    name: str
    file: str
    study: Study
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    reference: str
    """The arm that most others are compared with."""

    @property
    def tested(self) -> int:
        """The number of comparisons that Holm's method covers, at least 1."""
        return max(1, sum(comparison.tested for comparison in self.comparisons))

    @property
    def repeat(self) -> str:
        """The name of the A/A arm and of its comparison."""
        return self.reference + REPEAT

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def against(self, arm: Arm) -> Arm:
        """The arm that an arm is compared with; the reference is compared with itself."""
        return self.arm(BASE if arm.name == ALL else self.reference)


def load_study(files: Sequence[str], overrides: Sequence[str] = (), *, name: str = "", seeds: int = 0) -> Expanded:
    """Read a study file, merge further ones over it, expand its design and check every arm.

    Further files may hold anything that a study file may; their `base` is added. `overrides` are settings of all arms; `name` and
    `seeds` replace those of the files.
    Raises SettingsError, one sentence that names the file or the arm.
    """
    merged, base, folders = read_studies(files)
    if seeds:
        merged["seeds"] = seeds
    name = name or "-".join(Path(file).stem for file in files).lower()
    return make_study(merged, base, overrides, folders=folders, file=files[0], name=name)


def read_studies(files: Sequence[str]) -> tuple[dict[str, Any], list[str], dict[str, Path]]:
    """Study files merged, the settings files under `base` of all of them, and the folder of each line of an arm.

    Raises SettingsError, one sentence that names the file.
    """
    merged: dict[str, Any] = {}
    base: list[str] = []
    folders: dict[str, Path] = {}
    for file in files:
        read = read_yaml(file)
        if unknown := sorted(read.keys() - Study.model_fields.keys()):
            raise SettingsError(
                f"{file}: {unknown[0]} is not part of a study{nearest(unknown[0], Study.model_fields)}; settings of all arms "
                "go under settings"
            )
        own = read.pop("base", [])
        if not isinstance(own, list) or not all(isinstance(entry, str) for entry in own):
            raise SettingsError(f"{file}: base is a list of settings files")
        folder = Path(file).parent
        base += [str(folder / named(entry, "recipes")) for entry in own]
        if isinstance(read.get("settings"), dict):
            read["settings"] = anchored(read["settings"], folder)
        for line in read["arms"].values() if isinstance(read.get("arms"), dict) else ():
            folders |= dict.fromkeys(map(str, line if isinstance(line, list) else [line]), folder)
        if "question" in merged and "question" in read:
            raise SettingsError(
                f"{file}: this is a study of its own, whose arms would be added to those of {files[0]}; run one after the other "
                "(files that change a study, such as @on/lora or @on/equal-tokens, have no question)"
            )
        merged = merge(merged, read)
    return merged, base, folders


def make_study(
    merged: Mapping[str, Any],
    base: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    folders: Mapping[str, Path],
    file: str,
    name: str,
) -> Expanded:
    """Expand the design of a study and check every arm; `file` names it in sentences. Raises SettingsError."""
    try:
        study = Study.model_validate({**merged, "base": tuple(base)})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the study"
        raise SettingsError(f"{file}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    settings = _common_settings(base, study, overrides)
    if not re.fullmatch(rf"[a-z0-9][a-z0-9._-]{{0,{LONGEST_STUDY_NAME - 1}}}", name):
        raise SettingsError(
            f"{name[:80]!r} cannot name a folder of a study: up to {LONGEST_STUDY_NAME} lower-case letters, digits, '.', '_', "
            "'-'; use --name"
        )
    arms, comparisons, reference = expand(study, settings, folders)
    return Expanded(name, file, study, arms, comparisons, reference)


def _common_settings(base: Sequence[str], study: Study, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of all arms: the base's files, the study's own, the overrides."""
    settings: dict[str, Any] = {}
    for entry in base:
        own = {key: value for key, value in read_yaml(entry).items() if key != "sft"}
        settings = merge(settings, anchored(own, Path(entry).parent))
    settings = merge(settings, study.settings)
    for override in overrides:
        settings = merge(settings, parse_override(override))
    for key in SET_BY_THE_STUDY & settings.keys():
        raise SettingsError(f"{key} is not a setting of a study, since {FIXED[key]}; remove it")
    return settings


def expand(
    study: Study, settings: Mapping[str, Any], folders: Mapping[str, Path]
) -> tuple[tuple[Arm, ...], tuple[Comparison, ...], str]:
    """The arms of the design with their settings, the comparisons, and the name of the reference.

    `folders` is the folder of the file of each override, to which its paths are relative; by default the working directory.
    """
    lines = {name: tuple([line] if isinstance(line, str) else line) for name, line in study.arms.items()}
    for name, overrides in lines.items():
        _check_arm(name, overrides)

    def together(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(itertools.chain(*(lines[name] for name in names)))

    plans: dict[str, tuple[str, ...]] = {BASE: ()}
    comparisons: list[Comparison] = []
    reference = BASE
    match study.design:
        case "one_at_a_time":
            plans |= lines
            comparisons = [Comparison(name, {name: 1.0, BASE: -1.0}, "switch") for name in lines]
        case "leave_one_out":
            _check_combinable(lines)
            reference = ALL
            plans[ALL] = together(lines)
            comparisons = [Comparison(ALL, {ALL: 1.0, BASE: -1.0}, "together")]
            for name in lines:
                plans[f"without_{name}"] = together(other for other in lines if other != name)
                comparisons.append(Comparison(name, {ALL: 1.0, f"without_{name}": -1.0}, "switch"))
        case "factorial":
            _check_combinable(lines)
            if len(lines) > MOST_FACTORS:
                raise SettingsError(
                    f"design=factorial with {len(lines)} arms is {2 ** len(lines)} combinations; name {MOST_FACTORS} at most"
                )
            names = list(lines)
            cells = [c for size in range(len(names) + 1) for c in itertools.combinations(names, size)]
            plans = {"+".join(cell) or BASE: together(cell) for cell in cells}
            comparisons = _effects(names, cells)
    repeat = reference + REPEAT
    plans[repeat] = plans[reference]
    comparisons.append(Comparison(repeat, {repeat: 1.0, reference: -1.0}, "noise"))
    built = {name: _build(name, overrides, settings, study, folders) for name, overrides in plans.items()}
    arms = []
    for name, config in built.items():
        other = BASE if name == ALL else reference
        known = () if name in (other, repeat) else remarks(built[other], config, other)
        arms.append(Arm(name, plans[name], config, name == repeat, known))
    return tuple(arms), tuple(comparisons), reference


def _check_arm(name: str, overrides: Sequence[str]) -> None:
    if name in RESERVED or not ARM_NAME.fullmatch(name):
        raise SettingsError(
            f"arm {name[:80]!r}: a name takes up to 40 lower-case letters, digits, '-' and '_', and is none of "
            f"{', '.join(sorted(RESERVED))}; rename it"
        )
    for override in overrides:
        key = override.partition("=")[0].strip()
        reason = next((why for fixed, why in FIXED.items() if key == fixed or key.startswith(f"{fixed}.")), "")
        if reason and key not in FREE:
            raise SettingsError(f"arm {name}: {key} is not an arm's to change, since {reason}")


def _check_combinable(lines: Mapping[str, Sequence[str]]) -> None:
    """Raises SettingsError if two arms set the same key, since they cannot both be on."""
    owner: dict[str, str] = {}
    for name, overrides in lines.items():
        for key in {override.partition("=")[0].strip() for override in overrides}:
            if owner.setdefault(key, name) != name:
                raise SettingsError(
                    f"arms {owner[key]} and {name} both set {key}, so they cannot be combined; leave one out, or use "
                    "design: one_at_a_time"
                )


def _effects(names: Sequence[str], cells: Sequence[tuple[str, ...]]) -> list[Comparison]:
    """Main effects, averaged over the other factors, and interactions of two factors."""

    def weights(factors: tuple[str, ...]) -> dict[str, float]:
        share = 2.0 ** (len(factors) - len(names))
        signs = [(-1.0) ** sum(factor not in cell for factor in factors) for cell in cells]
        return {"+".join(cell) or BASE: share * sign for cell, sign in zip(cells, signs, strict=True)}

    main = [Comparison(name, weights((name,)), "switch") for name in names]
    pairs = [Comparison(f"{a} x {b}", weights((a, b)), "interaction") for a, b in itertools.combinations(names, 2)]
    return main + pairs


def _build(
    name: str, overrides: Sequence[str], settings: Mapping[str, Any], study: Study, folders: Mapping[str, Path]
) -> TrainConfig:
    """An arm's settings; raises SettingsError, which names the arm."""
    merged: dict[str, Any] = dict(settings)
    try:
        for override in overrides:
            merged = merge(merged, anchored(parse_override(override), folders.get(override, Path())))
        logged = {"model": study.keep_models, "samples_every": 0, "rollouts": False}
        merged = merge(merged, {"seed": 0, "max_tokens": study.budget.tokens})
        own = merged.get("log", {})
        merged["log"] = {**logged, **own} if isinstance(own, dict) else own
        config = build(TrainConfig, merged)
    except SettingsError as error:
        raise SettingsError(f"arm {name}: {error}" if overrides else f"the study's settings: {error}") from None
    primary, evaluation = read_primary(study.primary), config.evaluation
    wanted = f"primary: {study.primary} is never measured with"
    if primary.mode == "greedy" and not evaluation.greedy:
        raise SettingsError(f"{wanted} evaluation.greedy=false; set it true")
    if primary.split == "twins" and not evaluation.twins:
        raise SettingsError(f"{wanted} evaluation.twins=0; set it to a number of problems")
    if primary.reward and primary.reward not in (spec.rpartition(":")[2] for spec in config.rewards.measured):
        raise SettingsError(
            f"{wanted} the rewards of arm {name}, which lack {primary.reward}; to measure it unpaid, name it in "
            "rewards.watched, or a function of your own with weight 0 in rewards.custom"
        )
    if primary.split == "harder" and (config.task.name != "arithmetic" or not config.evaluation.harder_problems):
        raise SettingsError(
            f"{wanted} task {config.task.name} and evaluation.harder_problems="
            f"{config.evaluation.harder_problems}; choose a split that is"
        )
    return config
