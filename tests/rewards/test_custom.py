"""Reward functions from packages, made by factories, with logs; and TRL's own, where it is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slimrl.algorithm.groups import Collected
from slimrl.algorithm.metrics import describe
from slimrl.config.files import load_config
from slimrl.config.rewards import RewardsConfig
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.records import Completion, Group, Problem
from slimrl.rewards import TRIED, load_rewards
from slimrl.rewards.custom import load_function, rewards_digest, source_files
from slimrl.rewards.gold import check_gold
from slimrl.rewards.scoring import Sampled, score
from slimrl.rewards.workers import Scorer
from slimrl.runs.files import rollout_rows
from slimrl.session.state import RunState, as_json, from_json
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES
from tests.rewards.trl_facts import FUNCTIONS

PROBLEM = Problem("p/1", "q", "18", columns={"solution": "$18$"})
TASK = Task("test", (PROBLEM,), (), (), STYLES["hashes"], Grader("numeric"), "", {})
SECONDS = 60.0
"""So that what should not hang fails instead."""
PARTS = """
def thinks(completions, **kwargs):
    return [float(completion[0]["content"].startswith("<think>")) for completion in completions]

def solves(completions, solution, log_extra=None, **kwargs):
    log_extra("solution", list(solution))
    return [None if gold == "" else float(gold.strip("$") in c[0]["content"]) for c, gold in zip(completions, solution)]

def get_brevity(longest, scale=1.0):
    if longest < 1:
        raise ValueError("longest must be positive")
    return Brevity(longest, scale)

def get_nothing():
    return None

class Brevity:
    def __init__(self, longest, scale):
        self.longest, self.scale = longest, scale

    def __call__(self, completion_ids, **kwargs):
        return [self.scale * max(0.0, 1 - len(ids) / self.longest) for ids in completion_ids]
