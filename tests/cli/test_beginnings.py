"""Beginnings on the command line: new, recipes, runs, --resume alone, from-trl, from-verl, completion; docs/commands.md."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from click.shell_completion import ShellComplete

from slimrl.cli import cli
from slimrl.config import recipes
from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.study.spec import load_study
from tests.conftest import ROOT
from tests.forks import command
from tests.runs.test_listing import write
from tests.translate.test_verl import SCRIPT
from tests.translate.trl_files import FILES

PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


def test_a_new_project_trains_as_it_is(slimrl, tmp_path: Path) -> None:
    made = slimrl("new", "mine")
    assert made.code == 0
    assert made.out.split() == ["mine/mine.yaml", "mine/rewards.py", "mine/mine.jsonl"]
    assert "slimrl train mine/mine.yaml" in made.err
    small = ("steps=1", "evaluation.samples=2", "name=a", "rewards.workers=0")
    trained = slimrl("train", "mine/mine.yaml", *small, "--json")
    assert trained.code == 0, trained.err
    rollouts = (tmp_path / "runs" / "a" / "rollouts" / "step-00000001.jsonl").read_text().splitlines()
    assert len(rollouts) == 4 * 8
    assert any("brief" in json.dumps(json.loads(line)["scores"]) for line in rollouts)


def test_a_new_project_in_the_folder_that_one_is_in(slimrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert slimrl("new", ".").code == 0
    assert Path("here.yaml").is_file()


def test_a_new_project_is_found_from_its_own_folder(slimrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slimrl("new", "mine")
    monkeypatch.chdir(tmp_path / "mine")
    config = load_config(TrainConfig, ["mine.yaml"])
    assert config.task.path == "mine.jsonl"
    assert list(config.rewards.custom) == ["rewards.py:brief"]


def test_every_setting_of_a_new_project_is_explained_and_its_reward_keeps_its_bounds(slimrl) -> None:
    slimrl("new", "mine")
    text = Path("mine/mine.yaml").read_text()
    for line in text.splitlines():
        if re.match(r"^ +[\w.:]+: \S", line) and not line.strip().startswith("rewards.py"):
            assert "#" in line, line
    commented = re.sub(r"^( *)# (\w+: )", r"\1\2", text, flags=re.MULTILINE)  # what stands behind a sign loads too
    Path("mine/all.yaml").write_text(commented)
    assert load_config(TrainConfig, ["mine/all.yaml"]).model.lora.rank == 16
    space: dict[str, object] = {}
    exec(Path("mine/rewards.py").read_text(), space)
    assert space["brief"](["x", "x" * 160, "x" * 999], question=[]) == [1.0, 0.5, 0.0]  # type: ignore[operator]


@pytest.mark.parametrize("name", ["mine", "a b", "-x", "rewards", "../../..", ""])
def test_a_new_project_overwrites_nothing(slimrl, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.txt").write_text("mine")
    assert slimrl("new", "--", name).code == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "own.txt"]


def test_what_is_shipped_can_be_copied_and_nothing_is_overwritten(
    slimrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, file in (
        ("slurm.sh", "slurm.sh"),
        ("minimal.py", "minimal.py"),
        ("@dapo", "dapo.yaml"),
        ("eval/gsm8k", "gsm8k.yaml"),
    ):
        said = slimrl("recipes", "--copy", name)
        assert (said.code, said.out) == (0, f"{file}\n")
    assert (tmp_path / "slurm.sh").read_bytes() == (ROOT / "recipes" / "slurm.sh").read_bytes()
    assert load_config(TrainConfig, ["dapo.yaml"]) == load_config(TrainConfig, [recipes.named("@dapo", "recipes")])
    (tmp_path / "slurm.sh").write_text("#SBATCH --gpus=4\n")
    refused = slimrl("recipes", "--copy", "slurm.sh")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "slurm.sh exists already and is not overwritten" in refused.err
    assert (tmp_path / "slurm.sh").read_text() == "#SBATCH --gpus=4\n"
    for name in ("slurm", "../pyproject.toml", str(ROOT / "pyproject.toml"), "@nothing-like-it", "eval"):
        assert (slimrl("recipes", "--copy", name).code, name) == (2, name)


@pytest.mark.parametrize("study", ["quick", "proposal", "on/gemma3-1b-gsm8k"])
def test_a_copied_study_is_the_study(slimrl, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names recipes by their places beside it, where there are none any more."""
    monkeypatch.chdir(tmp_path)
    shipped = recipes.named(f"@{study}", "studies")
    copied = slimrl("recipes", "--copy", f"@{study}").out.strip()
    quick = [recipes.named("@quick", "studies")] if study.startswith("on/") else []
    assert load_study([*quick, copied]).arms == load_study([*quick, shipped]).arms


