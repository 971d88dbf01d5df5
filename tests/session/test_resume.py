"""A run that is interrupted anywhere ends as if it had not been: weights, optimizer and metrics to the last bit."""

from __future__ import annotations

import errno
import json
import os
import platform
import random
import shutil
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.errors import DataError, SettingsError
from slimrl.learner.learner import Learner, UpdateResult
from slimrl.machine.ranks import RankLostError
from slimrl.machine.signals import Stop, Stopped
from slimrl.model import loading
from slimrl.model.loading import load_policy
from slimrl.results import TrainSummary
from slimrl.rollout.engine import RolloutEngine
from slimrl.runs.checkpoints import checkpoints, newest, remove_unfinished, write_checkpoint
from slimrl.runs.files import HashedFile
from slimrl.runs.lock import Lock
from slimrl.runs.reader import read_metrics
from slimrl.session.resume import LENGTH, MAY_CHANGE, refuse_changes
from slimrl.train import train
from tests.conftest import ROOT

EVERYTHING = (
    "steps=5", "rollout.problems=2", "rollout.group_size=4", "rollout.max_new_tokens=32", "evaluation.problems=2", "evaluation.harder_problems=0",
    "evaluation.greedy=false", "evaluation.every=2", "optimizer.minibatches=2", "optimizer.schedule=linear",
    "algorithm.dynamic_sampling=refill", "algorithm.refill_budget=2", "curriculum.order=learnability", "checkpoint.every=2",
    "algorithm.kl_coef=0.04", "seed=0",
)  # fmt: skip
"""With surplus groups, a curriculum that learns, several updates a step and a reference."""


class StopAt(Stop):
    """Asks to stop at the n-th moment of a run at which that is possible."""

    def __init__(self, moment: int) -> None:
        super().__init__()
        self.left, self.begun = moment, False

    def defer(self) -> None:
        self.begun = True
        super().defer()

    def check(self) -> None:
        self.left -= self.begun
        if self.left == 0:
            self.ask("a test", 75)
        super().check()


def run(
    output: Path, name: str, *settings: str, recipe: str = "", stop: Stop | None = None, **how: bool
) -> TrainSummary:
    files = [str(ROOT / "recipes" / recipe)] if recipe else []
    config = load_config(TrainConfig, files, [f"output={output}", f"name={name}", *EVERYTHING, *settings])
    return train(config, Display(quiet=True), stop=stop, **how)