"""
LAZY = """
import importlib, sys
print("the package runs", file=sys.stderr)
def __getattr__(name):
    parts = importlib.import_module("stand_in.rewards.parts")
    if name == "broken":
        raise RuntimeError("no such extra")
    if hasattr(parts, name):
        return getattr(parts, name)
    raise AttributeError(name)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that loads its parts when they are asked for, as TRL does."""
    folder = tmp_path / "stand_in" / "rewards"
    folder.mkdir(parents=True)
    (tmp_path / "stand_in" / "__init__.py").write_text("")
    (folder / "__init__.py").write_text(LAZY)
    (folder / "parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "stand_in"]:
        del sys.modules[name]


def rewards_of(custom: dict[str, Any], **more: Any) -> RewardsConfig:
    return RewardsConfig.model_validate({"correct": 0.0, "custom": custom, **more})


def sampled(*texts: str, step: int = 0) -> Sampled:
    done = [Completion((1,), tuple(range(4)), (0.0,) * 4, "stop") for _ in texts]
    return Sampled(PROBLEM, done, texts, step=step)


def group_of(config: RewardsConfig, workers: int, *texts: str) -> Group:
    rewards = load_rewards(config, TASK, max_new_tokens=8, elsewhere=workers > 0)
    with Scorer(TASK, rewards, config, max_new_tokens=8, workers=workers, show=sys.stderr.write) as scorer:
        return scorer.submit(sampled(*texts)).result(SECONDS)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("workers", [0, 1])
def test_functions_of_a_package(workers: int) -> None:
    config = rewards_of(
        {
            "stand_in.rewards:thinks": {"weight": 0.5, "completions": "messages"},
            "stand_in.rewards:solves": {"completions": "messages"},
            "stand_in.rewards:get_brevity": {"arguments": {"longest": 8, "scale": 2.0}},
        }
    )
    group = group_of(config, workers, "<think>18", "17")
    assert [dict(r.scores) for r in group.rollouts] == [
        {"thinks": 1.0, "solves": 1.0, "get_brevity": 1.0}, {"thinks": 0.0, "solves": 0.0, "get_brevity": 1.0},
    ]  # fmt: skip
    assert [r.reward for r in group.rollouts] == [2.5, 1.0]
    assert [dict(r.logged) for r in group.rollouts] == [{"solves": {"solution": "$18$"}}] * 2


def test_the_digest_of_a_package_is_that_of_its_files(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And none of them is run for it."""
    config = rewards_of({"stand_in.rewards:thinks": 1})
    first = rewards_digest(config)
    assert rewards_digest(config) == first != rewards_digest(rewards_of({"stand_in.rewards.parts:thinks": 1}))
    (package / "parts.py").write_text(PARTS + "\n# paid otherwise\n")
    assert rewards_digest(config) != first
    assert rewards_digest(rewards_of({"no_such.module:f": 1})) == rewards_digest(rewards_of({}))
    assert "stand_in" not in sys.modules
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("spec", "arguments", "what"),
    [
        (
            "no_such:f",
            None,
            "there is no module no_such, installed or in the working directory; install it, or name a file that ends in .py, as no_such.py:function",
        ),
        ("stand_in.none:f", None, "there is no module stand_in.none"),
        ("stand_in.rewards.parts.deeper:f", None, "there is no module"),
        ("json:none", None, "json defines no none; check the name"),
        ("stand_in.rewards:broken", None, "loading the function raised RuntimeError: no such extra (__init__.py:"),
        ("math:pi", None, "pi is not a function; name one"),
        ("stand_in.rewards:get_brevity", {}, "calling get_brevity with its arguments raised TypeError"),
        ("stand_in.rewards:get_brevity", {"longest": 0}, "raised ValueError: longest must be positive (parts.py:"),
        ("stand_in.rewards:get_nothing", {}, "get_nothing makes no function from its arguments but NoneType"),
        ("a-b:f", None, "there is no file"),
        ("stand_in/rewards:f", None, "there is no file"),
    ],
)
def test_what_is_no_function_of_a_package(spec: str, arguments: Any, what: str) -> None:
    with pytest.raises(SettingsError, match=r"^rewards\.custom: ") as caught:
        load_function(spec, arguments)
    assert what in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a package, where Python does not look by itself."""
    inside = tmp_path / "beside"
    (inside / "parts").mkdir(parents=True)
    (inside / "__init__.py").write_text("")
    (inside / "parts" / "shop.py").write_text("from beside import mine\nclass Shop:\n    own = mine.OWN\nlimit = 3\n")
    (inside / "mine.py").write_text("OWN = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "beside"]:
        del sys.modules[name]


def test_a_package_of_the_working_directory_is_found(folder: Path) -> None:
    spec = "beside.parts.shop:Shop"
    assert source_files(spec) == [folder / "beside" / "parts" / "shop.py"]
    assert "beside" not in sys.modules
    assert load_function(spec, setting="environment.name").own == 5  # type: ignore[attr-defined]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("beside.parts.none:Shop", "there is no module beside.parts.none, installed or in the working directory; "),
        ("beside.parts.none:Shop", "name a file that ends in .py, as beside/parts/none.py:Class"),
        ("beside.parts.shop:limit", "limit is not a class; name one"),
        ("Shop", "does not have the form file.py:Class or package.module:Class; write it so"),
    ],
)
def test_what_is_no_class(spec: str, what: str) -> None:
    with pytest.raises(SettingsError, match=r"^environment\.name: ") as caught:
        load_function(spec, setting="environment.name")
    assert what in str(caught.value)


def test_functions_of_one_file_share_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "seen = []\n"
        "def one(completions, **_):\n    seen.append(1)\n    return [1.0] * len(completions)\n"
        "def count(completions, **_):\n    return [float(len(seen))] * len(completions)\n"
    )
    config = rewards_of({f"{tmp_path}/mine.py:one": 1, f"{tmp_path}/mine.py:count": 1})
    rewards = load_rewards(config, TASK, max_new_tokens=8)
    assert score(sampled("a"), rewards, TASK).rollouts[0].scores == {"one": 1.0, "count": 1.0}


def test_the_short_form_is_a_weight_and_merges_with_the_long_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("rewards: {custom: {'r.py:f': 0.5, 'r.py:g': {low: 0, high: 1}, 'pack.mod:h': 2}}\n")
    custom = load_config(
        TrainConfig, [str(file)], [f"rewards.custom.{tmp_path}/r.py:f.high=3", f"rewards.custom.{tmp_path}/r.py:g=0.25"]
    ).rewards.custom
    assert {spec.rpartition("/")[2]: (x.weight, x.low, x.high) for spec, x in custom.items()} == {
        "r.py:f": (0.5, None, 3.0), "r.py:g": (0.25, 0.0, 1.0), "pack.mod:h": (2.0, None, None),
    }  # fmt: skip
    assert [spec for spec in custom if spec.startswith("pack")] == ["pack.mod:h"], "a module is no path"


LOGS = """
def logs(completions, log_extra, log_metric, **_):
    log_extra("length", [len(text) for text in completions])
    log_extra("odd", [float("nan"), {1: object}][: len(completions)])
    log_extra("text", ["\\ud800"] * len(completions))
    log_metric("longest", max(map(len, completions)))
    return [0.0] * len(completions)

