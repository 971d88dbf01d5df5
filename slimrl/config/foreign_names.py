"""The names of TRL, verl and others for the settings of SlimRL, and the reasons why some of theirs have no equivalent.

docs/names.md is this table as a page; a test holds the two together. It answers unknown settings (config/mistakes.py), and
`slimrl from-trl` and `slimrl from-verl` translate files by it (slimrl/translate/).
"""

from dataclasses import dataclass
from typing import Literal

Origin = Literal["TRL", "verl", "TRL and verl", "OpenRLHF", "prime-rl", "Unsloth", "open-r1"]


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
_ENGINE = "SlimRL samples with its own engine from the module that it trains; rollout.engine=vllm has vLLM sample"
_PRECISION = {"true": "model.dtype=bfloat16", "false": "model.dtype=float32"}
_WHOLE = (
    "devices=N or torchrun shares the work of a run, optimizer.sharded divides the optimizer's state, and parallel=fsdp also "
    "weights and gradients during an update"
)
_MEASURED = "measured before the run, by slimrl difficulty"


def _names(
    ours: str, *, trl: str = "", verl: str = "", values: dict[str, str] | None = None, note: str = ""
) -> list[Foreign]:
    """Rows of the table for the names, separated by spaces, that one setting of SlimRL has in TRL and verl."""
    origins: dict[str, Origin] = dict.fromkeys(trl.split(), "TRL")
    for name in verl.split():
        origins[name] = "TRL and verl" if name in origins else "verl"
    return [Foreign(name, origin, ours, values or {}, note) for name, origin in origins.items()]


def _none(origin: Origin, names: str, note: str) -> list[Foreign]:
    """Rows for the names, separated by spaces, of a library that have no equivalent for one reason."""
    return [Foreign(name, origin, "", {}, note) for name in names.split()]


