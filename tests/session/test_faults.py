"""Numbers that are not finite never reach a weight or a disk, and memory that runs out changes no token."""

from __future__ import annotations

import dataclasses
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from slimrl.algorithm.metrics import is_finite
from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.errors import NonFiniteError, SettingsError
from slimrl.learner import forward
from slimrl.learner.forward import Microbatcher
from slimrl.learner.learner import Learner
from slimrl.machine.limits import is_out_of_memory
from slimrl.machine.signals import Stopped
from slimrl.model.head import Head
from slimrl.randomness import uniforms
from slimrl.records import Group
from slimrl.rollout import Request
from slimrl.rollout.engine import RolloutEngine
from slimrl.runs.checkpoints import checkpoints
from slimrl.train import train
from tests.conftest import ROOT
from tests.learner.test_update import groups_of
from tests.session.test_resume import StopAt, content, run
from tests.test_train import SMALL
from tests.tiny import learner_of, read_state, tiny_policy

METHODS = ("grpo", "dapo", "gspo", "cispo", "ppo")
POISONS = ("loss", "gradient", "logits", "reward", "log-probability")
OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def settings(method: str, *more: str) -> TrainConfig:
    sizes = ("rollout.problems=4", "rollout.group_size=4", "rollout.max_new_tokens=14", "optimizer.learning_rate=1e-3")
    return load_config(TrainConfig, [str(ROOT / "recipes" / f"{method}.yaml")], [*sizes, *more])


