"""The names of TRL and verl for the settings of SlimRL, and the reasons why some of theirs have no equivalent.

docs/names.md is this table as a page; a test holds the two together.
"""

from dataclasses import dataclass
from typing import Literal

Origin = Literal["TRL", "verl", "TRL and verl"]


@dataclass(frozen=True)
class Foreign:
    """A setting of another library."""

    name: str
    """As it is written there; verl's with the sections that tell it from others."""
    origin: Origin
    ours: str
    """The setting of SlimRL; empty where there is none."""
    values: dict[str, str]
    """Our values by theirs: `value` of the same setting, or `section.key=value` where another one is meant."""
    note: str
    """The difference, or the reason why there is no equivalent."""


_LOSS_TYPES = {
    "grpo": "sequence_mean", "dapo": "token_mean", "bnpo": "microbatch_token_mean", "dr_grpo": "fixed_length",
    "cispo": "algorithm.surrogate=cispo", "sapo": "algorithm.surrogate=sapo", "gspo": "algorithm.surrogate=gspo",
}  # fmt: skip
"""Of TRL."""
_LOSS_AGG_MODES = {
    "token-mean": "token_mean", "seq-mean-token-mean": "sequence_mean", "seq-mean-token-sum": "fixed_length",
    "seq-mean-token-sum-norm": "fixed_length",
}  # fmt: skip
_KL_TYPES = {"kl": "k1", "mse": "k2", "low_var_kl": "k3", "low_var_kl+": "k3_k2", "k3+": "k3_k2", "full": "reverse"}
_SWITCH = {"true": "on", "false": "off"}
_ENGINE = "SlimRL samples with its own engine from the module that it trains"
_PRECISION = {"true": "model.dtype=bfloat16", "false": "model.dtype=float32"}
_ONE_GPU = "SlimRL trains on one device"


def _names(
    ours: str, *, trl: str = "", verl: str = "", values: dict[str, str] | None = None, note: str = ""
) -> list[Foreign]:
    """Rows of the table for the names, separated by spaces, that one setting of SlimRL has in TRL and verl."""
    origins: dict[str, Origin] = dict.fromkeys(trl.split(), "TRL")
    for name in verl.split():
        origins[name] = "TRL and verl" if name in origins else "verl"
    return [Foreign(name, origin, ours, values or {}, note) for name, origin in origins.items()]


