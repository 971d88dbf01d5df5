"""The memory plan: parts by hand, choices that fit, and an estimate that the measurement bears out."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slimrl.config.files import build
from slimrl.config.schema import EvalConfig, SftRunConfig, TrainConfig
from slimrl.machine.limits import ALLOCATOR_SETTINGS, KERNEL_CACHES, bound_kernel_caches
from slimrl.model.layer import FusedLayer, separate
from slimrl.model.policy import Policy
from slimrl.preflight import activations, estimate, memory
from slimrl.preflight.activations import activation_bytes
from slimrl.preflight.estimate import KERNELS, compare_memory, read_plan
from slimrl.preflight.memory import Call, plan_memory, rows_of_a_call
from slimrl.records import Plan
from tests.tiny import tiny_policy


def plan(
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    training: bool = True,
    settled: bool = False,
    **sections: dict[str, object],
):
    """A plan on a machine with so many bytes free, of which 1,000 are used by the process; `settled` if freed blocks can be
    given back.
    """
    monkeypatch.setattr(memory, "blocks_can_be_settled", lambda: settled)
    monkeypatch.setattr(memory, "free_memory", lambda _device: free / memory.SHARE)
    monkeypatch.setattr(memory, "used_memory", lambda _device: 1000 + parameters(policy) * 4)
    config = build(TrainConfig, {"rollout": {"problems": 4, "group_size": 4, "max_new_tokens": 10}} | sections)
    return plan_memory(policy, config, Call(6, 16), training=training), config


def parameters(policy: Policy) -> int:
    return sum(p.numel() for p in policy.model.parameters())


def test_parts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers, 2 key heads of width 8, float32: 256 bytes of keys and values a token."""
    policy = tiny_policy()
    found, _ = plan(policy, monkeypatch, free=1e9)
    count = parameters(policy)
    assert found.process == 1000
    assert found.weights == found.reference == 4 * count
    assert found.masters == 0
    assert found.moments == 8 * count
    assert found.plan.slots == 16
    assert found.cache == 16 * (10 + 6) * 2 * 2 * 2 * 8 * 4
    assert found.gradients == 4 * count
    assert found.peak == 1000 + found.kernels + found.heap + 16 * count + max(
        found.cache + found.sampling, found.gradients + found.activations + found.head
    )
    assert found.fits
    without, _ = plan(policy, monkeypatch, free=1e9, algorithm={"kl_coef": 0})
    assert without.reference == 0


