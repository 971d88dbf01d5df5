"""Model folders that would run code: none does unasked, and what is asked for is pinned."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slimrl.config.sections import ModelConfig
from slimrl.errors import DataError, SettingsError
from slimrl.model.loading import load_policy
from slimrl.model.remote_code import fingerprint_of_code
from slimrl.runs.durable import digest

ZEROS = "0" * 40


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


class Trap:
    """A copy of a model that makes a file, `canary`, when code that came with it runs."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder, self.canary = Path(shutil.copytree(source, folder / "model")), folder / "canary"

    def edit(self, file: str, **changes: object) -> None:
        data = json.loads((self.folder / file).read_text())
        (self.folder / file).write_text(json.dumps(data | changes))

    def module(self, name: str, rest: str = "") -> None:
        (self.folder / f"{name}.py").write_text(f"open({str(self.canary)!r}, 'w').close()\n{rest}")

    def pickle(self, *, legacy: bool = False) -> None:
        (self.folder / "model.safetensors").unlink()
        weights = {"lm_head.weight": Payload(self.canary)}
        torch.save(weights, self.folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)

    def model(self, *, model_type: str = "made_up") -> None:
        names = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XModel"}
        self.edit("config.json", model_type=model_type, auto_map=names)
        self.module("configuration_x")
        self.module("modeling_x")

    def tokenizer(self, *, tokenizer_class: str = "XTokenizer") -> None:
        names = {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}
        self.edit("tokenizer_config.json", tokenizer_class=tokenizer_class, auto_map=names)
        self.module("tokenization_x")

    def load(self, **settings: Any) -> Any:
        return load_policy(ModelConfig(path=str(self.folder), device="cpu", **settings))


@pytest.fixture
def trap(tiny_folder: Path, tmp_path: Path) -> Trap:
    return Trap(tiny_folder, tmp_path)


SPRUNG: dict[str, tuple[Callable[[Trap], None], str]] = {
    "a pickle": (Trap.pickle, "set model.pickled_weights=true"),
    "a pickle of the old kind": (lambda trap: trap.pickle(legacy=True), "convert them to safetensors"),
    "a model's code": (Trap.model, r"config\.json needs Python code .*read the code, then set"),
    "a tokenizer's code": (Trap.tokenizer, r"tokenizer_config\.json needs Python code .*choose a model"),
    "a tokenizer without a plain form": (
        lambda trap: (trap.tokenizer(), (trap.folder / "tokenizer.json").unlink()),
        "needs Python code",
    ),
    "all three": (lambda trap: (trap.pickle(), trap.model(), trap.tokenizer()), "only pickled weights"),
    "both kinds of code": (lambda trap: (trap.model(), trap.tokenizer()), "needs Python code"),
}  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", SPRUNG)
def test_what_would_run_code_is_refused_with_a_way_out(kind: str, trap: Trap) -> None:
    spring, sentence = SPRUNG[kind]
    spring(trap)
    with pytest.raises(DataError, match=sentence) as refusal:
        trap.load()
    assert "\n" not in str(refusal.value)
    assert not trap.canary.exists()
    with pytest.raises(DataError):
        trap.load(init="random")
    assert not trap.canary.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_acts_is_refused_when_pickles_are_asked_for(legacy: bool, trap: Trap) -> None:
    trap.pickle(legacy=legacy)
    with pytest.raises(DataError, match=r"pytorch_model\.bin holds more than tensors") as refusal:
        trap.load(pickled_weights=True)
    assert "\x1b" not in str(refusal.value)
    assert not trap.canary.exists()
    torch.load(trap.folder / "pytorch_model.bin", weights_only=False)
    assert trap.canary.exists(), "the payload is live"


def test_pickled_tensors_are_taken_when_asked_for(trap: Trap) -> None:
    safe = digest(trap.load().trainable.items())
    with pytest.raises(SettingsError, match=r"pickled_weights has no effect, since .* holds safetensors"):
        trap.load(pickled_weights=True)
    torch.save(load_file(trap.folder / "model.safetensors"), trap.folder / "pytorch_model.bin")
    assert digest(trap.load().trainable.items()) == safe, "safetensors win"
    (trap.folder / "model.safetensors").unlink()
    with pytest.raises(SettingsError, match=r"model\.init=random reads no weights"):
        trap.load(pickled_weights=True, init="random")
    policy = trap.load(pickled_weights=True)
    assert digest(policy.trainable.items()) == safe
    assert policy.notes == ("the weights were unpickled from pytorch_model.bin, tensors only",)


def test_code_beside_a_model_that_transformers_knows_is_not_run_and_told(trap: Trap) -> None:
    trap.model(model_type="qwen2")
    trap.tokenizer(tokenizer_class="Qwen2Tokenizer")
    policy = trap.load()
    assert type(policy.model).__module__.startswith("transformers.models.qwen2")
    assert [note.split(" names ")[0] for note in policy.notes] == ["config.json", "tokenizer_config.json"]
    assert all("it was not run" in note for note in policy.notes)
    assert not trap.canary.exists()


def test_code_that_is_asked_for_must_be_the_code_that_was_read(
    trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    asked = {"trust_remote_code": True}
    with pytest.raises(SettingsError, match="trust_remote_code has no effect"):
        trap.load(**asked, revision=ZEROS)
    trap.edit("config.json", auto_map={"AutoModelForCausalLM": "modeling_x.XModel"})
    code = "from transformers import Qwen2ForCausalLM\n\n\nclass XModel(Qwen2ForCausalLM):\n    pass\n"
    trap.module("modeling_x", code)
    read = fingerprint_of_code(trap.folder)
    with pytest.raises(SettingsError, match=f"then set model.revision={read}"):
        trap.load(**asked, revision=ZEROS)
    trap.module("modeling_x", code + "print('changed')\n")
    with pytest.raises(SettingsError, match="does not pin the Python files"):
        trap.load(**asked, revision=read)
    assert not trap.canary.exists()
    trap.module("modeling_x", code)
    assert type(trap.load(**asked, revision=read).model).__name__ == "XModel"
    assert trap.canary.exists(), "the code is live"


def test_code_of_another_repository_cannot_be_pinned(trap: Trap) -> None:
    trap.edit("config.json", auto_map={"AutoModelForCausalLM": "someone/else--modeling_x.XModel"})
    with pytest.raises(DataError, match="takes code from another repository"):
        trap.load(trust_remote_code=True, revision=ZEROS)
