"""Rewards in worker processes: the same groups, whatever happens to a worker, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

from slimrl import errors
from slimrl.config.rewards import CustomReward, RewardsConfig
from slimrl.errors import SettingsError
from slimrl.machine.worker import Worker
from slimrl.records import Completion, Group, Problem
from slimrl.rewards import load_rewards
from slimrl.rewards.scoring import Sampled, score
from slimrl.rewards.workers import Scorer, worker_count
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES, TAGS
from tests.conftest import ROOT

PROBLEMS = [
    Problem("p/1", "How many of 12, 13 and 18?", "18", "13 + 5 = 18", 1.0, {"tag": "easy", "steps": ((13, "+", 5),)}),
    Problem("p/2", "Five hundred and eighty more?", "1,080", columns={"tag": "hard", "steps": ()}),
]
TEXTS = {
    "hashes": ["#### 18", "#### 17", "18", "", "#### 1080", "\u2211 \U0001f600 #### 18 eggs"],
    "tags": [
        f"{TAGS[0]}w{TAGS[1]}{TAGS[2]} 18 {TAGS[3]}", f"{TAGS[2]}1,080{TAGS[3]}", f"{TAGS[2]}17{TAGS[3]}", TAGS[0], "18",
    ],
}  # fmt: skip
SECONDS = 60.0
"""So that what should not hang fails instead."""
FOUR = {"match_format_exactly": 1.0, "match_format_approximately": 0.1, "check_answer": 1.0, "check_numbers": -0.5}

CODE = """
import os, re, signal, subprocess, sys, time

def columns(completions, prompts, completion_ids, id, question, answer, solution, difficulty, tag, steps):
    rows = zip(completions, prompts, completion_ids, id, question, answer, solution, difficulty, tag, steps)
    return [len(repr(row)) / 3 for row in rows]

def messages(completions, **_):
    return [float(message["role"] == "assistant") for (message,) in completions]

def sometimes(completions, **_):
    return [None if text == "" else float("nan") if "17" in text else 1 for text in completions]

def fails(completions, tag, **_):
    if tag[0] == "hard":
        raise KeyError("colour")
    return [0.5] * len(completions)

def pid(completions, **_):
    return [os.getpid()] * len(completions)

def torch(completions, **_):
    return ["torch" in sys.modules] * len(completions)

def prints(completions, **_):
    print("a reward speaks")
    subprocess.run(["echo", "so does its child"])
    return [1.0] * len(completions)

def ends(completions, **_):
    if completions[0] == "leave":
        os._exit(3)
    if completions[0] == "leave a child":
        print("child", subprocess.Popen(["sleep", "600"], close_fds=False).pid)
        os._exit(4)
    if completions[0] == "memory":
        os.kill(os.getpid(), signal.SIGKILL)
    return [1.0] * len(completions)

def leaves(completions, **_):
    print("left", subprocess.Popen(["sleep", "600"]).pid)
    time.sleep(600)

def stuck(completions, **_):
    print("stuck", os.getpid())
    re.match("(a+)+$", "a" * 60 + "b")  # for years, without letting another thread run

def comes_back_twice(completions, **_):
    if completions[0] == "fork":
        os.fork()
    return [float(len(text)) for text in completions]

def comes_back_failing(completions, **_):
    if completions[0] == "fork" and not os.fork():
        raise ValueError("in the child")
    return [float(len(text)) for text in completions]

def forks(completions, **_):
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.write(theirs, b"1")
        time.sleep(600)
    os.read(ours, 1)
    os.kill(child, signal.SIGTERM)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])] * len(completions)
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def _custom(path: Path, *names: str, low: float = -100.0, high: float = 1e9, **others: Any) -> RewardsConfig:
    kinds = {name: "messages" if name == "messages" else "text" for name in names}
    custom = {f"{path}:{name}": CustomReward(low=low, high=high, completions=kind) for name, kind in kinds.items()}  # type: ignore[arg-type]
    return RewardsConfig(**{"correct": 0.0, "custom": custom, **others})


def _task(style: str = "hashes", checker: Any = "numeric", instruction: str = "Be brief.") -> Task:
    return Task("test", PROBLEMS, (), (), STYLES[style], Grader(checker), instruction, {})