def test_episodes_that_wait_beside_the_slots_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 completions of 6 + 10 tokens as many as there are slots, and no more than do not fit them; none on a GPU."""
    policy, row = tiny_policy(), 16 * 256

    def cache(slots: int, environment: str) -> int:
        rollout = {"problems": 4, "group_size": 4, "max_new_tokens": 10, "slots": slots}
        return plan(policy, monkeypatch, free=1e9, rollout=rollout, environment={"name": environment})[0].cache

    for slots, beside in ((4, 4), (10, 6), (16, 0), (20, 0)):
        assert cache(slots, "calculator") == (slots + beside) * row
        assert cache(slots, "") == slots * row
    fixed_parts = memory._fixed_parts
    monkeypatch.setattr(memory, "_fixed_parts", lambda *given: replace(fixed_parts(*given), cache_stays=True))
    assert cache(4, "calculator") == 4 * row


def test_a_share_is_one_of_all_the_memory_whatever_runs_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda _device: 4e9)
    policy = tiny_policy()
    for free in (1e9, 3e9):
        found, _ = plan(policy, monkeypatch, free=free, memory_share=0.25)
        assert found.free == int(memory.SHARE * 1e9)
    scarce, _ = plan(policy, monkeypatch, free=1e8, memory_share=0.25)
    assert scarce.free == int(memory.SHARE * 1e9), "what another holds just now decides nothing"


def test_a_narrow_module_pays_for_masters(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    policy.model.to(torch.bfloat16)
    found, _ = plan(policy, monkeypatch, free=1e9)
    count = parameters(policy)
    assert (found.weights, found.masters, found.moments) == (2 * count, 4 * count, 8 * count)
    assert found.gradients == 6 * count - 2 * 2 * 61 * 32, "of embedding and head there is only the sum"


def test_choices_shrink_with_the_memory_and_numbers_that_are_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    monkeypatch.setattr(estimate, "HEAP", 0)
    monkeypatch.setattr(estimate, "HEAP_SHARE", 0)
    ample, _ = plan(policy, monkeypatch, free=1e9)
    assert (ample.plan.microbatch_tokens, ample.plan.recompute) == (4 * (6 + 4 * 10), False)
    monkeypatch.setattr(memory, "FEWEST_TOKENS", 64)
    fixed = ample.peak - ample.activations - ample.head
    short, _ = plan(policy, monkeypatch, free=fixed + ample.activations / 2 + ample.head)
    assert memory.FEWEST_TOKENS <= short.plan.microbatch_tokens < 4 * (6 + 4 * 10)
    assert short.fits
    assert not short.plan.recompute
    scarce, _ = plan(policy, monkeypatch, free=fixed + 40 * ample.token_bytes)
    assert scarce.plan.recompute
    assert scarce.token_bytes < ample.token_bytes
    none, _ = plan(policy, monkeypatch, free=1.0)
    assert not none.fits
    assert "may not fit" in none.sentence()
    assert " GiB on each of 2 devices, " in replace(none, devices=2).sentence()
    assert none.plan.slots == memory.FEWEST_SLOTS
    settings = {"rollout": {"slots": 5, "problems": 4, "group_size": 4, "max_new_tokens": 10},
                "optimizer": {"microbatch_tokens": 77, "activation_checkpointing": "on"}}  # fmt: skip
    told, _ = plan(policy, monkeypatch, free=1.0, **settings)
    assert (told.plan.slots, told.plan.microbatch_tokens, told.plan.recompute) == (5, 77, True)
    assert short.plan == Plan(slots=16, microbatch_tokens=short.plan.microbatch_tokens, recompute=False)


def test_slots_are_for_the_largest_call_and_micro_batches_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation of 100 completions, and steps of 4 x 4 completions or of 8 demonstrations, of 16 tokens at most."""
    monkeypatch.setattr(memory, "free_memory", lambda _device: 1e9)
    rollout = {"problems": 4, "group_size": 4, "max_new_tokens": 10}
    trained = build(TrainConfig, {"rollout": rollout})
    imitated = build(SftRunConfig, {"rollout": {"max_new_tokens": 10}, "sft": {"batch_size": 8}})
    for config, tokens in ((trained, 4 * 6 + 16 * 10), (imitated, 8 * 16)):  # a group's prompt counts once
        found = plan_memory(tiny_policy(), config, Call(6, 100), training=True).plan
        assert (found.slots, found.microbatch_tokens) == (100, tokens)


@pytest.mark.parametrize(
    ("devices", "evaluated", "trained", "measured"),
    [(1, 10, 32, 30), (2, 10, 16, 15), (2, 11, 18, 18), (4, 10, 9, 9), (4, 0, 8, 0), (8, 0, 8, 0)],
)
def test_a_device_draws_its_share_of_a_call(devices: int, evaluated: int, trained: int, measured: int) -> None:
    """Of 4 groups of 8, or of an evaluation with 3 completions a problem; those of a problem stay together."""
    evaluation = {"problems": 10, "samples": 2, "greedy": True}
    given = {"devices": devices, "evaluation": evaluation, "rollout": {"problems": 4, "group_size": 8}}
    assert rows_of_a_call(build(TrainConfig, given), evaluated) == trained
    assert rows_of_a_call(build(EvalConfig, {"devices": devices, "evaluation": evaluation}), evaluated) == measured


def test_where_a_cache_stays_slots_are_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where an evaluation's cache would lie in the way of every update."""
    fixed_parts = memory._fixed_parts
    monkeypatch.setattr(memory, "_fixed_parts", lambda *given: replace(fixed_parts(*given), cache_stays=True))
    monkeypatch.setattr(memory, "free_memory", lambda _device: 1e9)
    config = build(TrainConfig, {"rollout": {"problems": 4, "group_size": 4, "max_new_tokens": 10}})
    assert plan_memory(tiny_policy(), config, Call(6, 100), training=True).plan.slots == 16
    assert plan_memory(tiny_policy(), config, Call(6, 100), training=False).plan.slots == 100