NAMES: tuple[Foreign, ...] = (
    # the policy
    *_names("model.path", trl="model_name_or_path", verl="actor_rollout_ref.model.path"),
    *_names("model.revision", trl="model_revision"),
    *_names("model.dtype", trl="torch_dtype"),
    *_names("model.dtype", trl="bf16", values=_PRECISION, note="masters stay float32"),
    *_names("model.dtype", trl="fp16", values={"true": "model.dtype=float16", "false": "model.dtype=float32"}),
    *_names("model.lora.rank", trl="lora_r", verl="lora_rank"),
    *_names("model.lora.rank", trl="use_peft", values={"true": "16", "false": "0"}, note="0 trains the weights themselves"),
    *_names("model.lora.alpha", trl="lora_alpha", verl="lora_alpha"),
    *_names("model.lora.targets", trl="lora_target_modules", verl="target_modules"),
    *_names("model.quantize", trl="load_in_4bit", values={"true": "4bit", "false": "none"}, note="NF4 with quantized scales"),
    *_names("model.quantize", trl="load_in_8bit", values={"true": "8bit", "false": "none"}),
    *_names("", trl="lora_dropout", note="with dropout sampler and trainer would be two policies"),
    *_names("model.device", trl="use_cpu", values={"true": "cpu", "false": "auto"}),
    # rollouts
    *_names("rollout.group_size", trl="num_generations", verl="actor_rollout_ref.rollout.n"),
    *_names("rollout.max_new_tokens", trl="max_completion_length", verl="data.max_response_length response_length"),
    *_names("rollout.problems", verl="data.train_batch_size", note="counts problems, as here"),
    *_names("rollout.problems", trl="per_device_train_batch_size generation_batch_size",
            note="TRL counts completions, SlimRL problems"),
    *_names("rollout.top_p", trl="top_p", verl="top_p", note="must stay 1 while training"),
    *_names("rollout.top_k", trl="top_k", verl="top_k", note="must stay 0 while training"),
    *_names("", trl="min_p", note="a truncated support would make importance ratios wrong"),
    *_names("", trl="repetition_penalty", note="it would train on another distribution than it samples"),
    # the loss
    *_names("algorithm.kl_coef", trl="beta", verl="actor_rollout_ref.actor.kl_loss_coef"),
    *_names("algorithm.kl_place", verl="use_kl_loss", values={"true": "loss", "false": "algorithm.kl_coef=0"}),
    *_names("algorithm.kl_place", verl="use_kl_in_reward", values={"true": "reward", "false": "loss"}),
    *_names("algorithm.kl_estimator", verl="kl_loss_type kl_penalty", values=_KL_TYPES),
    *_names("algorithm.clip_low", trl="epsilon", note="optimizer.epsilon is AdamW's"),
    *_names("algorithm.clip_low", trl="epsilon_low", verl="clip_ratio_low"),
    *_names("algorithm.clip_high", trl="epsilon_high", verl="clip_ratio_high"),
    *_names("algorithm.clip_low", trl="cliprange", verl="clip_ratio", note="and algorithm.clip_high"),
    *_names("algorithm.dual_clip", trl="delta", verl="clip_ratio_c"),
    *_names("algorithm.aggregation", trl="loss_type", values=_LOSS_TYPES),
    *_names("algorithm.aggregation", verl="loss_agg_mode", values=_LOSS_AGG_MODES),
    *_names("algorithm.surrogate", trl="importance_sampling_level",
            values={"token": "clip", "sequence": "gspo", "sequence_token": "gspo_token"}),
    *_names("algorithm.surrogate", verl="policy_loss.loss_mode", values={"vanilla": "clip"}),
    *_names("algorithm.baseline", verl="adv_estimator",
            values={"grpo": "group_mean", "gae": "critic", "rloo": "leave_one_out", "reinforce": "none"}),
    *_names("algorithm.scale_rewards", verl="norm_adv_by_std_in_grpo", values={"true": "group", "false": "none"}),
    *_names("rewards", trl="reward_weights", note="every reward of the section rewards is a weight"),
    *_names("rewards.custom", trl="reward_funcs", note="file.py:function, with its bounds"),
    *_names("algorithm.overlong_filtering", trl="mask_truncated_completions"),
    *_names("algorithm.entropy_coef", verl="entropy_coeff"),
    *_names("algorithm.entropy_share", trl="top_entropy_quantile"),
    *_names("algorithm.sapo_up", trl="sapo_temperature_pos"),
    *_names("algorithm.sapo_down", trl="sapo_temperature_neg"),
    *_names("algorithm.importance", trl="vllm_importance_sampling_correction",
            values={"true": "truncate", "false": "off"}),
    *_names("algorithm.importance_cap", trl="vllm_importance_sampling_cap"),
    *_names("algorithm.dynamic_sampling", verl="filter_groups.enable", values={"true": "refill", "false": "off"}),
    *_names("algorithm.refill_budget", verl="filter_groups.max_num_gen_batches"),
    *_names("rewards.soft_overlong", verl="overlong_buffer.enable", values={"true": "1", "false": "0"}),
    *_names("rewards.overlong_buffer", verl="overlong_buffer.len"),
    *_names("rewards.soft_overlong", verl="overlong_buffer.penalty_factor"),
    *_names("critic.gae_lambda", trl="lam", verl="lam"),
    *_names("critic.discount", trl="gamma", verl="gamma"),
    *_names("critic.value_clip", trl="cliprange_value", verl="cliprange_value"),
    # the optimizer
    *_names("optimizer.learning_rate", verl="lr actor_rollout_ref.actor.optim.lr"),
    *_names("optimizer.schedule", trl="lr_scheduler_type",
            values={"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}),
    *_names("optimizer.warmup_steps", verl="lr_warmup_steps"),
    *_names("optimizer.warmup_steps", trl="warmup_ratio", verl="lr_warmup_steps_ratio",
            note="a number of updates, not a share"),
    *_names("optimizer.beta1", trl="adam_beta1"),
    *_names("optimizer.beta2", trl="adam_beta2"),
    *_names("optimizer.epsilon", trl="adam_epsilon"),
    *_names("optimizer.max_grad_norm", verl="grad_clip"),
    *_names("optimizer.epochs", trl="num_iterations num_ppo_epochs", verl="ppo_epochs"),
    *_names("optimizer.minibatches", trl="num_mini_batches"),
    *_names("optimizer.minibatches", trl="steps_per_generation", note="divided by gradient_accumulation_steps"),
    *_names("optimizer.minibatches", verl="ppo_mini_batch_size", note="a number of updates, not a size"),
    *_names("optimizer.microbatch_tokens", trl="gradient_accumulation_steps", note="micro-batches are cut by tokens"),
    *_names("optimizer.microbatch_tokens", verl="ppo_micro_batch_size_per_gpu", note="in tokens, not in rows"),
    *_names("optimizer.microbatch_tokens", verl="ppo_max_token_len_per_gpu"),
    *_names("optimizer.activation_checkpointing", trl="gradient_checkpointing", verl="enable_gradient_checkpointing",
            values=_SWITCH),
    # the run
    *_names("steps", trl="max_steps", verl="total_training_steps"),
    *_names("steps", trl="num_train_epochs", verl="total_epochs",
            note="a number of rollout batches, not of passes over the data"),
    *_names("output", trl="output_dir", verl="default_local_dir"),
    *_names("name", trl="run_name", verl="experiment_name"),
    *_names("checkpoint.every", trl="save_steps", verl="save_freq"),
    *_names("checkpoint.keep", trl="save_total_limit"),
    *_names("evaluation.every", trl="eval_steps", verl="test_freq"),
    *_names("log.rollouts", trl="log_completions"),
    *_names("log.to", trl="report_to", verl="logger"),
    *_names("log.to", trl="wandb", verl="wandb", values={"true": "log.to=wandb"}),
    *_names("log.project", verl="project_name"),
    *_names("task.path", trl="dataset_name", note="the name of a data set on the Hub, or a file"),
    *_names("task.subset", trl="dataset_config"),
    *_names("task.split", trl="dataset_train_split"),
    *_names("task.test_split", trl="dataset_test_split"),
    *_names("task.columns.question", verl="data.prompt_key"),
    *_names("task.path", trl="train_dataset", verl="data.train_files"),
    *_names("task.test_path", trl="eval_dataset", verl="data.val_files"),
    *_names("task.instruction", trl="system_prompt"),
    # no equivalent
    *_names("", trl="use_vllm", note=f"{_ENGINE}, so there is no other to choose"),
    *_names("", trl="vllm_mode", note=_ENGINE),
    *_names("", trl="vllm_gpu_memory_utilization", verl="gpu_memory_utilization",
            note=f"{_ENGINE}; memory_share bounds the memory of both"),
    *_names("", trl="deepspeed fsdp", verl="tensor_model_parallel_size n_gpus_per_node", note=_ONE_GPU),
    *_names("", trl="logging_steps", note="every step is logged"),
    *_names("", trl="push_to_hub", note="slimrl export RUN owner/name --for hub --push does it after the run"),
    *_names("", trl="optim", note="the optimizer is AdamW with float32 masters"),
    *_names("", trl="use_liger_kernel use_liger_loss", note="log-probabilities are computed in chunks always"),
    *_names("", trl="sync_ref_model ref_model_mixup_alpha", note="the reference stays as it is"),
    *_names("algorithm.reference", trl="teacher_model_name_or_path"),
    *_names("", trl="max_prompt_length", verl="data.max_prompt_length",
            note="prompts that do not fit the context are left out, and none is cut"),
    *_names("", trl="remove_unused_columns", note="rewards always get every column of the data"),
    *_names("", trl="shuffle_dataset", note="curriculum.order decides the order of the problems"),
    *_names("", verl="use_dynamic_bsz", note="micro-batches are always cut by tokens"),
)  # fmt: skip

VALUES: dict[str, dict[str, str]] = {
    "model.dtype": {
        "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32",
        "torch.bfloat16": "bfloat16", "torch.float16": "float16", "torch.float32": "float32",
    },
    "model.device": {"gpu": "cuda", "cuda:0": "cuda"},
    "algorithm.aggregation": _LOSS_TYPES | _LOSS_AGG_MODES,
    "algorithm.surrogate": {"ppo": "clip", "grpo": "clip", "dapo": "clip", "vanilla": "clip", "sequence": "gspo"},
    "algorithm.baseline": {"rloo": "leave_one_out", "gae": "critic", "grpo": "group_mean", "mean": "group_mean"},
    "algorithm.scale_rewards": {"true": "group", "false": "none", "std": "group", "off": "none"},
    "algorithm.kl_estimator": _KL_TYPES,
    "algorithm.dynamic_sampling": {"true": "refill", "false": "off", "on": "refill"},
    "algorithm.importance": {"true": "truncate", "false": "off"},
    "optimizer.activation_checkpointing": _SWITCH,
    "optimizer.reference_offload": _SWITCH,
    "optimizer.schedule": {"constant_with_warmup": "constant"},
    "task.name": {
        "openai/gsm8k": "gsm8k", "math500": "math", "math-500": "math", "huggingfaceh4/math-500": "math",
        "json": "jsonl", "csv": "jsonl", "parquet": "jsonl", "builtin": "arithmetic",
    },
    "task.checker": {
        "math_verify": "symbolic", "math-verify": "symbolic", "latex": "symbolic", "exact_match": "exact", "string": "exact",
        "multiple_choice": "choice", "mcq": "choice", "pattern": "regex", "off": "none",
    },
    "task.style": {"gsm8k": "hashes", "####": "hashes", "latex": "boxed", "xml": "tags"},
}  # fmt: skip
"""Values that other libraries give to settings which SlimRL has too, by the dotted key."""


def find(key: str) -> Foreign | None:
    """The setting of another library that a dotted key names, spelled with `_` or `-`; the longest name that ends it is meant."""
    wanted = "." + key.lower().replace("-", "_")
    fitting = [name for name in NAMES if wanted.endswith("." + name.name) or ("." + name.name).endswith(wanted)]
    exact = [name for name in fitting if wanted.endswith("." + name.name)]
    return max(exact or fitting, key=lambda name: len(name.name) if exact else -len(name.name), default=None)


def translated(foreign: Foreign, value: object) -> str:
    """`section.key=value` for a value of another library's setting, `section.key` where the value has no translation."""
    theirs = str(value).lower()
    if theirs not in foreign.values:
        return foreign.ours
    ours = foreign.values[theirs]
    return ours if "=" in ours else f"{foreign.ours}={ours}"