def everything(learner: Learner) -> dict[str, torch.Tensor]:
    """Weights of the policy and the critic, masters and moments."""
    critic = {}
    if learner.critic is not None:
        critic = {**learner.critic.critic.state_dict(), **read_state(learner.critic.optimizer)}
    found = {**learner.policy.model.state_dict(), **read_state(learner.optimizer)}
    return {k: v.clone() for k, v in (found | {f"critic.{k}": v for k, v in critic.items()}).items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def poisoned(
    poison: str, learner: Learner, groups: tuple[Group, ...], value: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[Group, ...]:
    """Groups, or a learner, with this value where the poison's name says."""

    def of_rollout(group: Group, **changes: Any) -> Group:
        first, *others = group.rollouts
        return dataclasses.replace(group, rollouts=(dataclasses.replace(first, **changes), *others))

    if poison == "reward":
        return tuple(of_rollout(group, reward=value) for group in groups)
    if poison == "log-probability":
        spoilt = [dataclasses.replace(g.rollouts[0].completion, logprobs=(value,) * 14) for g in groups]
        lengths = [len(g.rollouts[0].completion.token_ids) for g in groups]
        spoilt = [dataclasses.replace(c, logprobs=c.logprobs[:n]) for c, n in zip(spoilt, lengths, strict=True)]
        return tuple(of_rollout(group, completion=c) for group, c in zip(groups, spoilt, strict=True))
    if poison == "loss":
        monkeypatch.setattr("slimrl.learner.learner.surrogate", lambda *a, **_: a[1] * 0 + value)
    elif poison == "gradient":
        norm = learner.optimizer.gradient_norm

        def spoilt_norm() -> float:
            next(iter(learner.optimizer.gradients().values())).view(-1)[0] = value
            return norm()

        monkeypatch.setattr(learner.optimizer, "gradient_norm", spoilt_norm)
    else:
        own = learner.policy.head.projection
        own.register_forward_hook(lambda _m, _i, out: out + value)
        monkeypatch.setattr(Head, "weight", property(lambda head: head.projection.weight + value), raising=False)
    return groups


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("poison", POISONS)
def test_poison_leaves_everything_untouched(
    poison: str, method: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(method)
    learner = learner_of(tiny_policy(), config)
    groups = groups_of(learner.policy, config)
    clean = learner.update(groups, 0)
    assert clean.fault is None
    before = everything(learner)
    spoilt = poisoned(poison, learner, groups, value, monkeypatch)
    updated = learner.update(spoilt, 1)
    assert updated.fault is not None
    assert not updated.fault.spoiled
    assert updated.metrics["update/skipped"] == updated.metrics["update/nonfinite"] == 1.0
    assert same(everything(learner), before)
    assert all(p.grad is None for p in learner.policy.model.parameters())


def test_one_poisoned_minibatch_costs_one_update(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("gspo", "optimizer.minibatches=4")
    learner = learner_of(tiny_policy(), config)
    groups = groups_of(learner.policy, config)
    norm, calls = learner.optimizer.gradient_norm, []

    def third_fails() -> float:
        calls.append(1)
        if len(calls) == 3:
            raise NonFiniteError("the gradient norm is nan")
        return norm()

    monkeypatch.setattr(learner.optimizer, "gradient_norm", third_fails)
    updated = learner.update(groups, 0)
    assert updated.metrics["update/skipped"] == 0.25
    assert updated.fault is not None
    assert len(updated.fault.rows.inputs) == 4, "the batch of that update"


def test_weights_that_are_not_finite_reach_no_disk(tmp_path: Path) -> None:
    """A rate that blows the weights up in the first step: there is nothing to go back to."""
    with pytest.raises(Exception, match="not finite after step 1, and no checkpoint"):
        run(tmp_path, "a", "optimizer.learning_rate=1e38", "optimizer.schedule=constant", "checkpoint.every=1")
    assert not checkpoints(tmp_path / "a" / "checkpoints")
    assert not (tmp_path / "a" / "final").exists()
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "diverged"


def test_a_step_that_is_skipped_is_counted_kept_and_logged_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends as one in which that batch was dropped by hand."""
    whole = Learner.update

    def second_is_nan(learner: Learner, groups: Any, step: int) -> Any:
        if step == 1:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("slimrl.learner.learner.surrogate", lambda *a, **_: a[1] * float("nan"))
                return whole(learner, groups, step)
        return whole(learner, groups, step)

    def second_is_dropped(learner: Learner, groups: Any, step: int) -> Any:
        return whole(learner, () if step == 1 else groups, step)

    monkeypatch.setattr(Learner, "update", second_is_nan)
    skipped = run(tmp_path, "a", "steps=4")
    monkeypatch.setattr(Learner, "update", second_is_dropped)
    dropped = run(tmp_path, "b", "steps=4")
    assert (skipped.weights, skipped.optimizer) == (dropped.weights, dropped.optimizer)
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("update/nonfinite", 0) for row in rows] == [0, 1, 0, 0]
    assert "learning_rate" not in rows[1]
    assert (tmp_path / "a" / "nonfinite" / "step-00000002.safetensors").is_file()


@pytest.mark.parametrize("every", [2, 0])
def test_three_faults_in_a_row_go_back_once_without_their_problems(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some problems make NaN whenever they are met: after the roll-back none of those seen is met again."""
    whole, bad, met = Learner.update, set(), []

    def some_are_nan(learner: Learner, groups: Any, step: int) -> Any:
        own = {group.problem.id for group in groups}
        if step in (3, 4, 5) and not bad.issuperset(own) and len(bad) < 12:
            bad.update(own)
        met.append((step, bool(own & bad)))
        if own & bad:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("slimrl.learner.learner.surrogate", lambda *a, **_: a[1] * float("nan"))
                return whole(learner, groups, step)
        return whole(learner, groups, step)

    monkeypatch.setattr(Learner, "update", some_are_nan)
    config = load_config(
        TrainConfig, [], [f"output={tmp_path}", "name=a", *SMALL, "steps=8", f"checkpoint.every={every}"]
    )
    assert train(config, Display(quiet=True)).steps == 8
    events = [json.loads(line) for line in (tmp_path / "a" / "events.jsonl").read_text().splitlines()]
    (back,) = [event for event in events if event["event"] == "rolled back"]
    assert back["step"] == (2 if every else 6), "to the checkpoint before the faults; without one, nowhere"
    assert {*back["excluded"]} == bad
    assert [step for step, faulty in met if faulty] == [3, 4, 5]
    assert [row["step"] for row in map(json.loads, (tmp_path / "a" / "metrics.jsonl").read_text().splitlines())] == [
        *range(1, 9)
    ]


def test_memory_that_runs_out_in_an_update_halves_the_microbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of the first 20 micro-batches: the same groups, and the same loss to rounding, there and in two more steps."""
    sizes = ("rollout.problems=2", "optimizer.microbatch_tokens=50", "optimizer.minibatches=2")
    config = settings("grpo", *sizes)
    sampled = groups_of(tiny_policy(), config)

    def losses(fail_at: int) -> tuple[list[float], int]:
        learner = learner_of(tiny_policy(), config)
        count, whole = 0, Microbatcher.statistics

        def limited(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += "passes" in more
            if "passes" in more and count == fail_at:
                raise OOM
            return whole(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Microbatcher, "statistics", limited)
            found, after = [], 0
            while after < 3 and len(found) < 8:  # the moments that the failure left act two steps later
                groups = [dataclasses.replace(group, step=len(found)) for group in sampled]
                found.append(learner.update(groups, len(found)).metrics["loss"])
                after += 0 < fail_at <= count
        assert count >= fail_at
        return found, learner.plan.microbatch_tokens

    undisturbed, size = losses(0)
    assert (len(undisturbed), size) == (8, 50)
    for fail_at in range(1, 21):
        found, halved = losses(fail_at)
        assert halved == 25
        assert found == pytest.approx(undisturbed[: len(found)], abs=1e-5)


def test_nothing_of_an_attempt_that_failed_is_alive_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of the first loss would need as much memory again."""
    config = settings("grpo", "optimizer.microbatch_tokens=50")
    learner = learner_of(tiny_policy(), config)
    groups = groups_of(learner.policy, config)
    backward, losses = learner.optimizer.backward, []

    def first_fails(loss: torch.Tensor) -> None:
        if losses:
            assert losses[0]() is None
        losses.append(weakref.ref(loss))
        if len(losses) == 1:
            raise type(OOM)(*OOM.args)  # OOM itself holds on to the frames that it left
        backward(loss)

    monkeypatch.setattr(learner.optimizer, "backward", first_fails)
    assert learner.update(groups, 0).fault is None
    assert len(losses) > 2


def test_memory_that_runs_out_for_global_weights_halves_the_microbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    gkl = ("algorithm.kl_coef=0.1", "algorithm.kl_estimator=gkl", "algorithm.gkl.weights=global")
    config = settings("grpo", *gkl, "optimizer.microbatch_tokens=50")
    groups = groups_of(tiny_policy(), config)
    plain = learner_of(tiny_policy(), config)
    wanted = plain.update(groups, 0).metrics["loss"]
    whole, calls = forward.mean_probabilities, []

    def first_fails(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OOM
        return whole(*args, **more)

    monkeypatch.setattr(forward, "mean_probabilities", first_fails)
    learner = learner_of(tiny_policy(), config)
    assert learner.update(groups, 0).metrics["loss"] == pytest.approx(wanted, abs=1e-5)
    assert learner.plan.microbatch_tokens == 25


def test_memory_that_never_suffices_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("grpo")
    learner = learner_of(tiny_policy(), config)
    groups = groups_of(learner.policy, config)

    def never(*_: Any, **__: Any) -> Any:
        raise OOM

    monkeypatch.setattr(Microbatcher, "statistics", never)
    before = everything(learner)
    with pytest.raises(
        SettingsError, match=r"even for one completion at a time; set optimizer\.activation_checkpointing=on"
    ):
        learner.update(groups, 0)
    assert same(everything(learner), before)
    fixed = settings("grpo", "algorithm.aggregation=microbatch_token_mean", "optimizer.microbatch_tokens=60")
    with pytest.raises(SettingsError, match="its split is part of the result"):
        learner_of(tiny_policy(), fixed).update(groups, 0)


def test_a_step_that_fails_half_way_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that does not suffice for the second minibatch, when the first has moved the weights."""
    whole, count = Microbatcher.statistics, 0

    def limited(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += "passes" in more
        if "passes" in more and count > 5:
            raise OOM
        return whole(*args, **more)

    run(tmp_path, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Microbatcher, "statistics", limited)
        with pytest.raises(SettingsError, match="even for one completion at a time"):
            run(tmp_path, "a", "checkpoint.every=1")
    run(tmp_path, "a", "checkpoint.every=1", resume=True)
    assert content(tmp_path / "a") == content(tmp_path / "whole")


def test_a_surplus_group_with_a_number_that_is_not_finite_is_not_carried() -> None:
    (group,) = groups_of(tiny_policy(), settings("grpo", "rollout.problems=1"))
    first = group.rollouts[0]
    assert is_finite(group)
    spoilt = dataclasses.replace(first, completion=dataclasses.replace(first.completion, logprobs=(float("nan"),) * 3))
    assert not is_finite(dataclasses.replace(group, rollouts=(spoilt, *group.rollouts[1:])))
    assert not is_finite(dataclasses.replace(group, rollouts=(dataclasses.replace(first, reward=float("inf")),)))


def requests() -> list[Request]:
    return [
        Request(tuple(range(3, 6 + i)), uniforms(0, "train", 0, f"p{i}", samples=4, positions=12)) for i in range(5)
    ]


@pytest.mark.parametrize("fail_at", [1, 2, 7, 15])
def test_memory_that_runs_out_while_sampling_halves_the_slots(fail_at: int) -> None:
    """The same tokens, every group handed over once."""
    policy = tiny_policy()
    expected = RolloutEngine(policy, slots=16).generate(requests(), max_new_tokens=12)
    engine = RolloutEngine(policy, slots=16)
    step, count, handed = engine.step, 0, []

    def limited(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == fail_at:
            raise OOM
        return step(*args, **more)

    engine.step = limited
    found = engine.generate(requests(), max_new_tokens=12, on_group=lambda i, c: handed.append((i, c)))
    tokens = [[c.token_ids for c in group] for group in expected]
    assert [[c.token_ids for c in group] for group in found] == tokens
    assert {i: [c.token_ids for c in group] for i, group in handed} == dict(enumerate(tokens))
    assert len(handed) == len(tokens)
    assert engine.slots == 8
    assert [[c.token_ids for c in g] for g in engine.generate(requests(), max_new_tokens=12)] == tokens


def test_sampling_that_never_fits_is_one_sentence() -> None:
    policy = tiny_policy()
    engine = RolloutEngine(policy, slots=4)

    def never(*_: Any, **__: Any) -> Any:
        raise OOM

    engine.step = never
    with pytest.raises(SettingsError, match="memory ran out while sampling a single completion"):
        engine.generate(requests(), max_new_tokens=12)
    assert engine.slots == 1


def test_what_was_found_of_memory_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, count = Microbatcher.statistics, 0

    def limited(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += "passes" in more
        if "passes" in more and count == 3:
            raise OOM
        return whole(*args, **more)

    monkeypatch.setattr(Microbatcher, "statistics", limited)
    monkeypatch.setattr(
        "slimrl.session.keeper.Keeper.finish", lambda *_: None
    )  # so that the checkpoint of the last step stays
    planned = "optimizer.microbatch_tokens=512"
    run(tmp_path, "a", planned, "steps=2", "checkpoint.every=1")
    events = [json.loads(line) for line in (tmp_path / "a" / "events.jsonl").read_text().splitlines()]
    assert [e["microbatch_tokens"] for e in events if e["event"] == "memory ran out"] == [256]
    kept, *_ = checkpoints(tmp_path / "a" / "checkpoints")
    assert kept.state()["microbatch_tokens"] == 256
    assert content(tmp_path / "a")


def test_what_is_out_of_memory() -> None:
    cpu = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    )
    assert all(is_out_of_memory(error) for error in (OOM, cpu, MemoryError()))
    assert not is_out_of_memory(RuntimeError("size mismatch"))


def test_a_kill_inside_a_roll_back_leaves_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints beyond the target go before the records that they would need."""
    from slimrl.runs import directory

    never = StopAt(-1)
    run(tmp_path, "whole", "optimizer.schedule=constant", stop=never)
    late = StopAt(round(0.8 * (-1 - never.left)))
    with pytest.raises(Stopped):
        run(tmp_path, "a", "optimizer.schedule=constant", "checkpoint.every=1", "checkpoint.keep=9", stop=late)
    own, removed = directory.remove, []

    def killed(checkpoint: Any) -> None:
        own(checkpoint)
        removed.append(checkpoint.step)
        raise KeyboardInterrupt  # as good as a kill: nothing tidies up after it

    monkeypatch.setattr(directory, "remove", killed)
    killed_run = directory.RunDirectory(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        killed_run.rewind(1)
    killed_run._lock.release()
    monkeypatch.setattr(directory, "remove", own)
    assert removed == [max(removed)]
    run(tmp_path, "a", "optimizer.schedule=constant", resume=True)
    assert content(tmp_path / "a") == content(tmp_path / "whole")
