"""Files of TRL become files that load, with the meaning of TRL's numbers, and a reason for every name that is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slimrl.config.files import load_config, settings_of
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.translate.script import script_source
from slimrl.translate.source import Source, mapping_source
from slimrl.translate.translation import Translation
from slimrl.translate.trl import DEFAULTS, OFF, from_trl
from tests.translate.trl_files import FILES


def source_of(tmp_path: Path, name: str, text: str) -> Source:
    file = tmp_path / name
    file.write_text(text)
    return script_source(str(file)) if name.endswith(".py") else mapping_source(str(file))


def translated(**given: Any) -> dict[str, Any]:
    """The settings of a translation by their keys, as they load."""
    found = from_trl(Source("x.yaml", {"model_name_or_path": "a/b", "dataset_name": "a/c", **given}))
    return {key: setting.value for key, setting in found.settings.items()}


def left_of(found: Translation) -> dict[str, str]:
    return {one.name: one.reason for one in found.left}


@pytest.mark.parametrize("name", FILES)
def test_a_public_configuration_becomes_a_file_that_loads(name: str, tmp_path: Path) -> None:
    source = source_of(tmp_path, name, FILES[name])
    found = from_trl(source)
    written = tmp_path / "ours.yaml"
    written.write_text(found.text())
    loaded = settings_of(load_config(TrainConfig, [str(written)]))
    for key, setting in found.settings.items():
        if key not in ("task.path", "model.path", "model.lora.targets", "task.template_arguments"):  # paths are joined
            assert loaded[key] == setting.value, key
    assert all(one.reason for one in found.left)
    assert len(FILES) == 20


DECIDED = {
    "torch_dtype": "bf16 says it, or it is auto",
    "max_steps": "num_train_epochs says it",
    "output_dir": "run_name says it",
    "dataset_train_split": "the task knows its splits",
    "lora_task_type": "the only one",
}
"""Names that may be silent, since another one of the same file decides, or there is nothing to decide."""


@pytest.mark.parametrize("name", FILES)
def test_every_name_is_translated_or_has_its_reason(name: str, tmp_path: Path) -> None:
    source = source_of(tmp_path, name, FILES[name])
    found = from_trl(source)
    told = " ".join(
        [*(one.reason for one in found.settings.values()), *(f"{one.name} {one.reason}" for one in found.left)]
    )
    for given, value in source.given.items():
        same = given in DEFAULTS and value == DEFAULTS[given]
        off = given in OFF and value == OFF[given]
        unset = value in (False, "none", "no", "steps")
        assert given in told or same or off or unset or given in DECIDED, given
    assert set(source.unread) <= set(left_of(found))


def test_the_defaults_of_trl_are_written_where_ours_differ() -> None:
    found = from_trl(Source("x.yaml", {"num_generations": 8}))
    values = {key: setting.value for key, setting in found.settings.items()}
    assert values["algorithm.aggregation"] == "token_mean"
    assert values["algorithm.kl_coef"] == 0.0
    assert values["optimizer.beta2"] == 0.999
    assert values["optimizer.schedule"] == "linear"
    assert values["optimizer.learning_rate"] == 1e-6
    assert values["rollout.max_new_tokens"] == 512
    assert values["rollout.problems"] == 1
    assert "optimizer.max_grad_norm" not in values  # 1 in both
    assert found.settings["algorithm.aggregation"].reason == "loss_type=dapo: TRL's default"


@pytest.mark.parametrize(
    ("given", "devices", "problems", "minibatches", "epochs", "steps"),
    [
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}, 1, 4, 1, 1, 40),
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}, 4, 16, 1, 1, 40),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 8}, 1, 8, 4, 1, 10),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 8, "num_iterations": 2}, 1, 8, 4, 2, 5),
        ({"generation_batch_size": 256}, 2, 32, 16, 1, 3),
        ({"gradient_accumulation_steps": 8, "steps_per_generation": 2}, 1, 8, 1, 1, 40),
    ],
)
def test_completions_become_problems_and_updates_steps(
    given: dict[str, int], devices: int, problems: int, minibatches: int, epochs: int, steps: int
) -> None:
    """By hand: completions of a generation / 8 are problems; updates a generation are slices / accumulation."""
    found = from_trl(Source("x.yaml", {"max_steps": 40, "num_generations": 8, **given}), devices=devices)
    values = {key: setting.value for key, setting in found.settings.items()}
    assert values["rollout.problems"] == problems
    assert values.get("optimizer.minibatches", 1) == minibatches
    assert values.get("optimizer.epochs", 1) == epochs
    assert values["steps"] == steps


def test_groups_that_are_not_whole_and_updates_that_split_them_are_said() -> None:
    found = from_trl(Source("x.yaml", {"per_device_train_batch_size": 1, "num_generations": 16, "max_steps": 5}))
    assert "--devices N" in left_of(found)["completions per generation"]
    found = from_trl(Source("x.yaml", {"steps_per_generation": 4, "num_generations": 16, "max_steps": 8}))
    assert found.settings["optimizer.minibatches"].value == 2  # of two problems
    assert "split groups" in left_of(found)["steps_per_generation"]


def test_passes_over_the_data_become_steps() -> None:
    given = {"num_train_epochs": 2, "per_device_train_batch_size": 32}
    assert from_trl(Source("x.yaml", given), rows=100).settings["steps"].value == 50
    known = from_trl(Source("x.yaml", {**given, "dataset_name": "openai/gsm8k"}))
    assert known.settings["steps"].value == 2 * (7473 // 4)
    assert known.settings["task.name"].value == "gsm8k"
    assert "--rows N" in left_of(from_trl(Source("x.yaml", given)))["num_train_epochs"]


def test_warm_up_is_a_number_of_updates() -> None:
    given = {"max_steps": 30, "warmup_ratio": 0.1, "gradient_accumulation_steps": 1, "steps_per_generation": 4}
    assert translated(**given, num_generations=2)["optimizer.warmup_steps"] == 4  # a tenth of 8 x 4
    assert translated(max_steps=30, warmup_steps=7)["optimizer.warmup_steps"] == 7
    assert translated(max_steps=30, warmup_steps=0.5)["optimizer.warmup_steps"] == 15


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"loss_type": "grpo"}, {"surrogate": "clip", "aggregation": "sequence_mean"}),
        ({"loss_type": "dr_grpo"}, {"surrogate": "clip", "aggregation": "fixed_length"}),
        ({"loss_type": "bnpo"}, {"surrogate": "clip", "aggregation": "token_mean"}),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0}),
        ({"loss_type": "sapo"}, {"surrogate": "sapo", "aggregation": "sequence_mean"}),
        (
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4},
            {"surrogate": "gspo", "clip_low": 3e-4, "clip_high": 3e-4},
        ),
        ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, {"surrogate": "gspo", "aggregation": "fixed_length"}),
        ({"epsilon_high": 0.28}, {"clip_high": 0.28}),
        ({"delta": 4.0}, {"dual_clip": 4.0}),
        ({"beta": 0.04}, {"kl_coef": 0.04, "kl_estimator": "k3_k2"}),
        ({"beta": 0.04, "use_bias_correction_kl": False}, {"kl_coef": 0.04}),
        ({"scale_rewards": False}, {"scale_rewards": "none"}),
        ({"mask_truncated_completions": True}, {"overlong_filtering": True}),
        ({"use_vllm": True}, {"importance": "mask", "importance_level": "sequence", "importance_cap": 3.0}),
        ({"use_vllm": True, "vllm_importance_sampling_correction": False}, {}),
        ({"top_entropy_quantile": 0.2}, {"entropy_share": 0.2}),
    ],
)  # fmt: skip
def test_the_loss(given: dict[str, Any], ours: dict[str, Any]) -> None:
    found = translated(**given)
    for key, value in ours.items():
        default = TrainConfig().algorithm.model_dump()[key]
        assert found.get(f"algorithm.{key}", default) == value, key
    assert ("algorithm.importance" in found) == ("importance" in ours)
    assert ("algorithm.kl_estimator" in found) == (
        "kl_estimator" in ours or given.get("use_bias_correction_kl") is False
    )


def test_several_microbatches_are_kept_apart_for_bnpo_alone() -> None:
    found = translated(loss_type="bnpo", gradient_accumulation_steps=4)
    assert found["algorithm.aggregation"] == "microbatch_token_mean"
    assert found["optimizer.microbatch_tokens"] == 8 * 512


def test_what_slimrl_refuses_is_left_with_the_refusal() -> None:
    found = from_trl(
        Source("x.yaml", {"top_p": 0.95, "max_completion_length": 64, "num_generations": "many", "delta": 0.5})
    )
    left = left_of(found)
    assert "another distribution" in left["top_p"]
    assert "would cut what is not clipped" in left["delta"]
    assert "it is no number" in left["num_generations"]


def test_adapters() -> None:
    assert translated(use_peft=True)["model.lora.targets"] == ["q_proj", "v_proj"]
    assert translated(use_peft=True, lora_r=64, lora_alpha=16, use_rslora=True)["model.lora.alpha"] == 128
    assert (
        translated(use_peft=True, lora_target_modules="all-linear").get("model.lora.targets", "all-linear")
        == "all-linear"
    )
    assert "model.lora.rank" not in translated(lora_r=8)


def test_rewards_by_name(tmp_path: Path) -> None:
    found = from_trl(source_of(tmp_path, "cli.yaml", FILES["cli.yaml"]))
    assert found.settings["rewards.correct"].value == 1.0
    assert found.settings["rewards.soft_overlong"].value == 0.5
    assert found.settings["rewards.overlong_buffer"].value == 256
    assert found.settings["task.checker"].value == "symbolic"
    found = from_trl(source_of(tmp_path, "tldr-length.py", FILES["tldr-length.py"]))
    reason = left_of(found)["reward_funcs"]
    assert "rewards.custom: {rewards.py:reward_len: {weight: 1, low: LEAST, high: MOST}}" in reason
    assert "not imported" in reason


def test_yaml_has_the_booleans_that_trl_reads(tmp_path: Path) -> None:
    head = "model_name_or_path: a/b\ndataset_name: a/c\nbeta: 1e-3\n"
    found = from_trl(source_of(tmp_path, "a.yaml", head + "use_peft: no\nbf16: yes\nmask_truncated_completions: on\n"))
    assert "model.lora.rank" not in found.settings
    assert found.settings["model.dtype"].value == "bfloat16"
    assert found.settings["algorithm.overlong_filtering"].value is True
    assert found.settings["algorithm.kl_coef"].value == 1e-3
    with pytest.raises(SettingsError, match=r"b\.yaml:2: not valid YAML"):
        source_of(tmp_path, "b.yaml", "beta: 1\n- 2\n")


def test_a_constant_rate_has_no_warm_up_there() -> None:
    given = {"model_name_or_path": "a/b", "dataset_name": "a/c", "max_steps": 100, "warmup_ratio": 0.1}
    found = from_trl(Source("x.yaml", {**given, "lr_scheduler_type": "constant"}))
    assert found.settings["optimizer.warmup_steps"].value == 0
    assert "has no warm-up" in left_of(found)["warmup_ratio"]
    assert translated(**given, lr_scheduler_type="constant_with_warmup")["optimizer.warmup_steps"] == 10


def test_trackers_by_name() -> None:
    given = {"model_name_or_path": "a/b", "dataset_name": "a/c"}
    for asked in ("none", [], ["none"]):
        found = from_trl(Source("x.yaml", {**given, "report_to": asked}))
        assert "log.to" not in found.settings
        assert "report_to" not in left_of(found)
    found = from_trl(Source("x.yaml", {**given, "report_to": ["wandb", "comet_ml"]}))
    assert found.settings["log.to"].value == ["wandb"]
    assert "log.to takes wandb, " in left_of(found)["report_to"]


def test_a_file_of_something_else_is_refused() -> None:
    with pytest.raises(SettingsError, match="holds no setting of TRL"):
        from_trl(Source("x.yaml", {"compute_environment": "LOCAL_MACHINE"}))


def lists(found: Translation, name: str) -> str:
    """All reasons that are listed for a name, on one line."""
    return " | ".join(one.reason for one in found.left if one.name == name)


def from_given(devices: int = 1, **given: Any) -> Translation:
    return from_trl(Source("x.yaml", {"model_name_or_path": "a/b", "dataset_name": "a/c", **given}), devices=devices)


def test_the_overlong_punishment_of_the_command_line_has_its_own_lengths(tmp_path: Path) -> None:
    found = from_trl(source_of(tmp_path, "cli.yaml", FILES["cli.yaml"]))  # 2,048 new tokens
    assert found.settings["rewards.overlong_buffer"].value == 256
    reason = lists(found, "reward_funcs")
    assert "from 1024 to 1280 tokens there, and from 1792 to 2048 here" in reason
    found = from_trl(source_of(tmp_path, "dapo.yaml", FILES["dapo.yaml"]))  # 1,280 new tokens: the same
    assert "tokens there" not in lists(found, "reward_funcs")
    text = "reward_funcs: [accuracy, soft_overlong_punishment]\nmax_completion_length: 4096\nsoft_punish_cache: 512\n"
    found = from_trl(source_of(tmp_path, "openr1.yaml", text))
    assert found.settings["rewards.overlong_buffer"].value == 512
    assert "from 15872 to 16384 tokens there, and from 3584 to 4096 here" in lists(found, "reward_funcs")


@pytest.mark.parametrize(
    ("given", "problems", "minibatches", "epochs", "steps"),
    [
        ({"gradient_accumulation_steps": 8, "steps_per_generation": 2, "num_iterations": 2}, 4, 1, 1, 40),
        ({"gradient_accumulation_steps": 8, "steps_per_generation": 2, "num_iterations": 4}, 2, 1, 1, 40),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2, "num_iterations": 4}, 2, 1, 2, 20),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2}, 4, 2, 2, 10),
    ],
)
def test_several_passes_within_an_update_count_once(
    given: dict[str, int], problems: int, minibatches: int, epochs: int, steps: int
) -> None:
    """By hand: completions that TRL's sampler brings to one update, without those that come again, / 8."""
    found = from_given(max_steps=40, num_generations=8, per_device_train_batch_size=8, **given)
    values = {key: setting.value for key, setting in found.settings.items()}
    assert values["rollout.problems"] == problems
    assert values.get("optimizer.minibatches", 1) == minibatches
    assert values.get("optimizer.epochs", 1) == epochs
    assert values["steps"] == steps
    assert ("fall into one update there" in lists(found, "num_iterations")) == (epochs < given["num_iterations"])


