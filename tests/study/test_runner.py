"""A study's runs are done once each, whatever ends them or the driver."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.errors import DataError, SettingsError
from slimrl.machine.signals import PREEMPTED
from slimrl.runs.lock import Lock
from slimrl.study import declaration, runner
from slimrl.study.declaration import check_study, check_unchanged, read_declaration
from slimrl.study.launcher import Job
from slimrl.study.results import collect
from slimrl.study.runner import LOCK_SECONDS, Progress, choose_slots, run_study
from slimrl.study.runs import Planned, planned_runs
from slimrl.study.spec import Expanded, load_study
from tests.conftest import Ended
from tests.forks import command
from tests.forks import studies_fork as studies_fork
from tests.study.folders import write_run

STUDY = "seeds: 2\narms: {kl: algorithm.kl_coef=0}\n"


class Quiet:
    """Remembers what a person would have been told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: list[str] = []
        self.most_at_once = 0
        self.progress: list[Progress] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def watch(self, progress: Progress) -> None:
        self.most_at_once = max(self.most_at_once, len(progress.running))
        self.progress.append(progress)

    def ended(self, run: Planned, seconds: float) -> None:
        assert seconds >= 0
        self.done.append(run.name)


class Scripted:
    """A second `Launcher`: its runs take two looks and end as `outcome` says."""

    def __init__(self, runs: list[Planned], outcome: Callable[[str, int], str]) -> None:
        self.runs = {run.name: run for run in runs}
        self.outcome, self.started, self.stopped = outcome, [], []

    def start(self, job: Job, _slot: int) -> _Pretended:
        name = job.settings.stem
        self.started.append(name)
        job.log.parent.mkdir(exist_ok=True)
        status = self.outcome(name, self.started.count(name))
        job.log.write_text("starting\nerror: no such model\n" if status == "crash" else "")
        return _Pretended(self, self.runs[name], status)


class _Pretended:
    def __init__(self, launcher: Scripted, run: Planned, status: str) -> None:
        self.launcher, self.run, self.status, self.looks = launcher, run, status, 0

    def poll(self) -> int | None:
        self.looks += 1
        if self.looks < 2 or self.status == "endless":
            return None
        if self.looks == 2 and self.status != "crash":
            write_run(self.run, [1, 2], status=self.status)
        return {"finished": 0, "diverged": 4, "preempted": PREEMPTED}.get(self.status, 2)

    def waits_for(self) -> str:
        return ""

    def stop(self) -> None:
        self.launcher.stopped.append(self.run.name)


@pytest.fixture
def expanded(tmp_path: Path) -> Expanded:
    (tmp_path / "study.yaml").write_text(STUDY)
    return load_study([str(tmp_path / "study.yaml")])


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(runner, "LOCK_SECONDS", 0.2)


def go(
    expanded: Expanded,
    folder: Path,
    outcome: Callable[[str, int], str] = lambda *_: "finished",
    slots: int = 2,
) -> tuple[Scripted, Quiet, list[Planned]]:
    launcher, display = Scripted(planned_runs(expanded, folder), outcome), Quiet()
    failed = run_study(expanded, folder, slots=slots, display=display, launcher=lambda *_: launcher)
    return launcher, display, failed


ALL = ["base-0", "kl-0", "base_again-0", "base-1", "kl-1", "base_again-1"]


def test_runs_are_started_seed_by_seed_in_the_slots_there_are(expanded: Expanded, tmp_path: Path) -> None:
    launcher, display, failed = go(expanded, tmp_path)
    assert launcher.started == ALL
    assert display.most_at_once == 2
    assert sorted(display.done) == sorted(ALL)
    assert failed == []
    first, last = display.progress[0], display.progress[-1]
    assert (first.done, first.total, math.isnan(first.seconds_left)) == (0, 6, True), (
        "nothing is known before a run has ended"
    )
    assert (last.done, last.seconds_left, dict(last.running)) == (6, 0.0, {})


def test_a_run_that_goes_on_from_a_checkpoint_tells_nothing_of_the_time_that_is_left(
    expanded: Expanded, tmp_path: Path
) -> None:
    """It may have had one step to take, which would promise the end of the study far too early."""
    first = planned_runs(expanded, tmp_path)[0]
    write_run(first, [1], status="interrupted")
    _, display, _ = go(expanded, tmp_path, slots=1)
    left = {progress.done: progress.seconds_left for progress in display.progress}
    assert [math.isnan(left[done]) for done in range(7)] == [True, True, *[False] * 5]


