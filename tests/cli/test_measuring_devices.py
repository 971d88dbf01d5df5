"""Measuring with `devices`: what eval, compare, difficulty and `slimrl.evaluate` find, other processes find too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import slimrl as api
from slimrl.api.measuring import measuring_settings
from slimrl.cli.arguments import model_settings
from slimrl.config.schema import EvalConfig, ModelConfig
from slimrl.machine.ranks import RankLostError, Ranks
from slimrl.machine.signals import Stop, Stopped
from slimrl.parallel import team
from slimrl.parallel.follow import follow
from slimrl.parallel.orders import Begin, End
from slimrl.parallel.sampler import DividedSampler
from slimrl.records import Plan
from slimrl.rollout import Request
from slimrl.rollout.engine import RolloutEngine
from tests.cli.test_difficulty import lines, timeless
from tests.forks import ranks_fork as ranks_fork
from tests.tiny import tiny_policy


@pytest.fixture(autouse=True)
def ranks_that_fork(request: pytest.FixtureRequest) -> None:
    """One test has ranks as users have them."""
    if request.function is not test_python_evaluates_on_two_devices:
        request.getfixturevalue("ranks_fork")


SMALL = ("rollout.max_new_tokens=8", "evaluation.problems=6", "evaluation.harder_problems=0", "evaluation.samples=2")


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """For each call of the sampler on several devices the requests that this process answers itself, and all of them."""
    found: list[tuple[int, int]] = []
    own: list[int] = []
    whole, part = DividedSampler.generate, RolloutEngine.generate

    def counted(sampler: RolloutEngine, requests: Sequence[Request], **arguments: Any) -> Any:
        own.append(len(requests))
        return part(sampler, requests, **arguments)

    def divided(sampler: DividedSampler, requests: Sequence[Request], **arguments: Any) -> Any:
        drawn = whole(sampler, requests, **arguments)
        found.append((own[-1], len(requests)))
        return drawn

    monkeypatch.setattr(RolloutEngine, "generate", counted)
    monkeypatch.setattr(DividedSampler, "generate", divided)
    return found


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(12)]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_tasks_are_evaluated_on_two_devices_as_on_one(slimrl, tiny_folder: Path, sums: Path, shares) -> None:
    (sums.parent / "more.yaml").write_text("task: {name: jsonl, test_path: sums.jsonl}\n")
    command = ("eval", tiny_folder, *SMALL, "--task", "arithmetic", "--task", "more.yaml", "--json", "--out")
    one, two = slimrl(*command, "one.jsonl"), slimrl(*command, "two.jsonl", "devices=2")
    assert (one.code, two.code) == (0, 0), two.err
    assert one.out == two.out
    assert lines("one.jsonl") == lines("two.jsonl")
    assert shares == [(3, 6), (3, 6)]


def test_a_task_that_is_measured_is_written_before_the_next_one_is(
    slimrl, tiny_folder: Path, sums: Path, monkeypatch
) -> None:
    (sums.parent / "more.yaml").write_text("task: {name: jsonl, test_path: sums.jsonl}\n")
    evaluation = import_module("slimrl.evaluate")
    own = evaluation.evaluate

    def stopped(setup: Any, **options: Any) -> Any:
        if setup.config.task.name == "jsonl":
            raise Stopped("SIGTERM", 75)
        return own(setup, **options)

    monkeypatch.setattr(evaluation, "evaluate", stopped)
    found = slimrl("eval", tiny_folder, *SMALL, "--task", "arithmetic", "--task", "more.yaml", "--out", "both.jsonl")
    assert found.code == 75
    assert f"stopped by SIGTERM while {tiny_folder} was measured on more, of which nothing is kept" in found.err
    assert {row["task"] for row in lines("both.jsonl")} == {"arithmetic"}
    assert len(lines("both.jsonl")) == 6 * 3


def test_models_are_compared_on_two_devices_as_on_one(slimrl, tiny_folder: Path, shares) -> None:
    command = ("compare", "builtin", tiny_folder, *SMALL, "--json")
    one, two = slimrl(*command), slimrl(*command, "devices=2")
    assert (one.code, two.code) == (0, 0), two.err
    assert json.loads(one.out) == json.loads(two.out)
    assert [total for _, total in shares] == [6, 6]


def test_rates_are_measured_on_two_devices_and_go_on_on_one(slimrl, tiny_folder: Path, sums: Path, shares) -> None:
    command = ("difficulty", tiny_folder, f"task.path={sums}", "rollout.max_new_tokens=8", "--samples", 2, "--out")
    assert slimrl(*command, "one.jsonl").code == 0
    two = slimrl(*command, "two.jsonl", "devices=2")
    assert two.code == 0, two.err
    assert timeless("one.jsonl") == timeless("two.jsonl")
    assert [total for _, total in shares] == [len(lines("two.jsonl")) - 1]
    Path("two.jsonl").write_text("".join(Path("two.jsonl").read_text().splitlines(keepends=True)[:4]))
    assert slimrl(*command, "two.jsonl").code == 0
    assert timeless("one.jsonl") == timeless("two.jsonl")


def test_python_evaluates_on_two_devices(tiny_folder: Path, sums: Path, shares) -> None:
    small = {"rollout": {"max_new_tokens": 8}, "evaluation": {"samples": 2}, "quiet": True}
    one, two = (api.evaluate(tiny_folder, sums, devices=count, **small) for count in (1, 2))
    assert one.table() == two.table()
    assert shares == [(6, 12)]


def test_a_result_is_kept_though_the_others_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told that nothing is left to do when all is graded."""

    class Left(Ranks):
        def tell(self, message: object) -> None:
            raise RankLostError(f"nobody heard {message}")

    monkeypatch.setattr(team, "team", lambda _config, _stop: nullcontext(Left(size=2)))
    assert team.measured_together([EvalConfig()], Stop(), lambda: "measured") == "measured"