def content(folder: Path) -> object:
    """Everything that a run found, without times and memory."""
    summary = json.loads((folder / "run.json").read_text())["summary"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
    files = [*sorted((folder / "evals").iterdir()), *sorted((folder / "rollouts").iterdir())]
    return summary["weights"], summary["optimizer"], metrics, [(f.name, f.read_bytes()) for f in files]


def interrupt(output: Path, name: str, moment: int, *settings: str, recipe: str = "") -> int:
    """Stop a run at this moment, or let it end; 0 where it ended."""
    stop = StopAt(moment)
    try:
        run(output, name, *settings, recipe=recipe, stop=stop, resume=True)
    except Stopped as stopped:
        return stopped.exit_code
    return 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run to its end, and the moments at which it could have been stopped."""
    output, stop = tmp_path_factory.mktemp("undisturbed"), StopAt(-1)
    run(output, "a", stop=stop)
    return output / "a", -1 - stop.left


def test_the_undisturbed_run_has_what_can_be_lost(undisturbed: tuple[Path, int]) -> None:
    rows = [json.loads(line) for line in (undisturbed[0] / "metrics.jsonl").read_text().splitlines()]
    assert any(row["sampling/surplus_groups"] for row in rows[:-1])
    assert len({row["learning_rate"] for row in rows}) == 5
    assert not checkpoints(undisturbed[0] / "checkpoints")[1:], "what served to go on is gone, the best may stay"


def test_a_cpu_is_told_by_what_decides_the_last_bits(undisturbed: tuple[Path, int]) -> None:
    device = json.loads((undisturbed[0] / "run.json").read_text())["device"]
    assert device == f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 1.0])
def test_stopped_anywhere_it_goes_on_to_the_same_end(
    share: float, undisturbed: tuple[Path, int], tmp_path: Path
) -> None:
    folder, moments = undisturbed
    assert interrupt(tmp_path, "a", max(1, round(share * moments))) == 75
    state = json.loads((tmp_path / "a" / "run.json").read_text())
    assert state["status"] == "preempted"
    taken = len(read_metrics(tmp_path / "a"))
    assert newest(tmp_path / "a" / "checkpoints")[0].step == taken, "nothing that was done is lost"  # type: ignore[union-attr]
    run(tmp_path, "a", resume=True)
    assert content(tmp_path / "a") == content(folder)


def test_stopped_again_and_again(undisturbed: tuple[Path, int], tmp_path: Path) -> None:
    count, folder = 0, tmp_path / "a"
    while interrupt(tmp_path, "a", undisturbed[1] // 3) == 75:
        count += 1
        assert json.loads((folder / "run.json").read_text())["status"] == "preempted"
        assert count < 30
    assert count >= 2
    assert content(folder) == content(undisturbed[0])
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    stops = [event for event in events if event["event"] == "preempted"]
    assert [event["event"] for event in events] == ["preempted", "resumed"] * count
    assert all(f"stopped by a test after step {event['step']}; resume with" in event["why"] for event in stops)


def test_a_step_whose_first_update_is_applied_is_completed(tmp_path: Path) -> None:
    """Also while the tokens of highest entropy are found, before each of its updates."""
    several = ("algorithm.entropy_share=0.2", "optimizer.minibatches=2", "optimizer.epochs=2", "steps=2")
    stop = StopAt(-1)
    run(tmp_path, "whole", *several, stop=stop)
    for moment in range(1, -stop.left, max(1, -stop.left // 5)):
        name = f"stopped-{moment}"
        assert interrupt(tmp_path, name, moment, *several) == 75
        run(tmp_path, name, *several, resume=True)
        assert content(tmp_path / name) == content(tmp_path / "whole"), moment


@pytest.mark.parametrize("recipe", ["ppo.yaml", "gpg.yaml", "lora.yaml"])
def test_other_methods_too(recipe: str, tmp_path: Path) -> None:
    settings = ("curriculum.order=shuffled", "steps=3", "optimizer.minibatches=1", "optimizer.schedule=constant")
    settings = (
        (*settings, "algorithm.dynamic_sampling=off", "algorithm.refill_budget=3") if recipe == "ppo.yaml" else settings
    )
    stop = StopAt(-1)
    run(tmp_path, "a", *settings, recipe=recipe, stop=stop)
    assert interrupt(tmp_path, "b", round(0.7 * (-1 - stop.left)), *settings, recipe=recipe) == 75
    run(tmp_path, "b", *settings, recipe=recipe, resume=True)
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_packed_weights_are_packed_alike_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(loading, "check_quantize", lambda *_: None)
    settings, stop = ("model.quantize=4bit", "steps=2"), StopAt(-1)
    run(tmp_path, "a", *settings, recipe="lora.yaml", stop=stop)
    assert interrupt(tmp_path, "b", round(0.8 * (-1 - stop.left)), *settings, recipe="lora.yaml") == 75
    run(tmp_path, "b", *settings, recipe="lora.yaml", resume=True)
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_bfloat16_masters_come_back(tmp_path: Path) -> None:
    settings = ("model.dtype=bfloat16", "steps=3")
    stop = StopAt(-1)
    run(tmp_path, "a", *settings, stop=stop)
    assert interrupt(tmp_path, "b", round(0.8 * (-1 - stop.left)), *settings) == 75
    run(tmp_path, "b", *settings, resume=True)
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_a_run_goes_on_in_the_precision_that_auto_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another processor, or after an update that lets `auto` mean something else."""
    run(tmp_path, "a", "model.dtype=bfloat16", "steps=2")
    with monkeypatch.context() as before:
        before.setattr(loading, "usual_dtype", lambda *_: torch.bfloat16)
        stop = StopAt(-1)
        run(tmp_path, "c", "steps=2", stop=stop)
        assert interrupt(tmp_path, "b", round(0.8 * (-1 - stop.left)), "steps=2") == 75
    run(tmp_path, "b", "steps=2", resume=True)
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_a_checkpoint_is_a_model_like_any_other(tmp_path: Path) -> None:
    run(tmp_path, "a", "steps=4", "seed=0")  # whose best step is not its last
    (best,) = checkpoints(tmp_path / "a" / "checkpoints")
    policy = load_policy(load_config(TrainConfig, [], [f"model.path={best.path}"]).model)
    saved = best.tensors("model")
    assert all(torch.equal(p, saved[name]) for name, p in policy.model.named_parameters())


def test_what_is_kept(tmp_path: Path) -> None:
    assert interrupt(tmp_path, "a", 10**9, "steps=3", "checkpoint.every=1") == 0
    stop = StopAt(-1)
    run(tmp_path, "b", "checkpoint.every=1", stop=stop)
    assert (
        interrupt(
            tmp_path, "c", -2 - stop.left, "checkpoint.every=1", "checkpoint.keep=3", "checkpoint.keep_best=false"
        )
        == 75
    )
    assert [c.step for c in checkpoints(tmp_path / "c" / "checkpoints")] == [5, 4, 3]


def test_a_finished_run_is_only_reported(undisturbed: tuple[Path, int]) -> None:
    folder = undisturbed[0]
    before = content(folder)
    summary = run(folder.parent, "a", resume=True)
    assert summary.weights == before[0]  # type: ignore[index]
    with pytest.raises(SettingsError, match="is finished already, and a run is never overwritten"):
        run(folder.parent, "a")


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory, undisturbed: tuple[Path, int]) -> Path:
    """A run that was stopped after its third step or so, with two checkpoints."""
    output = tmp_path_factory.mktemp("stopped")
    assert interrupt(output, "a", round(0.75 * undisturbed[1])) == 75
    assert len(checkpoints(output / "a" / "checkpoints")) >= 2
    return output / "a"


