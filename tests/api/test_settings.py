"""Settings, rewards, data and models as Python gives them, before anything runs."""

from __future__ import annotations

import functools
import json
import operator
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from datasets import Dataset

import slimrl
from slimrl.api.models import placed, read_model
from slimrl.api.problems import as_given, jsonl, read_data
from slimrl.api.rewards import read_rewards
from slimrl.api.settings import dotted, from_keywords, from_recipes
from slimrl.config.algorithm import AlgorithmConfig
from slimrl.config.files import build, load_config, merge, read_yaml
from slimrl.config.schema import SftRunConfig, TrainConfig
from slimrl.config.sections import RolloutConfig
from slimrl.errors import DataError, SettingsError
from slimrl.rewards.custom import digest_of_code, importable_name
from slimrl.runs.reader import read_settings
from tests.conftest import ROOT

ANONYMOUS = lambda completions, **_: [1.0 for _ in completions]  # noqa: E731


def outside(completions: list[str], **_: Any) -> list[float]:
    return [1.0 for _ in completions]


@pytest.mark.parametrize(
    ("keywords", "overrides"),
    [
        ({"steps": 2, "rollout.problems": 4}, ["steps=2", "rollout.problems=4"]),
        ({"rollout": {"problems": 4}, "rollout.group_size": np.int64(4)}, ["rollout.problems=4", "rollout.group_size=4"]),
        ({"rollout": RolloutConfig(problems=4), "seed": 3}, ["rollout.problems=4", "seed=3"]),
        ({"model.lora": {"rank": 4}, "model.lora.alpha": 8}, ["model.lora.rank=4", "model.lora.alpha=8"]),
        ({"model.path": Path("models/a"), "log.to": ("wandb",)}, ["model.path=models/a", "log.to=wandb"]),
        ({"rewards.custom.my.py:f": 0.5}, ["rewards.custom.my.py:f=0.5"]),
        ({"rewards.custom.my.py:f.low": 0.5}, ["rewards.custom.my.py:f.low=0.5"]),
        ({"rewards": {"custom": {"my.py:f": {"weight": 2.0}}}}, ["rewards.custom.my.py:f.weight=2"]),
        ({"algorithm": AlgorithmConfig(kl_coef=0.1)}, ["algorithm.kl_coef=0.1"]),
        ({"steps": 2} | {"rollout.stop": ["x"]}, ["steps=2", "rollout.stop=[x]"]),
    ],
)  # fmt: skip
def test_keywords_are_what_overrides_are(keywords: dict[str, Any], overrides: list[str]) -> None:
    assert build(TrainConfig, from_keywords(keywords)) == load_config(TrainConfig, [], overrides)