def test_a_rank_that_has_ended_is_noticed_while_the_leader_samples() -> None:
    class Bereft(Ranks):
        """The leader of two, the other of which ends while the leader samples."""

        def tell(self, message: object) -> None: ...

        def deal(self, parts: Sequence[Any] = ()) -> Any:
            return parts[0]

    done: list[int] = []

    def check() -> None:
        if done:
            raise RankLostError("rank 1 of the run has ended")

    sampler = DividedSampler(RolloutEngine(tiny_policy(), slots=1), Bereft(0, 2, check=check))
    requests = [Request((5, 6, 7), np.full((1, 4), 0.5)) for _ in range(8)]
    with pytest.raises(Stopped, match="stopped by the loss of another process"):
        sampler.generate(requests, max_new_tokens=4, on_group=lambda place, _: done.append(place))
    assert len(done) == 1, "of the four that are its share"


def test_a_model_is_loaded_once_for_the_tasks_that_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """And let go before another is loaded. It computes with as many threads as the leader."""
    threads: list[int] = []
    loaded: list[object] = []

    def prepared(config: EvalConfig, *, model: object, **_: object) -> Any:
        loaded.append(model)
        policy = model or f"policy {config.model.path}"
        return SimpleNamespace(config=config, policy=policy, engine=None, rules=None, close=lambda: None)

    one, other = (EvalConfig(model=ModelConfig(path=path)) for path in ("one", "other"))
    plan = Plan(1, 1, recompute=False)
    orders = iter([*(Begin(config, plan, {}, 3) for config in (one, one, other)), End()])
    monkeypatch.setattr("slimrl.parallel.follow.prepare", prepared)
    monkeypatch.setattr("slimrl.parallel.follow.fix_threads", threads.append)
    monkeypatch.setattr(Ranks, "hear", lambda _: next(orders))
    follow(Ranks(1, 1), Stop())
    assert loaded == [None, "policy one", None]
    assert threads == [3, 3, 3]


def test_what_is_measured_together_has_the_same_devices(slimrl, sums: Path) -> None:
    (sums.parent / "more.yaml").write_text("devices: 2\ntask: {name: jsonl, test_path: sums.jsonl}\n")
    found = slimrl("eval", "builtin", *SMALL, "--task", "arithmetic", "--task", "more.yaml")
    assert (found.code, found.err.splitlines()[-1]) == (
        2, "error: devices=1 and devices=2 are set for what is measured in one command; give all of it one value"
    )  # fmt: skip


def test_ranks_that_do_not_lead_say_nothing_of_stored_outputs(
    slimrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"split": "test", "id": "a/1", "mode": "sampled", "sample": 0, "strict": True, "lenient": True}
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    leader = slimrl("compare", "a.jsonl", "b.jsonl", "--json")
    assert json.loads(leader.out)["models"] == ["a.jsonl", "b.jsonl"], leader.err
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert slimrl("compare", "a.jsonl", "b.jsonl", "--json") == (0, "", "")


READS = '''
class Echo:
    def reset(self, **columns):
        return None

    def say(self, text: str) -> str:
        """Say it.

        Args:
            text: what to say
        """
        return text


def turns(environments, **_):
    return [1.0 for _ in environments]
'''