def test_recipes_are_listed_with_their_first_lines(slimrl) -> None:
    said = slimrl("recipes").out
    assert re.search(r"^  @lora +An adapter of low rank", said, re.MULTILINE)
    assert re.search(r"^  @quick +A first look", said, re.MULTILINE)
    rows = json.loads(slimrl("recipes", "--json").out)
    assert {row["kind"] for row in rows} == {"recipes", "studies"}
    assert all(Path(row["file"]).is_file() and row["about"] for row in rows)


def test_names_stand_where_files_may(slimrl) -> None:
    assert "did you mean @gsm8k?" in slimrl("train", "@gsm9k").err
    assert "did you mean @dapo?" in slimrl("train", "recipes/dapo.yaml").err
    assert "no such task" not in slimrl("eval", "builtin", "--task", "@eval/gsm9k").err
    planned = slimrl("study", "report", "@quick", "@on/equal-tokens")
    assert "runs/quick-equal-tokens: no such study" in planned.err


def test_runs_are_listed(slimrl, tmp_path: Path) -> None:
    assert slimrl("runs").code == 2
    write(tmp_path / "runs" / "a", "finished", age=3700)
    write(tmp_path / "runs" / "s" / "runs" / "base-0", "interrupted")
    lines = slimrl("runs").out.splitlines()
    assert lines[0].split() == ["run", "state", "steps", "before", "after", "age"]
    assert lines[1].split()[:5] == ["s/runs/base-0", "interrupted", "2/10", "25.0%", "75.0%"]
    assert lines[2].split() == ["a", "finished", "2/10", "25.0%", "75.0%", "1h01m"]
    assert max(map(len, lines)) <= 80
    assert json.loads(slimrl("runs", "--json").out)[1]["run"] == "runs/a"
    assert "no run is in" in slimrl("runs", tmp_path / "runs" / "a").err


def test_resume_alone_goes_on_with_the_newest(slimrl, tmp_path: Path) -> None:
    """Two runs are interrupted; the later one is continued, and it is said which that is."""
    small = [
        "steps=2",
        "rollout.problems=2",
        "rollout.group_size=2",
        "evaluation.problems=2",
        "evaluation.harder_problems=0",
    ]
    for name in ("first", "second"):
        process = command("train", f"name={name}", "steps=500", *small[1:], folder=tmp_path)
        while not (tmp_path / "runs" / name / "metrics.jsonl").is_file() and process.running:
            time.sleep(0.05)
        process.send(signal.SIGTERM)
        assert process.ended().code == 75
    taken = len((tmp_path / "runs" / "second" / "metrics.jsonl").read_text().splitlines())
    found = slimrl("train", "--resume", f"steps={taken + 1}", "--json")
    assert found.code == 0, found.err
    assert "resuming runs/second, the newest that was interrupted" in found.err
    assert json.loads(found.out)["steps"] == taken + 1
    assert "resuming runs/first" in slimrl("train", "--resume", "optimizer.epochs=7").err  # the other one is left
    assert "no interrupted run" in slimrl("train", "--resume", "output=elsewhere").err
    assert "no interrupted run of slimrl sft" in slimrl("sft", "--resume").err


