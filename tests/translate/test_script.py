"""Scripts are read as trees: values that a file assigns once are followed, and nothing is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slimrl.config.task import TaskConfig
from slimrl.errors import SettingsError
from slimrl.tasks.sources import find_sources
from slimrl.translate.script import script_source
from slimrl.translate.source import Source
from slimrl.translate.trl import from_trl
from tests.translate.trl_files import FILES


def read(tmp_path: Path, text: str) -> Source:
    file = tmp_path / "train.py"
    file.write_text(text)
    return script_source(str(file))


def value(tmp_path: Path, before: str, expression: str) -> Any:
    """The value that is read for an argument; "unread" where none is."""
    found = read(tmp_path, f"{before}\nGRPOConfig(beta={expression})\n")
    return "unread" if "beta" in found.unread else found.given.get("beta")


@pytest.mark.parametrize(
    ("before", "expression", "expected"),
    [
        ("", "0.1", 0.1),
        ("", "-1", -1),
        ("a = 2\nb = a", "b * 4 - 1", 7),
        ("a = 'x'", "f'{a}/y'", "x/y"),
        ("import torch", "torch.bfloat16", "bfloat16"),
        ("a: int = 3", "[a, (1, 2)]", [3, [1, 2]]),
        ("", "not True", False),
        ("a = 1\na = 2", "a", "unread"),
        ("a = 1\na += 1", "a", "unread"),
        ("a = 1\nfor a in range(3): pass", "a", "unread"),
        ("a = 1\ndef f(a): pass", "a", "unread"),
        ("a = a", "a", "unread"),
        ("a, b = 1e-5, 0.3", "a", 1e-5),
        ("[a, (b, c)] = 1, (2, 3)", "c", 3),
        ("a, b = f()", "a", "unread"),
        ("a = 1\na, b = 2, 3", "a", "unread"),
        ("a, *b = 1, 2, 3", "a", "unread"),
        ("print(a := 4)", "a", 4),
        ("a = 1\nprint(a := 4)", "a", "unread"),
        ("a = 1\nwith f() as a: pass", "a", "unread"),
        ("a = 1\nfor b, a in c: pass", "a", "unread"),
        ("a = 1\nfrom x import a", "a", "unread"),
        ("a = 1\nimport x as a", "a", "unread"),
        ("a = 1\ndef a(): pass", "a", "unread"),
        ("a = 1\nclass a: pass", "a", "unread"),
        ("a = 1\ndel a", "a", "unread"),
        ("a = 1\ntry: pass\nexcept E as a: pass", "a", "unread"),
        ("a = 1\nmatch x:\n  case {'k': a}: pass", "a", "unread"),
        ("a = 1\nprint([a for a in c])", "a", "unread"),
        ("a: int\na = 1", "a", 1),
        ("a = [1]\na.append(2)", "a", "unread"),
        ("a = {'x': 1}\nb = a\nb['x'] = 2", "a", "unread"),
        ("a = [1]\na.index(1)", "a", [1]),
        ("import os", "os.environ['X']", "unread"),
        ("", "1 / 0", "unread"),
        ("", "'x' * 10**9", "unread"),
        ("", "'x' * 1000000000", "unread"),
        ("", "'a' - 1", "unread"),
        ("", "None", None),
    ],
)
def test_values(tmp_path: Path, before: str, expression: str, expected: Any) -> None:
    assert value(tmp_path, before, expression) == expected


def test_nothing_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    read(tmp_path, f"open({str(mark)!r}, 'w')\nGRPOConfig(beta=0)\nraise SystemExit(3)\n")
    assert not mark.exists()


def test_settings_in_a_dictionary_and_what_is_not_known(tmp_path: Path) -> None:
    found = read(tmp_path, FILES["kwargs.py"])
    assert found.given["max_completion_length"] == 256
    assert found.given["learning_rate"] == 3e-6
    assert {"output_dir", "per_device_train_batch_size", "arguments of GRPOConfig"} <= set(found.unread)
    assert [one.name for one in found.rewards] == ["accuracy_reward", "judge"]


def test_positional_arguments_reward_models_and_local_functions(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        """
from transformers import AutoModelForSequenceClassification
judge = AutoModelForSequenceClassification.from_pretrained("a/judge")
def accuracy_reward(completions, answer, **kw):
    return [1.0 for _ in completions]
args = GRPOConfig(beta=0.1)
trainer = GRPOTrainer("a/policy", [accuracy_reward], args)
""",
    )
    assert source.given["model_name_or_path"] == "a/policy"
    assert [(one.name, one.is_local) for one in source.rewards] == [("accuracy_reward", True)]
    settings = from_trl(source).settings
    assert "task.checker" not in settings
    assert "task.style" not in settings


def test_what_is_assigned_after_the_call_counts(tmp_path: Path) -> None:
    text = """