NAMES: tuple[Foreign, ...] = (
    # the policy
    *_names("model.path", trl="model_name_or_path", verl="actor_rollout_ref.model.path"),
    *_names("model.revision", trl="model_revision"),
    *_names("model.dtype", trl="torch_dtype dtype"),
    *_names("model.dtype", trl="bf16", values=_PRECISION, note="masters stay float32"),
    *_names("model.dtype", trl="fp16", values={"true": "model.dtype=float16", "false": "model.dtype=float32"}),
    *_names("model.lora.rank", trl="lora_r", verl="lora_rank"),
    *_names("model.lora.rank", trl="use_peft", values={"true": "16", "false": "0"}, note="0 trains the weights themselves"),
    *_names("model.lora.alpha", trl="lora_alpha", verl="lora_alpha"),
    *_names("model.lora.targets", trl="lora_target_modules", verl="target_modules"),
    *_names("model.quantize", trl="load_in_4bit", values={"true": "4bit", "false": "none"}, note="NF4 with quantized scales"),
    *_names("model.quantize", trl="load_in_8bit", values={"true": "8bit", "false": "none"}),
    *_names("", trl="lora_dropout", note="with dropout sampler and trainer would be two policies"),
    *_names("model.lora.alpha", trl="use_rslora", note="multiplies lora_alpha by the square root of the rank"),
    *_names("model.trust_remote_code", trl="trust_remote_code", note="needs model.revision, which pins the code"),
    *_names("model.device", trl="use_cpu", values={"true": "cpu", "false": "auto"}),
    # rollouts
    *_names("rollout.group_size", trl="num_generations", verl="actor_rollout_ref.rollout.n"),
    *_names("rollout.max_new_tokens", trl="max_completion_length", verl="data.max_response_length response_length"),
    *_names("rollout.problems", verl="data.train_batch_size", note="counts problems, as here"),
    *_names("rollout.problems", trl="per_device_train_batch_size generation_batch_size",
            note="TRL counts completions, SlimRL problems"),
    *_names("rollout.temperature", trl="temperature", verl="actor_rollout_ref.rollout.temperature"),
    *_names("rollout.top_p", trl="top_p", verl="top_p", note="must stay 1 while training"),
    *_names("rollout.top_k", trl="top_k", verl="top_k", note="must stay 0 while training"),
    *_names("", trl="min_p", note="a truncated support would make importance ratios wrong"),
    *_names("", trl="repetition_penalty", note="it would train on another distribution than it samples"),
    # the loss
    *_names("algorithm.kl_coef", trl="beta", verl="actor_rollout_ref.actor.kl_loss_coef"),
    *_names("algorithm.kl_coef", verl="kl_ctrl.kl_coef", note="with use_kl_in_reward"),
    *_names("algorithm.kl_place", verl="use_kl_loss", values={"true": "loss", "false": "algorithm.kl_coef=0"}),
    *_names("algorithm.kl_place", verl="use_kl_in_reward", values={"true": "reward", "false": "loss"}),
    *_names("algorithm.kl_estimator", verl="kl_loss_type kl_penalty", values=_KL_TYPES),
    *_names("algorithm.kl_estimator", trl="use_bias_correction_kl", values={"true": "k3_k2", "false": "k3"},
            note="k3 times the ratio has the gradient of k3_k2 at a ratio of 1"),
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
    *_names("algorithm.scale_rewards", trl="scale_rewards",
            values={"true": "group", "false": "none", "group": "group", "batch": "batch", "none": "none"}),
    *_names("algorithm.normalize_components", trl="multi_objective_aggregation",
            values={"sum_then_normalize": "false", "normalize_then_sum": "true"}),
    *_names("rewards", trl="reward_weights", note="every reward of the section rewards is a weight"),
    *_names("rewards.custom", trl="reward_funcs", note="file.py:function or package.module:function, with its weight"),
    *_names("algorithm.overlong_filtering", trl="mask_truncated_completions"),
    *_names("algorithm.entropy_coef", trl="entropy_coef", verl="entropy_coeff"),
    *_names("algorithm.entropy_share", trl="top_entropy_quantile"),
    *_names("algorithm.sapo_up", trl="sapo_temperature_pos"),
    *_names("algorithm.sapo_down", trl="sapo_temperature_neg"),
    *_names("algorithm.importance", trl="vllm_importance_sampling_correction",
            values={"true": "mask", "false": "off"},
            note="corrects rounding alone, unless rollout.engine=vllm samples"),
    *_names("algorithm.importance", trl="vllm_importance_sampling_mode",
            values={"token_truncate": "truncate", "token_mask": "mask", "sequence_truncate": "truncate",
                    "sequence_mask": "mask"}, note="token or sequence is algorithm.importance_level"),
    *_names("algorithm.importance_cap", trl="vllm_importance_sampling_clip_max vllm_importance_sampling_cap"),
    *_names("algorithm.dynamic_sampling", verl="filter_groups.enable", values={"true": "refill", "false": "off"}),
    *_names("algorithm.refill_budget", verl="filter_groups.max_num_gen_batches"),
    *_names("rewards.soft_overlong", verl="overlong_buffer.enable", values={"true": "1", "false": "0"}),
    *_names("rewards.overlong_buffer", verl="overlong_buffer.len"),
    *_names("rewards.soft_overlong", verl="overlong_buffer.penalty_factor"),
    *_names("critic.gae_lambda", trl="lam", verl="lam"),
    *_names("critic.discount", trl="gamma", verl="gamma"),
    *_names("critic.value_clip", trl="cliprange_value", verl="cliprange_value"),
    Foreign("dynamic_filtering", "OpenRLHF", "algorithm.dynamic_sampling", {"true": "refill", "false": "off"}, ""),
    Foreign("dynamic_filtering_reward_range", "OpenRLHF", "algorithm.signal", {}, "a group with any difference has a signal; "
            "task.success_rate is an interval of rates measured before the run"),
    Foreign("online_difficulty_filtering", "prime-rl", "algorithm.dynamic_sampling", {"true": "filter", "false": "off"}, ""),
    Foreign("solve_rate_field", "prime-rl", "task.rates", {}, "a file of rates that slimrl difficulty writes, not a column"),
    *(Foreign(name, "prime-rl", "task.success_rate", {}, f"an end of the interval, {_MEASURED}")
      for name in ("min_solve_rate", "max_solve_rate", "easy_threshold", "hard_threshold")),
    # the optimizer
    *_names("optimizer.learning_rate", trl="learning_rate", verl="lr actor_rollout_ref.actor.optim.lr"),
    *_names("optimizer.weight_decay", trl="weight_decay", verl="actor_rollout_ref.actor.optim.weight_decay"),
    *_names("optimizer.schedule", trl="lr_scheduler_type",
            values={"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}),
    *_names("optimizer.warmup_steps", trl="warmup_steps", verl="lr_warmup_steps"),
    *_names("optimizer.warmup_steps", trl="warmup_ratio", verl="lr_warmup_steps_ratio",
            note="a number of updates, not a share"),
    *_names("optimizer.beta1", trl="adam_beta1"),
    *_names("optimizer.beta2", trl="adam_beta2"),
    *_names("optimizer.epsilon", trl="adam_epsilon"),
    *_names("optimizer.max_grad_norm", trl="max_grad_norm", verl="grad_clip"),
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
    *_names("seed", trl="seed"),
    *_names("checkpoint.every", trl="save_steps", verl="save_freq"),
    *_names("checkpoint.keep", trl="save_total_limit"),
    *_names("checkpoint.every", trl="save_strategy", values={"no": "0"}, note="a number of steps"),
    *_names("evaluation.every", trl="eval_steps", verl="test_freq"),
    *_names("evaluation.every", trl="eval_strategy", values={"no": "0"}, note="a number of steps"),
    *_names("evaluation.samples", trl="num_generations_eval"),
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
    *_names("task.template_arguments", trl="chat_template_kwargs"),
    Foreign("dataset_prompt_column", "open-r1", "task.columns.question", {}, ""),
    Foreign("random_state", "Unsloth", "seed", {}, ""),
    Foreign("use_gradient_checkpointing", "Unsloth", "optimizer.activation_checkpointing",
            {"unsloth": "on", **_SWITCH}, ""),
    # no equivalent
    *_names("", trl="use_vllm", note=f"{_ENGINE}, for large models"),
    *_names("", trl="vllm_mode", note=_ENGINE),
    *_names("", trl="vllm_gpu_memory_utilization", verl="gpu_memory_utilization",
            note=f"{_ENGINE}; memory_share bounds the memory of both"),
    *_names("", trl="deepspeed fsdp", verl="tensor_model_parallel_size", note=_WHOLE),
    *_names("devices", verl="n_gpus_per_node"),
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
    # of the data
    *_names("", trl="datasets", note="one data set is trained on; join the files, and name the result in task.path"),
    *_names("", trl="dataset_streaming", note="the rows are read before the run, which checks every one of them"),
    *_names("", trl="data_seed", note="seed decides the order of the problems too"),
    *_names("", trl="ignore_data_skip", note="a resumed run goes on with the problem that would have come"),
    *_names("", trl="train_sampling_strategy length_column_name group_by_length",
            note="the order of problems is curriculum.order, and rows are packed whatever their lengths"),
    *_names("", trl="dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
            "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order pad_to_multiple_of "
            "label_names include_num_input_tokens_seen average_tokens_across_devices accelerator_config",
            note="problems are texts in memory and rows are packed, so there is no loader and no padding"),
    # of the model
    *_names("", trl="attn_implementation use_kernels", note="attention is computed by SlimRL on the model's own modules"),
    *_names("", trl="model_init_kwargs", note="settings of the section model stand for its entries"),
    *_names("", trl="disable_dropout cast_lm_head_to_fp32",
            note="no dropout acts while training, and log-probabilities are computed in float32 always"),
    *_names("", trl="router_aux_loss_coef", note="the loss of a router is no part of the loss here"),
    *_names("", trl="use_dora lora_modules_to_save lora_target_parameters lora_task_type lora_bias init_lora_weights",
            note="an adapter is plain LoRA on linear layers of a causal language model"),
    *_names("", trl="bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_use_double_quant bnb_4bit_quant_storage "
            "bnb_4bit_compute_dtype",
            note="model.quantize=4bit is NF4 with quantized scales, and computes in model.dtype"),
    *_names("", trl="neftune_noise_alpha label_smoothing_factor", note="it acts on imitation, not on a policy gradient"),
    # of sampling
    *_names("", trl="generation_kwargs cache_implementation vllm_structured_outputs_regex suppress_tokens",
            note="tokens are drawn from the model's whole distribution at rollout.temperature"),
    *_names("", trl="vllm_model_impl vllm_enable_sleep_mode vllm_server_base_url vllm_server_host vllm_server_port "
            "vllm_server_timeout vllm_group_port vllm_max_model_length vllm_tensor_parallel_size vllm_device vllm_dtype "
            "use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged "
            "ds3_gather_for_generation", note=_ENGINE),
    *_names("", trl="vllm_importance_sampling_clip_min", note="algorithm.importance_cap bounds a weight from both sides"),
    *_names("", trl="max_tool_calling_iterations tools environment_factory rollout_func",
            note="environment.name=file.py:Class names a class with turns and tools, also one for TRL's environment_factory "
            "(docs/others-environments.md), and environment.turns bounds its turns"),
    # of the loss
    *_names("", trl="vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg", note="there is no surrogate of VESPO"),
    *_names("", trl="off_policy_mask_threshold", note="the nearest are algorithm.importance=mask and few optimizer.epochs"),
    *_names("", trl="use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target",
            note="algorithm.entropy_coef stays as it is"),
    *_names("", trl="ref_model_sync_steps", note="the reference stays as it is"),
    *_names("", trl="reward_model_name_or_path reward_processing_classes",
            note="a language model behind an endpoint scores as rewards.judge, any other model in a function of your own"),
    # of the optimizer and the hardware
    *_names("", trl="optim_args optim_target_modules", note="the optimizer is AdamW with float32 masters"),
    *_names("", trl="lr_scheduler_kwargs", note="linear and cosine fall to 0 once"),
    *_names("", trl="auto_find_batch_size", note="optimizer.microbatch_tokens=auto fits the memory"),
    *_names("", trl="activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs",
            note="optimizer.activation_checkpointing is the switch"),
    *_names("", trl="torch_compile torch_compile_backend torch_compile_mode", note="rollout.compile compiles decode steps"),
    *_names("", trl="tf32 bf16_full_eval fp16_full_eval", note="model.dtype is the precision of sampling and training"),
    *_names("", trl="liger_kernel_config", note="log-probabilities are computed in chunks always"),
    *_names("", trl="use_cache torch_empty_cache_steps skip_memory_metrics eval_accumulation_steps full_determinism",
            note="memory is planned before the run, and draws are the same at every size"),
    *_names("", trl="fsdp_config parallelism_config local_rank ddp_backend ddp_timeout ddp_find_unused_parameters "
            "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ignore_bias_buffers", note=_WHOLE),
    # of the run
    *_names("", trl="do_train do_eval do_predict eval_on_start prediction_loss_only eval_do_concat_batches "
            "eval_use_gather_object include_for_metrics batch_eval_metrics eval_delay per_device_eval_batch_size",
            note="held-out accuracy is measured before and after every run, and at evaluation.every"),
    *_names("", trl="load_best_model_at_end metric_for_best_model greater_is_better",
            note="checkpoint.keep_best keeps the checkpoint with the best held-out accuracy beside the last one"),
    *_names("", trl="save_only_model save_on_each_node enable_jit_checkpoint overwrite_output_dir save_safetensors "
            "restore_callback_states_from_checkpoint", note="a checkpoint has all that resuming needs; no run is overwritten"),
    *_names("", trl="resume_from_checkpoint", note="slimrl train --resume goes on with a run"),
    *_names("", trl="logging_strategy logging_first_step logging_dir logging_nan_inf_filter log_level log_level_replica "
            "log_on_each_node disable_tqdm num_completions_to_print log_unique_prompts log_multimodal debug",
            note="every step is logged, and log.rollouts keeps every completion"),
    *_names("log.project", trl="project"),
    *_names("", trl="trackio_space_id trackio_bucket_id trackio_static_space_id",
            note="log.to=trackio keeps a run on this machine, or in the Space that TRACKIO_SPACE_ID names"),
    *_names("", trl="hub_model_id hub_token hub_strategy hub_private_repo hub_always_push hub_revision "
            "log_completions_hub_repo", note="slimrl export RUN OWNER/NAME --for hub --push sends a trained model to the Hub"),
    *_names("", trl="callbacks", note="a run has no callbacks; metrics.jsonl has the numbers of every step"),
    Foreign("wandb_project", "open-r1", "log.project", {}, ""),
    Foreign("wandb_run_group", "open-r1", "log.group", {}, ""),
    *_none("open-r1", "wandb_entity", "log.to=wandb reads WANDB_ENTITY from the environment, as wandb does"),
    *_none("open-r1", "benchmarks push_to_hub_revision overwrite_hub_revision",
           "slimrl eval RUN --task NAME measures a trained model"),
    *_none("open-r1", "chat_template", "the tokenizer's own template writes the prompts; task.template=plain does without"),
    Foreign("cosine_max_value_correct", "open-r1", "rewards.cosine_right_short", {}, ""),
    Foreign("cosine_min_value_correct", "open-r1", "rewards.cosine_right_long", {}, ""),
    Foreign("cosine_min_value_wrong", "open-r1", "rewards.cosine_wrong_short", {}, ""),
    Foreign("cosine_max_value_wrong", "open-r1", "rewards.cosine_wrong_long", {}, ""),
    Foreign("repetition_n_grams", "open-r1", "rewards.repetition_ngram", {}, "of tokens, not of words"),
    Foreign("repetition_max_penalty", "open-r1", "rewards.repetition", {}, "a weight, so it is positive"),
    *_none("open-r1", "cosine_max_len code_language code_eval_test_batch_size code_provider "
           "parallel_code_exec_per_proc max_completion_len soft_punish_cache",
           "an argument of a reward function; give it to a function of your own (rewards.custom)"),
    *_none("Unsloth", "max_seq_length", "the context is the model's own, and rollout.max_new_tokens bounds a completion"),
    *_none("Unsloth", "fast_inference max_lora_rank vllm_sampling_params unsloth_num_chunks unsloth_vllm_standby "
           "float8_kv_cache", _ENGINE),
    *_none("Unsloth", "full_finetuning", "without an adapter the weights themselves are trained"),
    *_none("Unsloth", "loftq_config", "an adapter is plain LoRA on linear layers of a causal language model"),
    # of verl
    *_names("", verl="data.filter_overlong_prompts data.truncation data.filter_overlong_prompts_workers",
            note="prompts that do not fit the context are left out, and none is cut"),
    *_names("", verl="data.shuffle data.seed data.return_raw_chat data.reward_fn_key data.val_batch_size data.image_key",
            note="rows are read as docs/data.md has it, and curriculum.order decides the order of the problems"),
    *_names("", verl="actor_rollout_ref.rollout.name actor_rollout_ref.rollout.mode enforce_eager free_cache_engine "
            "max_num_batched_tokens max_num_seqs max_model_len enable_chunked_prefill load_format layered_summon "
            "actor_rollout_ref.rollout.dtype actor_rollout_ref.rollout.do_sample actor_rollout_ref.hybrid_engine",
            note=_ENGINE),
    *_names("", verl="log_prob_micro_batch_size log_prob_micro_batch_size_per_gpu log_prob_max_token_len_per_gpu "
            "log_prob_use_dynamic_bsz ppo_micro_batch_size", note="micro-batches are always cut by tokens"),
    *_names("", verl="param_offload optimizer_offload offload_policy fsdp_size strategy "
            "ulysses_sequence_parallel_size nnodes balance_batch reshard_after_forward", note=_WHOLE),
    *_names("", verl="use_remove_padding use_torch_compile use_fused_kernels use_liger override_config",
            note="rows are packed without padding, and layers are computed by SlimRL"),
    *_names("", verl="val_kwargs.n val_kwargs.temperature val_kwargs.do_sample val_kwargs.top_p val_kwargs.top_k",
            note="held-out problems are answered greedily and evaluation.samples times at the training temperature"),
    *_names("", verl="val_before_train val_only log_val_generations validation_data_dir rollout_data_dir",
            note="held-out accuracy is measured before and after every run, and log.rollouts keeps every completion"),
    *_names("", verl="critic_warmup", note="policy and critic learn from the first step"),
    *_names("", verl="resume_mode resume_from_path default_hdfs_dir del_local_ckpt_after_load max_actor_ckpt_to_keep",
            note="slimrl train --resume goes on with a run, and checkpoint.keep is the number of checkpoints"),
    *_names("", verl="custom_reward_function.path custom_reward_function.name",
            note="its signature is another; write a function of rewards.custom around it"),
    *_names("", verl="reward_manager", note="correctness is the task's checker, and punishments are settings of rewards"),
    *_names("critic.learning_rate", verl="critic.optim.lr"),
    *_names("", verl="critic.model.path critic.ppo_micro_batch_size_per_gpu critic.model.use_remove_padding "
            "critic.model.enable_gradient_checkpointing", note="the critic is a copy of the policy with a head of its own"),
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

_ROWS = {foreign.name: foreign for foreign in NAMES}


def find(key: str) -> Foreign | None:
    """The setting of another library that a dotted key names, spelled with `_` or `-`; the longest name that ends it is meant."""
    wanted = "." + key.lower().replace("-", "_")
    fitting = [name for name in NAMES if wanted.endswith("." + name.name) or ("." + name.name).endswith(wanted)]
    exact = [name for name in fitting if wanted.endswith("." + name.name)]
    return max(exact or fitting, key=lambda name: len(name.name) if exact else -len(name.name), default=None)


def row(name: str) -> Foreign | None:
    """The row of a name as it is written there; None if it is in no row."""
    return _ROWS.get(name)


def typed(value: str) -> object:
    """A value of the table as its setting takes it: most are words."""
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.isdigit() else value


def translated(foreign: Foreign, value: object) -> str:
    """`section.key=value` for a value of another library's setting, `section.key` where the value has no translation."""
    theirs = str(value).lower()
    if theirs not in foreign.values:
        return foreign.ours
    ours = foreign.values[theirs]
    return ours if "=" in ours else f"{foreign.ours}={ours}"