def _scorer(config: RewardsConfig, workers: int = 1, task: Task | None = None) -> Scorer:
    task = task or _task()
    rewards = load_rewards(config, task, max_new_tokens=8)
    return Scorer(task, rewards, config, max_new_tokens=8, workers=workers, show=sys.stderr.write)


def _completions(texts: list[str]) -> list[Completion]:
    return [Completion((1, 2), tuple(range(2 + i)), (-0.5,) * (2 + i), "stop") for i in range(len(texts))]


def _submit(scorer: Scorer, texts: list[str], *, problem: Problem = PROBLEMS[0], **how: Any) -> Future[Group]:
    return scorer.submit(Sampled(problem, _completions(texts), texts, step=4, **how))


def _runs(pid: int) -> bool:
    """Alive and not a zombie, all of whose threads have ended, that only waits to be reaped."""
    try:
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        return threads > 1 or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def _is_gone(pid: int) -> bool:
    for _ in range(200):
        if not _runs(pid):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rewards", ["built in", "case study", "as published", "custom"])
def test_groups_are_those_of_score(rewards: str, workers: int, mine: Path) -> None:
    config = {
        "built in": RewardsConfig(correct=2.0, format=0.3, soft_overlong=0.7, overlong_buffer=5),
        "case study": RewardsConfig(**FOUR),  # type: ignore[arg-type]
        "as published": RewardsConfig(**FOUR, as_published=True),  # type: ignore[arg-type]
        "custom": _custom(mine, "columns", "messages", "sometimes", "fails", correct=1.0),
    }[rewards]
    style = "hashes" if rewards in ("built in", "custom") else "tags"
    task, texts = _task(style), TEXTS[style]
    completions, loaded = _completions(texts), load_rewards(config, task, max_new_tokens=8)
    expected = [score(Sampled(problem, completions, texts, step=4), loaded, task) for problem in PROBLEMS]
    with _scorer(config, workers, task) as scorer:
        futures = [scorer.submit(Sampled(problem, completions, texts, step=4)) for problem in PROBLEMS * 3]
        groups = [future.result(SECONDS) for future in futures]
    assert groups == expected * 3
    assert all(list(a.scores) == list(b.scores) for a, b in zip(groups[0].rollouts, expected[0].rollouts, strict=True))
    assert groups[1].problem is PROBLEMS[1]
    assert groups[1].rollouts[0].completion is completions[0]
    assert any(r.unscorable for r in groups[1].rollouts) == (rewards == "custom")


@pytest.mark.parametrize("workers", [0, 1])
def test_with_strict_a_failing_reward_is_the_same_error(workers: int, mine: Path) -> None:
    with _scorer(_custom(mine, "fails"), workers) as scorer:
        for _ in range(2):
            with pytest.raises(SettingsError) as caught:
                _submit(scorer, ["a"], problem=PROBLEMS[1], strict=True).result(SECONDS)
        assert str(caught.value) == (
            "reward fails raised KeyError: 'colour' (mine.py:16 in fails) on problem p/2, completion 'a'; correct the function "
            "or remove it from rewards"
        )
        assert _submit(scorer, ["a"], strict=True).result(SECONDS).rollouts[0].reward == 0.5


