"""`slimrl eval` on one task and on several: measures, limits, and one model for all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimrl.cli.arguments import model_settings, task_settings
from slimrl.errors import SettingsError

FEW = ("rollout.max_new_tokens=10",)


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A settings file whose task is a file of problems, twelve of which are held out."""
    for name, first in (("train", 0), ("test", 100)):
        rows = [
            {"id": f"{name}/{i}", "question": f"What is {i} + 1?", "answer": str(i + 1)}
            for i in range(first, first + 12)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "sums.yaml"
    file.write_text(
        "task: {name: jsonl, path: train.jsonl, test_path: test.jsonl}\nevaluation: {samples: 3}\nsteps: 7\n"
    )
    return file


def test_pass_and_majority_at_every_k(slimrl, tiny_folder: Path) -> None:
    result = slimrl("eval", tiny_folder, "--task", "arithmetic", "evaluation.samples=8", "--limit", 5, *FEW, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert {*found} == {"model", "step", "test", "harder"}
    for split in ("test", "harder"):
        assert found[split]["n"] == 5
        for name in ("pass@k", "maj@k"):
            assert [*found[split][name]] == ["1", "2", "4", "8"]
            assert all({*one} == {"value", "low", "high"} for one in found[split][name].values())
        at_one = found[split]["pass@k"]["1"]
        assert [at_one[key] for key in ("value", "low", "high")] == pytest.approx(
            [found[split][key] for key in ("accuracy", "low", "high")]
        )
    assert "pass@k" in result.err


def test_several_tasks_with_one_model(slimrl, tiny_folder: Path, sums: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slimrl.preflight import prompting

    loaded = []
    load = prompting.load_policy
    monkeypatch.setattr(
        prompting, "load_policy", lambda config, **more: loaded.append(config.path) or load(config, **more)
    )
    tasks = ("--task", "arithmetic", "--task", sums)
    result = slimrl("eval", tiny_folder, *tasks, "--limit", 4, *FEW, "--out", "all.jsonl", "--json")
    assert result.code == 0, result.err
    assert loaded == [str(tiny_folder)]
    found = json.loads(result.out)
    assert {*found} == {"model", "step", "tasks"}
    assert {task: [*splits] for task, splits in found["tasks"].items()} == {
        "arithmetic": ["test", "harder"],
        "sums": ["test"],
    }
    assert [*found["tasks"]["sums"]["test"]["maj@k"]] == ["1", "2", "3"]
    rows = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 4 * 2 + 4 * (3 + 1)
    assert {(row["task"], row["split"]) for row in rows} == {
        ("arithmetic", "test"),
        ("arithmetic", "harder"),
        ("sums", "test"),
    }
    alone = json.loads(slimrl("eval", tiny_folder, "--task", sums, "--limit", 4, *FEW, "--json").out)
    assert alone["test"] == found["tasks"]["sums"]["test"], "a model that is loaded already is the same model"
    for text in ("held out (sums, test, 4 problems)", "arithmetic, harder", "strict held-out accuracy in %"):
        assert text in result.err
    assert json.loads(slimrl("compare", "all.jsonl", "all.jsonl", "--json").out)["verdict"] == "equal"


def test_settings_of_tasks(tmp_path: Path, sums: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(
        "task: {name: arithmetic, style: boxed, arithmetic: {max_steps: 2}}\nevaluation: {samples: 2, harder_problems: 7}\n"
    )
    found = task_settings(str(run), ["seed=3"], ["gsm8k", "math", str(sums)], 50)
    assert [*found] == ["gsm8k", "math", "sums"]
    assert {config.task.style for config in found.values()} == {"boxed"}, "the form goes with the model"
    assert [config.task.checker for config in found.values()] == ["numeric", "symbolic", "numeric"]
    assert [config.evaluation.samples for config in found.values()] == [2, 2, 3]
    assert {config.evaluation.problems for config in found.values()} == {50}
    assert found["sums"].task.path == str(tmp_path / "train.jsonl")
    assert [*task_settings(str(run), [], [], None)] == ["arithmetic"]
    own = task_settings(str(run), [], [], 5)["arithmetic"]
    assert (own.evaluation.problems, own.evaluation.harder_problems) == (5, 5)
    assert task_settings(str(run), ["evaluation.problems=3"], [], 5)["arithmetic"].evaluation.problems == 3
    assert model_settings(str(run), ["task.checker=numeric"], "math").task.checker == "numeric"


def test_a_checkpoint_is_measured_as_its_run(tmp_path: Path) -> None:
    model = tmp_path / "run" / "checkpoints" / "step-00000002"
    model.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("model: {path: there, dtype: float32}\nevaluation: {samples: 3}\n")
    found = model_settings(str(model), [], None)
    assert (found.model.path, found.model.dtype, found.evaluation.samples) == (str(model), "float32", 3)
    (tmp_path / "run" / "config.yaml").unlink()
    assert model_settings(str(model), [], None).evaluation.samples == 1


def test_a_model_is_measured_like_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(
        "model: {path: there, dtype: float32}\nevaluation: {samples: 2}\ntask: {style: boxed}\n"
    )
    like = model_settings("./my-model", [], None, like=str(run))
    assert (like.model.path, like.model.dtype) == ("./my-model", "auto")
    assert (like.evaluation.samples, like.task.style) == (2, "boxed")
    assert model_settings(str(run), [], None, like=str(run)).model.dtype == "float32"


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        (["gsm8k", "gsm8k"], "--task gsm8k is given twice"),
        (["gsm9k"], "did you mean gsm8k?"),
        (["none.yaml"], "no such settings file"),
        (["plain.yaml"], "the file names no task"),
        (
            ["rows.jsonl"],
            "--task rows.jsonl is a file of rows; write task.path: rows.jsonl into a settings file, and give that",
        ),
        (["gone.parquet"], "--task gone.parquet is a file of rows; write"),
    ],
)
def test_tasks_that_are_none(tasks: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.yaml").write_text("evaluation: {samples: 3}\n")
    Path("rows.jsonl").write_text("{}\n")
    with pytest.raises(SettingsError, match=sentence.replace("?", r"\?")):
        task_settings("./my-model", [], tasks, None)


def test_a_path_names_a_task_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: {path: mine.jsonl, checker: exact}\n")
    (found,) = task_settings("./my-model", [], [str(tmp_path / "mine.yaml")], None).values()
    assert (found.task.name, found.task.path, found.task.checker) == ("jsonl", str(tmp_path / "mine.jsonl"), "exact")


def test_the_data_of_a_file_are_not_mixed_with_those_of_the_run(tmp_path: Path) -> None:
    """The checker, the columns and the held-out file of a run are of its own data, and the form is the model's."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(
        "task: {path: a.jsonl, test_path: b.jsonl, checker: choice, columns: {question: ask}, style: boxed}\n"
    )
    (tmp_path / "mine.yaml").write_text("task: {path: mine.jsonl}\n")
    (tmp_path / "limit.yaml").write_text("task: {name: jsonl}\nevaluation: {problems: 5}\n")
    found = task_settings(str(run), [], [str(tmp_path / "mine.yaml"), str(tmp_path / "limit.yaml")], None)
    mine, own = found["mine"].task, found["limit"].task
    assert (mine.path, mine.test_path, mine.checker, mine.columns.question, mine.style) == (
        str(tmp_path / "mine.jsonl"), "", "numeric", "", "boxed",
    )  # fmt: skip
    assert (own.test_path, own.checker, own.columns.question, own.style) == ("b.jsonl", "choice", "ask", "boxed"), (
        "a file that names no data leaves the run's"
    )


def test_grade_prints_what_samples_show(slimrl) -> None:
    rows = [{"id": "a", "answer": "3", "completion": f"#### {n}"} for n in (3, 4, 4, 3)]
    Path("stored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = slimrl("grade", "stored.jsonl", "--task", "gsm8k", "--json")
    found = json.loads(result.out)
    assert {
        "n",
        "strict",
        "lenient",
        "problems",
        "samples",
        "accuracy",
        "low",
        "high",
        "pass@k",
        "maj@k",
        "uncompared",
    } == {*found}
    assert found["pass@k"]["2"]["value"] == pytest.approx(5 / 6)
    assert "4 rows: strict 50.0%" in result.err
    Path("mine.yaml").write_text("task: {path: mine.jsonl, checker: exact}\nrollout: {max_new_tokens: 9}\n")
    Path("words.jsonl").write_text(json.dumps({"id": "a", "answer": "yes", "completion": "#### Yes."}))
    assert json.loads(slimrl("grade", "words.jsonl", "--task", "mine.yaml", "--json").out)["strict"] == 1
    assert json.loads(slimrl("grade", "stored.jsonl", "--task", "@eval/gsm8k", "--json").out)["strict"] == 0.5
    assert "maj@k" in result.err