def test_the_price_of_judges_is_said_before_the_first_run(tmp_path: Path) -> None:
    judge = "{tone: {endpoint: 'http://h', model: m, prompt: '{completion}', low: 0, high: 1}}"
    (tmp_path / "study.yaml").write_text(STUDY + f"settings: {{rewards: {{judge: {judge}}}}}\n")
    paying = load_study([str(tmp_path / "study.yaml")])
    launcher, display = Scripted(planned_runs(paying, tmp_path), lambda *_: "finished"), Quiet()

    def launched(*_: object) -> Scripted:
        assert sum(text.startswith("judge tone: at most ") and "over 6 runs" in text for text in display.said) == 1
        return launcher

    run_study(paying, tmp_path, slots=2, display=display, launcher=launched)
    assert launcher.started == ALL
    _, display, _ = go(paying, tmp_path)
    assert not any("judge" in text for text in display.said), "nothing is left to ask"


def test_what_is_finished_is_never_repeated_and_what_broke_off_goes_on(expanded: Expanded, tmp_path: Path) -> None:
    runs = {run.name: run for run in planned_runs(expanded, tmp_path)}
    write_run(runs["base-0"], [1])
    write_run(runs["kl-0"], [1], status="diverged")
    write_run(runs["base_again-0"], [1], status="running")
    write_run(runs["base-1"], [1], status="failed")
    (runs["kl-1"].folder / "evals").mkdir(parents=True)  # killed before it wrote anything
    (runs["base_again-0"].folder / "kept").touch()
    launcher, _, _ = go(expanded, tmp_path)
    assert launcher.started == ALL[2:]
    assert (runs["base_again-0"].folder / "kept").exists(), "slimrl train --resume goes on in its folder"
    again, _, _ = go(expanded, tmp_path)
    assert again.started == []


def test_a_diverged_run_is_a_result(expanded: Expanded, tmp_path: Path) -> None:
    launcher, display, failed = go(expanded, tmp_path, lambda name, _: "diverged" if name == "kl-1" else "finished")
    assert launcher.started.count("kl-1") == 1
    assert "kl-1" in display.done
    assert failed == []


def test_a_run_that_crashes_is_tried_once_more_and_the_others_go_on(expanded: Expanded, tmp_path: Path) -> None:
    once, display, failed = go(expanded, tmp_path, lambda name, n: "crash" if (name, n) == ("kl-0", 1) else "finished")
    assert once.started.count("kl-0") == 2
    assert failed == []
    assert "kl-0 failed and is tried once more: error: no such model (exit code 2" in display.said[1]


def test_a_run_that_always_crashes_is_reported_and_tried_again_by_the_next_command(
    expanded: Expanded, tmp_path: Path
) -> None:
    _, _, failed = go(expanded, tmp_path, lambda name, _: "crash" if name == "kl-1" else "finished")
    assert [run.name for run in failed] == ["kl-1"]
    assert not collect(expanded, tmp_path).complete
    launcher, _, failed = go(expanded, tmp_path)
    assert (launcher.started, failed) == (["kl-1"], [])


def test_where_the_first_run_cannot_succeed_the_study_ends_at_once(expanded: Expanded, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="base-0, the first run to end, failed 2 times: error: no such model"):
        go(expanded, tmp_path, lambda *_: "crash", slots=1)


def test_what_still_runs_is_stopped_when_the_driver_is(expanded: Expanded, tmp_path: Path) -> None:
    launcher = Scripted(planned_runs(expanded, tmp_path), lambda *_: "endless")

    class Impatient(Quiet):
        def watch(self, _progress: Progress) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(expanded, tmp_path, slots=2, display=Impatient(), launcher=lambda *_: launcher)
    assert launcher.stopped == ALL[:2]


def test_a_second_driver_is_refused_and_a_dead_ones_lock_is_not_in_the_way(expanded: Expanded, tmp_path: Path) -> None:
    with Lock(tmp_path), pytest.raises(SettingsError, match=f"is being worked on by another process .{os.getpid()}"):
        go(expanded, tmp_path)
    go(expanded, tmp_path)