def test_slices_that_make_no_whole_updates_are_said() -> None:
    found = from_given(max_steps=4, gradient_accumulation_steps=8, steps_per_generation=3)
    assert "no whole number of updates of 8" in lists(found, "steps_per_generation")
    found = from_given(max_steps=4, gradient_accumulation_steps=6, steps_per_generation=2, num_iterations=3)
    assert "no whole number" not in lists(found, "steps_per_generation")


def test_updates_that_are_fewer_here_leave_the_completions_the_same() -> None:
    given = {"steps_per_generation": 4, "num_generations": 16, "max_steps": 8, "warmup_steps": 4, "save_steps": 4}
    found = from_given(**given)  # 32 completions are two problems, four updates there and two here
    values = {key: setting.value for key, setting in found.settings.items()}
    assert values["optimizer.minibatches"] == 2
    assert values["steps"] == 2
    assert values["optimizer.warmup_steps"] == 2  # half of the run, as there
    assert values["checkpoint.every"] == 1


def test_what_could_not_be_read_is_no_default_and_names_what_depends_on_it(tmp_path: Path) -> None:
    found = from_trl(source_of(tmp_path, "kwargs.py", FILES["kwargs.py"]))
    reason = found.settings["rollout.problems"].reason
    assert 'per_device_train_batch_size=int(os.environ["BATCH"])'.replace('"', "'") in reason
    assert "8 is taken" in reason
    assert "default" not in reason
    listed = lists(found, "per_device_train_batch_size")
    assert "set rollout.problems and steps by hand" in listed
    assert "set output" not in lists(found, "output_dir"), "no setting was made of it"


