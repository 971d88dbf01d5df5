"""A reference that is in memory only while it is read gives what one gives that always is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from slimrl.errors import SettingsError
from slimrl.learner.learner import Learner
from slimrl.learner.offload import Offloaded, ways_to_hold
from slimrl.model.policy import Policy
from slimrl.preflight import memory
from slimrl.preflight.memory import Call, plan_memory
from slimrl.records import Plan
from tests.learner.test_targets import run_update
from tests.learner.test_update import settings
from tests.model.test_lora import adapted
from tests.tiny import microbatcher_of, tiny_policy

KL = {"kl_coef": 0.1}


def learned(folder: Path, offload: str, steps: int = 3) -> tuple[Learner, list[dict[str, float]]]:
    optimizer = {"learning_rate": 1e-2, "minibatches": 2, "reference_offload": offload}
    config = settings(algorithm=KL, optimizer=optimizer).model_copy(update={"output": str(folder)})
    policy = tiny_policy("qwen2")
    learner = Learner(policy, config, microbatcher_of(config), reward_weights={"a": 1.0})
    return learner, [run_update(learner) for _ in range(steps)]


def test_runs_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    (held, wanted), (mapped, found) = learned(tmp_path, "off"), learned(tmp_path, "on")
    assert held.targets.reference is not None
    assert mapped.targets.reference is not None
    assert mapped.plan.offload
    assert not held.plan.offload
    assert found == wanted
    assert wanted[-1]["kl"] > 0
    for own, theirs in zip(held.policy.model.parameters(), mapped.policy.model.parameters(), strict=True):
        assert torch.equal(own, theirs)
    assert not any(tmp_path.iterdir()), "the file has no name, and no end of a process leaves it"


def mapped_mebibytes() -> int:
    """Of files that are mapped, what the process holds."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssFile", "RssShmem")) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not say what a process holds")
def test_pages_are_held_only_while_they_are_read(tmp_path: Path) -> None:
    module = torch.nn.Linear(1024, 8192).requires_grad_(False)
    before = [p.clone() for p in module.parameters()]
    offloaded = Offloaded(module, tmp_path)
    resting = mapped_mebibytes()
    with offloaded.in_use():
        assert all(torch.equal(p, own) for p, own in zip(module.parameters(), before, strict=True))
        assert mapped_mebibytes() >= resting + 30
    assert mapped_mebibytes() <= resting + 2


def test_a_disk_that_is_full_is_told_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SettingsError, match=r"optimizer\.reference_offload: .*No space left on device.*=off"):
        learned(tmp_path, "on")


def planned(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, free: float, offload: str = "auto"
) -> memory.MemoryEstimate:
    monkeypatch.setattr(memory, "free_memory", lambda _device: free)
    monkeypatch.setattr(memory, "used_memory", lambda _device: 0)
    for name in ("HEAP", "HEAP_GIVEN_BACK", "HEAP_SHARE"):
        monkeypatch.setattr(memory, name, 0)
    optimizer = {"reference_offload": offload, "activation_checkpointing": "on", "microbatch_tokens": 64}
    return plan_memory(policy, settings(algorithm=KL, optimizer=optimizer), Call(8, 16), training=True)


def test_auto_offloads_where_the_reference_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("wide qwen2")
    ample = planned(policy, monkeypatch, 1e12)
    assert not ample.plan.offload
    needed = ample.peak / memory.SHARE
    scarce = planned(policy, monkeypatch, needed - ample.reference / 2)
    assert scarce.plan.offload
    assert scarce.fits
    assert scarce.peak <= ample.peak - ample.reference / 2
    assert "of the reference" in scarce.sentence()
    assert memory.read_plan(scarce.table()) == scarce.plan
    assert not planned(policy, monkeypatch, needed - ample.reference / 2, "off").fits
    assert planned(policy, monkeypatch, 1e12, "on").plan.offload


@pytest.mark.parametrize(
    ("algorithm", "reason"),
    [
        ({"kl_coef": 0}, r"no effect without algorithm\.kl_coef"),
        (
            {"kl_coef": 0.1, "kl_estimator": "reverse"},
            r"kl_estimator=reverse, which reads the reference in every micro-batch",
        ),
    ],
)
def test_where_nothing_can_be_offloaded_it_is_refused(algorithm: dict[str, object], reason: str) -> None:
    assert ways_to_hold(settings(algorithm=algorithm), tiny_policy(), None, None) == (False,)
    with pytest.raises(SettingsError, match=reason):
        ways_to_hold(settings(algorithm=algorithm, optimizer={"reference_offload": "on"}), tiny_policy(), None, None)


def test_beside_an_adapter_only_a_teacher_can_be() -> None:
    config = settings(algorithm=KL, optimizer={"reference_offload": "on"})
    with pytest.raises(SettingsError, match="beside an adapter, whose reference shares the weights"):
        ways_to_hold(config, adapted(), None, None)
    assert ways_to_hold(config, adapted(), None, tiny_policy()) == (True,)


def test_a_run_that_is_resumed_goes_on_as_it_was() -> None:
    config = settings(algorithm=KL)
    kept = Plan(slots=1, microbatch_tokens=8, recompute=False, offload=True)
    assert ways_to_hold(config, tiny_policy(), kept, None) == (True,)