def test_results_of_other_settings_are_not_mixed_in(expanded: Expanded, tmp_path: Path) -> None:
    run = planned_runs(expanded, tmp_path)[0]
    write_run(run, [1])
    check_unchanged(run)
    (tmp_path / "study.yaml").write_text(STUDY + "settings: {steps: 5}\n")
    changed = planned_runs(load_study([str(tmp_path / "study.yaml")]), tmp_path)[0]
    with pytest.raises(SettingsError, match="was made with steps=30, and the study now says 5"):
        check_unchanged(changed)
    (tmp_path / "study.yaml").write_text(STUDY + "settings: {rollout: {slots: 5}}\nkeep_models: true\n")
    check_unchanged(planned_runs(load_study([str(tmp_path / "study.yaml")]), tmp_path)[0])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("margin: 0.5\n", "margin"),
        ("primary: test/greedy\n", "primary"),
        ("budget: {equal: tokens, tokens: 100}\n", "budget"),
        ("arms: {other: algorithm.kl_coef=0}\n", "arms"),
    ],
)
def test_what_was_declared_before_the_first_run_stays(
    expanded: Expanded, tmp_path: Path, change: str, key: str
) -> None:
    go(expanded, tmp_path)
    text = "seeds: 2\n" + change if key == "arms" else STUDY + change
    (tmp_path / "study.yaml").write_text(text)
    changed = load_study([str(tmp_path / "study.yaml")])
    with pytest.raises(SettingsError, match=f"was begun with {key}="):
        check_study(changed, tmp_path)
    with pytest.raises(SettingsError, match="another --name"):
        go(changed, tmp_path)


def test_seeds_may_be_added_and_the_report_says_that_they_were(expanded: Expanded, tmp_path: Path) -> None:
    go(expanded, tmp_path)
    assert not any("was given more" in sentence for sentence in collect(expanded, tmp_path).cannot_tell)
    more = load_study([str(tmp_path / "study.yaml")], seeds=3)
    launcher, _, _ = go(more, tmp_path)
    assert launcher.started == ["base-2", "kl-2", "base_again-2"]
    assert any("began with 2 seeds and was given more" in sentence for sentence in collect(more, tmp_path).cannot_tell)


def test_all_runs_of_a_study_have_the_date_on_which_it_began(
    expanded: Expanded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on(day: str) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, _tz: object = None) -> datetime:  # type: ignore[override]
                return datetime.fromisoformat(day)

        monkeypatch.setattr(declaration, "datetime", Clock)

    on("2026-02-28T23:59:00")
    go(expanded, tmp_path)
    on("2026-03-01T00:01:00")
    go(load_study([str(tmp_path / "study.yaml")], seeds=3), tmp_path)
    files = sorted((tmp_path / "settings").glob("*.yaml"))
    assert len(files) == 9
    assert {load_config(TrainConfig, [str(file)]).task.date for file in files} == {"2026-02-28T23:59:00"}
    assert read_declaration(tmp_path)["date"] == "2026-02-28T23:59:00"


def test_a_study_that_names_its_date_keeps_to_it(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY + "settings: {task: {date: 2026-01-05}}\n")
    dated = load_study([str(tmp_path / "study.yaml")])
    go(dated, tmp_path)
    files = sorted((tmp_path / "settings").glob("*.yaml"))
    assert {load_config(TrainConfig, [str(file)]).task.date for file in files} == {"2026-01-05"}
    (tmp_path / "study.yaml").write_text(STUDY + "settings: {task: {date: 2026-01-06}}\n")
    write_run(planned_runs(dated, tmp_path)[0], [1])
    with pytest.raises(SettingsError, match=r"was made with task\.date='2026-01-05'"):
        check_study(load_study([str(tmp_path / "study.yaml")]), tmp_path)


@pytest.mark.parametrize("left", ["", "{", "7"])
def test_a_damaged_note_on_slots_is_written_anew(expanded: Expanded, tmp_path: Path, left: str) -> None:
    (tmp_path / "slots.json").write_text(left)
    go(expanded, tmp_path, slots=2)
    assert json.loads((tmp_path / "slots.json").read_text())["memory_share"] == 0.5
    assert choose_slots(tmp_path, expanded, 1).memory_share == 0.5, "what a run may take stays, whatever --slots says"