def test_recipes_by_name_and_by_file_merge_as_on_the_command_line(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("steps: 7\nrewards: {custom: {r.py:f: 1}}\nsft: {batch_size: 2}\n")
    expected = load_config(
        TrainConfig, [str(ROOT / "recipes" / "gsm8k.yaml"), str(ROOT / "recipes" / "dapo.yaml"), str(mine)]
    )
    found = from_recipes(TrainConfig, ["gsm8k", "@dapo", mine])
    assert build(TrainConfig, found) == expected
    assert from_recipes(SftRunConfig, str(mine))["sft"] == {"batch_size": 2}
    assert from_recipes(TrainConfig, "dapo") == read_yaml(str(ROOT / "recipes" / "dapo.yaml"))
    assert [*dotted({"a": {"b": 1, "c": {}}, "d": 2})] == ["a.b", "a.c", "d"]


def test_a_list_of_rewards_is_whole() -> None:
    def local(completions: list[str], **_: Any) -> list[float]:
        return [0.0 for _ in completions]

    given = read_rewards(["format", (local, 0.5), (lambda **_: [], -1), lambda **_: [], "r.py:f"])
    assert {key: value for key, value in given.settings.items() if value != 0} == {
        "format": 1.0,
        "custom": {
            "__main__:local": {"weight": 0.5}, "__main__:lambda": {"weight": -1.0}, "__main__:lambda_2": {"weight": 1.0},
            "r.py:f": {"weight": 1.0},
        },
    }  # fmt: skip
    assert given.functions["__main__:local"] is local
    config = build(TrainConfig, merge(from_recipes(TrainConfig, "dapo"), {"rewards": given.settings}))
    assert config.rewards.paid == ("format", "soft_overlong", *given.settings["custom"]), "DAPO's punishment stays"
    assert config.rewards.of_the_program == (*given.functions,)
    assert read_rewards(None).settings == {}
    assert read_rewards({"correct": 2}).settings == {"correct": 2}
    assert {name for name, weight in read_rewards("correct").settings.items() if weight} == {"correct"}
    theirs = from_recipes(TrainConfig, "gsm8k")
    assert theirs["rewards"]["format"], "the recipe pays the form"
    theirs["rewards"] |= {"custom": {"theirs.py:f": {"weight": 1.0}}, "judge": {"j": {}}}
    alone = merge(read_rewards([outside]).over(theirs), {"rewards": read_rewards([outside]).settings})
    assert build(TrainConfig, alone).rewards.paid == (f"{__name__}:outside",)
    assert read_rewards({"correct": 2}).over(theirs) == theirs, "a mapping adds"
    assert read_rewards([(outside, {"low": 0, "high": 1})]).settings["custom"] == {
        f"{__name__}:outside": {"low": 0, "high": 1}
    }


@pytest.mark.parametrize(
    "rewards",
    [
        ["correct", ("correct", 2)],
        [outside, (outside, 2)],
        [ANONYMOUS, "format", (ANONYMOUS, 2)],
        [3],
        [("format", True)],
        ["no such"],
    ],
)
def test_rewards_that_are_none_are_refused(rewards: Any) -> None:
    with pytest.raises(SettingsError, match=r"^rewards: "):
        read_rewards(rewards)


def test_a_worker_finds_what_a_file_or_a_module_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(
        "def f(completions, **_):\n    return []\n\n\nclass C:\n    def g(self):\n        pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_rewards  # type: ignore[import-not-found]

    try:
        assert importable_name(own_rewards.f) == f"{tmp_path / 'own_rewards.py'}:f"
        assert importable_name(own_rewards.C().g) == ""
        assert importable_name(functools.partial(own_rewards.f)) == ""
        loaded = own_rewards.f
        monkeypatch.setattr(own_rewards, "f", list)
        assert importable_name(loaded) == "", "a worker would find another one"
    finally:
        del sys.modules["own_rewards"]
    assert importable_name(outside) == f"{__name__}:outside"
    assert importable_name(json.dumps) == "json:dumps"
    assert importable_name(operator.neg) in ("", "_operator:neg")
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec("def f(completions, **_): return []", cell)
    assert importable_name(cell["f"]) == ""


OWN = """
import functools

def twice(function):
    @functools.wraps(function)
    def call(*args, **named):
        return [2 * value for value in function(*args, **named)]
    return call

def f(completions, **_):
    return [1.0 for _ in completions]

@twice
def decorated(completions, **_):
    return [1.0 for _ in completions]

def make(value):
    def made(completions, **_):
        return [value for _ in completions]
    made.__name__ = made.__qualname__ = "g"
    return made

g = make(3.0)
h = twice(f)
h.__name__ = h.__qualname__ = "h"

@functools.lru_cache
def cached(completions):
    return [1.0]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's that the program has imported."""
    (tmp_path / "of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield import_module("of_mine")
    del sys.modules["of_mine"]


def test_functions_as_their_file_has_them_go_to_workers(own: Any, tmp_path: Path) -> None:
    for name in ("f", "decorated", "g", "h", "cached"):
        given = read_rewards([getattr(own, name)])
        assert ([*given.settings["custom"]], given.notes) == ([f"{tmp_path / 'of_mine.py'}:{name}"], []), name
    (tmp_path / "of_mine.py").write_text("# a comment\n" + OWN.replace("[1.0 for _", "[1.0\n        for _"))
    assert read_rewards([own.f]).changed == (), "it does the same"
    assert read_rewards([json.dumps, outside]).changed == ()


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        return function(*args, **named)

    return call


def other(completions: list[str], **_: Any) -> list[float]:
    return [-1.0 for _ in completions]


@pytest.mark.parametrize("change", ["wrapped", "wrapped again", "replaced", "code", "edited", "broken", "gone"])
def test_a_function_that_differs_from_its_file_is_scored_in_this_process(own: Any, tmp_path: Path, change: str) -> None:
    name = "decorated" if change == "wrapped again" else "f"
    if change.startswith("wrapped"):
        setattr(own, name, wrapped(getattr(own, name)))
    elif change == "replaced":
        own.f = other
        other.__module__, other.__qualname__ = "of_mine", "f"
    elif change == "code":
        own.f.__code__ = other.__code__
    elif change == "gone":
        (tmp_path / "of_mine.py").unlink()
    else:
        (tmp_path / "of_mine.py").write_text(OWN.replace("1.0", "2.5") if change == "edited" else "def f(:")
    function = getattr(own, name)
    refused = (
        "the runs of a study are processes" if change == "gone" else rf"rewards: of_mine\.{name} is not the function "
    )
    try:
        given = read_rewards(["correct", function])
        with pytest.raises(SettingsError, match=refused):
            slimrl.study({"arms": {"a": "steps=1"}}, name="x", rewards=[function], output=tmp_path)
    finally:
        other.__module__, other.__qualname__ = __name__, "other"
    assert [*given.functions.values()] == [function]
    assert all(spec.startswith("__main__:") for spec in given.settings["custom"])
    assert given.changed == (() if change == "gone" else (f"of_mine.{name}",))


def test_the_digest_of_a_function_is_that_of_what_it_does() -> None:
    def made(text: str) -> Any:
        cell: dict[str, Any] = {}
        exec(text, cell)
        return cell["f"]

    plain = made("def f(c, **_): return [1.0 if x in {'a', 'b', 'c'} else 0.0 for x in c]")
    moved = made("\n\n# a remark\ndef f(c, **_):\n    return [1.0 if x in {'c', 'b', 'a'} else 0.0 for x in c]")
    other = made("def f(c, **_): return [2.0 if x in {'a', 'b', 'c'} else 0.0 for x in c]")
    assert digest_of_code(plain) == digest_of_code(moved) == digest_of_code(functools.partial(plain))
    assert digest_of_code(plain) != digest_of_code(other)


def test_rows_of_every_library_are_the_same_lines() -> None:
    rows = [{"question": "a", "answer": 1, "level": 0.5}, {"question": "ü", "answer": 2, "level": None}]
    text = jsonl(rows, "data")
    assert [json.loads(line) for line in text.splitlines()] == rows
    assert jsonl(Dataset.from_list(rows), "data") == text
    assert jsonl(pandas.DataFrame(rows), "data") == text
    assert jsonl(iter(rows), "data") == text
    assert jsonl(
        [{"a": np.float32(0.5), "b": np.array([1, 2]), "c": pandas.Timestamp("2026-01-02"), "d": pandas.NA}], "d"
    ) == ('{"a": 0.5, "b": [1, 2], "c": "2026-01-02T00:00:00", "d": null}\n')


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "data has no rows"),
        ([{"a": 1}, 3], r"data\[1\] is a int"),
        ([{"a": {1, 2}}], r"data\[0\] holds what JSON does not have \(.*set"),
        ([{"a": float("inf")}], r"data\[0\] holds what JSON does not have"),
        ({"question": "a"}, "data is one mapping"),
        (3, "data is a int"),
    ],
)  # fmt: skip
def test_rows_that_are_none_are_refused(rows: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=rf"^{sentence}"):
        read_data(rows)


