"""rollout.engine=vllm before the first step: what is refused, the comparison of greedy answers, and the memory; without vLLM."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import SftRunConfig, TrainConfig
from slimrl.display.run import Display
from slimrl.errors import SettingsError
from slimrl.machine.ranks import Ranks
from slimrl.model.policy import Policy
from slimrl.model.prompts import Prompter
from slimrl.preflight.elsewhere import plan_elsewhere
from slimrl.preflight.memory import Call, plan_memory
from slimrl.preflight.prompting import prepare_model
from slimrl.preflight.sampler import demand_engine
from slimrl.preflight.setup import prepare
from slimrl.rollout import Request
from slimrl.rollout.engine import RolloutEngine
from slimrl.rollout.vllm import BLOCK, VllmSampler, cache_tokens, own_bytes
from slimrl.train import train
from tests.rollout.test_sampler import SMALL


def settings(*more: str) -> TrainConfig:
    return load_config(TrainConfig, [], ["rollout.engine=vllm", "model.dtype=float32", "model.device=cpu", *more])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("devices=2", "devices=2 does not work with rollout.engine=vllm; remove one"),
        ("model.quantize=8bit", "model.quantize=8bit does not work with rollout.engine=vllm; remove one"),
        ("rollout.compile=true", "rollout.compile has no effect with rollout.engine=vllm; remove it"),
    ],
)
def test_settings_that_do_not_work_with_it(setting: str, said: str) -> None:
    needed = ["model.lora.rank=4"] if setting.startswith("model.quantize") else []
    with pytest.raises(SettingsError) as caught:
        load_config(TrainConfig, [], [setting, "rollout.engine=vllm", *needed])
    assert said in str(caught.value)
    if not needed:
        assert load_config(TrainConfig, [], [setting])


def test_code_of_a_model_does_not_run_in_it() -> None:
    with pytest.raises(SettingsError, match=r"model.trust_remote_code does not work with rollout.engine=vllm"):
        settings("model.trust_remote_code=true", f"model.revision={'0' * 40}")


def loaded() -> tuple[Policy, Prompter]:
    policy, prompter, _ = prepare_model(settings())
    return policy, prompter


def test_models_that_do_not_work_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimrl.preflight.sampler.demand_vllm", lambda: None)
    policy, _ = loaded()
    demand_engine(settings(), policy)
    with monkeypatch.context() as several:
        several.setattr("slimrl.preflight.sampler.ranks_here", lambda: Ranks(0, 2))
        with pytest.raises(SettingsError, match=r"several processes \(torchrun\) do not work"):
            demand_engine(settings(), policy)
    stops = dataclasses.replace(policy.stop_texts, texts=("\nQuestion:",))
    with pytest.raises(SettingsError, match=r"end at the text .*Question:' .*; set rollout.stop=\[\]"):
        demand_engine(settings(), dataclasses.replace(policy, stop_texts=stops))
    named = settings("rollout.stop=[END]")
    with pytest.raises(SettingsError, match=r"end at the text 'END' \(rollout.stop\), .*; set rollout.stop=\[\]"):
        demand_engine(named, prepare_model(named)[0])


def test_a_special_token_that_ends_completions_works_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimrl.preflight.sampler.demand_vllm", lambda: None)
    named = settings("rollout.stop=[<|user|>]")
    policy, _, _ = prepare_model(named)
    demand_engine(named, policy)
    assert policy.tokenizer.convert_tokens_to_ids("<|user|>") in policy.stop_ids


def test_where_it_is_not_installed_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimrl.rollout.vllm.importlib.util.find_spec", lambda _: None)
    for config in (settings(), load_config(SftRunConfig, [], ["rollout.engine=vllm"])):
        with pytest.raises(SettingsError, match=r"rollout.engine=vllm needs vLLM; run pip install 'slimrl\[vllm\]'"):
            prepare(config, training=True)


def test_it_samples_single_turns() -> None:
    episode = Request((1, 2), np.zeros((1, 4)), on_turn=lambda *_: Future())
    with pytest.raises(SettingsError, match=r"episodes of several turns do not work with rollout.engine=vllm"):
        VllmSampler.__new__(VllmSampler).generate([episode], max_new_tokens=4)


def test_it_is_planned_for_one_device_elsewhere() -> None:
    """An adapter's model of bfloat16, with a copy of its weights and of its tied head."""
    adapter = settings("model.lora.rank=4", "model.dtype=bfloat16", "rollout.max_new_tokens=64")
    (found,) = plan_elsewhere(adapter, 1, 80).estimates.values()
    policy, _ = loaded()
    assert found.sampler == found.weights + policy.head.weight.nbytes // 2
    assert found.cache == BLOCK * (found.plan.slots * 4 + 1) * 1024, "prompts of 448 tokens and answers of 64"
    with pytest.raises(
        SettingsError, match=r"rollout.engine=vllm works on one device, and --devices has 2; write 1x80"
    ):
        plan_elsewhere(settings(), 2, 80)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts the trained module in vLLM's place, with log-probabilities that are so many nats off."""

    def put(shift: float) -> None:
        class Shifted(RolloutEngine):
            def __init__(self, policy: Policy, *, cache_bytes: int, **more: Any) -> None:
                super().__init__(policy, **more)
                self.exact = False
                assert cache_bytes > 0

            def generate(self, *args: Any, **more: Any) -> Any:
                return [
                    tuple(dataclasses.replace(c, logprobs=tuple(p + shift for p in c.logprobs)) for c in group)
                    for group in super().generate(*args, **more)
                ]

        monkeypatch.setattr("slimrl.preflight.sampler.VllmSampler", Shifted)
        monkeypatch.setattr("slimrl.preflight.sampler.demand_vllm", lambda: None)

    return put