@pytest.fixture
def stopped(tmp_path: Path, stopped_once: Path) -> Path:
    """The same in a place of the test's own: a run goes on wherever it is."""
    return Path(shutil.copytree(stopped_once, tmp_path / "a"))


def test_an_unfinished_run_says_how_to_go_on(stopped: Path) -> None:
    with pytest.raises(SettingsError, match=rf"resume it with slimrl train --resume {stopped}, or choose another name"):
        run(stopped.parent, "a")


def test_settings_that_must_not_change_are_named(stopped: Path) -> None:
    for changed in (
        "optimizer.learning_rate=1e-3",
        "seed=1",
        "rollout.group_size=8",
        "evaluation.problems=7",
        "steps=6",
    ):
        key = changed.partition("=")[0]
        with pytest.raises(SettingsError, match=f"was begun with {key}="):
            run(stopped.parent, "a", changed, resume=True)


def test_files_of_code_and_of_prompts_may_lie_elsewhere(tmp_path: Path) -> None:
    """`identity` finds out whether they are the same. Another function, and another weight, is another run."""
    judge = "endpoint: http://localhost:1/v1, model: m, low: 0, high: 1, weight: 1"

    def config(folder: str, function: str = "mine", weight: float = 1.0) -> TrainConfig:
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("rewards.py", "prompt.txt"):
            (tmp_path / folder / name).write_text("")
        file = tmp_path / folder / "all.yaml"
        file.write_text(
            f"rewards: {{custom: {{'rewards.py:{function}': {weight}}}, judge: {{j: {{{judge}, prompt_file: prompt.txt}}}}}}\n"
            "environment: {name: 'rewards.py:Mine'}\n"
        )
        return load_config(TrainConfig, [str(file)])

    before = config("before")
    refuse_changes(before, config("after"), tmp_path)
    for other in (config("after", function="yours"), config("after", weight=2.0)):
        with pytest.raises(SettingsError, match=r"was begun with rewards\.custom="):
            refuse_changes(before, other, tmp_path)


def test_settings_that_may_change_change_nothing(stopped: Path, undisturbed: tuple[Path, int]) -> None:
    moved = stopped.parent / "elsewhere" / "b"
    shutil.move(stopped, moved)
    others = (
        "max_time=9h", "memory_share=0.5", "rewards.workers=1", "rewards.unscorable_limit=0.5", "checkpoint.every=1",
        "checkpoint.keep=1", "checkpoint.keep_best=false", "log.samples_every=1", "log.samples=1", "log.profile=true",
        "log.tokens=all", "log.to=trackio", "log.project=other", "log.group=g",
    )  # fmt: skip
    summary = run(moved.parent, "b", *others, resume=True)
    assert (summary.weights, summary.optimizer) == content(undisturbed[0])[:2]  # type: ignore[index]
    tried = {setting.partition("=")[0] for setting in others} | {"name", "output", "rollout.slots"}
    untried = {
        "evaluation.every",
        "rewards.deadline",
        "rewards.memory",
        "environment.workers",
        "environment.memory",
        "environment.deadline",
        "sandbox.workers",
        "log.rollouts",
        "log.model",
        "devices",
        "device_deadline",
        "optimizer.sharded",
        "parallel",
        "upload",
    }
    assert {*MAY_CHANGE} == tried | untried
    assert LENGTH == ("steps", "max_tokens")


