"""What holds on a CPU holds on a GPU: the laws of sampler and trainer, recorded steps, runs, checkpoints, packed weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slimrl.config.sections import LoraConfig
from slimrl.model.loading import adopt
from slimrl.model.lora import add_adapter, linear_layers
from slimrl.model.policy import Policy
from slimrl.model.quantized import Bits, quantize
from slimrl.rollout.engine import RolloutEngine
from slimrl.rollout.graphs import CudaGraphs, Runner
from tests.model.test_lora import Tokenizer, randomize
from tests.rollout.test_engine import requests, trainer_gaps
from tests.session.test_resume import StopAt, content, interrupt, run
from tests.tiny import FAMILIES, FUSIBLE, NoTokenizer, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or SLIMRL_TEST_GPU is not set"),
]


def on_gpu(family: str) -> Policy:
    return adopt(tiny_model(family).to("cuda"), NoTokenizer(), name=family)


@pytest.mark.parametrize("family", [*FAMILIES, *FUSIBLE])
def test_sampler_and_trainer_agree(family: str) -> None:
    """Twice, so that what was recorded in the first call is replayed in the second."""
    policy = on_gpu(family)
    engine = RolloutEngine(policy, slots=7)
    assert isinstance(engine.runner, CudaGraphs)
    for seed in (0, 1):
        groups = engine.generate(requests(9, 4, 24, seed), max_new_tokens=24)
        gaps = trainer_gaps(policy, groups, 1.0)
        assert len(gaps) > 300
        assert gaps.max() < 1e-4
    assert engine.runner.graphs


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replayed_step_draws_what_a_plain_one_draws(family: str) -> None:
    policy = on_gpu(family)
    engines = [RolloutEngine(policy, slots=8, runner=runner) for runner in (CudaGraphs(), Runner())]
    for seed in (0, 1):
        drawn = [engine.generate(requests(9, 4, 24, seed), max_new_tokens=24) for engine in engines]
        ids = [[[c.token_ids for c in group] for group in groups] for groups in drawn]
        assert ids[0] == ids[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_draws_what_a_cpu_draws(family: str) -> None:
    there, here = on_gpu(family), adopt(tiny_model(family), NoTokenizer(), name=family)
    drawn = [RolloutEngine(p, slots=8).generate(requests(9, 4, 24), max_new_tokens=24) for p in (there, here)]
    equal = [a.token_ids == b.token_ids for groups in zip(*drawn, strict=True) for a, b in zip(*groups, strict=True)]
    assert sum(equal) >= len(equal) - 1


def test_replays_read_the_weights_of_the_moment() -> None:
    policy = on_gpu("qwen2")
    engine = RolloutEngine(policy, slots=8)
    engine.generate(requests(9, 4, 24), max_new_tokens=24)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    engine.weights_changed()
    assert trainer_gaps(policy, engine.generate(requests(9, 4, 24), max_new_tokens=24), 1.0).max() < 1e-4


@pytest.mark.parametrize("settings", [(), ("model.lora.rank=4",), ("model.dtype=float32",)])
def test_a_run_is_repeated_and_resumed_to_the_bit(settings: tuple[str, ...], tmp_path: Path) -> None:
    stop = StopAt(-1)
    run(tmp_path, "a", *settings, stop=stop)
    run(tmp_path, "b", *settings)
    assert content(tmp_path / "b") == content(tmp_path / "a")
    assert interrupt(tmp_path, "c", round(0.6 * (-1 - stop.left)), *settings) == 75
    run(tmp_path, "c", *settings, resume=True)
    assert content(tmp_path / "c") == content(tmp_path / "a")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_packed_weights_sample_what_they_score(bits: Bits) -> None:
    pytest.importorskip("bitsandbytes")
    model = tiny_model("qwen2").to("cuda")
    quantize(model, linear_layers(model), bits, torch.device("cuda"))
    lora = add_adapter(model, LoraConfig(rank=4, alpha=6), base="owner/model", seed=0)
    randomize(model)
    policy = adopt(model.to("cuda"), Tokenizer(), name="qwen2", lora=lora)
    groups = RolloutEngine(policy, slots=7).generate(requests(9, 4, 24), max_new_tokens=24)
    assert trainer_gaps(policy, groups, 1.0).max() < 1e-4


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_run_beside_packed_weights(bits: Bits, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run(tmp_path, "a", "steps=2", "model.lora.rank=4", f"model.quantize={bits}")
    assert (tmp_path / "a" / "final" / "model.safetensors").is_file()