def test_slots_whose_cache_stays_leave_room_for_a_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: slots that would fill the memory before an update are fewer instead."""
    fixed_parts = memory._fixed_parts
    monkeypatch.setattr(memory, "_fixed_parts", lambda *given: replace(fixed_parts(*given), cache_stays=True))
    monkeypatch.setattr(memory, "FEWEST_TOKENS", 46)
    policy = tiny_policy()
    kept = {"activation_checkpointing": "off"}
    ample, _ = plan(policy, monkeypatch, free=1e9, optimizer=kept)
    assert ample.plan.slots == 16
    smallest = replace(ample, plan=replace(ample.plan, slots=8, microbatch_tokens=46), cache=ample.cache // 2)
    found, _ = plan(policy, monkeypatch, free=smallest.peak - smallest.process - smallest.weights, optimizer=kept)
    assert found.plan == smallest.plan
    assert found.fits


def test_a_resumed_run_keeps_its_sizes_where_settings_say_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    monkeypatch.setattr(memory, "free_memory", lambda _device: 1e9)
    kept = Plan(slots=3, microbatch_tokens=50, recompute=True)

    def resumed(**sections: dict[str, object]) -> Plan:
        config = build(TrainConfig, {"rollout": {"problems": 4, "group_size": 4, "max_new_tokens": 10}} | sections)
        return plan_memory(policy, config, Call(6, 16), training=True, kept=kept).plan

    assert resumed() == kept
    told = resumed(rollout={"slots": 5, "problems": 4, "group_size": 4, "max_new_tokens": 10})
    assert told == Plan(slots=5, microbatch_tokens=50, recompute=True)
    whole, _ = plan(policy, monkeypatch, free=1e9)
    assert read_plan(whole.table()) == whole.plan


def test_without_training_only_rollouts_count(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    found, _ = plan(policy, monkeypatch, free=1e9, training=False)
    assert found.moments == found.gradients == found.activations == found.plan.microbatch_tokens == 0


def test_activations_are_counted_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny Qwen2 layer keeps between 10 and 60 numbers of the hidden size a token; checkpointing keeps its input."""
    policy = tiny_policy()
    whole, again = (activation_bytes(policy, checkpointing=on) for on in (False, True))
    assert 2 * 10 * 32 * 4 < whole < 2 * 60 * 32 * 4
    monkeypatch.setattr(activations, "_saved", lambda _policy, size, on: size * (10 if on else 120))
    assert activation_bytes(policy, checkpointing=True) == 10 + 2 * 120 / 2
    monkeypatch.undo()
    assert activations._saved(policy, 48, True) < activations._saved(policy, 48, False) / 5
    assert again < 1.2 * whole  # of two layers one is computed again, and its gradients stand beside it
    gemma = tiny_policy("gemma3")
    modules = [*gemma.model.model.layers, gemma.model.model.norm]
    if isinstance(modules[0], FusedLayer):  # its widths fill the vectors of this processor, and fused layers keep less
        separate(modules)
    wider = activation_bytes(gemma, checkpointing=False)
    assert wider > whole  # four norms a layer, where Qwen2 has two


def test_the_comparison_is_for_what_came_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = plan(tiny_policy(), monkeypatch, free=1e9)
    compared = compare_memory(found, measured=found.peak, largest_microbatch=found.plan.microbatch_tokens)
    assert compared["error"] == 0
    smaller = compare_memory(found, measured=found.peak, largest_microbatch=100)
    assert smaller["estimated"] < smaller["planned"] == compared["planned"]