def test_a_run_tells_its_cost_and_its_gap(stand_in: Callable[[float], None], tmp_path: Path) -> None:
    stand_in(0.0)
    summary = train(settings(f"output={tmp_path}", "name=a", *SMALL), Display(quiet=True))
    notes = json.loads((tmp_path / "a" / "run.json").read_text())["told"]["notes"]
    (note,) = [note for note in notes if note.startswith("vLLM samples (rollout.engine=vllm) and takes about 0.51 GiB")]
    assert "agree with the trained module's to 0 nats" in note
    assert note.endswith("the run is not repeated or resumed to the last bit")
    (gap,) = [finding for finding in summary.findings if finding.startswith("gap of the sampler: ")]
    assert "nats on average" in gap


def test_answers_that_rounding_does_not_explain_are_refused(stand_in: Callable[[float], None], tmp_path: Path) -> None:
    for shift, refused in ((0.005, False), (0.02, True), (-0.02, True)):
        stand_in(shift)
        config = settings(f"output={tmp_path}", *SMALL)
        if not refused:
            assert "to 0.005 nats" in prepare(config, training=True).notes[-1]
            continue
        with pytest.raises(SettingsError) as caught:
            prepare(config, training=True)
        assert re.fullmatch(
            r"rollout.engine=vllm: vLLM does not compute what the trained module does \(greedy answer to held-out problem \d, token "
            r"\d+: log-probabilities differ by 0.02 nats, by rounding at most 0.01\); remove rollout.engine",
            str(caught.value),
        )


def test_its_weights_and_its_cache_are_planned_for() -> None:
    policy, _ = loaded()
    plans = [
        plan_memory(
            policy, settings("rollout.max_new_tokens=64", f"rollout.engine={engine}"), Call(40, 512), training=True
        )
        for engine in ("builtin", "vllm")
    ]
    own, other = plans
    weights = sum(p.nbytes for p in policy.model.parameters())
    assert own_bytes(policy, on_gpu=False) == 3 * (weights + policy.head.weight.nbytes) + 2**29
    assert (own.sampler, other.sampler) == (0, own_bytes(policy, on_gpu=False))
    assert other.plan.slots == 256, "those of a step, since the cache stays"
    assert other.cache == BLOCK * (256 + 1) * 2048
    assert other.peak - other.sampler > own.peak, "its cache is there during the update"
    assert cache_tokens(policy, slots=1, longest=100) == BLOCK * (4 + 1), "one completion as long as the context of 512"