def test_truncated_completions_stay_in_the_average_here() -> None:
    for kind in ("dapo", "cispo", "bnpo"):
        found = from_given(loss_type=kind, mask_truncated_completions=True, epsilon_high=5.0)
        assert "the loss is half as large" in lists(found, "mask_truncated_completions"), kind
        assert "mask_truncated_completions" not in left_of(from_given(loss_type=kind, epsilon_high=5.0)), kind
    for kind in ("grpo", "dr_grpo", "sapo", "luspo"):
        assert "mask_truncated_completions" not in left_of(from_given(loss_type=kind, mask_truncated_completions=True))


def test_the_entropy_bonus_is_a_mean_over_tokens_there() -> None:
    found = from_given(loss_type="dr_grpo", entropy_coef=0.01, max_completion_length=1024)
    assert "set 10.24 / the mean length" in lists(found, "entropy_coef")  # 0.1 for a mean of 100: ten times 0.01
    assert "each completion counts the same" in lists(from_given(loss_type="grpo", entropy_coef=0.01), "entropy_coef")
    assert "entropy_coef" not in left_of(from_given(entropy_coef=0.01))
    found = from_given(entropy_coef=0.01, top_entropy_quantile=0.2)
    assert "on the chosen 0.2 of the tokens alone" in lists(found, "entropy_coef")