@pytest.mark.parametrize("name", ["SlimError", "SettingsError", "DataError", "DivergedError"])
def test_errors_survive_the_way(name: str) -> None:
    error = getattr(errors, name)("one sentence")
    copy = ForkingPickler.loads(ForkingPickler.dumps(error))
    assert (type(copy), str(copy), copy.exit_code) == (type(error), "one sentence", error.exit_code)


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("leave", "exit code 3"),
        ("leave a child", "exit code 4"),
        ("memory", "signal 9 (as when memory runs out)"),
    ],
)
def test_a_worker_that_ends_costs_one_group(text: str, how: str, mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with _scorer(_custom(mine, "ends")) as scorer:
        futures = [_submit(scorer, texts) for texts in (["a"], [text, "#### 18"], ["b"], ["c"])]
        first, lost, *others = (future.result(SECONDS) for future in futures)
        assert [group.rollouts[0].reward for group in (first, *others)] == [1.0, 1.0, 1.0]
        assert [r.unscorable for r in lost.rollouts] == [f"reward ends ended its worker by {how}"] * 2
        assert [(r.reward, r.scores, r.correct) for r in lost.rollouts] == [(0.0, {}, False), (0.0, {}, True)]
        assert (lost.step, scorer.restarts) == (4, 1)
        with pytest.raises(SettingsError) as caught:
            _submit(scorer, [text], strict=True).result(SECONDS)
    assert str(caught.value) == (
        f"reward ends ended its worker by {how} on problem p/1, completion {text!r}; correct the function or remove it from "
        "rewards"
    )
    children = [int(line.split()[1]) for line in capfd.readouterr().err.splitlines()]
    assert len(children) == 2 * (text == "leave a child")
    assert all(map(_is_gone, children))


def test_a_worker_that_ended_while_idle_costs_nothing(mine: Path) -> None:
    with _scorer(_custom(mine, "pid")) as scorer:
        (first,) = _submit(scorer, ["a"]).result(SECONDS).rollouts
        worker = int(first.scores["pid"])
        os.kill(worker, signal.SIGKILL)
        assert _is_gone(worker)
        (second,) = _submit(scorer, ["a"]).result(SECONDS).rollouts
        assert (second.unscorable, scorer.restarts) == ("", 1)
        assert second.scores["pid"] != worker


def test_custom_functions_find_in_a_worker_what_they_find_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files by the working directory and modules by the import path, as both were when the scorer was made."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "worth_of_a_text.py").write_text("WORTH = 0.25")
    code = "from worth_of_a_text import WORTH\ndef f(completions, **_): return [WORTH] * len(completions)"
    (tmp_path / "relative.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    with _scorer(_custom(Path("relative.py"), "f")) as scorer:
        monkeypatch.chdir("/")
        assert _submit(scorer, ["a"]).result(SECONDS).rollouts[0].reward == 0.25


def test_what_a_worker_cannot_load_is_the_same_sentence(mine: Path) -> None:
    config = _custom(mine, "pid")
    rewards = load_rewards(config, _task(), max_new_tokens=8)
    mine.unlink()
    with Scorer(_task(), rewards, config, max_new_tokens=8, workers=1) as scorer:
        for _ in range(2):
            with pytest.raises(SettingsError, match=r"^rewards\.custom: .* there is no file .*; check the path$"):
                _submit(scorer, ["a"]).result(SECONDS)


def test_a_task_that_workers_cannot_rebuild_is_refused() -> None:
    class Mine(Grader):
        pass

    task = Task("test", (), (), (), STYLES["hashes"], Mine("numeric"), "", {})
    with pytest.raises(SettingsError, match=r"set rewards\.workers=0$"):
        _scorer(RewardsConfig(), 1, task)


def test_a_worker_that_cannot_be_started_is_said(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(mine.parent / "no_python"))
    with pytest.raises(SettingsError, match=r"^a reward worker cannot be started .*; lower rewards\.workers$"):
        _scorer(_custom(mine, "pid"))


def test_a_thread_survives_an_early_start_that_failed(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any error, such as no room for one more thread: the first job starts the worker again."""
    start, tried = Worker.start, []

    def first_fails(worker: Worker) -> None:
        tried.append(1)
        if len(tried) == 1:
            raise RuntimeError("can't start new thread")
        start(worker)

    monkeypatch.setattr(Worker, "start", first_fails)
    with _scorer(_custom(mine, "pid")) as scorer:
        assert _submit(scorer, ["a"]).result(SECONDS).rollouts[0].reward > 0


def test_workers_hold_no_torch(mine: Path) -> None:
    assert "torch" in sys.modules, "not even where this process has it"
    with _scorer(_custom(mine, "torch")) as scorer:
        assert _submit(scorer, ["a"]).result(SECONDS).rollouts[0].reward == 0.0


def test_signals_to_all_processes_stop_no_worker_but_what_a_reward_forks(mine: Path) -> None:
    with _scorer(_custom(mine, "pid", "forks")) as scorer:
        (first,) = _submit(scorer, ["a"]).result(SECONDS).rollouts
        assert first.scores["forks"] == -signal.SIGTERM
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(int(first.scores["pid"]), number)
        (second,) = _submit(scorer, ["a"]).result(SECONDS).rollouts
        assert (second.scores, scorer.restarts) == (first.scores, 0)


def test_closing_does_not_wait_for_a_reward_that_never_returns(mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scorer = _scorer(_custom(mine, "stuck"))
    running = _submit(scorer, ["a"])
    said = ""
    while "\n" not in said and not running.done():
        said += capfd.readouterr().err
        time.sleep(0.01)
    waiting = _submit(scorer, ["a"])  # a busy worker takes it no more, as it may where both are there at once
    scorer.close()
    scorer.close()
    assert not _runs(int(said.split()[1]))
    assert running.exception(SECONDS) is not None
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        _submit(scorer, ["a"])


def test_symbolic_checker_in_a_worker(mine: Path) -> None:
    pytest.importorskip("math_verify", reason="math-verify (extra `math`) is not installed")
    problem, texts = Problem("p/3", "q", "x+1"), ["#### 1+x", "#### x+2"]
    task = _task(checker="symbolic")
    with _scorer(_custom(mine, "pid", correct=1.0), 1, task) as scorer:
        group = _submit(scorer, texts, problem=problem).result(SECONDS)
        worker = int(group.rollouts[0].scores["pid"])
        children = _children(worker)
    assert [(r.correct, r.scores["correct"]) for r in group.rollouts] == [(True, 1.0), (False, 0.0)]
    assert len(children) == 1
    assert all(_is_gone(pid) for pid in (worker, *children))


PARENT = """
import json, sys, time
from slimrl.config.rewards import CustomReward, RewardsConfig
from slimrl.records import Completion, Problem
from slimrl.rewards import load_rewards
from slimrl.rewards.scoring import Sampled
from slimrl.rewards.workers import Scorer, worker_count
from slimrl.tasks import TaskConfig, load_task

config = RewardsConfig(correct=0.0, custom={sys.argv[1]: CustomReward(low=0.0, high=1.0)})
task = load_task(TaskConfig(), instruction="", seed=0)
rewards = load_rewards(config, task, max_new_tokens=8)
scorer = Scorer(task, rewards, config, max_new_tokens=8, workers=int(sys.argv[2]), show=lambda text: print(text, end="", file=sys.stderr))
one = Completion((1,), (2,), (0.0,), "stop")
future = scorer.submit(Sampled(task.train[0], [one], ["a"], step=0))
print(json.dumps(future.result().rollouts[0].reward))
time.sleep(1)  # whoever does not close the scorer does not wait for the last of what was printed
"""
"""Neither guards its main nor closes the scorer."""


def _parent(spec: str, workers: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, spec, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_stdout_stays_clean(mine: Path) -> None:
    with _parent(f"{mine}:prints") as parent:
        out, err = parent.communicate()
    assert json.loads(out) == 1.0
    assert sorted(err.splitlines()) == ["a reward speaks", "so does its child"]
    assert parent.returncode == 0


def test_no_orphan_when_the_parent_is_killed(mine: Path) -> None:
    with _parent(f"{mine}:stuck", workers=2) as parent:
        assert parent.stderr is not None
        stuck = int(parent.stderr.readline().split()[1])
        workers = _children(parent.pid)
        while (
            len(workers) < 3 and parent.poll() is None
        ):  # the other one is just being started; the third is their guard
            workers = _children(parent.pid)
        assert stuck in workers
        assert all(map(_runs, workers))
        parent.kill()
    assert all(map(_is_gone, workers))


def test_what_a_reward_started_goes_too_when_the_parent_is_killed(mine: Path) -> None:
    with _parent(f"{mine}:leaves") as parent:
        assert parent.stderr is not None
        left = int(parent.stderr.readline().split()[1])
        assert _runs(left)
        parent.kill()
    assert _is_gone(left)


HOSTILE = """
import os, re, time, random, subprocess, sys

def bad(kind):
    def function(completions, **_):
        if completions[0] == "good":
            return [1.0] * len(completions)
        return kind(completions)
    return function

def _print(completions):
    for _ in range(1 << 7):
        os.write(1, b"x" * (1 << 20))
    return [1.0] * len(completions)

def _raise(completions):
    raise ValueError("no")

sleeps = bad(lambda c: time.sleep(3600))
computes = bad(lambda c: [10 ** 10 ** 8] * len(c))
matches = bad(lambda c: re.match("(a+)+$", "a" * 60 + "b"))
raises = bad(_raise)
nothing = bad(lambda c: None)
nan = bad(lambda c: [float("nan")] * len(c))
text = bad(lambda c: ["1"] * len(c))
short = bad(lambda c: [1.0] * (len(c) - 1))
memory = bad(lambda c: [len(bytearray(10 << 30))] * len(c))
leaves = bad(lambda c: os._exit(3))
prints = bad(_print)
endless = bad(lambda c: iter(int, 1))
"""
REASONS = {
    "sleeps": "took longer than rewards.deadline=1 s",
    "computes": "took longer than rewards.deadline=1 s",
    "matches": "took longer than rewards.deadline=1 s",
    "raises": "raised ValueError: no",
    "nothing": "returned NoneType instead of a list",
    "nan": "returned nan",
    "text": "returned str instead of a number",
    "short": "returned 1 values for 2 completions",
    "memory": "raised MemoryError: ",
    "leaves": "ended its worker by exit code 3",
    "prints": "",
    "endless": "returned more than 2 values for 2 completions",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorer]:
    """A worker that has loaded all of them."""
    path = tmp_path_factory.mktemp("hostile") / "hostile.py"
    path.write_text(HOSTILE)
    with _scorer(_custom(path, *REASONS, correct=1.0, format=1.0, deadline=1.0)) as scorer:
        yield scorer


@pytest.mark.parametrize("name", REASONS)
def test_a_hostile_reward_costs_its_group_and_no_other_score(name: str, hostile: Scorer) -> None:
    others = frozenset(REASONS) - {name}
    groups = [_submit(hostile, texts, skip=others) for texts in (["good", "b"], ["#### 18", "17"], ["good", "d"])]
    before, bad, after = (group.result(SECONDS) for group in groups)
    assert [r.unscorable for group in (before, after) for r in group.rollouts] == [""] * 4
    assert [[r.scores[name] for r in group.rollouts] for group in (before, after)] == [[1.0, 1.0]] * 2
    reason = REASONS[name]
    assert [r.unscorable for r in bad.rollouts] == [f"reward {name} {reason}" if reason else ""] * 2
    assert [(r.scores["correct"], r.scores["format"], r.correct) for r in bad.rollouts] == [
        (1, 1, True),
        (0, 0, False),
    ]


def test_a_flood_of_output_is_cut_and_escaped_by_who_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "hostile.py"
    path.write_text(HOSTILE)
    shown: list[str] = []
    config = _custom(path, "prints", deadline=60.0)
    task = _task()
    rewards = load_rewards(config, task, max_new_tokens=8)
    with Scorer(task, rewards, config, max_new_tokens=8, workers=1, show=shown.append) as scorer:
        assert _submit(scorer, ["a"]).result(SECONDS).rollouts[0].reward == 1.0
    assert len("".join(shown)) < 1 << 17
    assert "is not shown" in shown[-1]


def test_rewards_are_in_workers_where_code_of_the_users_is_paid(mine: Path) -> None:
    assert worker_count(RewardsConfig()) == 0
    assert worker_count(_custom(mine, "pid")) >= 1
    assert worker_count(_custom(mine, "pid", workers=0)) == 0
    with pytest.raises(ValueError, match=r"rewards\.deadline acts on rewards\.custom in workers"):
        _custom(mine, "pid", workers=0, deadline=3.0)


@pytest.mark.parametrize("name", ["comes_back_twice", "comes_back_failing"])
def test_of_a_reward_that_forks_and_comes_back_only_the_parent_answers(name: str, mine: Path) -> None:
    with _scorer(_custom(mine, name, correct=1.0)) as scorer:
        futures = [
            _submit(scorer, texts) for texts in (["fork", "b"], ["#### 18", "cc"], ["fork", "ddd"], ["e", "#### 18"])
        ]
        groups = [future.result(SECONDS) for future in futures]
    scores = [[(r.scores["correct"], r.scores[name], r.correct) for r in group.rollouts] for group in groups]
    assert scores == [
        [(0.0, 4.0, False), (0.0, 1.0, False)],
        [(1.0, 7.0, True), (0.0, 2.0, False)],
        [(0.0, 4.0, False), (0.0, 3.0, False)],
        [(0.0, 1.0, False), (1.0, 7.0, True)],
    ]


def test_a_file_that_changed_meanwhile_is_refused_by_a_worker_that_is_started_later(mine: Path) -> None:
    with _scorer(_custom(mine, "ends")) as scorer:
        assert _submit(scorer, ["a"]).result(SECONDS).rollouts[0].reward == 1.0
        mine.write_text(CODE + "\n# paid otherwise\n")
        _submit(scorer, ["leave"]).result(SECONDS)
        with pytest.raises(SettingsError, match=r"a file of rewards\.custom changed during the run"):
            _submit(scorer, ["a"]).result(SECONDS)
