"""GRPO as TRL 1.16 runs it, in settings of SlimRL: a file's own settings, and TRL's defaults where SlimRL has others.

TRL counts completions and optimizer updates where SlimRL counts problems and rollout batches, and one of its names may stand for
several of ours; these are worked out here. All other names go by the table in config/foreign_names.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from slimrl.config import foreign_names
from slimrl.errors import SettingsError
from slimrl.terms import Tracker
from slimrl.translate.rewards import CORRECT, reward_settings
from slimrl.translate.source import Source
from slimrl.translate.translation import Left, Setting, Translation, different, fitted
from slimrl.translate.values import Keyed, Values

LIBRARY = "TRL 1.16"
DEFAULTS: Mapping[str, Any] = {
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_iterations": 1, "num_generations": 8,
    "max_completion_length": 512, "temperature": 1.0, "learning_rate": 1e-6, "lr_scheduler_type": "linear", "adam_beta1": 0.9,
    "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0, "max_steps": -1,
    "num_train_epochs": 3.0, "warmup_steps": 0, "beta": 0.0, "use_bias_correction_kl": True, "epsilon": 0.2, "loss_type": "dapo",
    "importance_sampling_level": "token", "scale_rewards": "group", "multi_objective_aggregation": "sum_then_normalize",
    "mask_truncated_completions": False, "entropy_coef": 0.0, "top_entropy_quantile": 1.0, "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05, "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask", "vllm_importance_sampling_clip_max": 3.0,
}  # fmt: skip
"""Of `GRPOConfig` where they decide what is learned."""
ADAPTER_DEFAULTS = {"lora_r": 16, "lora_alpha": 32}
"""Of TRL's command line, which `use_peft` turns on."""
PEFT_TARGETS = ["q_proj", "v_proj"]
"""The layers that peft adapts in Llama, Qwen, Gemma and SmolLM where none are named."""
OFF: Mapping[str, Any] = {
    "repetition_penalty": 1.0, "shuffle_dataset": True, "top_p": 1.0, "top_k": 0, "lora_task_type": "CAUSAL_LM",
    "lora_bias": "none", "min_p": 0.0, "average_tokens_across_devices": True, "log_completions": True,
}  # fmt: skip
"""Values with which a setting asks for nothing that SlimRL does not do; so do false, no and none of what has no equivalent."""
ROWS = {"openai/gsm8k": 7473, "gsm8k": 7473}
"""Training problems of data sets that SlimRL knows by name."""
TASKS = {"openai/gsm8k": "gsm8k", "gsm8k": "gsm8k"}


def from_trl(source: Source, *, devices: int = 1, rows: int = 0) -> Translation:
    """The translation of a file of TRL.

    Args:
        devices: processes that TRL trains with; its file does not say.
        rows: training problems, by which passes over the data become steps; 0: not known.

    Raises SettingsError where the file has no setting of TRL.
    """
    if not any(foreign_names.row(name) for name in source.given):
        raise SettingsError(f"{source.file} holds no setting of TRL's GRPOConfig; give a file that does")
    trl = Trl(source, devices=devices, rows=rows)
    wanted = dict(trl.settings())
    kept, refused = fitted(different(wanted))
    left = [*(Left("how it was read", "", note) for note in source.notes), *trl.left, *refused]
    left += [
        Left(name, text, "only running the file tells its value; set it by hand")
        for name, text in source.unread.items()
    ]
    return Translation(source.file, LIBRARY, kept, tuple(left))