MEASURED = """
import dataclasses, sys, torch
torch.set_num_threads(1)
from transformers import Qwen2Config, Qwen2ForCausalLM
from slimrl.config.schema import TrainConfig
from slimrl.machine.limits import peak_memory, settle_freed_blocks
from slimrl.preflight.memory import Call, plan_memory
from slimrl.model.loading import adopt
from slimrl.records import Completion, Group, Problem, Rollout
from slimrl.config.files import build
from slimrl.learner.forward import Microbatcher
from slimrl.learner.learner import Learner
from tests.tiny import NoTokenizer

again = sys.argv[1]
settle_freed_blocks(given_back=sys.argv[2] == "give")
shape = Qwen2Config(vocab_size=8000, hidden_size=384, intermediate_size=1152, num_hidden_layers=8, num_attention_heads=6,
                    num_key_value_heads=2, eos_token_id=2)
policy = adopt(Qwen2ForCausalLM(shape), NoTokenizer(), name="sized")
config = build(TrainConfig, {"output": sys.argv[4], "rollout": {"problems": 8, "group_size": 4, "max_new_tokens": 128},
                             "optimizer": {"learning_rate": 1e-4, "microbatch_tokens": 2048, "activation_checkpointing": again,
                                           "reference_offload": sys.argv[3]}})
plan = plan_memory(policy, config, Call(64, 32), training=True)
plan = dataclasses.replace(plan, blocks_given_back=sys.argv[2] == "give")
learner = Learner(policy, config, Microbatcher(config, plan.plan), reward_weights={})
problem = Problem("p", "?", "1")
groups = [Group(tuple(Rollout(problem, Completion(tuple(range(3, 67)), tuple(range(70, 198)), (-9.0,) * 128, "length"),
                              "", False, {}, float(i)) for i in range(4)), 0) for _ in range(8)]
learner.update(groups[:1], 0)  # from here on there are moments
learner.update(groups, 1)  # three micro-batches
print(plan.peak / peak_memory(policy.device) - 1)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not say what a process holds")
@pytest.mark.parametrize(
    ("again", "blocks", "offload"),
    [
        ("off", "keep", "off"),
        ("off", "give", "off"),
        ("on", "keep", "off"),
        ("on", "give", "off"),
        ("on", "give", "on"),
    ],
)
def test_the_estimate_is_within_15_percent_of_the_measured_peak(
    again: str, blocks: str, offload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of its own: 20M parameters, steps of 4 and of 32 rows with a reference, the update being the peak."""
    if blocks == "give" and platform.libc_ver()[0] != "glibc":
        pytest.skip("glibc's")
    for name in ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", MEASURED, again, blocks, offload, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert abs(float(done.stdout)) < 0.15