def test_no_more_runs_at_once_by_default_than_their_shares_of_memory_allow(
    expanded: Expanded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["slimrl.study.launcher"], "cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose_slots(tmp_path / "new", expanded, 0, keep=False).count == 4
    (tmp_path / "slots.json").write_text('{"threads": 1, "memory_share": 0.5}')
    assert (choose_slots(tmp_path, expanded, 0).count, choose_slots(tmp_path, expanded, 3).count) == (2, 3)
    (tmp_path / "slots.json").write_text('{"threads": 1, "memory_share": 1.0}')
    assert choose_slots(tmp_path, expanded, 0).count == 1


def test_where_the_split_matters_its_size_is_a_setting_like_any_other(tmp_path: Path) -> None:
    split = "seeds: 1\nsettings: {{algorithm: {{aggregation: microbatch_token_mean}}, optimizer: {{microbatch_tokens: {}}}}}\narms: {{}}\n"
    for tokens in (256, 999):
        (tmp_path / "study.yaml").write_text(split.format(tokens))
        run = planned_runs(load_study([str(tmp_path / "study.yaml")]), tmp_path)[0]
        if tokens == 256:
            write_run(run, [1])
            check_unchanged(run)
    with pytest.raises(SettingsError, match="microbatch_tokens=256"):
        check_unchanged(run)


REAL = """
seeds: 1
settings:
  steps: 4
  model: {{path: {model}}}
  rewards: {{correct: 0.0, format: 0.0, custom: {{"{reward}:length": {{low: 0, high: 64}}}}, gold_check: report}}
  rollout: {{problems: 4, group_size: 4, max_new_tokens: 12}}
  evaluation: {{problems: 4, harder_problems: 0}}
arms: {{clip: algorithm.clip_high=0.5}}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_driver_killed_in_the_middle_leaves_nothing_alive_and_the_same_command_ends_the_study(
    tmp_path: Path,
    tiny_folder: Path,
    command_line: Callable[..., Ended],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real thing: slimrl study run, kill -9, slimrl study run again; clip_high is inert, so two arms must agree."""
    (tmp_path / "reward.py").write_text(
        "def length(completions, **_):\n    return [float(len(c)) % 64 for c in completions]\n"
    )
    file = tmp_path / "study.yaml"
    file.write_text(REAL.format(model=tiny_folder, reward=tmp_path / "reward.py"))
    words = ("study", "run", str(file), "--output", str(tmp_path), "--slots", "2")
    folder = tmp_path / "study"
    driver = command(*words)
    wait_for(lambda: (folder / "runs" / "base-0" / "metrics.jsonl").is_file() or not driver.running)
    children = [int(pid) for pid in Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()]
    assert len(children) == 2
    driver.send(signal.SIGKILL)
    driver.ended()
    wait_for(lambda: not any(alive(pid) for pid in children))

    request.getfixturevalue("studies_fork")  # from here on nothing is killed
    monkeypatch.setattr(runner, "LOCK_SECONDS", LOCK_SECONDS)
    again = command_line(*words)
    assert again.code == 0, again.err
    states = {run.name: json.loads((run / "run.json").read_text()) for run in sorted((folder / "runs").iterdir())}
    assert {name: state["status"] for name, state in states.items()} == dict.fromkeys(
        ("base-0", "base_again-0", "clip-0"), "finished"
    )
    weights = {name: state["summary"]["weights"] for name, state in states.items()}
    assert weights["clip-0"] == weights["base-0"] != weights["base_again-0"]
    assert not (folder / "runs" / "base-0" / "final").exists(), "models are kept only where asked for"
    assert "identical" in again.err
    assert {"report.html", "report.md", "results.csv", "results.json"} <= {path.name for path in folder.iterdir()}

    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")}
    third = command_line(*words)
    assert third.code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")}, "nothing is done twice"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_run_that_is_interrupted_goes_on_and_has_not_failed(expanded: Expanded, tmp_path: Path) -> None:
    outcomes = {"kl-0": ["preempted"] * 5 + ["crash", "finished"]}
    launcher, display, failed = go(expanded, tmp_path, lambda name, n: outcomes.get(name, ["finished"])[n - 1])
    assert (launcher.started.count("kl-0"), failed) == (7, [])
    assert sum("kl-0 was interrupted and goes on" in text for text in display.said) == 5


def test_a_run_that_is_interrupted_again_and_again_has_failed(
    expanded: Expanded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "INTERRUPTIONS", 3)
    _, _, failed = go(expanded, tmp_path, lambda name, _: "preempted" if name == "kl-1" else "finished")
    assert [run.name for run in failed] == ["kl-1"]


def test_a_folder_in_which_another_process_works_is_not_removed(expanded: Expanded, tmp_path: Path) -> None:
    """As after the end of a process whose runs another machine still ends."""
    run = planned_runs(expanded, tmp_path)[4]
    run.folder.mkdir(parents=True)
    with Lock(run.folder):
        _, _, failed = go(expanded, tmp_path, lambda name, n: "crash" if (name, n) == ("kl-1", 1) else "finished")
        assert (run.folder / "lock").exists()
    assert failed == []


def test_a_run_that_is_refused_keeps_its_checkpoints(expanded: Expanded, tmp_path: Path) -> None:
    """A machine of a cluster may lack the data, and another may have it."""
    run = planned_runs(expanded, tmp_path)[4]
    checkpoint = run.folder / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    go(expanded, tmp_path, lambda name, n: "crash" if (name, n) == ("kl-1", 1) else "finished")
    assert checkpoint.exists()