def wrong(completions, log_extra, **_):
    log_extra("length", [1])
    return [0.0] * len(completions)

def no_number(completions, log_metric, **_):
    log_metric("length", "long")
    return [0.0] * len(completions)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_logged_reaches_rows_metrics_and_checkpoints(workers: int, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LOGS)
    config = rewards_of({f"{tmp_path}/mine.py:logs": 1})
    groups = [group_of(config, workers, *texts) for texts in (("a", "bbb"), ("ccccc", "d"))]
    collected = Collected(tuple(groups), (), tuple(groups), 2)
    metrics = describe(collected, "reward")
    assert metrics["logged/longest"] == 4.0
    rows = rollout_rows(collected)
    assert [row["logged"]["logs"]["length"] for row in rows] == [1, 3, 5, 1]
    assert [row["logged"]["logs"]["odd"] for row in rows[:2]] == ["nan", {"1": "<class 'object'>"}]
    json.dumps(rows, allow_nan=False, ensure_ascii=False).encode()
    state = RunState(step=1, carried=tuple(groups))
    again = from_json(json.loads(json.dumps(as_json(state))))
    assert [dict(r.logged) for group in again.carried for r in group.rollouts] == [
        dict(r.logged) for group in groups for r in group.rollouts
    ]
    assert [dict(group.metrics) for group in again.carried] == [{"longest": (3.0,)}, {"longest": (5.0,)}]


def test_logs_that_fit_no_row_are_the_function_s_fault(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LOGS)
    group = group_of(rewards_of({f"{tmp_path}/mine.py:wrong": 1}), 0, "a", "b")
    assert (
        group.rollouts[0].unscorable
        == "reward wrong raised ValueError: log_extra got 1 values of length for 2 completions"
    )
    assert (
        group_of(rewards_of({f"{tmp_path}/mine.py:no_number": 1}), 0, "a")
        .rollouts[0]
        .unscorable.startswith("reward no_number raised ValueError: could not convert")
    )


UNBOUNDED = """
calls = []
def near(completions, answer, **_):
    calls.append(answer)
    return [-abs(int(gold) - 20.0) for gold in answer]

def sometimes(completions, answer, **_):
    return [None if int(gold) % 2 else 1.0 for gold in answer]

def fails(completions, answer, **_):
    return [1 / (int(gold) - 20) for gold in answer]
"""


