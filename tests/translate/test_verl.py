"""verl's settings, from YAML and from the command line in a script."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.translate.source import Source
from slimrl.translate.verl import from_verl, verl_source

SCRIPT = """
MODEL=Qwen/Qwen2.5-0.5B-Instruct
BATCH=${BATCH:-64}
python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=grpo data.train_batch_size=1024 \\
    data.train_files="data/gsm8k/train.parquet" data.val_files=data/gsm8k/test.parquet \\
    data.max_response_length=1024 data.max_prompt_length=512 \\
    actor_rollout_ref.model.path=$MODEL actor_rollout_ref.actor.optim.lr=2e-6 \\
    actor_rollout_ref.actor.ppo_mini_batch_size=256 actor_rollout_ref.rollout.n=5 \\
    actor_rollout_ref.actor.use_kl_loss=True actor_rollout_ref.actor.kl_loss_coef=0.01 \\
    actor_rollout_ref.ref.fsdp_config.param_offload=True \\
    +trainer.made_up=$UNKNOWN/x critic.optim.lr=1e-5 trainer.default_local_dir=$UNKNOWN \\
    trainer.logger='["console","wandb"]' trainer.test_freq=5 trainer.total_epochs=15 $@
"""


def test_a_script(tmp_path: Path) -> None:
    file = tmp_path / "run.sh"
    file.write_text(SCRIPT)
    found = from_verl(verl_source(str(file)), rows=7473)
    ours = tmp_path / "ours.yaml"
    ours.write_text(found.text())
    config = load_config(TrainConfig, [str(ours)])
    assert config.model.path == "Qwen/Qwen2.5-0.5B-Instruct"
    assert (config.rollout.problems, config.rollout.group_size, config.optimizer.minibatches) == (1024, 5, 4)
    assert config.steps == 15 * 7  # whole batches of 7473 rows
    assert (config.algorithm.kl_coef, config.algorithm.kl_estimator) == (0.01, "k3")
    assert config.algorithm.dual_clip == 3.0  # verl's default
    assert config.evaluation.every == 5
    assert config.optimizer.learning_rate == 2e-6
    left = {one.name: one.reason for one in found.left}
    assert left["param_offload"].startswith("devices=N or torchrun shares the work of a run")
    assert "only running the file" in left["default_local_dir"]
    assert "only running the file" in left["trainer.made_up"]
    assert "critic" in left["critic.optim.lr"]  # refused: there is no critic


def test_a_path_below_the_home_folder_is_read(tmp_path: Path) -> None:
    """As in verl's own scripts; what another variable holds is not known, which is not said to be missing."""
    file = tmp_path / "run.sh"
    file.write_text("main_ppo data.train_files=$HOME/data/train.parquet actor_rollout_ref.model.path=$WHERE/model\n")
    settings = from_verl(verl_source(str(file))).settings
    assert settings["task.path"].value == "~/data/train.parquet"
    assert settings["model.path"].reason == "actor_rollout_ref.model.path is not one path that can be read: put it here"


def test_yaml_and_ppo(tmp_path: Path) -> None:
    file = tmp_path / "ppo.yaml"
    file.write_text(
        "data: {train_batch_size: 64}\nactor_rollout_ref:\n  actor: {ppo_mini_batch_size: 16, clip_ratio_high: 0.28}\n"
        "algorithm: {adv_estimator: gae, use_kl_in_reward: true, made: {up: 3}}\ncritic: {optim: {lr: 1.0e-5}}\n"
    )
    found = from_verl(verl_source(str(file)))
    values = {key: setting.value for key, setting in found.settings.items()}
    assert (values["algorithm.baseline"], values["algorithm.scale_rewards"]) == ("critic", "none")
    assert (values["algorithm.kl_place"], values["algorithm.kl_estimator"], values["algorithm.kl_coef"]) == (
        "reward",
        "k1",
        0.001,
    )
    assert values["critic.learning_rate"] == 1e-5
    assert values["algorithm.clip_high"] == 0.28
    assert "none of the settings of verl" in {one.name: one.reason for one in found.left}["algorithm.made.up"]


def test_a_file_of_something_else_is_refused() -> None:
    with pytest.raises(SettingsError, match="holds no setting of verl"):
        from_verl(Source("x.sh", {"a.b": 1}))


def test_a_penalty_in_the_reward_that_is_refused_leaves_none() -> None:
    """Half of it, k1 as a term of the loss, has an expected gradient of 0."""
    given = {"adv_estimator": "grpo", "use_kl_in_reward": True, "data.train_batch_size": 64, "ppo_mini_batch_size": 64}
    found = from_verl(Source("x.sh", given))
    assert found.settings["algorithm.kl_coef"].value == 0.0
    assert not {"algorithm.kl_estimator", "algorithm.kl_place"} & set(found.settings)
    assert "no penalty is written" in {one.name: one.reason for one in found.left}["use_kl_in_reward"]
    plain = from_verl(Source("x.sh", {**given, "norm_adv_by_std_in_grpo": False}))
    assert plain.settings["algorithm.kl_place"].value == "reward"


@pytest.mark.parametrize("logger", [["console", "wandb"], ["console", "swanlab", "wandb"], "wandb"])
def test_trackers_that_are_known_are_kept(logger: object) -> None:
    found = from_verl(Source("x.sh", {"data.train_batch_size": 64, "ppo_mini_batch_size": 64, "logger": logger}))
    assert found.settings["log.to"].value == ["wandb"]
    left = {one.name: one.value for one in found.left}
    assert left.get("logger", "") == ("swanlab" if "swanlab" in logger else "")  # type: ignore[operator]


def test_an_average_that_is_not_known_is_verls_default() -> None:
    given = {"data.train_batch_size": 64, "ppo_mini_batch_size": 64, "loss_agg_mode": "prompt-mean"}
    found = from_verl(Source("x.sh", given))
    assert found.settings["algorithm.aggregation"].value == "token_mean"
    assert "token-mean, is written" in {one.name: one.reason for one in found.left}["loss_agg_mode"]