def test_smaller_microbatches_act(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With which a run goes on whose memory ran out."""
    found: list[int] = []

    def noted(self: Learner, *arguments: Any) -> UpdateResult:
        found.append(self.plan.microbatch_tokens)
        return own(self, *arguments)

    own = Learner.update
    monkeypatch.setattr(Learner, "update", noted)
    run(stopped.parent, "a", "optimizer.microbatch_tokens=90", resume=True)
    assert {*found} == {90}


def test_a_split_that_is_part_of_the_result_stays(stopped: Path) -> None:
    split = ("algorithm.aggregation=microbatch_token_mean", "optimizer.microbatch_tokens=60")
    config = load_config(TrainConfig, [], [*EVERYTHING, *split])
    other = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"microbatch_tokens": 90})})
    with pytest.raises(SettingsError, match=r"was begun with optimizer\.microbatch_tokens="):
        refuse_changes(config, other, stopped)


def test_fewer_slots_act_and_are_said_to_change_last_bits(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, slots = RolloutEngine.generate, set()

    def noted(self: RolloutEngine, *args: Any, **more: Any) -> Any:
        slots.add(self.slots)
        return own(self, *args, **more)

    monkeypatch.setattr(RolloutEngine, "generate", noted)
    config = load_config(TrainConfig, [], [f"output={stopped.parent}", "name=a", *EVERYTHING, "rollout.slots=3"])
    train(config, Display(), resume=True)
    assert slots == {3}
    assert "some draws and the last bits of weights may differ" in " ".join(capsys.readouterr().err.split())


def test_more_steps_go_further(tmp_path: Path) -> None:
    constant = ("optimizer.schedule=constant", "evaluation.every=0")
    run(tmp_path, "whole", *constant)
    stop = StopAt(-1)
    run(tmp_path, "b", *constant, "steps=3", stop=stop)
    assert interrupt(tmp_path, "c", -2 - stop.left, *constant, "steps=3") == 75
    run(tmp_path, "c", *constant, "steps=5", resume=True)
    ours, theirs = content(tmp_path / "c"), content(tmp_path / "whole")
    assert ours[:3] == theirs[:3]  # type: ignore[index]
    assert interrupt(tmp_path, "d", -2 - stop.left, *constant, "steps=3") == 75
    with pytest.raises(SettingsError, match="steps=2 is less than the 3"):
        run(tmp_path, "d", *constant, "steps=2", resume=True)


def test_other_software_is_refused_unless_forced(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimrl.session.identity.files_digest", lambda paths: f"other {len(list(paths))}")
    with pytest.raises(SettingsError, match=r"SlimRL's own code changed.*--force"):
        run(stopped.parent, "a", resume=True)
    assert run(stopped.parent, "a", resume=True, force=True).steps == 5


def test_other_problems_and_other_first_weights_are_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("slimrl.session.identity._data", lambda _: "other")
        with pytest.raises(SettingsError, match="the problems of the task, or their prompts, are not those"):
            run(stopped.parent, "a", resume=True, force=True)
    with monkeypatch.context() as patch:
        patch.setattr("slimrl.session.identity.digest", lambda _: "other")
        with pytest.raises(SettingsError, match=r"the weights of model\.path are not those"):
            run(stopped.parent, "a", resume=True, force=True)


def test_one_process_at_a_time(stopped: Path) -> None:
    from slimrl.runs.lock import Lock

    lock = Lock(stopped)
    with pytest.raises(SettingsError, match="is being worked on by another process"):
        run(stopped.parent, "a", resume=True)
    lock.release()
    assert run(stopped.parent, "a", resume=True).steps == 5


def test_the_lock_of_a_machine_that_died_is_waited_for(
    stopped: Path, undisturbed: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server gives it up late; the process that took it is none of this machine."""
    monkeypatch.setattr("slimrl.session.resume.LOST_SECONDS", 30.0)
    held = Lock(stopped)
    (stopped / "lock").write_text("999999999")
    threading.Timer(0.5, held.release).start()
    run(stopped.parent, stopped.name, resume=True)
    assert content(stopped) == content(undisturbed[0])


def test_records_that_are_missing_are_named(stopped: Path) -> None:
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(DataError, match=r"metrics\.jsonl does not hold steps 1 to \d, after which"):
        run(stopped.parent, "a", resume=True)


def test_evaluations_that_are_missing_are_named(stopped: Path) -> None:
    (stopped / "evals" / "step-00000000.jsonl").unlink()
    with pytest.raises(DataError, match=r"evals/step-00000000\.jsonl is missing or damaged"):
        run(stopped.parent, "a", resume=True)


def test_a_record_that_is_damaged_is_no_new_run(stopped: Path) -> None:
    whole = (stopped / "run.json").read_text()
    (stopped / "run.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"run\.json is damaged"):
        run(stopped.parent, "a", resume=True)
    (stopped / "run.json").unlink()
    with pytest.raises(SettingsError, match=r"is no run, it has no run\.json but checkpoints"):
        run(stopped.parent, "a", resume=True)


def test_a_folder_that_was_given_up_is_taken_and_no_other(tmp_path: Path, undisturbed: tuple[Path, int]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "lock").touch()
    (tmp_path / "a" / "config.yaml").write_text("seed: 0")
    run(tmp_path, "a", resume=True)
    assert content(tmp_path / "a") == content(undisturbed[0])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"it has no run\.json but notes\.txt"):
        run(tmp_path, "mine", resume=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="is a link to another place"):
        run(tmp_path, "link", resume=True)


def test_a_run_that_another_process_began_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[Path, int]
) -> None:
    loop = import_module("slimrl.train")
    own = loop.prepare_training

    def slowly(*args: Any) -> object:
        monkeypatch.setattr(loop, "prepare_training", own)
        run(tmp_path, "a")
        return own(*args)

    monkeypatch.setattr(loop, "prepare_training", slowly)
    with pytest.raises(SettingsError, match="was begun by another process meanwhile"):
        run(tmp_path, "a")
    assert content(tmp_path / "a") == content(undisturbed[0])


