"""A run with an adapter is measured and asked as it was trained, beside its model, and not with rounded weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import slimrl
from slimrl.api.measuring import measuring_settings
from slimrl.runs.trained import measured_path
from tests.conftest import Ended

SMALL = {
    "name": "a", "rollout.problems": 4, "rollout.max_new_tokens": 12, "evaluation.problems": 24, "evaluation.harder_problems": 0,
    "evaluation.samples": 2, "model.lora.rank": 4, "model.dtype": "bfloat16", "optimizer.learning_rate": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    return slimrl.train(steps=2, output=str(folder), quiet=True, **SMALL).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "a"))


def test_it_is_measured_as_the_run_measured_it(run: Path, command_line: Callable[..., Ended]) -> None:
    clear(run / "final")
    recorded = json.loads((run / "evals" / "step-00000002.json").read_text())["test"]
    again = command_line("eval", str(run), "--json")
    assert again.code == 0, again.err
    found = json.loads(again.out)["test"]
    assert {key: found[key] for key in recorded} == recorded
    assert recorded["format"] > 0, "which weights of 0 do not give"
    assert slimrl.evaluate(run, quiet=True).accuracy == recorded["accuracy"]


def clear(folder: Path) -> None:
    """Weights of 0 in a model's files."""
    file = folder / "model.safetensors"
    tensors = {name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def test_the_verbs_that_ask_it_take_the_adapter(run: Path, command_line: Callable[..., Ended]) -> None:
    clear(run / "final")
    question = "Tom has 3 apples. Then Tom buys 4 more. How many apples does Tom have now?"
    assert "####" in command_line("sample", str(run), question, "--greedy", "rollout.max_new_tokens=32").out
    assert "####" in str(slimrl.sample(run, question, greedy=True, **{"rollout.max_new_tokens": 32})[0])
    for model in (str(run / "final"), str(run / "adapter"), "builtin"):
        assert measured_path(model) == model


def test_final_is_taken_where_the_adapter_does_not_load(run: Path, command_line: Callable[..., Ended]) -> None:
    file = run / "adapter" / "adapter_config.json"
    whole = json.loads(file.read_text())
    for gone in (str(run / "nowhere"), "no-such/model-here", ""):
        file.write_text(json.dumps({**whole, "base_model_name_or_path": gone}))
        assert measuring_settings(str(run), {}).model.path == str(run), gone
    said = command_line("eval", str(run), "--limit", "2")
    assert f"model.path={run} is read from {run / 'final'}, whose weights have the run's adapter in them" in said.err
    assert "rounded to bfloat16" in said.err
    file.write_text("{")
    assert measured_path(str(run)) == str(run)
    file.write_text(json.dumps(whole))
    (run / "adapter" / "slimrl_quantized.json").write_text(json.dumps({"quantize": "4bit"}))
    assert measured_path(str(run)) == str(run), "packed weights need a GPU"