def test_data_by_name_and_by_place() -> None:
    assert read_data("gsm8k").settings == {"name": "gsm8k"}
    assert read_data(Path("a.csv"), "b.csv").settings == {"path": "a.csv", "test_path": "b.csv", "name": "jsonl"}
    both = read_data([{"a": 1}], [{"a": 2}])
    assert both.settings == {"path": "data.jsonl", "test_path": "test.jsonl", "name": "jsonl"}
    assert both.files == {"data.jsonl": '{"a": 1}\n', "test.jsonl": '{"a": 2}\n'}
    with pytest.raises(SettingsError, match="is the name of a task"):
        read_data([{"a": 1}], "gsm8k")
    with pytest.raises(SettingsError, match="data is an empty text"):
        read_data("")


class Split(list[dict[str, int]]):
    """A part of a `datasets.DatasetDict`, as far as it is looked at."""

    features = ("a",)


class Polars:
    columns = ("a",)

    def to_dicts(self) -> list[dict[str, int]]:
        return [{"a": 1}]

    def to_dict(self) -> None:
        raise AssertionError("that is pandas")


def test_data_of_other_libraries() -> None:
    assert read_data(Polars()).files == {"data.jsonl": '{"a": 1}\n'}  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"has the splits train, test; give one of them, as data\['train'\]"):
        read_data({"train": Split(), "test": Split()})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data\[1\] holds what JSON does not have"):
        read_data([{"question": "1"}, {"question": "\ud800"}])


def test_a_run_that_was_moved_has_its_data_and_its_model(tmp_path: Path) -> None:
    run = tmp_path / "moved"
    (run / "model").mkdir(parents=True)
    (run / "data.jsonl").touch()
    before = {
        "task": {"path": "/gone/run/data.jsonl", "test_path": "/gone/other.jsonl"},
        "model": {"path": "/gone/run/model"},
    }
    (run / "config.yaml").write_text(json.dumps(before))
    assert read_settings(run) == {
        "task": {"path": str(run / "data.jsonl"), "test_path": "/gone/other.jsonl"},
        "model": {"path": str(run / "model")},
    }


def test_a_sentence_on_a_file_of_rows_is_in_the_words_of_what_was_given() -> None:
    assert as_given("runs/a/data.jsonl:3: bad; 1 more row is bad (runs/a/data.jsonl:12)", "runs/a") == (
        "data[2]: bad; 1 more row is bad (data[11])"
    )
    assert (
        as_given("runs/a/test.jsonl has one row; my.jsonl:3 too", Path("runs/a"))
        == "test_data has one row; my.jsonl:3 too"
    )


def test_models(tmp_path: Path) -> None:
    assert read_model(slimrl.Result(tmp_path)).settings == {"path": str(tmp_path)}
    assert read_model({"path": "a", "dtype": "bfloat16"}).settings == {"path": "a", "dtype": "bfloat16"}
    with pytest.raises(SettingsError, match="give its path"), placed({"path": "a", "dtype": "bfloat16"}):
        pass

    class Loaded:
        def save_pretrained(self, folder: str) -> None:
            Path(folder).mkdir(exist_ok=True)
            (Path(folder) / f"{id(self)}").write_text("")

    with placed((Loaded(), Loaded())) as path:
        assert len([*Path(path).iterdir()]) == 2
    assert not Path(path).exists()
    with pytest.raises(SettingsError, match="a loaded model needs its tokenizer"):
        read_model(Loaded())  # type: ignore[arg-type]