class Trl(Values):
    """TRL's settings, on their way to ours."""

    def __init__(self, source: Source, *, devices: int, rows: int) -> None:
        adapter = ADAPTER_DEFAULTS if source.given.get("use_peft") else {}
        super().__init__(source, "TRL", {**DEFAULTS, **adapter})
        self.devices, self.rows = devices, rows

    def settings(self) -> Iterator[Keyed]:
        """Every setting by its key, those that others need first."""
        yield from self._model()
        yield from self._data()
        yield from self._batch()
        yield from self._loss()
        yield from self._penalty()
        yield from self._optimizer()
        yield from self._run()
        found, left = reward_settings(
            self.source, self.given.get("reward_weights"), self.values["max_completion_length"]
        )
        self.read.add("reward_weights")
        self.left += left
        yield from found.items()
        yield from self.by_the_table(OFF)

    def _model(self) -> Iterator[Keyed]:
        path = self.given.get("model_name_or_path")
        if not isinstance(path, str):
            yield (
                "model.path",
                Setting("./MODEL", "the file names no model: put its folder or its name on the Hub here"),
            )
        else:
            yield self.set("model.path", path, "model_name_or_path")
        dtype = self.given.get("torch_dtype", self.given.get("dtype", ""))
        narrow = next((name for name in ("bf16", "fp16") if self.given.get(name) is True), "")
        if narrow:
            self.read.update(("torch_dtype", "dtype"))
            yield self.set("model.dtype", {"bf16": "bfloat16", "fp16": "float16"}[narrow], "bf16", "fp16")
        elif self.given.get("bf16") is False:
            yield self.set("model.dtype", "float32", "bf16")
        elif dtype and dtype != "auto":
            known = foreign_names.VALUES["model.dtype"]
            yield self.set("model.dtype", known.get(str(dtype), dtype), "torch_dtype", "dtype")
        self.read.update(("torch_dtype", "dtype", "bf16", "fp16"))
        yield from self._adapter()

    def _adapter(self) -> Iterator[Keyed]:
        names = ("use_peft", "lora_r", "lora_alpha", "lora_target_modules", "use_rslora")
        self.read.update(names)
        if not self.given.get("use_peft"):
            return
        rank, alpha = self.whole("lora_r"), self.number("lora_alpha")
        yield self.set("model.lora.rank", rank, "lora_r", "use_peft")
        if self.given.get("use_rslora"):
            exact = alpha * math.sqrt(rank)
            yield self.set(
                "model.lora.alpha", max(1, round(exact)), "lora_alpha", "use_rslora", why="times the root of the rank"
            )
        else:
            yield self.set("model.lora.alpha", max(1, round(alpha)), "lora_alpha")
        targets = self.given.get("lora_target_modules")
        if targets in ("all-linear", ["all-linear"]):
            yield self.set("model.lora.targets", "all-linear", "lora_target_modules")
        elif isinstance(targets, list):
            yield self.set("model.lora.targets", targets, "lora_target_modules")
        elif targets is None:
            yield "model.lora.targets", Setting(PEFT_TARGETS, "peft's own where no layers are named")
        else:
            self.leave("lora_target_modules", targets, "a pattern; list the names of the layers")

    def _data(self) -> Iterator[Keyed]:
        name = self.given.get("dataset_name")
        symbolic = any(one.name in CORRECT and not one.is_local for one in self.source.rewards)
        config = self.given.get("dataset_config")
        self.read |= {"dataset_name", "dataset_config"}
        if not isinstance(name, str):
            yield (
                "task.path",
                Setting("./DATA.jsonl", "the file names no data: put your file, or a data set on the Hub, here"),
            )
        elif name in TASKS and config in (None, "main", "default") and self._has_whole_split():
            self.read |= {"dataset_train_split", "dataset_test_split"}
            yield self.set("task.name", TASKS[name], "dataset_name", "dataset_config")
        else:
            yield self.set(
                "task.path", name, "dataset_name", why="a tenth is held out unless test_split or test_path is set"
            )
            if isinstance(config, str):
                yield self.set("task.subset", config, "dataset_config")
        if symbolic:
            yield "task.style", Setting("boxed", "accuracy_reward looks for \\boxed{} first")
        if symbolic and name not in TASKS:
            yield (
                "task.checker",
                Setting("symbolic", "accuracy_reward compares with math-verify, here the extra `math`"),
            )
            yield "task.columns.answer", Setting("solution", "the column that accuracy_reward reads")
        if isinstance(self.given.get("system_prompt"), str):
            yield self.set("task.instruction", self.given["system_prompt"], "system_prompt")
        else:
            reason = (
                "no system prompt is in the file, and SlimRL's own asks for the form of task.style; slimrl doctor shows the "
                "first prompt, and task.instruction sets another or, empty, none"
            )
            self.leave("prompts", "", reason)

    def _has_whole_split(self) -> bool:
        return bool(self.given.get("dataset_train_split", "train") == "train")

    def _batch(self) -> Iterator[Keyed]:
        """Completions per generation as problems, and optimizer updates per generation."""
        size, accumulated, group = map(
            self.whole, ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations")
        )
        yield self.set("rollout.group_size", group, "num_generations")
        if "generation_batch_size" in self.given:
            completions = self.whole("generation_batch_size")
            slices = max(1, completions // (size * self.devices))
        else:
            slices = self.whole("steps_per_generation") if "steps_per_generation" in self.given else accumulated
            completions = size * self.devices * slices
        updates, rest = divmod(slices, accumulated)
        if updates == 0:  # several generations for one update: here they are one
            completions, updates, rest = size * self.devices * accumulated, 1, 0
        problems = max(1, round(completions / group))
        names = (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "steps_per_generation",
            "generation_batch_size",
        )
        why = f"{completions} completions on {self.devices} device{'s' if self.devices > 1 else ''} / {group}"
        yield self.set("rollout.problems", problems, *names, why=why)
        if completions % group:
            reason = f"no whole groups of {group}, which TRL refuses; give the devices that it ran on: --devices N"
            self.leave("completions per generation", completions, reason)
        if rest:
            reason = f"{slices} slices are no whole number of updates of {accumulated}"
            self.leave("steps_per_generation", slices, reason)
        if updates > problems:
            reason = f"{updates} updates per generation would split groups, which stay together; {problems} are written"
            self.leave("steps_per_generation", slices, reason)
            updates = problems
        yield self.set("optimizer.minibatches", updates, "steps_per_generation", "generation_batch_size")
        yield self.set("optimizer.epochs", self.whole("num_iterations"), "num_iterations")
        self.updates = updates * self.whole("num_iterations")
        self.problems, self.accumulated, self.size = problems, accumulated, size
        yield self.set("rollout.max_new_tokens", self.whole("max_completion_length"), "max_completion_length")
        yield self.set("rollout.temperature", self.number("temperature"), "temperature")

    def _loss(self) -> Iterator[Keyed]:
        kind, level = str(self.values["loss_type"]), str(self.values["importance_sampling_level"])
        names = ("loss_type", "importance_sampling_level")
        low = self.number("epsilon")
        high = self.number("epsilon_high") if "epsilon_high" in self.given else low
        surrogate = {"cispo": "cispo", "sapo": "sapo"}.get(kind, "gspo" if level == "sequence" else "clip")
        averages = {"cispo": "token_mean", "sapo": "sequence_mean", "luspo": "fixed_length", "dapo": "token_mean"}
        averages |= {"grpo": "sequence_mean", "dr_grpo": "fixed_length", "bnpo": "microbatch_token_mean"}
        if kind not in averages:
            self.leave("loss_type", kind, "there is no such loss here; TRL's default, dapo, is written")
        average = averages.get(kind, "token_mean")
        if average == "microbatch_token_mean" and self.accumulated == self.devices == 1:
            average = "token_mean"  # one micro-batch is the whole update
        if average == "microbatch_token_mean":
            tokens = self.size * self.whole("max_completion_length")
            yield self.set(
                "optimizer.microbatch_tokens", tokens, "per_device_train_batch_size", why="bnpo depends on the split"
            )
        if kind == "luspo":
            self.leave("loss_type", kind, "the loss is divided by max_completion_length here, a constant")
        if level == "sequence" and surrogate in ("cispo", "sapo"):
            self.leave("importance_sampling_level", level, f"{surrogate} takes the ratio of each token here")
        yield self.set("algorithm.surrogate", surrogate, *names)
        yield self.set("algorithm.aggregation", average, "loss_type")
        self.read |= {"epsilon", "epsilon_high", "delta"}
        if surrogate == "cispo":  # TRL bounds the ratio by epsilon_high itself, and only from above
            if high < 1:
                self.leave("epsilon_high", f"{high:g}", "it would weigh every token below 1; 1 is written")
            yield self.set("algorithm.clip_low", 1.0, "loss_type", why="no lower bound")
            yield self.set(
                "algorithm.clip_high", max(0.0, high - 1), "epsilon_high", why="a ratio of epsilon_high at most"
            )
        elif surrogate != "sapo":
            yield self.set("algorithm.clip_low", low, "epsilon")
            yield self.set(
                "algorithm.clip_high", high, *(["epsilon_high"] if "epsilon_high" in self.given else ["epsilon"])
            )
            if "delta" in self.given:
                yield self.set("algorithm.dual_clip", self.number("delta"), "delta")
        else:
            yield self.set("algorithm.sapo_up", self.number("sapo_temperature_pos"), "sapo_temperature_pos")
            yield self.set("algorithm.sapo_down", self.number("sapo_temperature_neg"), "sapo_temperature_neg")
        self.read |= {"sapo_temperature_pos", "sapo_temperature_neg"}

    def _penalty(self) -> Iterator[Keyed]:
        """KL, scaling of rewards, masks, entropy, and the correction for another sampler."""
        scale = str(self.values["scale_rewards"]).lower()
        yield self.set("algorithm.scale_rewards", {"true": "group", "false": "none"}.get(scale, scale), "scale_rewards")
        together = self.values["multi_objective_aggregation"] == "normalize_then_sum"
        yield self.set("algorithm.normalize_components", together, "multi_objective_aggregation")
        beta = self.number("beta")
        yield self.set("algorithm.kl_coef", beta, "beta")
        self.read.add("use_bias_correction_kl")
        if beta:
            estimator = "k3_k2" if self.values["use_bias_correction_kl"] else "k3"
            yield self.set(
                "algorithm.kl_estimator",
                estimator,
                "use_bias_correction_kl",
                why="older TRL: k3" if estimator != "k3" else "",
            )
        yield self.set(
            "algorithm.overlong_filtering",
            self.values["mask_truncated_completions"] is True,
            "mask_truncated_completions",
        )
        yield self.set("algorithm.entropy_coef", self.number("entropy_coef"), "entropy_coef")
        yield self.set("algorithm.entropy_share", self.number("top_entropy_quantile"), "top_entropy_quantile")
        names = [f"vllm_importance_sampling_{end}" for end in ("correction", "mode", "clip_max", "cap")]
        self.read.update(names)
        if self.given.get("use_vllm") is True and self.values["vllm_importance_sampling_correction"] is True:
            level, _, way = str(self.values["vllm_importance_sampling_mode"]).partition("_")
            cap = self.given.get("vllm_importance_sampling_cap", self.values["vllm_importance_sampling_clip_max"])
            why = "SlimRL samples with the trained module, so rounding alone is corrected"
            yield self.set("algorithm.importance", way, names[0], names[1], why=why)
            yield self.set("algorithm.importance_level", level, names[1])
            yield self.set("algorithm.importance_cap", cap, names[2], names[3])

    def _optimizer(self) -> Iterator[Keyed]:
        # learning_rate is written always: `auto` depends on the model here
        rate = Setting(self.number("learning_rate"), self.because("learning_rate"))
        yield "optimizer.learning_rate", rate
        schedules = {
            "constant_with_warmup": "constant",
            "cosine_with_min_lr": "cosine",
            "cosine_with_restarts": "cosine",
        }
        named = str(self.values["lr_scheduler_type"]).rpartition(".")[2].lower()
        self.schedule, schedule = named, schedules.get(named, named)
        if named not in ("constant", "constant_with_warmup", "linear", "cosine"):
            reason = (
                "the rate ends at 0 after one fall here"
                if schedule in ("linear", "cosine")
                else "there is no such schedule"
            )
            self.leave("lr_scheduler_type", named, reason)
        if schedule in ("constant", "linear", "cosine"):
            yield self.set("optimizer.schedule", schedule, "lr_scheduler_type")
        self.read.add("lr_scheduler_type")
        for key in ("beta1", "beta2", "epsilon"):
            yield self.set(f"optimizer.{key}", self.number(f"adam_{key}"), f"adam_{key}")
        for key in ("weight_decay", "max_grad_norm"):
            yield self.set(f"optimizer.{key}", self.number(key), key)

    def _run(self) -> Iterator[Keyed]:
        """Steps, warm-up and what is counted in updates there and in steps here."""
        steps = self._steps()
        yield "steps", steps
        total = int(steps.value) * self.updates
        share = "warmup_ratio" if self.given.get("warmup_ratio") else "warmup_steps"
        warmup = self.number(share)
        why = f"of {total} updates" if 0 < warmup < 1 else ""
        updates = math.ceil(warmup * total) if 0 < warmup < 1 else round(warmup)
        if updates and self.schedule == "constant":
            self.leave(share, self.values[share], "lr_scheduler_type=constant has no warm-up there; 0 is written")
            updates = 0
        yield self.set("optimizer.warmup_steps", updates, share, why=why)
        self.read |= {"warmup_steps", "warmup_ratio", "max_steps", "num_train_epochs"}
        every = {
            "save_steps": ("checkpoint.every", "save_strategy"),
            "eval_steps": ("evaluation.every", "eval_strategy"),
        }
        for name, (key, strategy) in every.items():
            self.read |= {name, strategy}
            kind = self.given.get(strategy, "steps" if name == "save_steps" else "no")
            if kind == "epoch":
                self.leave(strategy, "epoch", f"{key} counts steps, not passes over the data; 0 is off")
            elif kind == "no" and strategy in self.given:
                yield self.set(key, 0, strategy)
            elif kind == "steps" and name in self.given:
                count = self.number(name)
                yield self.set(key, max(1, round((count * total if count < 1 else count) / self.updates)), name)
        yield from self._trackers()
        yield from self._place()

    def _trackers(self) -> Iterator[Keyed]:
        asked = self.given.get("report_to") or []
        names = [str(name) for name in ([asked] if isinstance(asked, str) else asked)]
        known = [name for name in names if name in get_args(Tracker)]
        self.read.add("report_to")
        if known:
            yield self.set("log.to", known, "report_to")
        for name in names:
            if name not in (*known, "none"):
                self.leave("report_to", name, f"log.to takes {', '.join(get_args(Tracker))}")

    def _steps(self) -> Setting:
        """Rollout batches of the whole run."""
        most, epochs = self.number("max_steps"), self.number("num_train_epochs")
        per = f" / {self.updates} updates a step" if self.updates > 1 else ""
        if most > 0:
            return Setting(max(1, math.ceil(most / self.updates)), self.because("max_steps") + per)
        known = ROWS.get(str(self.given.get("dataset_name")), 0) if self._has_whole_split() else 0
        rows = self.rows or known
        reason = self.because("num_train_epochs")
        if rows:
            steps = max(1, math.ceil(epochs * max(1, rows // self.problems)))
            return Setting(steps, f"{reason}, {rows} problems / {self.problems} a step")
        unknown = (
            f"passes over {self.problems} problems a step; --rows N, the problems of the data, makes steps of them"
        )
        self.leave("num_train_epochs", f"{epochs:g}", unknown)
        return Setting(100, f"{reason}: set what {epochs:g} x the problems / {self.problems} is")

    def _place(self) -> Iterator[Keyed]:
        """The name of the run, and the folder that holds it."""
        place = Path(str(self.given.get("output_dir", "")))
        name = str(self.given.get("run_name") or place.name)
        slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:64]
        self.read |= {"run_name", "output_dir"}
        if slug:
            yield self.set("name", slug, *(["run_name"] if self.given.get("run_name") else ["output_dir"]))
        if len(place.parts) > 1:
            yield self.set("output", str(place.parent), "output_dir")