WIDE_OR_LONG = """
import dataclasses, sys, torch
torch.set_num_threads(1)
from transformers import Qwen2Config, Qwen2ForCausalLM
from slimrl.config.schema import TrainConfig
from slimrl.machine.limits import bound_kernel_caches, peak_memory, settle_freed_blocks
from slimrl.preflight.memory import Call, plan_memory
from slimrl.model.loading import adopt
from slimrl.randomness import uniforms
from slimrl.records import Group, Problem, Rollout
from slimrl.config.files import build
from slimrl.learner.forward import Microbatcher
from slimrl.learner.learner import Learner
from slimrl.rollout import Request
from slimrl.rollout.engine import RolloutEngine
from tests.tiny import NoTokenizer

dtype, give = getattr(torch, sys.argv[1]), sys.argv[2] == "give"
vocabulary, prompt, drawn = map(int, sys.argv[3:])
bound_kernel_caches()
torch.set_default_dtype(dtype)
shape = Qwen2Config(vocab_size=vocabulary, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=2, eos_token_id=2, max_position_embeddings=8192, tie_word_embeddings=True)
model = Qwen2ForCausalLM(shape)
torch.set_default_dtype(torch.float32)
policy = adopt(model, NoTokenizer(), name="sized")
config = build(TrainConfig, {"rollout": {"problems": 2, "group_size": 4, "max_new_tokens": drawn},
                             "optimizer": {"learning_rate": 1e-4}})
plan = plan_memory(policy, config, Call(prompt, 8), training=True)
plan = dataclasses.replace(plan, blocks_given_back=give)
settle_freed_blocks(given_back=give)
learner = Learner(policy, config, Microbatcher(config, plan.plan), reward_weights={})
problem = Problem("p", "?", "1")
for step in range(2):
    engine = RolloutEngine(dataclasses.replace(policy, stop_ids=()), slots=8)
    asked = [Request(tuple(i % 1000 + 3 + g for i in range(prompt)), uniforms(0, "train", step, str(g), samples=4, positions=drawn))
             for g in range(1 + step)]  # one group is enough to have moments
    sampled = engine.generate(asked, max_new_tokens=drawn)
    groups = [Group(tuple(Rollout(problem, c, "", False, {}, float(i)) for i, c in enumerate(group)), step) for group in sampled]
    learner.update(groups, step)
print(plan.peak / peak_memory(policy.device) - 1)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not say what a process holds")
@pytest.mark.parametrize(("dtype", "blocks"), [("float32", "give"), ("bfloat16", "keep")])
@pytest.mark.parametrize("sizes", [("151936", "64", "32"), ("2000", "3900", "100")], ids=["wide", "long"])
def test_the_estimate_holds_for_wide_vocabularies_and_long_rows(
    dtype: str, blocks: str, sizes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of its own samples and learns; the peak is not above the estimate, nor far below."""
    if blocks == "give" and platform.libc_ver()[0] != "glibc":
        pytest.skip("glibc's")
    for name in (*ALLOCATOR_SETTINGS, *KERNEL_CACHES):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run(
        [sys.executable, "-c", WIDE_OR_LONG, dtype, blocks, *sizes], capture_output=True, text=True, check=True
    )
    assert 0 <= float(done.stdout) < 0.3


TRAINED = """
import sys, torch
torch.set_num_threads(1)
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.runs import directory
from slimrl.config.files import load_config
from slimrl.train import train

directory.draw_curves = lambda *_: None
small = ["steps=2", "evaluation.problems=8", "evaluation.harder_problems=0", "evaluation.greedy=false", "log.model=false",
         "optimizer.microbatch_tokens=2048"]
config = load_config(TrainConfig, [], [*small, f"output={sys.argv[1]}", "model.dtype=bfloat16"])
print(train(config, Display(quiet=True)).memory["error"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not say what a process holds")
def test_the_estimate_holds_with_rollouts_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts multiply by another number of rows every few steps, for each of which oneDNN compiles a kernel."""
    for name in (*ALLOCATOR_SETTINGS, *KERNEL_CACHES):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", TRAINED, tmp_path], capture_output=True, text=True, check=True)
    assert abs(float(done.stdout)) < 0.15


@pytest.mark.parametrize(("capability", "counted"), [("AVX512", KERNELS), ("AVX512_VNNI", KERNELS), ("AVX2", 0)])
def test_compiled_kernels_count_where_there_are_any(
    capability: str, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    found, _ = plan(tiny_policy(), monkeypatch, free=1e9)
    assert found.kernels == counted
    assert found.peak - replace(found, kernels=0).peak == counted


def test_kernel_caches_are_bounded_unless_somebody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KERNEL_CACHES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv(KERNEL_CACHES[0], "500")
    bound_kernel_caches()
    assert [os.environ[name] for name in KERNEL_CACHES] == ["500", "64"]


def test_blocks_are_given_back_where_keeping_them_would_cost_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = {"problems": 4, "group_size": 4, "max_new_tokens": 10, "slots": 16}
    roomy, _ = plan(tiny_policy(), monkeypatch, free=1e9, settled=True, rollout=rollout)
    assert not roomy.blocks_given_back
    between = (replace(roomy, blocks_given_back=True).peak + roomy.peak) / 2
    tight, _ = plan(tiny_policy(), monkeypatch, free=between, settled=True, rollout=rollout)
    assert tight.blocks_given_back
    assert tight.plan == roomy.plan
    assert tight.fits
    assert tight.heap == estimate.HEAP_GIVEN_BACK < roomy.heap
    chosen_by_user, _ = plan(tiny_policy(), monkeypatch, free=between, rollout=rollout)
    assert not chosen_by_user.blocks_given_back