def test_the_corrected_kl_is_the_same_on_policy_and_per_token_alone() -> None:
    name = "use_bias_correction_kl"
    assert name not in left_of(from_given(beta=0.04))
    assert "at a ratio of 1" in lists(from_given(beta=0.04, num_iterations=4), name)
    assert "at a ratio of 1" in lists(from_given(beta=0.04, steps_per_generation=4), name)
    assert "whole completion" in lists(from_given(beta=0.04, importance_sampling_level="sequence"), name)
    plain = {"importance_sampling_level": "sequence", "num_iterations": 4, "use_bias_correction_kl": False}
    assert name not in left_of(from_given(beta=0.04, **plain))
    assert name not in left_of(from_given(num_iterations=4))


def test_defaults_of_trl_that_act_there_alone_are_listed() -> None:
    assert "those below 1 / algorithm.importance_cap" in lists(
        from_given(use_vllm=True), "vllm_importance_sampling_clip_min"
    )
    truncated = from_given(use_vllm=True, vllm_importance_sampling_mode="token_truncate")
    assert "vllm_importance_sampling_clip_min" not in left_of(truncated)
    assert "two policies" in lists(from_given(use_peft=True), "lora_dropout")
    assert "lora_dropout" not in left_of(from_given(use_peft=True, lora_dropout=0.0))
    assert "lora_dropout" not in left_of(from_given())