def test_a_reward_that_reads_environments_is_not_measured_on_two_devices(slimrl, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(READS)
    command = (
        "eval",
        "builtin",
        *SMALL,
        "environment.name=mine.py:Echo",
        "rewards.custom.mine.py:turns=1",
        "environment.workers=0",
    )
    assert slimrl(*command).code == 0
    found = slimrl(*command, "devices=2")
    assert found.code == 2
    assert (
        "reward turns reads environments, and of 2 processes each keeps those that it plays; set devices=1" in found.err
    )


def test_a_run_is_measured_on_one_device_wherever_it_was_trained(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("devices: 8\nparallel: fsdp\n")
    config = measuring_settings(str(tmp_path), {})
    assert (config.devices, config.parallel) == (1, "ddp")
    assert measuring_settings(str(tmp_path), {"devices": 2}).devices == 2


@pytest.mark.parametrize("verb", ["sample", "chat"])
@pytest.mark.parametrize("setting", ["devices=2", "rollout.engine=vllm", "evaluation.problems=4"])
def test_what_does_not_act_on_an_answer_is_refused(slimrl, verb: str, setting: str) -> None:
    key = setting.partition("=")[0]
    found = slimrl(verb, "builtin", *(["What is 3 + 4?"] if verb == "sample" else []), setting)
    assert (found.code, found.err) == (2, f"error: {key} has no effect on what a model answers; remove it\n")
    with pytest.raises(api.SettingsError, match=f"{key} has no effect on what a model answers"):
        api.sample("builtin", "What is 3 + 4?", **{key: setting.partition("=")[2]})


def test_what_divides_an_update_is_refused_where_nothing_is_trained(slimrl) -> None:
    found = slimrl("eval", "builtin", "parallel=fsdp")
    assert (found.code, found.err) == (
        2,
        "error: parallel has an effect only in slimrl train and slimrl sft; remove it\n",
    )


@pytest.mark.parametrize("verb", ["eval", "sample", "chat"])
def test_a_new_adapter_is_refused_where_nothing_is_trained(slimrl, verb: str, tmp_path: Path) -> None:
    """The settings of a run that had one, in its folder or in a file, measure what it left."""
    found = slimrl(verb, "builtin", *(["What is 3 + 4?"] if verb == "sample" else []), "model.lora.rank=8")
    sentence = "model.lora.rank has an effect only in slimrl train and slimrl sft; remove it"
    assert (found.code, found.err) == (2, f"error: {sentence}\n")
    with pytest.raises(api.SettingsError, match=sentence):
        api.evaluate("builtin", quiet=True, **{"model.lora": {"rank": 8}})
    (tmp_path / "config.yaml").write_text("model: {lora: {rank: 8}}\n")
    assert measuring_settings(str(tmp_path), {}).model.lora.rank == 0
    assert model_settings("builtin", [f"{tmp_path}/config.yaml"], None).model.lora.rank == 0


@pytest.mark.parametrize("first", ["@gsm8k", "mine.yaml", "task.name=gsm8k"])
def test_the_model_comes_first(slimrl, first: str) -> None:
    found = slimrl("eval", first, "builtin")
    assert (found.code, found.err.splitlines()[-1]) == (
        2, f"error: {first} is no model; give the model or the run first, and settings behind it",
    )  # fmt: skip


@pytest.mark.parametrize("verb", ["eval", "sample", "chat"])
def test_the_model_is_the_one_that_is_named(slimrl, verb: str, tmp_path: Path) -> None:
    """A recipe for another model lends its form of answers; another model by itself is refused."""
    file = tmp_path / "qwen.yaml"
    file.write_text("model: {path: Qwen/Qwen2.5-0.5B-Instruct}\ntask: {style: boxed}\n")
    config = model_settings("builtin", [str(file)], None)
    assert (config.model.path, config.task.style) == ("builtin", "boxed")
    found = slimrl(verb, "builtin", *(["What is 3 + 4?"] if verb == "sample" else []), "model.path=other")
    sentence = "model.path has no effect, since builtin is the model that was named; remove it"
    assert (found.code, found.err) == (2, f"error: {sentence}\n")
    with pytest.raises(api.SettingsError, match=sentence):
        api.evaluate("builtin", quiet=True, **{"model.path": "other"})


def test_a_class_of_a_program_is_not_measured_on_two_devices() -> None:
    class Echo:
        """Nothing that another process could find."""

        def reset(self) -> None: ...

        def step(self, text: str) -> None: ...

    with pytest.raises(api.SettingsError, match=r"devices=2: other processes cannot load .*Echo"):
        api.evaluate("builtin", environment=Echo, devices=2, quiet=True)
