"""Settings: merged left to right, round-tripped, and every single one consumed somewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from slimrl.config.base import Section
from slimrl.config.files import build, describe_settings, dump_yaml, load_config, merge, parse_override
from slimrl.config.judge import JudgeReward
from slimrl.config.mistakes import known_keys
from slimrl.config.rewards import CustomReward
from slimrl.config.schema import RootConfig, SftRunConfig, TrainConfig
from slimrl.display.run import Display
from slimrl.errors import SettingsError
from slimrl.machine.signals import Stop
from slimrl.parallel.team import team
from slimrl.sft import sft
from slimrl.trackers.remote import open_trackers
from slimrl.train import train
from tests.conftest import ROOT
from tests.judges import serving


def test_files_merge_left_to_right_then_overrides(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: 5\nalgorithm:\n  clip_low: 0.1\n  clip_high: 0.3\n")
    (tmp_path / "b.yaml").write_text("algorithm:\n  clip_high: 0.4\noptimizer:\n  learning_rate: 1e-6\n")
    files = [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    config = load_config(TrainConfig, files, ["algorithm.clip_low=0.05", "seed=3"])
    assert (config.steps, config.seed) == (5, 3)
    assert (config.algorithm.clip_low, config.algorithm.clip_high) == (0.05, 0.4)
    assert config.optimizer.learning_rate == 1e-6


def test_rates_are_a_file_beside_the_settings(tmp_path: Path) -> None:
    """`measured/gsm8k` could be a name on the Hub where data is meant."""
    (tmp_path / "a.yaml").write_text("task: {name: gsm8k, path: measured/gsm8k, rates: measured/gsm8k}\n")
    found = load_config(TrainConfig, [str(tmp_path / "a.yaml")]).task
    assert (found.path, found.rates) == ("measured/gsm8k", str(tmp_path / "measured" / "gsm8k"))


def test_a_reward_override_leaves_the_others_alone() -> None:
    config = load_config(TrainConfig, [], ["rewards.format=0.5"])
    assert (config.rewards.correct, config.rewards.format) == (1.0, 0.5)


@pytest.mark.parametrize("kind", [TrainConfig, SftRunConfig])
def test_written_settings_read_back_the_same(kind: type, tmp_path: Path) -> None:
    config = build(kind, {"seed": 7, "optimizer": {"learning_rate": 3e-7}, "task": {"instruction": "wie: 'so'\n"}})
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    assert load_config(kind, [str(tmp_path / "c.yaml")]) == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E6", 1e6),
        ("0.5", 0.5),
        ("3", 3),
        ("true", True),
        ("off", "off"),
        ("no", "no"),
        ("abc", "abc"),
        ("", ""),
    ],
)
def test_override_values_are_yaml_with_plain_exponents(text: str, value: object) -> None:
    assert parse_override(f"a.b={text}") == {"a": {"b": value}}


def test_off_is_a_choice_where_a_choice_is_asked() -> None:
    """YAML 1.1 reads `off` as false; the choice `off` must be writable without quotes."""
    assert load_config(TrainConfig, [], ["algorithm.dynamic_sampling=off"]).algorithm.dynamic_sampling == "off"
    assert load_config(TrainConfig, [], ["algorithm.scale_rewards=none"]).algorithm.scale_rewards == "none"


def test_merge_does_not_touch_its_arguments() -> None:
    base = {"a": {"b": 1}}
    assert merge(base, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert base == {"a": {"b": 1}}


def test_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        TrainConfig().steps = 3  # type: ignore[misc]


def test_the_mistake_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("algorithm:\n  clip_hihg: 0.3\n")
    with pytest.raises(SettingsError, match=r"mine\.yaml.*did you mean algorithm\.clip_high"):
        load_config(TrainConfig, [str(tmp_path / "mine.yaml")])


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a judge that is content with everything."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(lambda *_: "Score: 1") as server:
        yield server.endpoint


def test_an_empty_mapping_on_the_command_line_takes_back_what_files_say(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "task: {template_arguments: {enable_thinking: false}, style: boxed}\nrollout: {problems: 4, group_size: 2}\n"
    )
    given = lambda *more: load_config(TrainConfig, [str(file)], more)  # noqa: E731
    assert given().task.template_arguments == {"enable_thinking": False}
    found = given("task.template_arguments={}", "rollout={}", "rollout.group_size=4")
    assert (found.task.template_arguments, found.task.style) == ({}, "boxed")
    assert (found.rollout.problems, found.rollout.group_size) == (TrainConfig().rollout.problems, 4)
    base = {"task": {"template_arguments": {"enable_thinking": True}}}
    assert load_config(TrainConfig, [], ["task.template_arguments={}"], base=base).task.template_arguments == {}


def test_every_setting_is_read_by_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: str) -> None:
    """Runs and warm starts under a watch: a field of a section that no code reads would be an option without effect."""
    read: set[str] = set()
    original = Section.__getattribute__

    def watched(self: Section, name: str) -> object:
        if name in type(self).model_fields:
            read.add(f"{type(self).__name__}.{name}")
        return original(self, name)

    small = [
        "steps=1",
        "rollout.problems=2",
        "rollout.group_size=2",
        "rollout.max_new_tokens=16",
        "evaluation.problems=2",
    ]
    small += [f"output={tmp_path}"]
    (tmp_path / "mine.py").write_text(
        "def mine(completions, **_): return [1.0] * len(completions)\nclass Mine:\n    def step(self, text): return [], True\n"
    )
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}+1?", "answer": f"{i + 1}"}) + "\n" for i in range(30)) + "{\n"
    )
    trainings = [
        ["rewards.soft_overlong=0.5", "algorithm.dynamic_sampling=refill", "optimizer.warmup_steps=1", "optimizer.epochs=2",
         f"rewards.custom={{'{tmp_path}/mine.py:mine': {{low: 0, high: 1}}}}", "log.samples_every=1", "log.to=wandb"],
        ["task.name=jsonl", f"task.path={tmp_path}/rows.jsonl", f"task.test_path={tmp_path}/test.jsonl", "task.style=tags", "task.on_bad_row=skip",
         "rewards.check_numbers=1", "rewards.as_published=true", "rewards.gold_check=report"],
        ["steps=2", "checkpoint.every=1", "algorithm.baseline=critic", "algorithm.scale_rewards=none", "algorithm.kl_estimator=k1",
         "algorithm.kl_place=reward", "curriculum.order=learnability", "algorithm.importance=mask",
         f"environment.name={tmp_path}/mine.py:Mine", "environment.workers=0"],
        ["algorithm.kl_estimator=gkl", "algorithm.gkl.weights=global", "algorithm.gkl.gamma=0.5", "max_tokens=1000",
         "model.lora.rank=2", "rewards.workers=0", f"rewards.custom={{'{tmp_path}/mine.py:mine': 1}}", f"environment.name={tmp_path}/mine.py:Mine",
         "rewards.cosine_length=1", "rewards.repetition=1",
         f"rewards.judge.q={{endpoint: '{judge}', model: m, prompt: '{{completion}}', low: 0, high: 1}}"],
        ["task.name=code", f"task.path={tmp_path}/code.jsonl", "rewards.tests_passed=1", "sandbox.isolation=limits"],
    ]  # fmt: skip
    programs = [{"text": f"{i}?", "code": f"x = {i}", "test_list": [f"assert x == {i}"]} for i in range(6)]
    (tmp_path / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in programs))
    built_in = [*small, "evaluation.harder_problems=2"]  # other data has no harder split
    trainings[1] += [f"task.rates={tmp_path}/rates.jsonl", "task.success_rate=[0, 0.9]"]
    rates = [{"id": f"jsonl/train/{i:05d}", "right": 0, "samples": 1} for i in range(30)]
    (tmp_path / "rates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rates))
    (tmp_path / "test.jsonl").write_text('{"question": "1079+1?", "answer": "1,080"}\n')
    configs = [
        load_config(TrainConfig, [], [*(small if i in (1, 4) else built_in), f"name=t{i}", *more])
        for i, more in enumerate(trainings)
    ]
    imitation = load_config(
        SftRunConfig,
        [],
        [*(s for s in built_in if not s.startswith("rollout")), "name=s", "sft.batch_size=2", "sft.show_every=1"],
    )
    monkeypatch.setattr(Section, "__getattribute__", watched)
    with monkeypatch.context() as installed:
        installed.setattr("importlib.util.find_spec", lambda _: True)
        for config in (configs[0], imitation):
            open_trackers(config.log, print, print)
    for config in (configs[0], imitation):
        with team(config, Stop()) as ranks:  # which a verb enters before its run
            assert ranks.size == 1
    for config in configs:
        train(config, Display(quiet=True, samples_every=config.log.samples_every, samples=config.log.samples))
    sft(imitation, Display(quiet=True))
    fields = {
        f"{kind.__name__}.{field}"
        for kind in sections(TrainConfig) | sections(SftRunConfig)
        for field in kind.model_fields
    }
    at_the_door = {"RolloutConfig.top_p", "RolloutConfig.top_k"}  # refused unless off, so there is nothing to read
    assert fields - read == at_the_door | {f"RootConfig.{name}" for name in RootConfig.model_fields} & fields


def sections(kind: type[Section]) -> set[type[Section]]:
    """A settings class and every section below it."""
    found = {kind, CustomReward, JudgeReward}
    for info in kind.model_fields.values():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            found |= sections(info.annotation)
    return found


def test_json_of_every_default_is_plain() -> None:
    for row in describe_settings():
        json.dumps(row["default"])
        assert row["type"], row["key"]


def test_recipes_hold_no_default_section_that_is_unknown() -> None:
    known = set(known_keys(TrainConfig)) | set(known_keys(SftRunConfig))
    for path in (ROOT / "recipes").rglob("*.yaml"):
        data = yaml.safe_load(path.read_text())
        assert set(data) <= known, path


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("run.json", "{0} is a run, not a settings file; write {0}/config.yaml for its settings, or model.path={0}"),
        ("config.json", "{0} is a model, not a settings file; write model.path={0}"),
        ("adapter_config.json", "{0} is a model, not a settings file; write model.path={0}"),
        ("other.json", "{0}: no such settings file"),
    ],
)
def test_a_folder_in_place_of_settings(file: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / file).write_text("{}")
    with pytest.raises(SettingsError) as raised:
        load_config(TrainConfig, [str(folder)], [])
    assert str(raised.value) == said.format(folder)