def test_peft_in_a_script_has_no_dropout_by_default(tmp_path: Path) -> None:
    found = from_trl(source_of(tmp_path, "a.py", "args = GRPOConfig(beta=0.1)\nadapter = LoraConfig(r=4)\n"))
    assert found.settings["model.lora.rank"].value == 4
    assert "lora_dropout" not in left_of(found)


def test_nulls_that_say_something_are_kept(tmp_path: Path) -> None:
    text = "use_vllm: true\nvllm_importance_sampling_clip_max: null\nmax_completion_length: null\nepsilon_high: null\n"
    found = from_trl(source_of(tmp_path, "a.yaml", text))
    assert found.settings["algorithm.importance_cap"].value >= 1e6
    assert "the model's own limit" in lists(found, "max_completion_length")
    assert found.settings["rollout.max_new_tokens"].value == 512
    assert "epsilon_high" not in left_of(found)
    script = "args = GRPOConfig(max_completion_length=None, delta=None)\n"
    found = from_trl(source_of(tmp_path, "a.py", script))
    assert "the model's own limit" in lists(found, "max_completion_length")
    assert "delta" not in left_of(found)


def test_what_acts_instead_of_a_refused_setting_is_said() -> None:
    assert "rollout.top_p=1.0 acts instead" in lists(from_given(top_p=0.95), "top_p")
    assert from_given(max_grad_norm=0).settings["optimizer.max_grad_norm"].value >= 1e6
    found = from_given(lr_scheduler_type="inverse_sqrt")
    assert "optimizer.schedule=constant acts instead" in lists(found, "lr_scheduler_type")
    assert translated(lr_scheduler_type="polynomial")["optimizer.schedule"] == "linear"
    found = from_given(use_peft=True, lora_target_modules=r".*\.(q_proj|v_proj)")
    assert found.settings["model.lora.targets"].value == ["q_proj", "v_proj"]
    assert "for every layer" in lists(found, "lora_target_modules")
    for pattern in (r".*attn.*", r".*(?!q_proj)"):
        found = from_given(use_peft=True, lora_target_modules=pattern)
        assert "model.lora.targets" not in found.settings
        assert "all-linear acts instead" in lists(found, "lora_target_modules")
