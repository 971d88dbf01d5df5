"""Data as people have it trains: with the path, at most a style and a checker, from the prompt to the evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.config.task import TaskConfig
from slimrl.display.run import Display
from slimrl.errors import DataError, SettingsError
from slimrl.preflight.setup import TrainSetup, prepare_training
from slimrl.tasks import ANY_ANSWER
from slimrl.tasks.files import load
from slimrl.train import train
from tests.conftest import SHARED

COUNT = 24


def asked(i: int) -> str:
    return f"Mia has {i} pens and buys {i + 1}. How many pens does Mia have?"


def gsm8k(folder: Path) -> Path:
    rows = [
        {"question": asked(i), "answer": f"{i}+{i + 1}=<<{i}+{i + 1}={2 * i + 1}>>{2 * i + 1}\n#### {2 * i + 1}"}
        for i in range(COUNT)
    ]
    return parquet(folder, rows)


def parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def alpaca(folder: Path) -> Path:
    rows = [{"instruction": asked(i), "input": "", "output": str(2 * i + 1)} for i in range(COUNT)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def verl(folder: Path) -> Path:
    rows = [
        {
            "data_source": "pens", "prompt": [{"role": "user", "content": asked(i)}], "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(2 * i + 1)}, "extra_info": {"split": "train", "index": i},
        }
        for i in range(COUNT)
    ]  # fmt: skip
    return parquet(folder, rows)


def settings(model: Path, folder: Path, path: Path, *more: str) -> TrainConfig:
    small = [
        "steps=1",
        "rollout.problems=2",
        "rollout.group_size=2",
        "rollout.max_new_tokens=8",
        "evaluation.problems=1",
    ]
    return load_config(
        TrainConfig, [], [f"model.path={model}", f"output={folder}", "name=a", *small, f"task.path={path}", *more]
    )


def check(config: TrainConfig) -> TrainSetup:
    """What `train` has before its first step: rewards, and gold answers that earn the maximum."""
    training = prepare_training(config)
    training.scorer.close()
    return training


@pytest.mark.parametrize("shape", [gsm8k, alpaca, verl], ids=lambda shape: shape.__name__)
def test_common_files_train_with_no_setting_but_the_path(tiny_folder: Path, tmp_path: Path, shape: Any) -> None:
    config = settings(tiny_folder, tmp_path, shape(tmp_path), "task.style=answer")
    summary = train(config, Display(quiet=True))
    assert (summary.steps, summary.after["n"]) == (1, 1)
    rows = [
        json.loads(line) for line in (Path(summary.run) / "rollouts" / "step-00000001.jsonl").read_text().splitlines()
    ]
    assert {row["answer"] for row in rows} <= {str(2 * i + 1) for i in range(COUNT)}
    training = check(config)
    assert training.gold.n + len(training.setup.task.test) - 1 == COUNT
    assert not training.gold.failures
    assert sum(note.startswith("task.path: question from ") for note in training.setup.notes) == 1


@pytest.mark.skipif(not (SHARED / "gsm8k").is_dir(), reason="needs real data beside the project (shared/data)")
def test_the_whole_of_gsm8k_as_parquet(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (SHARED / "gsm8k" / "test.jsonl").read_text().splitlines()]
    found = load(TaskConfig(path=str(parquet(tmp_path, rows))))
    same = load(TaskConfig(name="gsm8k", path=str(SHARED / "gsm8k" / "test.jsonl")))
    assert len(found.test) == len(same.test) > 100
    for mine, theirs in zip((*found.train, *found.test), (*same.train, *same.test), strict=True):
        assert (mine.question, mine.answer, mine.solution, mine.difficulty) == (
            theirs.question, theirs.answer, theirs.solution, theirs.difficulty,
        )  # fmt: skip


COLOURS = ["red", "green", "blue", "black"]
TEXTS: dict[str, tuple[str, str, list[dict[str, Any]], str]] = {
    "multiple choice": (
        "choice", "boxed", [{"question": f"Which colour has the number {i}?", "choices": COLOURS, "answer": i % 4} for i in range(COUNT)],
        "the letter of the right option once",
    ),
    "yes or no": (
        "exact", "answer", [{"question": f"Is {i} even?", "answer": ["yes", "no"][i % 2]} for i in range(COUNT)],
        "only the final answer",
    ),
    "BoolQ": (
        "choice", "answer", [{"question": f"is {i} even", "passage": "Of numbers.", "answer": i % 2 == 0} for i in range(COUNT)],
        "only the letter of the right option",
    ),
}  # fmt: skip
OPTIONS = {"multiple choice": "\nA. red\nB. green\n", "yes or no": "Is", "BoolQ": "\nA. yes\nB. no"}


@pytest.mark.parametrize("kind", TEXTS)
def test_answers_that_are_no_numbers_work_end_to_end(tiny_folder: Path, tmp_path: Path, kind: str) -> None:
    """Prompt, form, gold check, a training step, and an evaluation."""
    checker, style, rows, instruction = TEXTS[kind]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = settings(
        tiny_folder,
        tmp_path,
        tmp_path / "rows.jsonl",
        f"task.checker={checker}",
        f"task.style={style}",
        "rewards.format=0.5",
    )
    training = check(config)
    assert (training.gold.failures, training.gold.maximum) == ((), 1.5)
    setup = training.setup
    (shown, question) = setup.task.messages(setup.task.train[0])
    assert instruction in shown["content"]
    assert OPTIONS[kind] in question["content"]
    assert ("A. " in question["content"]) == (checker == "choice")
    summary = train(config, Display(quiet=True))
    assert (summary.steps, summary.after["n"]) == (1, 1)
    for problem in setup.task.test:
        assert setup.task.grade(setup.task.gold_text(problem), problem.answer).strict


@pytest.mark.parametrize(
    ("answers", "checker"),
    [(["A", "B"], "choice"), (["yes", "no"], "exact"), (["x+1", "x"], "symbolic"), (["1", "none"], "symbolic")],
)
def test_answers_that_are_no_numbers_are_refused_with_their_checker(
    tiny_folder: Path, tmp_path: Path, answers: list[str], checker: str
) -> None:
    rows = [{"question": f"Which {i}?", "answer": answers[i % 2]} for i in range(COUNT)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SettingsError, match=f"set task.checker={checker} for answers that are no numbers"):
        check(settings(tiny_folder, tmp_path, tmp_path / "rows.jsonl"))


REWARD = "def brevity(completions, topic, **_):\n    return [float(len(c) < 40) for c in completions]\n"


def test_questions_without_answers_train_on_other_rewards(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say something about {i}.", "topic": "numbers"} for i in range(COUNT)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text(REWARD)
    custom = f"rewards.custom={{'{tmp_path}/mine.py:brevity': {{low: 0, high: 1}}}}"
    config = settings(tiny_folder, tmp_path, tmp_path / "rows.jsonl", "rewards.correct=0", "rewards.format=1", custom)
    summary = train(config, Display(quiet=True))
    assert summary.steps == 1
    training = check(config)
    assert training.gold.failures == ()
    assert ANY_ANSWER in training.setup.task.gold_text(training.setup.task.train[0])
    assert any("no held-out answer is checked" in note for note in training.setup.notes)
    with pytest.raises(DataError, match="the row has no field 'answer'"):
        check(settings(tiny_folder, tmp_path, tmp_path / "rows.jsonl"))
    with pytest.raises(
        SettingsError, match=r"rewards\.correct compares with right answers, and task\.checker=none has none"
    ):
        check(settings(tiny_folder, tmp_path, tmp_path / "rows.jsonl", "task.checker=none"))


def test_few_shot_conversations_and_patterns_train(tiny_folder: Path, tmp_path: Path) -> None:
    shots = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "#### 2"}]
    rows = [
        {"messages": [*shots, {"role": "user", "content": f"{i}+1?"}], "answer": f"0*{i + 1}(?:\\.0)?"}
        for i in range(COUNT)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = settings(tiny_folder, tmp_path, tmp_path / "rows.jsonl", "task.checker=regex")
    assert train(config, Display(quiet=True)).steps == 1
    setup = check(config).setup
    problem = setup.task.train[0]
    prompt = setup.prompter.text(setup.task.messages(problem))
    places = [prompt.rindex(text) for text in ("1+1?", "#### 2", problem.question)]
    assert places == sorted(places)
    number = int(problem.question.partition("+")[0])
    assert setup.task.grade(f"#### {number + 1}.0", problem.answer).strict
    assert not setup.task.grade(f"#### {number}", problem.answer).strict
