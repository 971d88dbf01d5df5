"""Programs as answers: rows of MBPP and of HumanEval, the last block of a completion, and verdicts by running tests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.files import build
from slimrl.config.sandbox import SandboxConfig
from slimrl.config.schema import TrainConfig
from slimrl.config.task import TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.records import Completion
from slimrl.rewards import load_rewards
from slimrl.rewards.gold import check_gold
from slimrl.rewards.scoring import Sampled, score
from slimrl.rewards.workers import Scorer
from slimrl.sandbox import Outcome, SandboxError, working
from slimrl.tasks import Checks, Task, load_task
from slimrl.tasks.code import Suite, suite_of
from slimrl.tasks.programs import ProgramGrader
from slimrl.tasks.styles import STYLES

STYLE = STYLES["code"]
pytestmark = pytest.mark.skipif(
    not any(working(one)[0] for one in ("bubblewrap", "namespaces")), reason="no isolation works here"
)
QUICK = SandboxConfig(cpu_seconds=1, seconds=5.0)
ROWS: list[dict[str, Any]] = [
    {"task_id": 1, "text": "Add two numbers.", "code": "def add(a, b):\n    return a + b", "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]},
    {"task_id": 2, "prompt": "Area of a circle.", "code": "def area(r):\n    return math.pi * r * r", "test_imports": ["import math"], "test_list": ["assert abs(area(1) - math.pi) < 1e-9"]},
    {"task_id": 3, "text": "The root's value.", "code": "class Node:\n    def __init__(self, v):\n        self.v = v\ndef value(n):\n    return n.v", "test_setup_code": "root = Node(5)", "test_list": ["assert value(root) == 5", "root.v = 6\nassert value(root) == 6"]},
    {"task_id": "HumanEval/0", "prompt": "def twice(x):\n    \"\"\"Twice x.\"\"\"\n", "canonical_solution": "    return 2 * x\n", "entry_point": "twice", "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n"},
]  # fmt: skip


OTHER = {"text": "Zero.", "code": "def zero():\n    return 0", "test_list": ["assert zero() == 0"]}


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def loaded(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Task:
    path, other = written(folder, rows), folder / "train.jsonl"
    other.write_text(json.dumps(OTHER))
    places = {"path": str(other), "test_path": path}
    config = TaskConfig.model_validate({"name": "code", **places, "on_bad_row": "skip", **settings})
    return load_task(config, instruction="", seed=0, checks=Checks(sandbox=QUICK))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Task]:
    made = loaded(tmp_path_factory.mktemp("rows"), ROWS)
    yield made
    made.grader.close()


def test_rows_become_problems(task: Task) -> None:
    assert not task.rejected
    add, area, root, twice = task.test
    assert [problem.id for problem in task.test] == ["1", "2", "3", "HumanEval/0"]
    assert (
        add.question
        == "Add two numbers.\n\nYour code should pass these tests:\n\nassert add(1, 2) == 3\nassert add(0, 0) == 0"
    )
    assert suite_of(area.answer) == Suite("import math", ("assert abs(area(1) - math.pi) < 1e-9",))
    assert suite_of(root.answer) == Suite(
        "root = Node(5)", ("assert value(root) == 5", "root.v = 6\nassert value(root) == 6")
    )
    assert twice.question.startswith("Complete this function, and write the whole of it:\n\ndef twice(x):")
    assert "check" not in twice.question
    assert twice.solution == 'def twice(x):\n    """Twice x."""\n    return 2 * x'
    assert all(task.grade(task.gold_text(problem), problem.answer).strict for problem in task.test)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1"), ("```\nx = 1\n```", "x = 1"), ("a\n```py\nx = 1\n```\nThis sets x.", "x = 1"),
        ("```python\nx = 1\n```\nor\n```python\nif y:\n    x = 2\n```", "if y:\n    x = 2"),
        ("<think>```python\nx = 1\n```</think>```python\nx = 2\n```\n", "x = 2"), ("<think>```python\nx = 1\n```", ""),
        ("x = 1", ""), ("```python\nx = 1", ""), ("```python\nx = 1\n```\n```python\nx = 2", ""), ("", ""),
        ("```python\ns = '```'\n```", "s = '```'"), ("```python\n\n```", ""), ("```python\nx = 1\n```<|im_end|>", "x = 1"),
    ],
)  # fmt: skip
def test_the_answer_is_the_last_block(text: str, code: str) -> None:
    assert STYLE.extract(text) == code
    assert STYLE.well_formed(text) == bool(code)


def block(code: str) -> str:
    return f"Here:\n```python\n{code}\n```"


GOOD, HALF = "def add(a, b):\n    return a + b", "def add(a, b):\n    return 0"
VERDICTS: dict[str, tuple[str, float]] = {
    "right": (block(GOOD), 1.0), "half": (block(HALF), 0.5), "wrong": (block("def add(a, b):\n    return -1"), 0.0),
    "prints": (block(f"print('x' * 10**6)\n{GOOD}"), 1.0), "asks": (block(f"if __name__ == '__main__':\n    input()\n{GOOD}"), 1.0),
    "no block": (GOOD, 0.0), "cut off": (f"```python\n{GOOD}", 0.0), "broken": (block("def add(:"), 0.0), "nothing": (block(""), 0.0),
    "exit": (block(f"{GOOD}\nexit(0)"), 0.0), "hard exit": (block(f"{GOOD}\nimport os; os._exit(0)"), 0.0),
    "exit in a test": (block("def add(a, b):\n    raise SystemExit(0)"), 0.0), "raises": (block("def add(a, b):\n    raise KeyboardInterrupt"), 0.0),
    "replaces exec": (block("import builtins\nbuiltins.exec = lambda *a: 0\nbuiltins.compile = lambda *a, **k: ''"), 0.0),
    "loop": (block("def add(a, b):\n    while True: pass"), 0.0), "loop in the second": (block("def add(a, b):\n    while a == 0: pass\n    return 3"), 0.5),
    "sleeps": (block("import time\ntime.sleep(1000)"), 0.0), "memory": (block("x = bytearray(1 << 40)"), 0.0),
    "says that it passed": (block("print('0 \\n1 \\npassed')\nraise SystemExit"), 0.0), "crash": (block("import os; os.abort()"), 0.0),
    "reads the network": (block(f"import socket\nsocket.create_connection(('127.0.0.1', 80))\n{GOOD}"), 0.0), "two blocks": (block(HALF) + "\n" + block(GOOD), 1.0),
    "thread": (block(f"import threading\nthreading.Thread(target=print).start()\n{GOOD}"), 1.0), "dataclass": (block(f"from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n{GOOD}"), 1.0),
    "recursion": (block("def add(a, b):\n    return add(a, b)"), 0.0), "asserts off": (block("def add(a, b):\n    return 1\n__debug__ if 0 else 0"), 0.0),
}  # fmt: skip


def test_verdicts(task: Task) -> None:
    answer = task.test[0].answer
    texts = [text for text, _ in VERDICTS.values()]
    task.begin(texts, answer)
    found = {name: task.grade(text, answer) for name, (text, _) in VERDICTS.items()}
    assert {name: grade.strict for name, grade in found.items()} == {
        name: share == 1 for name, (_, share) in VERDICTS.items()
    }
    assert isinstance(task.grader, ProgramGrader)
    shares = task.grader.shares(texts, [answer] * len(texts), STYLE)
    assert dict(zip(VERDICTS, shares, strict=True)) == {name: share for name, (_, share) in VERDICTS.items()}
    assert [name for name, grade in found.items() if grade.lenient and not grade.strict] == ["no block", "cut off"]
    assert not any(grade.undecided for grade in found.values())


def test_a_program_is_run_once(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(task.grader, ProgramGrader)
    started: list[str] = []
    start = task.grader.sandbox.start
    monkeypatch.setattr(task.grader.sandbox, "start", lambda *a, **b: (started.append(b["stdin"]), start(*a, **b))[1])
    answer = task.test[0].answer
    for text in (block(f"{GOOD} "), f"Otherwise said.\n{block(GOOD + ' ')}"):
        task.begin([text], answer)
        assert task.grade(text, answer).strict
        assert task.grader.shares([text], [answer], STYLE) == [1.0]
    assert len(started) <= 1


def test_a_sandbox_that_fails_decides_nothing(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(task.grader, ProgramGrader)

    def broken(*_: object, **__: object) -> Outcome:
        raise SandboxError("no process can be started")

    monkeypatch.setattr(task.grader.sandbox, "run", broken)
    text, answer = block(f"{GOOD}  # once more"), task.test[0].answer
    assert task.grade(text, answer).undecided
    assert task.grader.shares([text], [answer], STYLE) == [None]
    monkeypatch.undo()
    assert task.grade(text, answer).strict


BAD: list[tuple[dict[str, Any], str]] = [
    ({"text": "a", "code": "x = 1"}, "the row has no field 'test_list'"),
    ({"text": "b", "code": "x = 1", "test_list": []}, "field 'test_list' has no tests; add some or remove the row"),
    ({"text": "c", "code": "x = 1", "test_list": "assert x"}, ""),
    ({"text": "d", "code": "x = 1", "test_list": ["assert x == 1", "assert x == 2"]}, "the code passes 1 of 2 tests (AssertionError); correct the code or the tests"),
    ({"text": "e", "code": "x =", "test_list": ["assert x"]}, "the code passes 0 of 1 tests (SyntaxError: "),
    ({"text": "f", "code": "while True: pass", "test_list": ["assert 1"]}, "the code passes 0 of 1 tests (ended by its limit of time)"),
    ({"text": "g", "code": "x = 1", "test_list": [1]}, "field 'test_list' must be a list of strings"),
    ({"text": "h", "code": "x = 1", "test_list": ["assert x\n# test\nassert x"]}, "its tests, or what is set up for them, have a line `# test`"),
    ({"text": "h", "code": "x = 1", "test_setup_code": "a = 1\n# test\nb = 2", "test_list": ["assert x"]}, "its tests, or what is set up for them, have a line `# test`"),
    ({"test_list": ["assert 1"]}, "the row has no field 'text' or 'prompt'"),
    ({"text": "i", "test_list": ["assert 1"]}, ""),
]  # fmt: skip


def test_bad_rows_are_named(tmp_path: Path) -> None:
    task = loaded(tmp_path, [row for row, _ in BAD])
    expected = {f"{tmp_path / 'rows.jsonl'}:{line}": why for line, (_, why) in enumerate(BAD, 1) if why}
    found = {one.where: one.reason for one in task.rejected}
    assert found.keys() == expected.keys()
    for where, why in expected.items():
        assert found[where].startswith(why), found[where]
    assert [problem.question[0] for problem in task.test] == ["c", "i"]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the row has no field 'test_list'"):
        loaded(tmp_path, [row for row, _ in BAD], on_bad_row="error")
    task.grader.close()


def sampled(task: Task, texts: list[str]) -> Sampled:
    return Sampled(task.test[0], [Completion((), (1,), (-1.0,), "stop")] * len(texts), texts, step=0)


def test_tests_passed_pays_the_share(task: Task, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def short(completions, **_):\n    return [0.0 for _ in completions]\n")
    settings = {"task": {"name": "code", "path": "x"}, "rewards": {"correct": 0.0, "tests_passed": 1.0}}
    texts = [block(GOOD), block(HALF), GOOD]
    config = build(TrainConfig, settings).rewards
    rewards = load_rewards(config, task, max_new_tokens=64)
    assert [rollout.reward for rollout in score(sampled(task, texts), rewards, task).rollouts] == [1.0, 0.5, 0.0]
    assert not check_gold(task, task.test, rewards).failures
    with Scorer(task, rewards, config, max_new_tokens=64) as scorer:
        group = scorer.submit(sampled(task, texts)).result()
        assert [(rollout.reward, rollout.correct) for rollout in group.rollouts] == [
            (1.0, True),
            (0.5, False),
            (0.0, False),
        ]
    custom = config.model_copy(
        update={
            "custom": build(TrainConfig, {"rewards": {"custom": {f"{tmp_path / 'own.py'}:short": 1.0}}}).rewards.custom
        }
    )
    rewards = load_rewards(custom, task, max_new_tokens=64, elsewhere=True)
    with Scorer(task, rewards, custom, max_new_tokens=64, workers=1) as scorer:
        group = scorer.submit(sampled(task, texts)).result()
        assert [(rollout.reward, rollout.correct) for rollout in group.rollouts] == [
            (1.0, True),
            (0.5, False),
            (0.0, False),
        ]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"task": {"name": "code"}}, "task.name=code needs task.path=FILE"),
        ({"task": {"name": "code", "path": "x", "style": "boxed"}}, "task.style=boxed does not go with task.name=code"),
        ({"task": {"name": "code", "path": "x", "checker": "exact"}}, "task.checker=exact does not go with task.name=code"),
        ({"task": {"name": "gsm8k", "style": "code"}}, "task.style=code does not go with task.name=gsm8k"),
        ({"task": {"name": "gsm8k", "checker": "tests"}}, "task.checker=tests does not go with task.name=gsm8k"),
        ({"sandbox": {"memory": 100}}, "the section sandbox has no effect without task.name=code"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        build(TrainConfig, settings)


def test_tests_passed_needs_programs() -> None:
    config = build(TrainConfig, {"rewards": {"tests_passed": 1.0}})
    task = load_task(config.task, instruction="", seed=0)
    with pytest.raises(
        SettingsError, match=r"rewards\.tests_passed runs programs, which only task\.name=code asks for"
    ):
        load_rewards(config.rewards, task, max_new_tokens=64)
