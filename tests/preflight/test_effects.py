"""What runs and arms are told of their settings: inert only where nothing can act or differ, confounded where more does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from slimrl.config.algorithm import SURROGATES
from slimrl.config.files import build, merge, parse_override, settings_of
from slimrl.config.schema import TrainConfig
from slimrl.preflight.effects import concerning, confounded_switches, inert_switches, remarks
from slimrl.preflight.facts import changed_settings
from slimrl.preflight.observed import NOTHING_OBSERVED, Observed

BUSY = Observed(
    completions=64, truncated=5, longest=64, shortest=8, groups=8, constant=3, steps=4, corrected=1, bounded=2, alphas=frozenset([1.2, 1.5])
)  # fmt: skip
SWITCHES = {
    "algorithm.overlong_filtering": ({"algorithm": {"overlong_filtering": True}}, {"truncated": 0}),
    "rewards.soft_overlong": ({"rewards": {"soft_overlong": 1.0}, "rollout": {"max_new_tokens": 64}}, {"longest": 48}),
    "algorithm.dynamic_sampling": ({"algorithm": {"dynamic_sampling": "refill"}}, {"constant": 0}),
    "algorithm.aggregation": ({"algorithm": {"aggregation": "token_mean"}}, {"shortest": 64}),
    "rewards.zero_truncated": ({"rewards": {"zero_truncated": True}}, {"truncated": 0}),
    "algorithm.importance": ({"algorithm": {"importance": "mask"}}, {"corrected": 0}),
    "algorithm.surrogate": (
        {"algorithm": {"surrogate": "gpg", "clip_low": 0.2, "kl_coef": 0.0}},
        {"alphas": frozenset([1.5])},
    ),
}


def names(settings: dict[str, object], observed: Observed) -> set[str]:
    several = {"optimizer": {"minibatches": 2}}
    return {s.partition(":")[0] for s in inert_switches(build(TrainConfig, {**settings, **several}), observed)}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_is_inert_only_where_nothing_lets_it_act(switch: str) -> None:
    settings, quiet = SWITCHES[switch]
    assert switch not in names(settings, BUSY)
    assert switch in names(settings, replace(BUSY, **quiet))
    assert switch not in names({}, replace(BUSY, **quiet)), "a switch that is off is not inert, it is off"


def test_clip_is_inert_with_one_update_only() -> None:
    one = inert_switches(TrainConfig(), BUSY)
    assert [s.partition(":")[0] for s in one] == ["algorithm.clip_low and clip_high"]
    assert (
        "may carry over" in inert_switches(build(TrainConfig, {"algorithm": {"dynamic_sampling": "refill"}}), BUSY)[0]
    )
    acting = replace(BUSY, carried=1)
    assert inert_switches(build(TrainConfig, {"algorithm": {"dynamic_sampling": "refill"}}), acting) == []
    for several in ({"minibatches": 2}, {"epochs": 2}):
        assert inert_switches(build(TrainConfig, {"optimizer": several}), BUSY) == []


@pytest.mark.parametrize(
    ("surrogate", "says"),
    [("cispo", "reinforce"), ("gspo", "reinforce"), ("sapo", "reinforce"), ("reinforce", ""), ("gpg", "")],
)
def test_every_surrogate_with_a_ratio_is_reinforce_with_one_update(surrogate: str, says: str) -> None:
    found = inert_switches(build(TrainConfig, {"algorithm": {"surrogate": surrogate}}), BUSY)
    assert [says in sentence for sentence in found] == ([True] if says else [])


def test_a_dual_clip_is_named_too() -> None:
    found = inert_switches(build(TrainConfig, {"algorithm": {"dual_clip": 3.0}}), BUSY)
    assert [s.partition(":")[0] for s in found] == ["algorithm.clip_low and clip_high", "algorithm.dual_clip"]


def test_components_need_company() -> None:
    alone = {"algorithm": {"normalize_components": True}}
    assert any("only correct is paid" in s for s in inert_switches(build(TrainConfig, alone), BUSY))
    both = build(TrainConfig, {**alone, "rewards": {"format": 0.5}})
    assert not any("is paid" in s for s in inert_switches(both, BUSY))


@pytest.mark.parametrize(
    ("settings", "observed", "word"),
    [
        ({"algorithm": {"scale_rewards": "none"}}, {}, "algorithm.scale_rewards"),
        ({"algorithm": {"baseline": "leave_one_out"}}, {}, "algorithm.baseline"),
        ({}, {"clipped": 4}, "optimizer.max_grad_norm"),
        ({"algorithm": {"surrogate": "gpg"}, "optimizer": {"epochs": 2}}, {}, "algorithm.surrogate"),
        ({"algorithm": {"surrogate": "reinforce"}}, {"carried": 3}, "algorithm.surrogate"),
        ({"algorithm": {"kl_estimator": "k1"}}, {}, "algorithm.kl_estimator"),
        ({"algorithm": {"normalize_components": True}}, {}, "algorithm.normalize_components"),
    ],
)
def test_what_acts_as_something_else_is_said(
    settings: dict[str, object], observed: dict[str, object], word: str
) -> None:
    found = confounded_switches(build(TrainConfig, settings), replace(BUSY, **observed))
    assert [sentence.partition(":")[0] for sentence in found] == [word]


BY_TURN = {"algorithm": {"credit": "turn"}, "environment": {"name": "x.py:X"}, "optimizer": {"minibatches": 2}}


@pytest.mark.parametrize(
    ("algorithm", "turns", "paid", "inert", "confounded"),
    [
        ({}, 3, 5, [], []),
        ({}, 1, 0, ["algorithm.credit: none of 64 episodes has a second turn"], []),
        (
            {},
            3,
            0,
            [],
            ["algorithm.credit: no turn of 64 episodes was paid, so all turns of one have the same return, so it only"],
        ),
        (
            {"baseline": "critic", "scale_rewards": "none"},
            3,
            0,
            ["algorithm.credit: no turn of 64 episodes was paid"],
            [],
        ),
        (
            {"baseline": "none", "scale_rewards": "none"},
            3,
            0,
            ["algorithm.credit: no turn of 64 episodes was paid"],
            [],
        ),
        ({"credit": "episode"}, 1, 0, [], []),
        ({"credit": "episode"}, 3, 0, [], []),
    ],
)
def test_credit_by_turn_without_paid_turns_or_without_turns(
    algorithm: dict[str, object], turns: int, paid: int, inert: list[str], confounded: list[str]
) -> None:
    run = build(TrainConfig, {**BY_TURN, "algorithm": {"credit": "turn", "kl_coef": 0.0, **algorithm}})
    for switches, wanted in ((inert_switches, inert), (confounded_switches, confounded)):
        found = switches(run, replace(BUSY, turns=turns, paid_by_turn=paid))
        assert [sentence.startswith(start) for sentence, start in zip(found, wanted, strict=True)] == [True] * len(
            wanted
        )


def test_leave_one_out_is_no_constant_factor_by_turn() -> None:
    """Fewer completions have the later turns."""
    without = {"baseline": "leave_one_out", "kl_coef": 0.0}
    seen = replace(BUSY, turns=3, paid_by_turn=5)
    assert inert_switches(build(TrainConfig, {**BY_TURN, "algorithm": {"credit": "turn", **without}}), seen) == []
    assert inert_switches(build(TrainConfig, {**BY_TURN, "algorithm": without}), seen) != []


def test_nothing_is_mixed_up_in_a_plain_run() -> None:
    assert confounded_switches(TrainConfig(), BUSY) == []
    without = build(TrainConfig, {"algorithm": {"scale_rewards": "none", "baseline": "leave_one_out", "kl_coef": 0.0}})
    assert any("constant factor" in sentence for sentence in inert_switches(without, BUSY))
    assert confounded_switches(without, BUSY) == []
    assert confounded_switches(TrainConfig(), replace(BUSY, steps=2, clipped=2)) == [], "two steps say little"


def test_bounds_that_no_ratio_reached_are_named_after_some_steps() -> None:
    several = build(TrainConfig, {"optimizer": {"minibatches": 2}})
    assert inert_switches(several, BUSY) == []
    (sentence,) = inert_switches(several, replace(BUSY, bounded=0))
    assert sentence == "algorithm.clip_low and clip_high: no importance ratio lay beyond them in 4 steps"
    assert inert_switches(several, replace(BUSY, bounded=0, steps=2)) == []
    without = build(TrainConfig, {"optimizer": {"minibatches": 2}, "algorithm": {"surrogate": "sapo"}})
    assert inert_switches(without, replace(BUSY, bounded=0)) == []


def test_a_run_without_an_update_blames_no_clip() -> None:
    """Nothing was clipped there, but not since the ratios were 1."""
    without = replace(BUSY, steps=0, skipped=4)
    assert inert_switches(TrainConfig(), without) == []
    assert inert_switches(TrainConfig(), replace(without, steps=1)) != []
    assert inert_switches(TrainConfig(), NOTHING_OBSERVED) != [], "before the first step it is known"


def test_rates_that_nothing_reads_are_inert() -> None:
    rated = {"name": "gsm8k", "rates": "r.jsonl"}
    (sentence,) = [
        one for one in inert_switches(build(TrainConfig, {"task": rated}), BUSY) if one.startswith("task.rates")
    ]
    assert "neither chooses nor orders problems" in sentence
    for acts in (
        {"task": rated | {"success_rate": [0.1, 1.0]}},
        {"task": rated, "curriculum": {"order": "easy_first"}},
    ):
        assert not any("task.rates" in one for one in inert_switches(build(TrainConfig, acts), BUSY))


# --- arms of a study ----------------------------------------------------------------------------------------------------


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
        ([], ["rewards.watched=[repetition]"]),
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
        (["environment.name=x.py:X"], ["algorithm.credit=turn"], "no turn is paid with rewards.environment=0"),
        ([], ["algorithm.clip_high=0.28", "algorithm.kl_coef=0"], "adds nothing here"),
        (["algorithm.scale_rewards=none"], ["rewards.correct=2"], "reward changes its scale"),
        ([], ["model.lora.rank=8"], "auto takes another rate"),
        (
            ["optimizer.learning_rate=1e-4"],
            ["model.path=builtin-tools", "optimizer.learning_rate=auto"],
            "auto takes another rate",
        ),
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


@pytest.mark.parametrize(
    ("base", "arm"),
    [
        ([], "rewards.workers=2"),
        (["devices=2"], "parallel=fsdp"),
        (["environment.name=calculator"], "environment.workers=2"),
        (["task.name=code", "task.path=rows.jsonl"], "sandbox.workers=2"),
    ],
)
def test_an_arm_that_changes_nothing_but_processes_is_inert(base: list[str], arm: str) -> None:
    assert kinds(base, [arm]) == ["inert"]


RATED = ["task.name=gsm8k", "task.rates=r.jsonl"]


@pytest.mark.parametrize(
    ("base", "arm"),
    [
        ([], "rewards.soft_overlong=1"),
        ([], "rewards.format=0.5"),
        ([], "algorithm.dynamic_sampling=refill"),
        (RATED, "task.success_rate=[0.1, 0.9]"),
    ],
)
def test_an_arm_that_changes_what_the_training_reward_means_is_marked(base: list[str], arm: str) -> None:
    assert "reward" in kinds(base, [arm])
    assert "reward" not in kinds([], ["rewards.workers=2"])
    assert kinds([], ["rewards.watched=[format]", "algorithm.kl_coef=0"]) == kinds([], ["algorithm.kl_coef=0"])
    assert kinds(["rewards.format=1"], ["rewards.watched=[format]", "rewards.format=0"]) == ["reward"]
    judge = "rewards.judge.q={{endpoint: 'http://h', model: m, prompt: '{{completion}}', low: 0, high: 1, weight: {}}}"
    for unpaid, paid in (
        ("rewards.custom.r.py:f=0", "rewards.custom.r.py:f=0.5"),
        ("rewards.custom.r.py:f={weight: 0, low: 0, high: 1}", "rewards.custom.r.py:f={weight: 1, low: 0, high: 1}"),
        (judge.format(0), judge.format(0.5)),
    ):
        watched = ["rewards.watched=[q]"] if "judge" in unpaid else []
        assert kinds([], [unpaid, *watched, "algorithm.kl_coef=0"]) == kinds([], ["algorithm.kl_coef=0"]), unpaid
        assert "reward" in kinds([], [paid])
        assert "reward" in kinds([unpaid, *watched], [paid])
        assert "reward" in kinds([], [unpaid, *watched, "rewards.format=1"])


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


def test_the_rules_need_no_torch() -> None:
    code = "import sys, slimrl.preflight.effects; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", SURROGATES)
def test_effects_follow_the_table_of_surrogates(name: str) -> None:
    """With one update per batch only a surrogate that is plain at a ratio of 1 makes no difference to another such one."""
    clip, other = (build(TrainConfig, {"algorithm": {"surrogate": s}}) for s in ("clip", name))
    kinds = [remark.kind for remark in remarks(clip, other, "base") if "surrogate" in remark.text]
    if name != "clip":
        assert ("inert" in kinds) == SURROGATES[name].plain_at_one
    several = build(TrainConfig, {"algorithm": {"surrogate": name}, "optimizer": {"minibatches": 2}})
    stale = [text for text in confounded_switches(several, NOTHING_OBSERVED) if "takes no importance ratio" in text]
    assert bool(stale) != SURROGATES[name].ratio
