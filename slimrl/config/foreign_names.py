"""The names of TRL and verl for the settings of SlimRL, and the reasons why some of theirs have no equivalent.

docs/names.md is this table as a page; a test holds the two together.
"""

from dataclasses import dataclass, field
from typing import Literal

Origin = Literal["TRL", "verl", "TRL and verl"]


@dataclass(frozen=True)
class Foreign:
    """A setting of another library."""

    name: str
    """As it is written there; verl's with the sections that tell it from others."""
    origin: Origin
    ours: str = ""
    """The setting of SlimRL; empty where there is none."""
    values: dict[str, str] = field(default_factory=dict)
    """Our values by theirs: `value` of the same setting, or `section.key=value` where another one is meant."""
    note: str = ""
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
_RUN_FILES = "a run writes metrics.jsonl and curves.png into its folder and reports to no service"

NAMES: tuple[Foreign, ...] = (
    # the policy
    Foreign("model_name_or_path", "TRL", "model.path"),
    Foreign("model_revision", "TRL", "model.revision"),
    Foreign("actor_rollout_ref.model.path", "verl", "model.path"),
    Foreign("torch_dtype", "TRL", "model.dtype"),
    Foreign("bf16", "TRL", "model.dtype", _PRECISION, "masters stay float32"),
    Foreign("fp16", "TRL", "model.dtype", {"true": "model.dtype=float16", "false": "model.dtype=float32"}),
    Foreign("use_cpu", "TRL", "model.device", {"true": "cpu", "false": "auto"}),
    # rollouts
    Foreign("num_generations", "TRL", "rollout.group_size"),
    Foreign("actor_rollout_ref.rollout.n", "verl", "rollout.group_size"),
    Foreign("max_completion_length", "TRL", "rollout.max_new_tokens"),
    Foreign("data.max_response_length", "verl", "rollout.max_new_tokens"),
    Foreign("response_length", "verl", "rollout.max_new_tokens"),
    Foreign("data.train_batch_size", "verl", "rollout.problems", note="counts problems, as here"),
    Foreign("per_device_train_batch_size", "TRL", "rollout.problems", note="TRL counts completions, SlimRL problems"),
    Foreign("generation_batch_size", "TRL", "rollout.problems", note="TRL counts completions, SlimRL problems"),
    Foreign("top_p", "TRL and verl", "rollout.top_p", note="must stay 1 while training"),
    Foreign("top_k", "TRL and verl", "rollout.top_k", note="must stay 0 while training"),
    Foreign("min_p", "TRL", note="a truncated support would make importance ratios wrong"),
    Foreign("repetition_penalty", "TRL", note="it would train on another distribution than it samples"),
    # the loss
    Foreign("beta", "TRL", "algorithm.kl_coef"),
    Foreign("actor_rollout_ref.actor.kl_loss_coef", "verl", "algorithm.kl_coef"),
    Foreign("use_kl_loss", "verl", "algorithm.kl_place", {"true": "loss", "false": "algorithm.kl_coef=0"}),
    Foreign("use_kl_in_reward", "verl", "algorithm.kl_place", {"true": "reward", "false": "loss"}),
    Foreign("kl_loss_type", "verl", "algorithm.kl_estimator", _KL_TYPES),
    Foreign("kl_penalty", "verl", "algorithm.kl_estimator", _KL_TYPES),
    Foreign("epsilon", "TRL", "algorithm.clip_low", note="optimizer.epsilon is AdamW's"),
    Foreign("epsilon_low", "TRL", "algorithm.clip_low"),
    Foreign("epsilon_high", "TRL", "algorithm.clip_high"),
    Foreign("clip_ratio", "verl", "algorithm.clip_low", note="and algorithm.clip_high"),
    Foreign("clip_ratio_low", "verl", "algorithm.clip_low"),
    Foreign("clip_ratio_high", "verl", "algorithm.clip_high"),
    Foreign("cliprange", "TRL", "algorithm.clip_low", note="and algorithm.clip_high"),
    Foreign("clip_ratio_c", "verl", "algorithm.dual_clip"),
    Foreign("delta", "TRL", "algorithm.dual_clip"),
    Foreign("loss_type", "TRL", "algorithm.aggregation", _LOSS_TYPES),
    Foreign("loss_agg_mode", "verl", "algorithm.aggregation", _LOSS_AGG_MODES),
    Foreign("importance_sampling_level", "TRL", "algorithm.surrogate", {
        "token": "clip", "sequence": "gspo", "sequence_token": "gspo_token",
    }),
    Foreign("policy_loss.loss_mode", "verl", "algorithm.surrogate", {"vanilla": "clip"}),
    Foreign("adv_estimator", "verl", "algorithm.baseline", {
        "grpo": "group_mean", "gae": "critic", "rloo": "leave_one_out", "reinforce": "none",
    }),
    Foreign("norm_adv_by_std_in_grpo", "verl", "algorithm.scale_rewards", {"true": "group", "false": "none"}),
    Foreign("reward_weights", "TRL", "rewards", note="every reward of the section rewards is a weight"),
    Foreign("reward_funcs", "TRL", "rewards.custom", note="file.py:function, with its bounds"),
    Foreign("mask_truncated_completions", "TRL", "algorithm.overlong_filtering"),
    Foreign("entropy_coeff", "verl", "algorithm.entropy_coef"),
    Foreign("top_entropy_quantile", "TRL", "algorithm.entropy_share"),
    Foreign("sapo_temperature_pos", "TRL", "algorithm.sapo_up"),
    Foreign("sapo_temperature_neg", "TRL", "algorithm.sapo_down"),
    Foreign("vllm_importance_sampling_correction", "TRL", "algorithm.importance", {"true": "truncate", "false": "off"}),
    Foreign("vllm_importance_sampling_cap", "TRL", "algorithm.importance_cap"),
    Foreign("filter_groups.enable", "verl", "algorithm.dynamic_sampling", {"true": "refill", "false": "off"}),
    Foreign("filter_groups.max_num_gen_batches", "verl", "algorithm.refill_budget"),
    Foreign("overlong_buffer.enable", "verl", "rewards.soft_overlong", {"true": "1", "false": "0"}),
    Foreign("overlong_buffer.len", "verl", "rewards.overlong_buffer"),
    Foreign("overlong_buffer.penalty_factor", "verl", "rewards.soft_overlong"),
    Foreign("lam", "TRL and verl", "critic.gae_lambda"),
    Foreign("gamma", "TRL and verl", "critic.discount"),
    Foreign("cliprange_value", "TRL and verl", "critic.value_clip"),
    # the optimizer
    Foreign("lr", "verl", "optimizer.learning_rate"),
    Foreign("actor_rollout_ref.actor.optim.lr", "verl", "optimizer.learning_rate"),
    Foreign("lr_scheduler_type", "TRL", "optimizer.schedule", {
        "constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine",
    }),
    Foreign("lr_warmup_steps", "verl", "optimizer.warmup_steps"),
    Foreign("warmup_ratio", "TRL", "optimizer.warmup_steps", note="a number of updates, not a share"),
    Foreign("lr_warmup_steps_ratio", "verl", "optimizer.warmup_steps", note="a number of updates, not a share"),
    Foreign("adam_beta1", "TRL", "optimizer.beta1"),
    Foreign("adam_beta2", "TRL", "optimizer.beta2"),
    Foreign("adam_epsilon", "TRL", "optimizer.epsilon"),
    Foreign("grad_clip", "verl", "optimizer.max_grad_norm"),
    Foreign("num_iterations", "TRL", "optimizer.epochs"),
    Foreign("ppo_epochs", "verl", "optimizer.epochs"),
    Foreign("num_ppo_epochs", "TRL", "optimizer.epochs"),
    Foreign("num_mini_batches", "TRL", "optimizer.minibatches"),
    Foreign("steps_per_generation", "TRL", "optimizer.minibatches", note="divided by gradient_accumulation_steps"),
    Foreign("ppo_mini_batch_size", "verl", "optimizer.minibatches", note="a number of updates, not a size"),
    Foreign("gradient_accumulation_steps", "TRL", "optimizer.microbatch_tokens", note="micro-batches are cut by tokens"),
    Foreign("ppo_micro_batch_size_per_gpu", "verl", "optimizer.microbatch_tokens", note="in tokens, not in rows"),
    Foreign("ppo_max_token_len_per_gpu", "verl", "optimizer.microbatch_tokens"),
    Foreign("gradient_checkpointing", "TRL", "optimizer.activation_checkpointing", _SWITCH),
    Foreign("enable_gradient_checkpointing", "verl", "optimizer.activation_checkpointing", _SWITCH),
    # the run
    Foreign("max_steps", "TRL", "steps"),
    Foreign("total_training_steps", "verl", "steps"),
    Foreign("num_train_epochs", "TRL", "steps", note="a number of rollout batches, not of passes over the data"),
    Foreign("total_epochs", "verl", "steps", note="a number of rollout batches, not of passes over the data"),
    Foreign("output_dir", "TRL", "output"),
    Foreign("default_local_dir", "verl", "output"),
    Foreign("run_name", "TRL", "name"),
    Foreign("experiment_name", "verl", "name"),
    Foreign("save_steps", "TRL", "checkpoint.every"),
    Foreign("save_freq", "verl", "checkpoint.every"),
    Foreign("save_total_limit", "TRL", "checkpoint.keep"),
    Foreign("eval_steps", "TRL", "evaluation.every"),
    Foreign("test_freq", "verl", "evaluation.every"),
    Foreign("log_completions", "TRL", "log.rollouts"),
    Foreign("dataset_name", "TRL", "task.name", note="and task.path for a file of your own"),
    Foreign("train_dataset", "TRL", "task.path"),
    Foreign("eval_dataset", "TRL", "task.test_path"),
    Foreign("data.train_files", "verl", "task.path"),
    Foreign("data.val_files", "verl", "task.test_path"),
    Foreign("system_prompt", "TRL", "task.instruction"),
    # no equivalent
    Foreign("use_vllm", "TRL", note=f"{_ENGINE}, so there is no other to choose"),
    Foreign("vllm_mode", "TRL", note=_ENGINE),
    Foreign("vllm_gpu_memory_utilization", "TRL", note=f"{_ENGINE}; memory_share bounds the memory of both"),
    Foreign("gpu_memory_utilization", "verl", note=f"{_ENGINE}; memory_share bounds the memory of both"),
    Foreign("tensor_model_parallel_size", "verl", note=_ONE_GPU),
    Foreign("n_gpus_per_node", "verl", note=_ONE_GPU),
    Foreign("deepspeed", "TRL", note=_ONE_GPU),
    Foreign("fsdp", "TRL", note=_ONE_GPU),
    Foreign("report_to", "TRL", note=_RUN_FILES),
    Foreign("wandb", "TRL and verl", note=_RUN_FILES),
    Foreign("project_name", "verl", note=_RUN_FILES),
    Foreign("logger", "verl", note=_RUN_FILES),
    Foreign("logging_steps", "TRL", note="every step is logged"),
    Foreign("push_to_hub", "TRL", note="slimrl export copies the model to a folder, which hf upload can push"),
    Foreign("use_peft", "TRL", note="SlimRL trains all weights"),
    Foreign("lora", "TRL and verl", note="SlimRL trains all weights"),
    Foreign("lora_r", "TRL", note="SlimRL trains all weights"),
    Foreign("lora_rank", "verl", note="SlimRL trains all weights"),
    Foreign("load_in_4bit", "TRL", note="SlimRL trains all weights, in float32, bfloat16 or float16"),
    Foreign("optim", "TRL", note="the optimizer is AdamW with float32 masters"),
    Foreign("use_liger_kernel", "TRL", note="log-probabilities are computed in chunks always"),
    Foreign("use_liger_loss", "TRL", note="log-probabilities are computed in chunks always"),
    Foreign("sync_ref_model", "TRL", note="the reference is the initial model"),
    Foreign("ref_model_mixup_alpha", "TRL", note="the reference is the initial model"),
    Foreign("max_prompt_length", "TRL", note="prompts that do not fit the context are left out, and none is cut"),
    Foreign("data.max_prompt_length", "verl", note="prompts that do not fit the context are left out, and none is cut"),
    Foreign("remove_unused_columns", "TRL", note="rewards always get every column of the data"),
    Foreign("shuffle_dataset", "TRL", note="curriculum.order decides the order of the problems"),
    Foreign("use_dynamic_bsz", "verl", note="micro-batches are always cut by tokens"),
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
    "optimizer.schedule": {"constant_with_warmup": "constant"},
    "task.name": {
        "openai/gsm8k": "gsm8k", "math500": "math", "math-500": "math", "huggingfaceh4/math-500": "math",
        "json": "jsonl", "builtin": "arithmetic",
    },
    "task.checker": {"math_verify": "symbolic", "math-verify": "symbolic", "latex": "symbolic"},
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


def page() -> str:
    """docs/names.md."""
    lines = [
        "# Names in TRL and verl",
        "",
        "What the settings of TRL and verl are called in SlimRL. A run that is given one of these names is refused with the "
        "setting that is meant. `slimrl settings` explains every setting.",
        "",
        "| theirs | library | SlimRL | values and remarks |",
        "| --- | --- | --- | --- |",
    ]
    for name in NAMES:
        values = [f"`{theirs}`: `{ours}`" for theirs, ours in name.values.items()]
        remarks = "; ".join([*values, *([name.note] if name.note else [])])
        lines.append(f"| `{name.name}` | {name.origin} | {f'`{name.ours}`' if name.ours else 'none'} | {remarks} |")
    return "\n".join(lines) + "\n"
