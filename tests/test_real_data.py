"""Real files and the real Qwen2.5 tokenizer, template and stop ids, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.preflight.doctor import examine
from slimrl.preflight.setup import prepare_training
from slimrl.train import train
from tests.conftest import ROOT, SHARED

pytestmark = pytest.mark.skipif(
    not (SHARED / "gsm8k").is_dir(), reason="needs real data beside the project (shared/data)"
)


def settings(model: Path, output: Path, *more: str) -> TrainConfig:
    return load_config(
        TrainConfig,
        [str(ROOT / "recipes" / "gsm8k.yaml")],
        [
            f"model.path={model}",
            f"output={output}",
            "name=gsm8k",
            f"task.path={SHARED}/gsm8k/train.jsonl",
            f"task.test_path={SHARED}/gsm8k/test.jsonl",
            "steps=2",
            "rollout.problems=2",
            "rollout.group_size=2",
            "rollout.max_new_tokens=12",
            "evaluation.problems=4",
            *more,
        ],
    )


def test_two_steps_and_an_evaluation_on_gsm8k(qwen_folder: Path, tmp_path: Path) -> None:
    summary = train(settings(qwen_folder, tmp_path, "algorithm.kl_coef=0.04"), Display(quiet=True))
    assert summary.steps == 2
    assert summary.after["n"] == 4
    rows = [
        json.loads(line) for line in (Path(summary.run) / "rollouts" / "step-00000001.jsonl").read_text().splitlines()
    ]
    assert [row["id"].rpartition("/")[0] for row in rows] == ["gsm8k/train"] * 4
    metrics = [json.loads(line) for line in (Path(summary.run) / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["sampling/sampling_logp_difference/max"] < 1e-4


def test_doctor_on_gsm8k(qwen_folder: Path, tmp_path: Path) -> None:
    examination = examine(prepare_training(settings(qwen_folder, tmp_path)))
    assert examination.signal == 0
    assert any("carries a signal" in warning for warning in examination.warnings)
    assert set(examination.stop_ids.values()) == {"<|im_end|>", "<|endoftext|>"}
    assert examination.gold_checked == 7473 + 4
    assert examination.gold_failed == 0
    assert examination.first_prompt.startswith("<|im_start|>system\n")
    assert examination.first_prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_prompts_that_do_not_fit_are_counted_and_left_out(qwen_folder: Path, tmp_path: Path) -> None:
    long = {"question": "word " * 400, "answer": "1", "solution": ""}
    short = [{"question": f"What is {i}+1?", "answer": str(i + 1), "solution": ""} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*short, long]))
    folder = tmp_path / "model"
    folder.mkdir()
    for file in qwen_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 256}
    (folder / "config.json").write_text(json.dumps(config))
    config_ = load_config(
        TrainConfig,
        [],
        [f"model.path={folder}", "task.name=jsonl", f"task.path={tmp_path}/rows.jsonl", f"task.test_path={tmp_path}/test.jsonl",
         "rollout.problems=2", "rollout.max_new_tokens=16"],
    )  # fmt: skip
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "What is 50+1?", "answer": "51"}) + "\n")
    setup = prepare_training(config_).setup
    assert len(setup.task.train) == 20
    assert any("1 of 21 train prompts do not fit" in note for note in setup.notes)
