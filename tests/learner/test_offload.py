"""A reference that is in memory only while it is read gives what one gives that always is."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slimrl.config.files import load_config
from slimrl.config.schema import SftRunConfig
from slimrl.errors import SettingsError
from slimrl.learner import offload
from slimrl.learner.learner import Learner
from slimrl.learner.offload import Offloaded, offload_reference, ways_to_hold
from slimrl.machine.limits import in_memory
from slimrl.model.policy import Policy, freeze
from slimrl.preflight import estimate, memory
from slimrl.preflight.estimate import read_plan
from slimrl.preflight.memory import Call, plan_memory
from slimrl.records import Plan
from tests.learner.test_targets import run_update
from tests.learner.test_update import settings
from tests.model import test_families as families
from tests.model.test_lora import adapted
from tests.tiny import microbatcher_of, tiny_policy

KL = {"kl_coef": 0.1}


def learned(folder: Path, setting: str, steps: int = 3) -> tuple[Learner, list[dict[str, float]]]:
    optimizer = {"learning_rate": 1e-2, "minibatches": 2, "reference_offload": setting}
    config = settings(algorithm=KL, optimizer=optimizer).model_copy(update={"output": str(folder)})
    policy = tiny_policy("qwen2")
    learner = Learner(policy, config, microbatcher_of(config), reward_weights={"a": 1.0})
    return learner, [run_update(learner) for _ in range(steps)]


@pytest.mark.parametrize("place", ["file", "host"])
def test_runs_are_equal_to_the_last_bit(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with copies in the host's memory, as on a GPU, where parameters are empty between uses."""
    held, wanted = learned(tmp_path, "off")
    if place == "host":
        monkeypatch.setattr(offload, "Offloaded", lambda parameters, _folder: Offloaded(parameters, None))
    moved, found = learned(tmp_path, "on")
    assert (held.plan.offload, moved.plan.offload) == (False, True)
    assert held.targets.reference is not None
    assert moved.targets.reference is not None
    assert found == wanted
    assert wanted[-1]["kl"] > 0
    for own, theirs in zip(held.policy.model.parameters(), moved.policy.model.parameters(), strict=True):
        assert torch.equal(own, theirs)
    if place == "host":
        assert not any(p.numel() for p in moved.targets.reference.model.parameters())
    assert not any(tmp_path.iterdir()), "the file has no name, and no end of a process leaves it"


def test_what_the_policy_shares_with_its_reference_stays(tmp_path: Path) -> None:
    """A tower for images, which neither trains."""
    policy = families.policy_of("Gemma 3 4B", around="gemma3")
    before = {name: tensor.clone() for name, tensor in policy.tensors().items()}
    reference = freeze(policy)
    with torch.no_grad():
        for parameter in policy.trainable.values():
            parameter.add_(1.0)
    offloaded = offload_reference(reference, policy, tmp_path)
    assert sum(p.nbytes for p in offloaded.parameters) == sum(p.nbytes for p in policy.trainable.values())
    offloaded = Offloaded(offloaded.parameters, None)
    assert policy.tensors().keys() == before.keys()
    towers = before.keys() - policy.trainable.keys()
    assert len(towers) > 10
    assert all(torch.equal(policy.tensors()[name], before[name]) for name in towers)
    with offloaded.in_use():
        own = dict(reference.model.named_parameters())
        assert all(torch.equal(own[name], before[name]) for name in policy.trainable)


def test_a_teacher_of_more_outputs_leaves_none_of_them_behind(tmp_path: Path) -> None:
    teacher = tiny_policy("qwen2", vocabulary=80)
    teacher = replace(teacher, head=replace(teacher.head, outputs=61))
    assert teacher.head.weight.shape[0] == teacher.head.vocabulary == 61
    offloaded = offload_reference(teacher, tiny_policy("qwen2"), tmp_path)
    places = {p.untyped_storage().data_ptr() for p in offloaded.parameters}
    assert teacher.head.weight.untyped_storage().data_ptr() in places


