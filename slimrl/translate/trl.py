"""GRPO as TRL 1.16 runs it, in settings of SlimRL: a file's own settings, and TRL's defaults where SlimRL has others.

TRL counts completions and optimizer updates where SlimRL counts problems and rollout batches, and one of its names may stand for
several of ours; `trl_inputs`, `trl_counts`, `trl_loss` and `trl_run` work these out. All other names go by the table in
config/foreign_names.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from slimrl.config import foreign_names
from slimrl.errors import SettingsError
from slimrl.translate.rewards import reward_settings
from slimrl.translate.source import Source
from slimrl.translate.translation import Left, Translation, different, fitted
from slimrl.translate.trl_counts import batch_settings, counted, run_length
from slimrl.translate.trl_inputs import adapter_settings, data_settings, model_settings
from slimrl.translate.trl_loss import loss_settings, penalty_settings, sampler_settings
from slimrl.translate.trl_run import optimizer_settings, place_settings
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
ADAPTER_DEFAULTS = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
"""Of TRL's command line, which `use_peft` turns on."""
OFF: Mapping[str, Any] = {
    "repetition_penalty": 1.0, "shuffle_dataset": True, "top_p": 1.0, "top_k": 0, "lora_task_type": "CAUSAL_LM",
    "lora_bias": "none", "min_p": 0.0, "average_tokens_across_devices": True, "log_completions": True,
}  # fmt: skip
"""Values with which a setting asks for nothing that SlimRL does not do; so do false, no and none of what has no equivalent."""


def from_trl(source: Source, *, devices: int = 1, rows: int = 0) -> Translation:
    """The translation of a file of TRL.

    Args:
        devices: processes that TRL trains with; its file does not say.
        rows: training problems, by which passes over the data become steps; 0: not known.

    Raises SettingsError where the file has no setting of TRL.
    """
    if not any(foreign_names.row(name) for name in source.given):
        raise SettingsError(f"{source.file} holds no setting of TRL's GRPOConfig; give a file that does")
    adapter = ADAPTER_DEFAULTS if source.given.get("use_peft") else {}
    trl = Values(source, "TRL", {**DEFAULTS, **adapter})
    kept, refused = fitted(different(dict(_settings(trl, devices, rows))))
    notes = (Left("how it was read", "", note) for note in source.notes)
    return Translation(source.file, LIBRARY, kept, (*notes, *trl.left, *refused, *trl.unread()))


def _settings(trl: Values, devices: int, rows: int) -> Iterator[Keyed]:
    """Every setting by its key, those that others need first."""
    yield from model_settings(trl)
    yield from adapter_settings(trl)
    yield from data_settings(trl)
    counts = counted(trl, devices)
    yield from batch_settings(trl, counts)
    yield from loss_settings(trl, counts)
    yield from penalty_settings(trl, counts)
    yield from sampler_settings(trl)
    yield from optimizer_settings(trl)
    yield from run_length(trl, counts, rows)
    yield from trl.trackers("report_to")
    yield from place_settings(trl)
    found, left = reward_settings(trl.source, trl.given.get("reward_weights"), trl.values["max_completion_length"])
    trl.read.add("reward_weights")
    trl.left += left
    yield from found.items()
    yield from trl.by_the_table(OFF)
