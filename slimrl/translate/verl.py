"""Settings of verl's trainer, `section.key` in YAML or on a command line, in settings of SlimRL.

verl counts problems and rollout batches as SlimRL does; the mini-batch is a number of problems there and of updates here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from slimrl.config import foreign_names
from slimrl.config.files import SettingsLoader
from slimrl.errors import SettingsError
from slimrl.translate.source import Source, read_mapping, read_text
from slimrl.translate.translation import Setting, Translation, different, fitted
from slimrl.translate.values import Keyed, Values

DEFAULTS: Mapping[str, Any] = {
    "data.train_batch_size": 1024, "ppo_mini_batch_size": 256, "ppo_epochs": 1, "actor_rollout_ref.rollout.n": 1,
    "data.max_response_length": 512, "actor_rollout_ref.rollout.temperature": 1.0, "actor_rollout_ref.actor.optim.lr": 1e-6,
    "actor_rollout_ref.actor.optim.weight_decay": 0.01, "grad_clip": 1.0, "lr_warmup_steps": -1, "lr_warmup_steps_ratio": 0.0,
    "clip_ratio": 0.2, "clip_ratio_c": 3.0, "loss_agg_mode": "token-mean", "policy_loss.loss_mode": "vanilla",
    "entropy_coeff": 0.0, "use_kl_loss": False, "actor_rollout_ref.actor.kl_loss_coef": 0.001, "kl_loss_type": "low_var_kl",
    "use_kl_in_reward": False, "kl_ctrl.kl_coef": 0.001, "adv_estimator": "gae", "norm_adv_by_std_in_grpo": True,
    "total_epochs": 30, "total_training_steps": -1,
}  # fmt: skip
"""Of verl's ppo_trainer where they decide what is learned, by their names in the table."""
OFF: Mapping[str, Any] = {"top_p": 1, "top_k": -1, "critic_warmup": 0, "data.shuffle": True, "gamma": 1.0, "lam": 1.0}
OVERRIDE = re.compile(r"""(?<!\S)\+{0,2}([A-Za-z_]\w*(?:\.\w+)+)=("[^"]*"|'[^']*'|[^\s\\]+)""")
VARIABLE = re.compile(r"""^\s*(?:export\s+)?([A-Za-z_]\w*)=("[^"]*"|'[^']*'|[^\s;]*)\s*(?:#.*)?$""", re.MULTILINE)
VARIABLE_USE = re.compile(r"\$\{?(\w+)(?::-([^}]*))?\}?")
DEEPEST = 8  # variables that name variables
LONGEST = 1000  # characters of a value


def verl_source(file: str) -> Source:
    """The settings of a YAML or JSON file, or the overrides `section.key=value` in any other, as in a shell script."""
    if Path(file).suffix in (".yaml", ".yml", ".json"):
        found = {key: value for key, value in _flat(read_mapping(file)) if value is not None}
        unread: dict[str, str] = {}
    else:
        found, unread = _overrides(read_text(file))
    given: dict[str, Any] = {}
    for key, value in found.items():
        text = isinstance(value, str) and "${" in value
        (unread if text else given)[_name(key)] = value
    return Source(file, given, unread)


def from_verl(source: Source, *, rows: int = 0) -> Translation:
    """The translation of a file of verl; `rows` are the training problems, 0 where they are not known.

    Raises SettingsError where the file has no setting of verl.
    """
    if not any(foreign_names.row(name) for name in source.given):
        raise SettingsError(
            f"{source.file} holds no setting of verl's trainer; give its YAML, or the script that runs it"
        )
    verl = Verl(source, rows)
    kept, refused = fitted(different(dict(verl.settings())))
    return Translation(source.file, "verl", kept, (*verl.left, *refused, *verl.unread()))