def test_gold_answers_only_try_a_function_without_bounds(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(UNBOUNDED)
    problems = [Problem(f"p/{i}", "q", str(i)) for i in range(3 * TRIED)]
    config = rewards_of({f"{tmp_path}/mine.py:near": 0.5, f"{tmp_path}/mine.py:sometimes": 1}, correct=2.0)
    rewards = load_rewards(config, TASK, max_new_tokens=8)
    report = check_gold(TASK, problems, rewards)
    assert (report.n, report.failures, report.maximum) == (3 * TRIED, (), 2.0)
    near, sometimes = report.trials
    assert (near.reward, near.rows, near.scores[:2], near.scores[-1]) == ("near", TRIED, (-20.0, -17.0), -169.0)
    assert sometimes.scores == (1.0,) * (TRIED // 2)
    few = check_gold(TASK, problems[:3], rewards)
    assert [trial.rows for trial in few.trials] == [3, 3]
    bad = load_rewards(rewards_of({f"{tmp_path}/mine.py:fails": 1}), TASK, max_new_tokens=8)
    with pytest.raises(SettingsError, match="reward fails raised ZeroDivisionError"):
        check_gold(TASK, problems[20:21], bad)


def test_gold_answers_have_tokens_and_a_score(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def varied(completion_ids, **columns):\n    return [len(set(ids)) / len(ids) for ids in completion_ids]\n"
        "def doubled(environment_score, **columns):\n    return [2 * score for score in environment_score]\n"
    )
    config = rewards_of({f"{tmp_path}/mine.py:varied": 1, f"{tmp_path}/mine.py:doubled": 1})
    rewards = load_rewards(config, TASK, max_new_tokens=8)
    encode = lambda texts: [(text, (5, 5, 6)) for text in texts]  # noqa: E731
    report = check_gold(TASK, [Problem("p", "q", "20")], rewards, completed=encode, episodes=True)
    assert {trial.reward: trial.scores for trial in report.trials} == {"varied": (2 / 3,), "doubled": (0.0,)}


def test_one_bound_is_enough_where_it_is_the_better_one(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(UNBOUNDED)
    spec = f"{tmp_path}/mine.py:near"
    for settings, best, maximum in (
        ({"high": 0}, 0.0, 0.0), ({"low": -5}, None, 0.0), ({"low": -100, "weight": -1}, -100.0, 100.0), ({"high": 0, "weight": -1}, None, 0.0),
    ):  # fmt: skip
        (reward,) = load_rewards(rewards_of({spec: settings}), TASK, max_new_tokens=8)
        assert reward.best == best
        assert check_gold(TASK, [Problem("p", "q", "20")], [reward]).maximum == maximum
    (reward,) = load_rewards(rewards_of({spec: {"low": -5}}), TASK, max_new_tokens=8)
    assert score(sampled("a"), [reward], TASK).rollouts[0].scores == {"near": -2.0}
    lost = score(Sampled(Problem("p", "q", "9"), sampled("a").completions, ["a"], 0), [reward], TASK).rollouts[0]
    assert lost.unscorable == "reward near returned -11, outside of its bounds -5 to inf"


FORMS = """
from collections.abc import Sequence
from typing import Any, Dict, List

def annotated(completions: list[list[dict[str, str]]], **_): return kinds(completions)
def older(completions: List[List[Dict[str, Any]]], **_): return kinds(completions)
def sequences(completions: Sequence[list[dict]], **_): return kinds(completions)
def named(completions: "list[list[ChatMessage]]", **_): return kinds(completions)
def texts(completions: list[str], **_): return kinds(completions)
def either(completions: list[str] | list[list[dict]], **_): return kinds(completions)
def open(completions, **_): return kinds(completions)
def tokens(completions: list[list[int]], **_): return kinds(completions)
def kinds(completions): return [float(isinstance(one, list)) for one in completions]

class Made:
    __name__ = "made"
    def __call__(self, completions: list[list[dict[str, str]]], **_): return kinds(completions)

def get_made(): return Made()
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_gets_messages_where_it_is_annotated_so(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "forms.py"
    file.write_text(FORMS)
    wanted = {
        "annotated": 1.0,
        "older": 1.0,
        "sequences": 1.0,
        "named": 1.0,
        "texts": 0.0,
        "either": 0.0,
        "open": 0.0,
        "tokens": 0.0,
    }
    custom = {f"{file}:{name}": 1.0 for name in wanted} | {f"{file}:get_made": {"arguments": {}}}
    group = group_of(rewards_of(custom, workers=workers), workers, "a")
    assert dict(group.rollouts[0].scores) == wanted | {"get_made": 1.0}
    asked = {f"{file}:annotated": {"completions": "text"}, f"{file}:open": {"completions": "messages"}}
    group = group_of(rewards_of(asked, workers=workers), workers, "a")
    assert dict(group.rollouts[0].scores) == {"annotated": 0.0, "open": 1.0}, "what is set stays"


@pytest.mark.parametrize("form", [{}, {"completions": "messages"}])
def test_functions_of_trl_score_as_there(form: dict[str, str]) -> None:
    """Called by SlimRL, by their names alone, and called directly."""
    trl = pytest.importorskip("trl.rewards", reason="trl is not installed")
    texts = ["<think>a</think> \\boxed{18}", "\\boxed{17}", "<think>a a a a a</think> 18", "no answer"]
    settings = {f"trl.rewards:{name}": form | ({"arguments": x} if x else {}) for name, x in FUNCTIONS.items()}
    config = rewards_of(settings)
    done = [Completion((1,), (1, 2, 1, 2, 1, 2)[: 2 + i], (0.0,) * (2 + i), "stop") for i in range(4)]
    sample = Sampled(PROBLEM, done, texts, step=0, strict=True)
    found = score(sample, load_rewards(config, TASK, max_new_tokens=8), TASK).rollouts
    columns = {
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": [list(c.token_ids) for c in done],
        "solution": ["$18$"] * 4,
        "prompts": [[{"role": "user", "content": "q"}]] * 4,
    }
    for name, arguments in FUNCTIONS.items():
        function = getattr(trl, name) if arguments is None else getattr(trl, name)(**arguments)
        assert [r.scores[name] for r in found] == function(**columns), name
