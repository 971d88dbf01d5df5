"""What is said of an arm before it runs: inert only where nothing can differ, confounded where more does."""

from __future__ import annotations

import pytest

from slimrl.config.files import build, merge, parse_override, settings_of
from slimrl.config.schema import TrainConfig
from slimrl.study.effects import changed_settings, concerning, remarks


def config(*overrides: str) -> TrainConfig:
    merged: dict[str, object] = {}
    for override in overrides:
        merged = merge(merged, parse_override(override))
    return build(TrainConfig, merged)


def kinds(base: list[str], arm: list[str]) -> list[str]:
    return [remark.kind for remark in remarks(config(*base), config(*base, *arm), "base")]


SEVERAL = "optimizer.minibatches=2"


@pytest.mark.parametrize(
    ("base", "arm"),
    [
        ([], []),
        ([], ["algorithm.clip_high=0.28"]),
        ([], ["algorithm.clip_low=0.1", "algorithm.clip_high=0.28"]),
        ([], ["rollout.slots=8", "optimizer.microbatch_tokens=512"]),
        (["algorithm.dynamic_sampling=refill"], ["algorithm.signal=reward"]),
    ],
)
def test_an_arm_that_cannot_differ_is_inert(base: list[str], arm: list[str]) -> None:
    assert kinds(base, arm) == ["inert"]


@pytest.mark.parametrize(
    ("base", "arm"),
    [
        ([SEVERAL], ["algorithm.clip_high=0.28"]),
        (["optimizer.epochs=2"], ["algorithm.clip_high=0.28"]),
        # groups carried over were sampled by an earlier policy
        (["algorithm.dynamic_sampling=refill"], ["algorithm.clip_high=0.28"]),
        (["algorithm.dynamic_sampling=refill", "rewards.format=0.1"], ["algorithm.signal=reward"]),
        (
            ["algorithm.aggregation=microbatch_token_mean", "optimizer.microbatch_tokens=512"],
            ["optimizer.microbatch_tokens=256"],
        ),
        ([], ["algorithm.overlong_filtering=true"]),
        ([], ["algorithm.kl_coef=0"]),
        ([], ["model.device=cpu"]),
    ],
)
def test_an_arm_that_may_differ_is_not_inert(base: list[str], arm: list[str]) -> None:
    assert "inert" not in kinds(base, arm)


@pytest.mark.parametrize(
    ("base", "arm", "word"),
    [
        ([SEVERAL], ["algorithm.scale_rewards=none"], "kl_coef does not"),
        (["algorithm.kl_coef=0"], ["algorithm.scale_rewards=none"], "max_grad_norm"),
        ([], ["algorithm.aggregation=fixed_length"], "max_grad_norm"),
        ([], [SEVERAL], "number of optimizer updates"),
        ([], ["rollout.temperature=0.8"], "evaluation uses rollout.temperature"),
        ([], ["rollout.group_size=16"], "number of completions"),
        ([], ["steps=60"], "number of steps"),
        ([], ["algorithm.dynamic_sampling=refill"], "it may sample up to 3 times"),
        (["algorithm.dynamic_sampling=refill"], ["algorithm.dynamic_sampling=off"], "its reference may sample"),
        ([], ["algorithm.kl_estimator=k1"], "pulls nowhere"),
        ([], ["algorithm.clip_high=0.28", "algorithm.kl_coef=0"], "adds nothing here"),
        (["algorithm.scale_rewards=none"], ["rewards.correct=2"], "reward changes its scale"),
    ],
)
def test_an_arm_that_changes_more_than_it_says_is_confounded(base: list[str], arm: list[str], word: str) -> None:
    found = [r.text for r in remarks(config(*base), config(*base, *arm), "base") if r.kind == "confounded"]
    assert any(word in text for text in found), found


def test_without_kl_no_remark_speaks_of_its_weight() -> None:
    found = remarks(
        config("algorithm.kl_coef=0"), config("algorithm.kl_coef=0", "algorithm.scale_rewards=none"), "base"
    )
    assert not any("kl_coef" in remark.text for remark in found)


@pytest.mark.parametrize("arm", ["rewards.soft_overlong=1", "rewards.format=0.5", "algorithm.dynamic_sampling=refill"])
def test_an_arm_that_changes_what_the_training_reward_means_is_marked(arm: str) -> None:
    assert "reward" in kinds([], [arm])
    assert "reward" not in kinds([], ["rewards.workers=2"])


def test_settings_are_compared_by_their_dotted_keys() -> None:
    assert changed_settings(config(), config("algorithm.clip_high=0.28", "seed=3")) == ["seed", "algorithm.clip_high"]
    custom = (
        "rewards.custom.my.py:brevity.weight=0.5",
        "rewards.custom.my.py:brevity.low=0",
        "rewards.custom.my.py:brevity.high=1",
    )
    assert settings_of(config(*custom))["rewards.custom"] != {}
    assert changed_settings(config(), config(*custom)) == ["rewards.custom"]


def test_of_what_a_run_found_inert_only_the_arms_own_switch_concerns_it() -> None:
    said = [
        "algorithm.clip_low and clip_high: with one update nothing is clipped",
        "algorithm.overlong_filtering: none of 8 completions was truncated",
    ]
    assert concerning(said, config(), config("algorithm.overlong_filtering=true")) == said[1:]
    assert concerning(said, config(), config("algorithm.clip_high=0.3")) == said[:1]
    assert concerning(said, config(), config("algorithm.kl_coef=0")) == []