import os
args = GRPOConfig(beta=0.04, learning_rate=1e-6)
args.learning_rate = 5e-6
args.temperature = float(os.environ["T"])
data = load_dataset("openai/gsm8k", "main", split="train[:1000]")
"""
    source = read(tmp_path, text)
    assert source.given["learning_rate"] == 5e-6
    assert source.unread == {"temperature": "float(os.environ['T'])"}
    settings = from_trl(source).settings
    assert "task.name" not in settings, "a slice is not the whole task"
    assert (settings["task.path"].value, settings["task.split"].value) == ("openai/gsm8k", "train[:1000]")
    assert settings["steps"].value == 100, "how many rows a slice has is not known"
    listed = read(tmp_path, text.replace('"train[:1000]"', '["train", "test"]'))
    assert listed.unread["dataset_train_split"] == "['train', 'test']"


@pytest.mark.parametrize("config", [', "main"', ""])
def test_a_part_of_gsm8k_goes_by_its_whole_name(config: str, tmp_path: Path) -> None:
    """`gsm8k` alone would be a file here, of which task.split and task.subset are refused."""
    text = f'args = GRPOConfig()\ndata = load_dataset("gsm8k"{config}, split="train[:100]")\n'
    settings = from_trl(read(tmp_path, text)).settings
    task = {key: settings[f"task.{key}"].value for key in ("path", "subset", "split")}
    assert task == {"path": "openai/gsm8k", "subset": "main", "split": "train[:100]"}
    assert find_sources(TaskConfig(**task, name="jsonl"))[0].split == "train[:100]"


def test_a_data_set_without_an_owner_gets_a_place_for_one(tmp_path: Path) -> None:
    text = 'args = GRPOConfig()\ndata = load_dataset("squad", "plain_text", split="train[:100]")\n'
    settings = from_trl(read(tmp_path, text)).settings
    assert settings["task.path"].value == "OWNER/squad"
    assert settings["task.path"].reason.startswith("dataset_name=squad; put the owner of the data set on the Hub here")
    assert (settings["task.subset"].value, settings["task.split"].value) == ("plain_text", "train[:100]")


def test_a_file_has_one_split(tmp_path: Path) -> None:
    """`train` is how `datasets` calls all of a file, and task.split is of the Hub alone."""
    text = 'args = GRPOConfig()\ndata = load_dataset("json", data_files="rows.jsonl", split="train")\n'
    whole = from_trl(read(tmp_path, text))
    assert whole.settings["task.path"].value == "rows.jsonl"
    assert "task.split" not in whole.settings
    assert "dataset_train_split" not in {left.name for left in whole.left}
    part = from_trl(read(tmp_path, text.replace('"train"', '"train[:90%]"')))
    assert "task.split" not in part.settings
    assert {left.name: left.reason for left in part.left}["dataset_train_split"] == (
        "a part of files; write its rows into a file of their own, for task.path"
    )


def test_unsloth(tmp_path: Path) -> None:
    found = read(tmp_path, FILES["unsloth-llama.py"]).given
    assert found["model_name_or_path"] == "meta-llama/Llama-3.2-3B-Instruct"
    assert (found["lora_r"], found["lora_alpha"], found["load_in_4bit"]) == (32, 32, True)
    assert found["max_completion_length"] == 768
    assert found["dataset_name"] == "openai/gsm8k"


def test_a_function_that_is_made_by_a_call(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "r = get_soft_overlong_punishment(512, soft_punish_cache=64)\nGRPOTrainer(args=GRPOConfig(), reward_funcs=[r])\n",
    )
    assert found.rewards[0].name == "get_soft_overlong_punishment"
    assert found.rewards[0].arguments == {"soft_punish_cache": 64, "max_completion_len": 512}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parser = TrlParser((GRPOConfig,))\n", "its settings come from the command line; give the YAML file"),
        ("args = HfArgumentParser(X).parse_args()\n", "come from the command line"),
        ("print(1)\n", "holds no GRPOConfig"),
        ("def (:\n", "train.py:1 is no valid Python"),
        ("a\0b", "no valid Python"),
    ],
)
def test_a_script_that_cannot_be_read_says_why(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("change", "given", "unread"),
    [
        ("settings['beta'] = 0.2", 0.2, ""),
        ("settings['beta'] = float(x)", 0.1, "float(x)"),
        ("settings['beta'] = float(x)\nsettings['beta'] = 0.3", 0.3, ""),
        ("settings.update(beta=0.2)", 0.2, ""),
        ("settings.update({'beta': 0.2})", 0.2, ""),
        ("settings |= {'beta': 0.2}", 0.2, ""),
        ("settings['beta'] *= 2", 0.1, "settings['beta'] *= 2"),
        ("settings['beta'], x = 0.2, 1", 0.2, ""),
        ("settings['beta'], x = f()", 0.1, "f()"),
        ("if x:\n  settings['beta'] = 0.2", 0.1, "0.2, which the file sets under a condition"),
        ("del settings['beta']", None, ""),
        ("settings.pop('beta')", None, ""),
        ("other = settings\nother['beta'] = 0.2", 0.2, ""),
        ("unrelated['beta'] = 0.2", 0.1, ""),
    ],
)
def test_a_dictionary_has_the_entries_of_its_last_change(
    tmp_path: Path, change: str, given: float | None, unread: str
) -> None:
    source = read(tmp_path, f"settings = {{'beta': 0.1}}\n{change}\nGRPOConfig(**settings)\nsettings['beta'] = 9\n")
    assert source.given.get("beta") == given
    assert source.unread.get("beta", "") == unread


def test_a_dictionary_that_is_merged_or_made_elsewhere_is_said(tmp_path: Path) -> None:
    text = "settings = {'beta': 0.1}\nsettings |= more\nGRPOConfig(**settings)\n"
    assert read(tmp_path, text).unread == {"arguments of GRPOConfig": "**settings"}
    text = "settings = {'beta': 0.1, **more()}\nsettings.update(rest)\nGRPOConfig(**settings)\n"
    source = read(tmp_path, text)
    assert source.given["beta"] == 0.1
    assert source.unread == {"**more()": "more()", "entries of settings": "settings.update(rest)"}


@pytest.mark.parametrize(
    ("change", "given", "unread"),
    [
        ("setattr(args, 'beta', 0.2)", 0.2, ""),
        ("args.beta = other.beta = 0.2", 0.2, ""),
        ("args.beta, b = 0.2, 1", 0.2, ""),
        ("args.beta += 1", 0.1, "args.beta += 1"),
        ("same = args\nsame.beta = 0.2", 0.2, ""),
        ("def later():\n  args.beta = 0.2", 0.1, "0.2, which the file sets under a condition"),
        ("args.beta: float = 0.2", 0.2, ""),
        ("del args.beta", None, ""),
    ],
)
def test_a_config_is_changed_in_every_form(tmp_path: Path, change: str, given: float | None, unread: str) -> None:
    source = read(tmp_path, f"args = GRPOConfig(beta=0.1)\n{change}\n")
    assert source.given.get("beta") == given
    assert source.unread.get("beta", "") == unread


def test_rewards_that_are_added_later_are_said(tmp_path: Path) -> None:
    source = read(tmp_path, "r = [f]\nr.append(g)\nGRPOTrainer('a/b', r, GRPOConfig())\n")
    assert [one.name for one in source.rewards] == ["f"]
    assert "changed after it is made" in source.unread["reward_funcs"]


def test_the_trainer_says_which_config_and_which_model_count(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        """
draft = AutoModelForCausalLM.from_pretrained("a/draft")
policy = AutoModelForCausalLM.from_pretrained("a/policy")
first = GRPOConfig(beta=0.1)
second = GRPOConfig(beta=0.2)
GRPOTrainer(policy, [f], second, data)
""",
    )
    assert source.given["beta"] == 0.2
    assert source.given["model_name_or_path"] == "a/policy"
    assert "the trainer's, on line 5" in source.notes[0]


def test_a_model_or_data_that_cannot_be_read_is_not_called_missing(tmp_path: Path) -> None:
    source = read(tmp_path, "args = GRPOConfig(beta=0.1)\nGRPOTrainer(make_model(), [f], args, rows[:10])\n")
    assert source.unread == {"model_name_or_path": "make_model()", "dataset_name": "rows[:10]"}
    found = from_trl(source)
    assert found.settings["model.path"].reason.startswith("model_name_or_path=make_model(), which is not read")
    listed = {one.name: one.reason for one in found.left}
    assert "set model.path by hand" in listed["model_name_or_path"]
    assert "set task.path by hand" in listed["dataset_name"]
    plain = from_trl(read(tmp_path, "GRPOConfig(beta=0.1)\n")).settings
    assert plain["model.path"].reason.startswith("the file names no model")
    assert plain["task.path"].reason.startswith("the file names no data")