def test_what_fails_after_the_end_does_not_undo_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(Display, "closing", fails)
    with pytest.raises(OSError, match="gone"):
        run(tmp_path, "a", "steps=1", "optimizer.schedule=constant")
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_checkpoint_that_is_written_again_is_never_away(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before, between and after the renames: one of the two is there when the next process has tidied up."""
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, 3, {"model": {"x": torch.zeros(2)}}, {"n": 1})
    own, renames = Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        if moment == "before" or (moment == "between" and renames):
            raise KeyboardInterrupt
        renames.append(own(path, target))
        if moment == "after" and len(renames) == 2:
            raise KeyboardInterrupt
        return renames[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies nothing up
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(folder, 3, {"model": {"x": torch.ones(2)}}, {"n": 2})
    remove_unfinished(folder)
    found, said = newest(folder)
    assert found is not None
    assert not said
    assert found.state()["n"] == (2 if moment == "after" else 1)
    assert [entry.name for entry in folder.iterdir()] == ["step-00000003"]


def test_what_a_kill_cut_off_is_forgotten(stopped: Path, undisturbed: tuple[Path, int]) -> None:
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    for folder in (stopped, stopped / "evals", stopped / "rollouts"):
        (folder / ".unfinished-step-00000005.jsonl-1-2").write_text("half")
    run(stopped.parent, "a", resume=True)
    assert content(stopped) == content(undisturbed[0])


def spoil(path: Path, how: str, at: int) -> None:
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[at % len(data)] ^= 1 << at % 8
        path.write_bytes(data)


def test_no_damage_is_overlooked(stopped: Path) -> None:
    """Every file of a checkpoint x four kinds of damage; bits are flipped in ten places each."""
    folder, places = stopped / "checkpoints", random.Random(0)
    last, previous, *_ = checkpoints(folder)
    whole = stopped.parent / "whole"
    shutil.copytree(folder, whole)
    files = sorted(file.name for file in last.path.iterdir())
    assert {"manifest.json", "state.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json"} <= {*files}
    for name in files:
        for how in ("truncate", "delete", "empty", *["flip"] * 10):
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
            spoil(last.path / name, how, places.randrange(1 << 30))
            found, said = newest(folder)
            assert found == previous, (name, how)
            assert len(said) == 1
            assert name in said[0], (name, how, said)


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    stopped: Path, undisturbed: tuple[Path, int], capsys: pytest.CaptureFixture[str]
) -> None:
    last, previous, *_ = checkpoints(stopped / "checkpoints")
    spoil(last.path / "optimizer.safetensors", "flip", 12345)
    config = load_config(TrainConfig, [], [f"output={stopped.parent}", "name=a", *EVERYTHING])
    train(config, Display(), resume=True)
    said = capsys.readouterr().err
    assert f"{last.path} is damaged and not used: optimizer.safetensors has another sha256" in said
    assert f"resuming after step {previous.step}" in said
    assert content(stopped) == content(undisturbed[0])


def test_without_any_whole_checkpoint_it_begins_again(stopped: Path, undisturbed: tuple[Path, int]) -> None:
    for checkpoint in checkpoints(stopped / "checkpoints"):
        (checkpoint.path / "state.json").unlink()
    run(stopped.parent, "a", resume=True)
    assert content(stopped) == content(undisturbed[0])


def test_a_rank_that_is_lost_between_two_updates_is_told_in_a_sentence(
    undisturbed: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights have moved, so there is no checkpoint of that step; the run goes on from the one before."""
    own = Learner._minibatch

    def lost(learner: Learner, batch: Any, vocabulary: Any, step: int, number: int, *rest: Any) -> Any:
        if (step, number) == (3, 1):
            raise RankLostError("another process of the run has ended or cannot be reached (gloo)")
        return own(learner, batch, vocabulary, step, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_minibatch", lost)
        said = (
            "stopped by the loss of another process after step 3, when no checkpoint could be made; resume with "
            f"slimrl train --resume {tmp_path}/a, which goes on from the newest one$"
        )
        with pytest.raises(Stopped, match=said) as found:
            run(tmp_path, "a")
    assert found.value.exit_code == 75
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path / "a" / "checkpoints")] == [2]
    run(tmp_path, "a", resume=True)
    assert content(tmp_path / "a") == content(undisturbed[0])


