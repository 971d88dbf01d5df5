"""A run with an adapter is measured and asked as it was trained, beside its model, and not with rounded weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import slimrl
from slimrl.api.measuring import measuring_settings
from tests.conftest import Ended

SMALL = {
    "rollout.problems": 4, "rollout.max_new_tokens": 12, "evaluation.problems": 24, "evaluation.harder_problems": 0,
    "evaluation.samples": 2, "model.lora.rank": 4, "model.dtype": "bfloat16", "optimizer.learning_rate": 1e-3,
}  # fmt: skip
BUILTIN = Path(slimrl.__file__).parent / "builtin"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a copy of the built-in model, which it names by its path."""
    folder = tmp_path_factory.mktemp("adapted")
    shutil.copytree(BUILTIN, folder / "base")
    settings = SMALL | {"model.path": str(folder / "base")}
    return slimrl.train(steps=2, output=str(folder), name="a", quiet=True, **settings).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run and of its model."""
    shutil.copytree(trained.parent / "base", tmp_path / "base")
    run = Path(shutil.copytree(trained, tmp_path / "a"))
    describe(run, base_model_name_or_path=str(tmp_path / "base"))
    return run


def describe(run: Path, **changes: object) -> None:
    file = run / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def measured(run: Path, **settings: Any) -> Path:
    return Path(measuring_settings(str(run), settings).model.path)


def scale(folder: Path, by: float) -> None:
    """Multiply all weights in a model's files."""
    tensors = {name: tensor * by for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_it_is_measured_as_the_run_measured_it(run: Path, command_line: Callable[..., Ended]) -> None:
    scale(run / "final", 0)
    recorded = json.loads((run / "evals" / "step-00000002.json").read_text())["test"]
    again = command_line("eval", str(run), "--json")
    assert again.code == 0, again.err
    found = json.loads(again.out)["test"]
    assert {key: found[key] for key in recorded} == recorded
    assert recorded["format"] > 0, "which weights of 0 do not give"
    assert slimrl.evaluate(run, quiet=True).accuracy == recorded["accuracy"]


def test_it_is_asked_with_the_adapter(run: Path, command_line: Callable[..., Ended]) -> None:
    scale(run / "final", 0)
    question, longer = (
        "Tom has 3 apples. Then Tom buys 4 more. How many apples does Tom have now?",
        "rollout.max_new_tokens=32",
    )
    assert "####" in command_line("sample", str(run), question, "--greedy", longer).out
    assert "####" in str(slimrl.sample(run, question, greedy=True, **{"rollout.max_new_tokens": 32})[0])
    for model in (run / "final", run / "adapter", Path("builtin")):
        assert measured(model) == model


def test_a_folder_with_an_adapter_in_it_is_no_run(run: Path) -> None:
    shutil.copytree(run / "adapter", run.parent / "base" / "adapter")
    assert measured(run.parent / "base") == run.parent / "base"


def without_weights(run: Path) -> None:
    (run.parent / "base" / WEIGHTS).unlink()


def with_a_shard_missing(run: Path) -> None:
    base = run.parent / "base"
    (base / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": WEIGHTS, "b": "gone.safetensors"}})
    )


def with_a_damaged_description(run: Path) -> None:
    (run / "adapter" / "adapter_config.json").write_text("{")


def with_another_base(run: Path) -> None:
    scale(run.parent / "base", 1.01)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda run, path=path: describe(run, base_model_name_or_path=path) for path in ("/nowhere/at/all", "no-such/model", "")),
        without_weights, with_a_shard_missing, with_a_damaged_description, with_another_base,
    ],
)  # fmt: skip
def test_final_is_read_where_the_adapter_is_not_what_was_trained(run: Path, change: Callable[[Path], None]) -> None:
    assert measured(run) == run / "adapter"
    change(run)
    assert measured(run) == run


def test_what_is_read_instead_is_told(run: Path, command_line: Callable[..., Ended]) -> None:
    with_another_base(run)
    said = command_line("eval", str(run), "--limit", "2", "model.dtype=float32").err
    assert (
        f"model.path={run} is read from {run / 'final'}, whose weights have the run's adapter in them, rounded to bfl"
        in said
    )
    named = command_line("eval", str(run / "adapter"), "--limit", "2", "rollout.max_new_tokens=4").err
    assert f"the weights of {run.parent / 'base'} are not those that {run / 'adapter'} was trained beside" in named


def test_an_adapter_of_pickled_weights_is_read_merged(run: Path) -> None:
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("pickled_weights: false", "pickled_weights: true"))
    assert measured(run) == run


def test_packed_weights_need_a_gpu(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    (run / "adapter" / "slimrl_quantized.json").write_text(json.dumps({"quantize": "4bit"}))
    assert measured(run) == run
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert measured(run) == run / "adapter"
    assert measured(run, model={"device": "cpu"}) == run


def test_a_model_of_the_hub_must_be_in_its_cache(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    describe(run, base_model_name_or_path="me/small", revision="main")
    assert measured(run) == run
    place = cache / "models--me--small"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(run.parent / "base", place / "snapshots" / ("0" * 40))
    assert measured(run) == run / "adapter"
