"""Every setting, once: the command line, YAML files and Python build the same frozen object from here.

YAML files merge left to right, then `section.key=value`. Unknown keys are refused with the nearest name.
This module imports no torch, so settings can be checked and shown in a moment.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slimrl.errors import SettingsError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen group of settings; the string under a field documents it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True)


class ModelConfig(Section):
    path: str = "builtin"
    """Folder or Hub name of a transformers causal LM; `builtin` is the tiny model shipped with SlimRL."""
    revision: str = "main"
    """Hub revision (branch, tag or commit)."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` draws new weights for the config found at `path` (for training from scratch with `slimrl sft`)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the module; `auto` is float32 on a CPU and bfloat16 on a GPU. Masters are always float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is a GPU where there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; needs a `revision` that is a full commit hash."""


class ArithmeticConfig(Section):
    max_steps: Annotated[int, Field(ge=1, le=6)] = 3
    """Training and test problems take 1 to this many reasoning steps."""
    harder_steps: Annotated[int, Field(ge=1, le=8)] = 4
    """The harder split takes exactly this many steps; more than `max_steps`."""
    max_number: Annotated[int, Field(ge=10, le=999)] = 20
    """Largest number in a question, a solution or an answer."""

    @model_validator(mode="after")
    def _harder_is_harder(self) -> Self:
        if self.harder_steps <= self.max_steps:
            raise ValueError(
                f"harder_steps ({self.harder_steps}) must exceed max_steps ({self.max_steps}); raise harder_steps"
            )
        return self


