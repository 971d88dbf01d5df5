"""`slimrl doctor --devices`: the memory of a run on GPUs that are not here."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import Qwen2Config

from tests.preflight.test_elsewhere import CONFIGS


def test_doctor_answers_without_the_hardware(slimrl, tmp_path: Path) -> None:
    CONFIGS["qwen2"].save_pretrained(tmp_path / "shape")
    done = slimrl("doctor", "model.path=shape", "--devices", "8x80", "--json")
    assert done.code == 0
    table = json.loads(done.out)
    assert (table["devices"], table["gib"]) == (8, 80.0)
    assert [*table["estimates"]] == ["as set", "optimizer.sharded=true", "parallel=fsdp", "model.lora.rank=16"]
    assert all(estimate["fits"] for estimate in table["estimates"].values())
    small = slimrl("doctor", "model.path=shape", "--devices", "2x1", "optimizer.microbatch_tokens=200000")
    assert small.code == 0
    rows = [line for line in small.err.splitlines() if line.startswith("as set")]
    assert [row.split()[-3:] for row in rows] == [["200,000", "too", "large"]]
    assert len(rows[0]) <= 80


def test_the_adapter_is_named(slimrl, tmp_path: Path) -> None:
    CONFIGS["qwen2"].save_pretrained(tmp_path / "shape")
    said = [
        slimrl("doctor", "model.path=shape", "--devices", "8x80", *more).err for more in ((), ("model.lora.rank=4",))
    ]
    assert ["with an adapter of rank 4" in " ".join(text.split()) for text in said] == [False, True]


def test_a_form_that_is_not_understood_is_refused(slimrl, tmp_path: Path) -> None:
    CONFIGS["qwen2"].save_pretrained(tmp_path / "shape")
    done = slimrl("doctor", "model.path=shape", "--devices", "eight")
    assert done.code != 0
    assert "--devices eight is not COUNTxGIB; write 8x80 for eight GPUs of 80 GiB" in done.err


def test_weights_that_rollouts_cannot_hold_are_told(slimrl, tmp_path: Path) -> None:
    # 2.3 GiB of bfloat16 embeddings and head
    wide = {
        "hidden_size": 256,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    Qwen2Config(vocab_size=2_400_000, **wide).save_pretrained(tmp_path / "shape")
    said = "rollouts alone, which read whole weights, with parallel=fsdp too: take larger GPUs"
    assert said in " ".join(slimrl("doctor", "model.path=shape", "--devices", "2x1").err.split())
    assert said not in " ".join(slimrl("doctor", "model.path=shape", "--devices", "2x80").err.split())