class FullDisk:
    """Takes so many bytes of a run, then none for a while."""

    def __init__(self, run: Path, room: int, refusals: int) -> None:
        self.run, self.room, self.refusals = run, room, refusals
        self.write = HashedFile.write
        self.safe: list[int] = []
        """The step of the newest checkpoint at each refusal; 0 without one."""

    def take(self, file: HashedFile, data: bytes | memoryview) -> None:
        self.room -= len(data)
        if self.room < 0 and len(self.safe) < self.refusals:
            self.write(file, data[: len(data) // 2])  # the disk takes what it can
            found = newest(self.run / "checkpoints")[0]
            self.safe.append(found.step if found else 0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.write(file, data)


def test_a_full_disk_that_a_library_meets_ends_no_run_either(
    undisturbed: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tokenizers raises a plain Exception."""
    from transformers import PreTrainedTokenizerBase

    own, refused = PreTrainedTokenizerBase.save_pretrained, []

    def save(*args: object, **more: object) -> object:
        if len(refused) < 2:
            refused.append(1)
            raise Exception("No space left on device (os error 28)")
        return own(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", save)
    run(tmp_path, "a", "checkpoint.every=1")
    assert len(refused) == 2
    assert content(tmp_path / "a") == content(undisturbed[0])


@pytest.mark.parametrize("seed", range(6))
def test_a_full_disk_loses_no_checkpoint_and_ends_no_run(
    seed: int, undisturbed: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(tmp_path / "a", random.Random(seed).randrange(60_000, 12_000_000), refusals=3)
    monkeypatch.setattr(HashedFile, "write", lambda file, data: disk.take(file, data))
    run(tmp_path, "a", "checkpoint.every=1")
    assert len(disk.safe) == 3
    assert disk.safe == sorted(disk.safe), "no checkpoint was lost"
    assert content(tmp_path / "a") == content(undisturbed[0])