class Verl(Values):
    """verl's settings, on their way to ours."""

    def __init__(self, source: Source, rows: int) -> None:
        super().__init__(source, "verl", DEFAULTS)
        self.rows = rows

    def settings(self) -> Iterator[Keyed]:
        """Every setting by its key, those that others need first."""
        yield from self._data()
        group = self.whole("actor_rollout_ref.rollout.n")
        yield self.set("rollout.group_size", group, "actor_rollout_ref.rollout.n")
        problems = self.whole("data.train_batch_size")
        yield self.set("rollout.problems", problems, "data.train_batch_size")
        yield self.set("rollout.max_new_tokens", self.whole("data.max_response_length"), "data.max_response_length")
        yield self.set(
            "rollout.temperature",
            self.number("actor_rollout_ref.rollout.temperature"),
            "actor_rollout_ref.rollout.temperature",
        )
        updates = max(1, problems // self.whole("ppo_mini_batch_size"))
        names = ("data.train_batch_size", "ppo_mini_batch_size")
        yield self.set("optimizer.minibatches", updates, *names)
        yield self.set("optimizer.epochs", self.whole("ppo_epochs"), "ppo_epochs")
        yield from self._algorithm()
        yield from self._optimizer(problems, updates * self.whole("ppo_epochs"))
        yield "rewards.correct", Setting(1.0, "the score of the data's own checker: 1 for a right answer", given=False)
        yield from self.trackers("logger")
        yield from self.by_the_table(OFF)

    def _data(self) -> Iterator[Keyed]:
        """The model and the data, which lie in files."""
        for key, name, missing in (
            ("model.path", "actor_rollout_ref.model.path", "./MODEL"),
            ("task.path", "data.train_files", "./DATA.parquet"),
        ):
            value = self.given.get(name)
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
            if isinstance(value, str):
                yield self.set(key, value, name)
            else:
                if name in self.given:
                    self.leave(name, value, "one path is meant here; join the files")
                is_named = name in self.given or name in self.source.unread
                found = f"{name} is not one path that can be read" if is_named else f"the file names no {name}"
                yield key, Setting(missing, f"{found}: put it here")
            self.read.add(name)
        tests = self.given.get("data.val_files")
        tests = tests[0] if isinstance(tests, list) and len(tests) == 1 else tests
        if isinstance(tests, str):
            yield self.set("task.test_path", tests, "data.val_files")

    def _algorithm(self) -> Iterator[Keyed]:
        """Advantages, surrogate and penalty."""
        estimator = str(self.values["adv_estimator"])
        baselines = {"grpo": "group_mean", "gae": "critic", "rloo": "leave_one_out", "reinforce": "none"}
        if estimator not in baselines:
            self.leave("adv_estimator", estimator, "there is no such baseline here; grpo's is written")
        scale = (
            "group"
            if self.values["norm_adv_by_std_in_grpo"] is True and estimator not in ("gae", "rloo", "reinforce")
            else "none"
        )
        yield self.set("algorithm.scale_rewards", scale, "norm_adv_by_std_in_grpo", "adv_estimator")
        yield self.set("algorithm.baseline", baselines.get(estimator, "group_mean"), "adv_estimator")
        mode = str(self.values["policy_loss.loss_mode"])
        surrogate = {"vanilla": "clip", "gspo": "gspo", "gpg": "gpg", "sapo": "sapo", "cispo": "cispo"}.get(mode)
        if surrogate is None:
            self.leave("policy_loss.loss_mode", mode, "there is no such surrogate; clip is written")
        yield self.set("algorithm.surrogate", surrogate or "clip", "policy_loss.loss_mode")
        if surrogate in (None, "clip", "gspo", "cispo"):
            for key, name in (("algorithm.clip_low", "clip_ratio_low"), ("algorithm.clip_high", "clip_ratio_high")):
                name = name if name in self.given else "clip_ratio"
                yield self.set(key, self.number(name), name)
        if surrogate in (None, "clip"):
            yield self.set("algorithm.dual_clip", self.number("clip_ratio_c"), "clip_ratio_c")
        self.read |= {"clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c"}
        modes = foreign_names.VALUES["algorithm.aggregation"]
        average = str(self.values["loss_agg_mode"])
        if average not in modes:
            self.leave(
                "loss_agg_mode", average, "there is no such aggregation here; verl's default, token-mean, is written"
            )
        yield self.set("algorithm.aggregation", modes.get(average, "token_mean"), "loss_agg_mode")
        yield self.set("algorithm.entropy_coef", self.number("entropy_coeff"), "entropy_coeff")
        yield from self._penalty(scale)

    def _penalty(self, scale: str) -> Iterator[Keyed]:
        """KL in the loss, in the reward or not at all; `scale`: the scaling of rewards that is written."""
        loss, coefficient, kind = "use_kl_loss", "actor_rollout_ref.actor.kl_loss_coef", "kl_loss_type"
        reward, weight = "use_kl_in_reward", "kl_ctrl.kl_coef"
        if self.values[loss] is True:
            yield self.set("algorithm.kl_coef", self.number(coefficient), coefficient, loss)
            estimator = foreign_names.VALUES["algorithm.kl_estimator"].get(str(self.values[kind]))
            if estimator:
                yield self.set("algorithm.kl_estimator", estimator, kind)
            else:
                self.leave(kind, self.values[kind], "there is no such estimator here; k3 is written")
        elif self.values[reward] is True and scale == "group":
            reason = (
                "divided by a group's deviation the penalty would be all that is left where its rewards are equal; no penalty is "
                "written, and algorithm.kl_coef puts one into the loss"
            )
            self.leave(reward, True, reason)
            yield self.set("algorithm.kl_coef", 0.0, reward)
        elif self.values[reward] is True:
            yield self.set("algorithm.kl_coef", self.number(weight), weight, reward)
            yield self.set("algorithm.kl_estimator", "k1", reward)
            yield self.set("algorithm.kl_place", "reward", reward)
        else:
            yield self.set("algorithm.kl_coef", 0.0, loss, reward)
        self.read |= {loss, coefficient, kind, reward, weight}

    def _optimizer(self, problems: int, updates: int) -> Iterator[Keyed]:
        """Rates, and steps, which verl counts as SlimRL does; `updates` of each step."""
        rate = "actor_rollout_ref.actor.optim.lr"
        yield "optimizer.learning_rate", Setting(self.number(rate), self.because(rate))
        yield "optimizer.beta2", Setting(0.999, "AdamW's own default", given=False)
        yield self.set(
            "optimizer.weight_decay", self.number(decay := "actor_rollout_ref.actor.optim.weight_decay"), decay
        )
        yield self.set("optimizer.max_grad_norm", self.number("grad_clip"), "grad_clip")
        steps = self.number("total_training_steps")
        if steps > 0:
            yield self.set("steps", round(steps), "total_training_steps")
        elif self.rows:
            steps = max(1.0, self.number("total_epochs") * (self.rows // problems))
            yield self.set("steps", round(steps), "total_epochs", why=f"{self.rows} problems / {problems} a step")
        else:
            steps = 100
            why = f"passes over the data, {problems} of its problems a step; --rows N, the number of all, makes steps of them"
            self.leave("total_epochs", self.values["total_epochs"], why)
            yield (
                "steps",
                Setting(100, f"{self.because('total_epochs')}: set what the problems / {problems} times this is"),
            )
        warmup = self.number("lr_warmup_steps")
        if warmup <= 0:
            warmup = math.ceil(self.number("lr_warmup_steps_ratio") * steps * updates)
        yield self.set("optimizer.warmup_steps", round(warmup), "lr_warmup_steps", "lr_warmup_steps_ratio")
        self.read |= {"total_epochs", "total_training_steps"}
        for name, key in (("save_freq", "checkpoint.every"), ("test_freq", "evaluation.every")):
            if self.given.get(name, -1) != -1:
                yield self.set(key, self.whole(name), name)
            self.read.add(name)
        self.read.add("experiment_name")
        if slug := re.sub(r"[^a-z0-9._-]+", "-", str(self.given.get("experiment_name", "")).lower()).strip("-._")[:64]:
            yield self.set("name", slug, "experiment_name")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _overrides(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The overrides in a script, with its own variables put in; those with other variables are unread."""
    variables: dict[str, str] = {"HOME": "~"} | {name: value.strip("\"'") for name, value in VARIABLE.findall(text)}
    found: dict[str, Any] = {}
    unread: dict[str, str] = {}
    for key, raw in OVERRIDE.findall(text):
        value = raw.strip("\"'")
        for _ in range(DEEPEST):
            value = VARIABLE_USE.sub(lambda use: variables.get(use[1], use[2] or use[0]), value)
        if "$" in value or len(value) > LONGEST:
            unread[_name(key)] = raw
            continue
        try:
            found[key] = yaml.load(value, Loader=SettingsLoader)
        except yaml.YAMLError:
            found[key] = value
    return {key: value for key, value in found.items() if value is not None}, unread


def _name(key: str) -> str:
    """The name of the table that a dotted key of verl ends with, the longest; the key itself where it is in no row."""
    parts = key.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts)))
    found = next((row for end in ends if (row := foreign_names.row(end)) and "verl" in row.origin), None)
    others = key.startswith(("critic.", "reward_model.", "actor_rollout_ref.ref."))
    if found is None or (others and found.ours and found.name != key):  # a setting of the policy, but of another model
        return key
    return found.name