def mapped_mebibytes() -> int:
    """Of files that are mapped, what the process holds."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssFile", "RssShmem")) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not say what a process holds")
def test_pages_are_held_only_while_they_are_read(tmp_path: Path) -> None:
    module = torch.nn.Linear(1024, 8192).requires_grad_(False)
    before = [p.clone() for p in module.parameters()]
    offloaded = Offloaded(list(module.parameters()), tmp_path)
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
    policy: Policy, monkeypatch: pytest.MonkeyPatch, free: float, setting: str = "auto"
) -> memory.MemoryEstimate:
    monkeypatch.setattr(memory, "free_memory", lambda _device: free)
    monkeypatch.setattr(memory, "used_memory", lambda _device: 0)
    for name in ("HEAP", "HEAP_GIVEN_BACK", "HEAP_SHARE"):
        monkeypatch.setattr(estimate, name, 0)
    optimizer = {"reference_offload": setting, "activation_checkpointing": "on", "microbatch_tokens": 64}
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
    assert "and the reference (" in scarce.sentence()
    assert read_plan(scarce.table()) == scarce.plan
    assert not planned(policy, monkeypatch, needed - ample.reference / 2, "off").fits
    assert planned(policy, monkeypatch, 1e12, "on").plan.offload


def test_slots_are_chosen_for_the_place_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a cache stays during the update, memory that the reference does not take is a cache's."""
    fixed_parts = memory._fixed_parts
    monkeypatch.setattr(memory, "_fixed_parts", lambda *given: replace(fixed_parts(*given), cache_stays=True))
    policy = tiny_policy("wide qwen2")
    free = planned(policy, monkeypatch, 1e12, "on").peak / memory.SHARE
    assert planned(policy, monkeypatch, free, "on").plan.slots == 16
    assert planned(policy, monkeypatch, free, "off").plan.slots == memory.FEWEST_SLOTS


def test_the_pass_of_a_large_teacher_is_a_peak_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned(tiny_policy("wide qwen2"), monkeypatch, 1e12, "on")
    assert found.pass_bytes > 0
    large = replace(found, reference=10**9, cache_stays=True)
    assert large.peak - found.peak > 10**9 - found.gradients - found.activations - found.sampling
    smaller = replace(large, plan=replace(large.plan, microbatch_tokens=large.plan.microbatch_tokens // 2))
    assert smaller.peak < large.peak


def test_a_plan_of_an_older_run_is_read() -> None:
    table = {"slots": 4, "microbatch_tokens": 64, "activation_checkpointing": False}
    assert read_plan(table) == Plan(slots=4, microbatch_tokens=64, recompute=False)


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


def test_a_file_must_save_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    on = settings(algorithm=KL, optimizer={"reference_offload": "on"})
    monkeypatch.setattr(offload, "in_memory", lambda _folder: True)
    with pytest.raises(SettingsError, match=r"no effect where files in output=runs lie in memory themselves \(tmpfs\)"):
        ways_to_hold(on, tiny_policy(), None, None)
    assert ways_to_hold(settings(algorithm=KL), tiny_policy(), None, None) == (False,)
    monkeypatch.undo()
    monkeypatch.delattr(os, "posix_fallocate")
    with pytest.raises(SettingsError, match="on this system, which does not give back the pages of a mapped file"):
        ways_to_hold(on, tiny_policy(), None, None)


@pytest.mark.skipif(not Path("/proc/self/mounts").is_file(), reason="the system has no list of its file systems")
def test_a_tmpfs_is_known() -> None:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    kinds = {line[1]: line[2] for line in lines}
    for place, kind in kinds.items():
        assert in_memory(Path(place)) == (kind in ("tmpfs", "ramfs")), place
    assert in_memory(Path("/dev/shm/new/folder")) == (kinds.get("/dev/shm") == "tmpfs")


def test_a_warm_start_has_no_reference() -> None:
    with pytest.raises(SettingsError, match=r"optimizer\.reference_offload has no effect in slimrl sft; remove it"):
        load_config(SftRunConfig, [], ["optimizer.reference_offload=on"])