@pytest.mark.parametrize("name", ["cli.yaml", "gsm8k-demo.py", "sapo.json"])
def test_from_trl(slimrl, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    printed = slimrl("from-trl", name, "--devices", "4")
    assert printed.code == 0, printed.err
    assert "not translated or only in part" in printed.err
    assert yaml.safe_load(printed.out)["rollout"]["group_size" if name == "gsm8k-demo.py" else "problems"]
    written = slimrl("from-trl", name, "--devices", "4", "--out", "ours.yaml")
    assert written.out.strip() == "ours.yaml"
    assert (tmp_path / "ours.yaml").read_text() == printed.out
    assert "exists already" in slimrl("from-trl", name, "--out", "ours.yaml").err
    rows = json.loads(slimrl("from-trl", name, "--json").out)
    assert rows["settings"]["model.path"]["value"]
    refused = slimrl("train", "ours.yaml", "model.path=./nowhere", "task.path=./nowhere.jsonl", "task.name=jsonl")
    assert "nowhere" in refused.err  # settings are accepted; the model is looked for


def test_from_verl(slimrl, tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(SCRIPT)
    assert "group_size: 5" in slimrl("from-verl", "run.sh").out
    assert "no such file" in slimrl("from-verl", "none.sh").err
    assert "no such file" in slimrl("from-trl", "none.py").err


def completions(*words: str) -> list[str]:
    """The completions of the last word, as a shell asks for them; `<file>` where the shell completes files."""
    *before, incomplete = words
    found = ShellComplete(cli, {}, "slimrl", "_SLIMRL_COMPLETE").get_completions(list(before), incomplete)
    return ["<file>" if item.type == "file" else item.value for item in found]


def test_a_shell_completes_names_settings_choices_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs" / "a", "finished")
    assert completions("train", "@gs") == ["@gsm8k", "@gspo"]
    assert completions("study", "run", "@on/sm") == ["@on/smollm2-135m"]
    assert completions("train", "algorithm.kl_c") == ["algorithm.kl_coef="]
    assert completions("train", "algorithm.kl_place=") == ["algorithm.kl_place=loss", "algorithm.kl_place=reward"]
    assert completions("train", "mine") == ["<file>"]
    assert completions("eval", "ru") == ["runs/a"]
    assert completions("eval", "b") == ["builtin", "builtin-tools"]
    assert completions("train", "--resume", "runs/") == ["runs/a"]
    assert completions("rec") == ["recipes"]


def test_paths_are_written_for_the_folder_of_the_file(slimrl, tmp_path: Path) -> None:
    for folder in ("data", "conf"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    (tmp_path / "trl.yaml").write_text("model_name_or_path: a/b\ndataset_name: data/rows.jsonl\n")
    assert slimrl("from-trl", "trl.yaml", "--out", "conf/ours.yaml").code == 0
    assert load_config(TrainConfig, [str(tmp_path / "conf" / "ours.yaml")]).task.path.endswith("data/rows.jsonl")
    assert Path(load_config(TrainConfig, [str(tmp_path / "conf" / "ours.yaml")]).task.path).is_file()


def test_a_path_that_is_not_there_says_what_it_is_relative_to(slimrl, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "trl.yaml").write_text("model_name_or_path: ./models/base\ndataset_name: a/b\nbeta: 0\n")
    (tmp_path / "none.yaml").write_text("beta: 0\n")
    words = "not found from the working directory"
    for source, target, said in (("trl", "conf/a", 1), ("trl", "b", 0), ("none", "conf/c", 0)):
        assert slimrl("from-trl", f"{source}.yaml", "--out", f"{target}.yaml").code == 0
        text = " ".join((tmp_path / f"{target}.yaml").read_text().replace("#", " ").split())
        assert text.count(words) == said, target


def test_small_mistakes_are_answered(slimrl) -> None:
    said = {
        (
            "train",
            "evaluation.problems",
        ): "evaluation.problems is a setting without its value; write it as evaluation.problems=400",
        ("train", "evaluation"): "evaluation is a section of settings; write evaluation.KEY=value",
        ("sample", "builtin", "seed=1"): "the question comes before settings: slimrl sample builtin QUESTION seed=1",
        ("sample", "builtin", "seed=1", "How many?"): "slimrl sample builtin 'How many?' seed=1",
        ("eval", "builtin", "algorithm.kl_coef=0.1"): "algorithm.kl_coef has an effect only while training",
    }
    for arguments, words in said.items():
        found = slimrl(*arguments)
        assert found.code == 2
        assert words in found.err


def test_a_run_without_a_model_says_why(slimrl, tmp_path: Path) -> None:
    write(tmp_path / "runs" / "s" / "runs" / "base-0", "finished")
    write(tmp_path / "runs" / "b", "finished")
    for run in ("s/runs/base-0", "b"):
        (tmp_path / "runs" / run / "config.yaml").write_text("log: {model: false}\n")
    (tmp_path / "runs" / "s" / "declared.json").write_text("{}")
    assert "the study keeps no models; set keep_models: true" in slimrl("export", "runs/s/runs/base-0", "x").err
    assert "log.model=false" in slimrl("export", "runs/b", "x").err
    assert "give the folder of a finished run" in slimrl("export", "runs", "x").err


def test_the_page_shows_commands_that_work(slimrl, tmp_path: Path) -> None:
    """Every line of its examples is tried; those that load a model are checked as far as their settings."""
    (tmp_path / "train_grpo.py").write_text(FILES["gsm8k-demo.py"])
    (tmp_path / "run_qwen.sh").write_text(SCRIPT)
    lines = [
        line for block in re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]
    assert len(lines) >= 10
    write(tmp_path / "runs" / "mine", "finished")
    for line in lines:
        words = line.split("  #")[0].replace('"', "").split()
        assert words[0] == "slimrl", line
        verb, rest = words[1], words[2:]
        if verb in ("new", "recipes", "runs", "from-trl", "from-verl", "settings"):
            assert slimrl(verb, *rest).code == 0, line
        elif verb == "study":
            assert "no such study" in slimrl("study", "report", *rest[1:]).err, line
        else:
            assert verb in cli.commands, line
            refused = slimrl(verb, *rest, "no.such=setting").err
            assert "no.such is not a setting" in refused or "--resume" in line, line