class TaskConfig(Section):
    name: Literal["arithmetic", "gsm8k", "aime", "math", "svamp", "jsonl"] = "arithmetic"
    """What is asked: `arithmetic` is built in; the others read local files or the Hub; `jsonl` any file of yours."""
    path: str = ""
    """Local file of training problems (JSONL or JSON); empty: the Hub (not for `jsonl`)."""
    test_path: str = ""
    """Local file of held-out problems; empty: the Hub's test split, or, with a local `path`, its last tenth."""
    style: Literal["hashes", "boxed", "tags", "answer"] = "hashes"
    """How an answer must be written: `#### 72`, `\\boxed{72}`, the case study's tags, or `Answer: 72`."""
    instruction: str = "auto"
    """The system message; empty sends none. `auto`: what `slimrl sft` taught the model with, else the style's own."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """`chat`: the tokenizer's chat template; `plain`: "Question: ... Answer:"; `auto`: chat where there is one."""
    checker: Literal["numeric", "symbolic"] = "numeric"
    """`numeric`: exact fractions; `symbolic`: LaTeX through math-verify (the extra `math`)."""
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    """Shape of the built-in task's problems."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == "jsonl" and not self.path:
            raise ValueError("task.name=jsonl needs task.path=FILE.jsonl with fields question and answer")
        if self.name == "arithmetic" and (self.path or self.test_path):
            raise ValueError("task.name=arithmetic makes its own problems; remove task.path, or set task.name=jsonl")
        if self.name != "arithmetic" and self.arithmetic != ArithmeticConfig():
            raise ValueError(f"task.arithmetic has no effect with task.name={self.name}; remove it")
        return self


class RolloutConfig(Section):
    problems: Count = 32
    """P: problems per step."""
    group_size: Count = 8
    """G: completions per problem; the baseline is taken within them."""
    max_new_tokens: Count = 64
    """Token budget of a completion, in training and in evaluation."""
    temperature: Positive = 1.0
    """Log-probabilities are of softmax(logits / temperature), the distribution that was sampled."""
    top_p: float = 1.0
    """Must stay 1: a truncated support makes importance ratios wrong (huggingface/trl#6789)."""
    top_k: int = 0
    """Must stay 0 (off), for the same reason."""
    slots: Count = 256
    """Completions decoded at once; memory, never tokens, depends on it."""

    @model_validator(mode="after")
    def _full_support(self) -> Self:
        if self.top_p != 1.0:
            raise ValueError(f"rollout.top_p={self.top_p} would train on another distribution than it samples; set 1.0")
        if self.top_k != 0:
            raise ValueError(f"rollout.top_k={self.top_k} would train on another distribution than it samples; set 0")
        if self.group_size < 2:
            raise ValueError("rollout.group_size=1 has no group baseline, every advantage is 0; set 2 or more")
        return self


class CustomReward(Section):
    """A reward function of yours, named `file.py:function`, with TRL's signature."""

    weight: float = 1.0
    """Factor before the sum."""
    low: float
    """Lowest value it can return."""
    high: float
    """Highest value it can return; the gold answer must earn it."""
    completions: Literal["text", "messages"] = "text"
    """Whether it takes strings or, as TRL's conversational data sets, lists of {"role", "content"}."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class RewardsConfig(Section):
    correct: float = 1.0
    """Weight of: 1 when the strict answer equals the gold answer, else 0."""
    format: float = 0.0
    """Weight of: 1 when the completion has the required form, else 0."""
    match_format_exactly: float = 0.0
    """Weight of the case study's exact format reward (0 or 3 points; needs task.style=tags)."""
    match_format_approximately: float = 0.0
    """Weight of the case study's tag counts (-2 to 2 points; needs task.style=tags)."""
    check_answer: float = 0.0
    """Weight of the case study's tiered answer reward (-1 to 3 points; needs task.style=tags)."""
    check_numbers: float = 0.0
    """Weight of the case study's number reward (0 or 1.5 points; needs task.style=tags)."""
    as_published: bool = False
    """Use the case study's four functions with their published defects (docs/techniques.md lists them)."""
    soft_overlong: NonNegative = 0.0
    """Weight of DAPO's soft overlong punishment, -1 to 0, added once to the sum (arXiv:2503.14476, eq. 13)."""
    overlong_buffer: Count = 16
    """Tokens before the budget at which the punishment begins (L_cache in DAPO)."""
    custom: dict[str, CustomReward] = {}
    """Your own functions by `file.py:function`."""
    gold_check: Literal["refuse", "report"] = "refuse"
    """What happens when a gold answer cannot earn the maximum: refuse to start, or only report."""

    @model_validator(mode="after")
    def _something_is_paid(self) -> Self:
        case_study = (
            self.match_format_exactly, self.match_format_approximately, self.check_answer, self.check_numbers
        )  # fmt: skip
        if not any((self.correct, self.format, *case_study, *(c.weight for c in self.custom.values()))):
            raise ValueError("every reward has weight 0; set rewards.correct=1 or another one")
        if self.as_published and not any(case_study):
            raise ValueError(
                "rewards.as_published has no effect without one of the case study's four rewards; remove it"
            )
        return self


class AlgorithmConfig(Section):
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Advantages are divided by the group's or the batch's standard deviation (+1e-4), or not at all (Dr. GRPO)."""
    clip_low: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The importance ratio is clipped at 1 - clip_low."""
    clip_high: NonNegative = 0.2
    """The importance ratio is clipped at 1 + clip_high; DAPO's clip-higher is 0.28."""
    aggregation: Literal[
        "sequence_mean", "token_mean", "prompt_token_mean", "fixed_length", "microbatch_token_mean"
    ] = "sequence_mean"
    """GRPO, DAPO over the batch, DAPO's equation to the letter, Dr. GRPO; the last one only replicates TRL's bnpo."""
    kl_coef: NonNegative = 0.04
    """Weight of the KL penalty to the initial model; 0 loads no reference at all."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Per-token estimator (Schulman 2020); docs/techniques.md says which divergence its gradient descends."""
    overlong_filtering: bool = False
    """Truncated completions carry no loss; they still count in their group's baseline and in denominators."""
    dynamic_sampling: Literal["off", "refill"] = "off"
    """`refill` replaces groups without a signal by groups of further problems (DAPO)."""
    signal: Literal["correct", "reward"] = "correct"
    """What must differ in a group: correctness (DAPO's own) or reward (by more than 1e-6)."""
    refill_budget: Annotated[float, Field(ge=1)] = 3.0
    """Completions sampled for one step at most, in multiples of problems x group_size; then it trains on what it has."""

    @model_validator(mode="after")
    def _no_dead_switch(self) -> Self:
        defaults = type(self).model_fields
        if self.dynamic_sampling == "off":
            for key in ("signal", "refill_budget"):
                if getattr(self, key) != defaults[key].default:
                    raise ValueError(f"algorithm.{key} has no effect with algorithm.dynamic_sampling=off; remove one")
        if self.kl_coef == 0 and self.kl_estimator != "k3":
            raise ValueError("algorithm.kl_estimator has no effect with algorithm.kl_coef=0; remove one")
        return self


class OptimizerConfig(Section):
    learning_rate: Positive = 1e-4
    """Peak rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the rate after warm-up; linear and cosine end at 0."""
    warmup_steps: CountOrZero = 0
    """Optimizer updates over which the rate rises linearly from 0."""
    beta1: Share = 0.9
    """Decay of AdamW's first moment."""
    beta2: Share = 0.99
    """Decay of AdamW's second moment."""
    epsilon: Positive = 1e-8
    """AdamW's denominator constant."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, on matrices only."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global norm."""
    minibatches: Count = 1
    """Optimizer updates per pass over the rollout batch; whole groups stay together."""
    epochs: Count = 1
    """Passes over a rollout batch."""
    microbatch_tokens: Count = 16384
    """Padded tokens in one forward pass; memory, never the gradient, depends on it."""


class EvaluationConfig(Section):
    problems: Count = 400
    """Held-out problems; the same ones before, during and after."""
    samples: Count = 1
    """Sampled completions per held-out problem, at the training temperature."""
    greedy: bool = True
    """Also decode greedily."""
    harder_problems: CountOrZero = 200
    """Problems of the harder split, where the task has one, evaluated before and after; 0 is off."""
    every: CountOrZero = 0
    """Evaluate after every this many steps as well; 0: only before and after."""


class LogConfig(Section):
    samples_every: CountOrZero = 10
    """Show a few completions after every this many steps; 0 is off."""
    samples: Count = 2
    """How many to show."""
    rollouts: bool = True
    """Store every completion with its scores under rollouts/."""


class SftConfig(Section):
    batch_size: Count = 64
    """Solutions per optimizer update."""
    mixture: dict[str, NonNegative] = {"solution": 1.0}
    """Shares of the task's demonstrators; `solution` is the right worked solution, the built-in task has others."""
    show_every: Count = 50
    """Report the loss after every this many updates."""


class RootConfig(Section):
    """What `train` and `sft` have in common."""

    name: Annotated[str, Field(max_length=64, pattern=r"^([a-z0-9][a-z0-9._-]*)?$")] = ""
    """Name of the run, lower case; empty: made from the task and the time."""
    output: str = "runs"
    """Folder in which run directories are made."""
    seed: CountOrZero = 0
    """Decides problems and draws; nothing else is random."""
    steps: Count = 30
    """Rollout batches (train) or optimizer updates (sft)."""
    model: ModelConfig = ModelConfig()
    """The policy."""
    task: TaskConfig = TaskConfig()
    """What is asked and what counts as right."""
    rollout: RolloutConfig = RolloutConfig()
    """How completions are sampled."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and how a batch is cut for it."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out measurement."""

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        pinned = len(self.model.revision) == 40 and all(c in "0123456789abcdef" for c in self.model.revision)
        if self.model.trust_remote_code and not pinned:
            raise ValueError(
                "model.trust_remote_code=true needs model.revision=<40-digit commit>, so that code is pinned"
            )
        return self


class TrainConfig(RootConfig):
    """`slimrl train`: reinforcement learning from verifiable rewards."""

    rewards: RewardsConfig = RewardsConfig()
    """What is paid."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """The policy gradient; a method is a set of these."""
    log: LogConfig = LogConfig()
    """What is shown and stored on the way."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.optimizer.minibatches > self.rollout.problems:
            raise ValueError(
                f"optimizer.minibatches={self.optimizer.minibatches} exceeds rollout.problems={self.rollout.problems}, "
                "and groups are never split; lower it"
            )
        if self.rewards.soft_overlong and self.rewards.overlong_buffer > self.rollout.max_new_tokens:
            raise ValueError(
                f"rewards.overlong_buffer={self.rewards.overlong_buffer} exceeds "
                f"rollout.max_new_tokens={self.rollout.max_new_tokens}; lower it"
            )
        if not self.rewards.soft_overlong and self.rewards.overlong_buffer != 16:
            raise ValueError("rewards.overlong_buffer has no effect with rewards.soft_overlong=0; remove one")
        if self.model.init == "random":
            raise ValueError(
                "model.init=random starts from noise, where no completion earns a reward; use slimrl sft first"
            )
        return self


class SftRunConfig(RootConfig):
    """`slimrl sft`: warm start on a task's worked solutions, loss on the solution only."""

    sft: SftConfig = SftConfig()
    """The imitation."""

    @model_validator(mode="after")
    def _no_dead_switch(self) -> Self:
        unread = {"rollout": ("problems", "group_size"), "optimizer": ("minibatches", "epochs")}
        for section, keys in unread.items():
            chosen = getattr(self, section)
            for key in keys:
                if getattr(chosen, key) != type(chosen).model_fields[key].default:
                    raise ValueError(f"{section}.{key} has no effect in slimrl sft; remove it")
        if not sum(self.sft.mixture.values()):
            raise ValueError("sft.mixture has no positive share; set sft.mixture.solution=1")
        return self


Root = TypeVar("Root", bound=RootConfig)
SectionKind = TypeVar("SectionKind", bound=Section)


def load_config(kind: type[Root], files: Sequence[str], overrides: Sequence[str] = ()) -> Root:
    """Merge YAML files left to right, then overrides `section.key=value`, and validate.

    Raises SettingsError with one sentence that names the setting and the way out.
    """
    merged: dict[str, Any] = {}
    origin = "the settings"
    for file in files:
        merged = merge(merged, read_yaml(file))
        origin = f"{', '.join(files)}"
    for override in overrides:
        merged = merge(merged, parse_override(override))
    return build(kind, merged, origin)


def build(kind: type[Root], settings: Mapping[str, Any], origin: str = "the settings") -> Root:
    """Validate a nested mapping into the settings object; raises SettingsError."""
    try:
        return kind.model_validate(_exact_floats(settings))
    except ValidationError as error:
        raise SettingsError(_sentence(kind, error, origin)) from None


def read_yaml(file: str) -> dict[str, Any]:
    """A YAML mapping, or a SettingsError that names the file and the line."""
    path = Path(file)
    if not path.is_file():
        hint = nearest(path.name, [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else [])
        raise SettingsError(f"{file}: no such settings file{hint}")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=SettingsLoader)
    except UnicodeDecodeError:
        raise SettingsError(f"{file}: not UTF-8 text; settings files are YAML") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        raise SettingsError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"{file}: a settings file is a mapping of sections, this is a {type(data).__name__}")
    return data


