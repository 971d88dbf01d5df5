"""Settings that have no effect are refused where the settings alone show it, and words stand once."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from slimrl.config.algorithm import AlgorithmConfig
from slimrl.config.base import Needs, Section
from slimrl.config.files import build, load_config
from slimrl.config.rewards import RewardsConfig
from slimrl.config.schema import SftRunConfig, TrainConfig, seconds_of
from slimrl.errors import SettingsError


def sections(kind: type[BaseModel], prefix: str = "") -> dict[str, type[Section]]:
    """The sections of a settings class by their dotted names."""
    found: dict[str, type[Section]] = {}
    for name, info in kind.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            found |= {prefix + name: info.annotation, **sections(info.annotation, f"{prefix}{name}.")}
    return found


ALL = {**sections(TrainConfig), **sections(SftRunConfig)}
MARKED = [(name, key, needs) for name, section in ALL.items() for key, needs in section.marked(Needs).items()]


def test_a_section_that_marks_settings_knows_its_own_name() -> None:
    assert {name for name, _, _ in MARKED} == {"algorithm", "curriculum", "environment", "model.lora", "rewards"}
    for name, _, _ in MARKED:
        assert ALL[name].prefix == name


@pytest.mark.parametrize(("name", "key", "needs"), MARKED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_setting_that_needs_another_is_refused_without_it(name: str, key: str, needs: Needs) -> None:
    others = {
        "algorithm": {"surrogate": "reinforce", "kl_coef": 0.0, "importance": "off", "dynamic_sampling": "off"},
        "curriculum": {"order": "shuffled"},
        "rewards": {"soft_overlong": 0.0, "cosine_length": 0.0, "repetition": 0.0},
        "model.lora": {"rank": 0},
        "environment": {"name": ""},
    }[name]
    field = ALL[name].model_fields[key]
    value = {
        "signal": "reward", "kl_estimator": "k1", "kl_place": "reward", "gkl": {"mse": 2.0}, "dual_clip": 3.0,
        "importance_level": "sequence", "overlong_buffer": 7, "repetition_ngram": 7, "refill_budget": 9.0, "importance_cap": 9.0,
        "alpha": 7, "targets": ["q_proj"], "reference": "a/teacher", "arguments": {"times": 2}, "turns": 7, "turn_tokens": 7,
            "tool_prompt": "text", "workers": 2,
    }.get(key, 0.5)  # fmt: skip
    with pytest.raises(SettingsError, match=rf"^{name}\.{key} has no effect without {name}\.{needs.setting}"):
        build(TrainConfig, nested(name, {**others, key: value}))
    assert build(TrainConfig, nested(name, {**others, key: field.default if key != "gkl" else {}}))


def nested(name: str, settings: dict[str, object]) -> dict[str, object]:
    """The settings of a section under its dotted name."""
    for part in reversed(name.split(".")):
        settings = {part: settings}
    return settings


def test_what_a_setting_needs_is_listed() -> None:
    with pytest.raises(SettingsError, match="surrogate=clip, cispo, gspo or gspo_token; remove one"):
        load_config(TrainConfig, [], ["algorithm.surrogate=sapo", "algorithm.clip_high=0.3"])
    with pytest.raises(SettingsError, match=r"without algorithm\.kl_coef above 0; remove one"):
        load_config(TrainConfig, [], ["algorithm.kl_coef=0", "algorithm.kl_estimator=k2"])
    assert load_config(TrainConfig, [], ["algorithm.surrogate=sapo", "algorithm.sapo_up=2"]).algorithm.sapo_up == 2


def test_what_is_paid_is_read_from_the_fields() -> None:
    custom = {"my.py:f": {"low": 0.0, "high": 1.0}, "my.py:g": {"low": 0.0, "high": 1.0, "weight": 0.0}}
    rewards = RewardsConfig.model_validate({"format": 0.5, "soft_overlong": 0.5, "custom": custom})
    assert rewards.paid == ("correct", "format", "soft_overlong", "my.py:f")
    assert rewards.measured == (*rewards.paid, "my.py:g")
    watching = rewards.model_copy(update={"watched": ["repetition"]})
    assert (watching.paid, {*watching.measured} - {*rewards.measured}) == (rewards.paid, {"repetition"})
    for nothing in ({"correct": 0.0}, {"correct": 0.0, "soft_overlong": 1.0, "repetition": 1.0}):
        with pytest.raises(ValueError, match="every reward has weight 0"):
            TrainConfig.model_validate({"rewards": nothing})


def test_the_clip_is_that_of_the_surrogates_that_have_one() -> None:
    assert {key for key, needs in AlgorithmConfig.marked(Needs).items() if needs.setting == "surrogate"} == {
        "clip_low", "clip_high", "dual_clip", "sapo_up", "sapo_down",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 0), ("90s", 90), ("45m", 2700), ("3h50m", 13800), ("1d", 86400), ("1d1s", 86401)]
)
def test_times(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["3", "h", "3h 50m", "50m3h", "-1h", "1.5h", "3H"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time like 3h50m"):
        seconds_of(text)


def test_numbers_of_tokens_need_their_completions() -> None:
    with pytest.raises(SettingsError, match=r"log\.tokens=all has no effect without log\.rollouts=true"):
        build(TrainConfig, {"log": {"tokens": "all", "rollouts": False}})
    assert build(TrainConfig, {"log": {"rollouts": False}}).log.tokens == "samples", "the default gives way"