class SettingsLoader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, as people write it, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key} is set twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _scientific(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node))


SettingsLoader.add_constructor("!scientific", _scientific)
SettingsLoader.add_implicit_resolver("!scientific", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def parse_override(text: str) -> dict[str, Any]:
    """`section.key=value` as a nested mapping; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"{text!r} is neither a settings file nor section.key=value")
    try:
        parsed = yaml.load(value, Loader=SettingsLoader)
    except yaml.YAMLError:
        raise SettingsError(f"{text!r}: the value is not valid YAML; quote it") from None
    nested: Any = "" if parsed is None and value.strip() == "" else parsed
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return dict(nested)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins; mappings merge key by key."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def dump_yaml(config: BaseModel) -> str:
    """The whole settings object as YAML, readable by `load_config`."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" where something is near, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def known_keys(kind: type[BaseModel], prefix: str = "") -> dict[str, type[BaseModel] | None]:
    """Every dotted key of a settings class; a section's key maps to its class, a leaf's to None."""
    keys: dict[str, type[BaseModel] | None] = {}
    for name, info in kind.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys[prefix + name] = section
            keys |= known_keys(section, f"{prefix}{name}.")
        else:
            keys[prefix + name] = None
    return keys


def _exact_floats(value: Any) -> Any:
    """Tuples to lists; everything else as it is (strict validation takes an int for a float, not the reverse)."""
    if isinstance(value, Mapping):
        return {key: _exact_floats(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _sentence(kind: type[BaseModel], error: ValidationError, origin: str) -> str:
    """The first validation error as one sentence with the dotted key, the value and the way out."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    value = first["input"]
    match first["type"]:
        case "extra_forbidden":
            keys = known_keys(kind)
            prefix = where.rpartition(".")[0]
            siblings = [k for k in keys if k.rpartition(".")[0] == prefix]
            hint = nearest(where, siblings) or nearest(where.rpartition(".")[2], [k.rpartition(".")[2] for k in keys])
            if hint and nearest(where, siblings) == "":
                leaf = hint.removeprefix("; did you mean ").removesuffix("?")
                hint = f"; did you mean {next(k for k in keys if k.rpartition('.')[2] == leaf)}?"
            return f"{where} is not a setting ({origin}){hint or '; slimrl settings lists them all'}"
        case "literal_error":
            expected = first["ctx"]["expected"]
            return f"{where}={value!r} is not one of {expected}{nearest(str(value), expected.replace(chr(39), '').split(', '))}"
        case "value_error":
            message = str(first["ctx"]["error"])
            return message if "." in message.split("=")[0].split(" ")[0] or not where else f"{where}: {message}"
        case "model_type" | "dict_type":
            return f"{where} is a section of settings, not a value; write {where}.KEY=value"
        case "missing":
            return f"{where} is missing; it has no default"
        case "string_pattern_mismatch":
            return f"{where}={value!r} may hold only lower-case letters, digits, '.', '_' and '-'; rename it"
        case _:
            message = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
            return f"{where}={value!r} is not valid: it should be {message}"


def build_section(
    kind: type[SectionKind], name: str, settings: Mapping[str, Any], overrides: Sequence[str]
) -> SectionKind:
    """One section on its own, from plain values and overrides spelt `name.key=value`; raises SettingsError."""
    merged = {name: dict(settings)}
    for override in overrides:
        merged = merge(merged, parse_override(override))
    return getattr(build(RootConfig, merged), name)  # type: ignore[no-any-return]


def describe_settings(section: str | None = None) -> list[dict[str, Any]]:
    """Every setting of `train` and `sft`: key, type, default and meaning; raises SettingsError for an unknown section."""
    rows: dict[str, dict[str, Any]] = {}
    for kind in (TrainConfig, SftRunConfig):
        _describe(kind, "", rows)
    if section is None:
        return list(rows.values())
    chosen = [row for key, row in rows.items() if key == section or key.startswith(section + ".")]
    if not chosen:
        sections = dict.fromkeys(key.partition(".")[0] for key in rows)
        raise SettingsError(
            f"{section} is not a section of settings{nearest(section, sections)}; there are {', '.join(sections)}"
        )
    return chosen


def _describe(kind: type[BaseModel], prefix: str, rows: dict[str, dict[str, Any]]) -> None:
    for name, info in kind.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            _describe(info.annotation, f"{prefix}{name}.", rows)
        else:
            schema = kind.model_json_schema()["properties"][name]
            allowed = " | ".join(map(str, schema["enum"])) if "enum" in schema else schema.get("type", "mapping")
            rows[prefix + name] = {
                "key": prefix + name,
                "type": allowed,
                "default": info.get_default(),
                "meaning": info.description or "",
            }
