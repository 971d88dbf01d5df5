"""docs/rewards.md: every example on it runs, and its tables hold what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.files import load_config, parse_override
from slimrl.config.judge import JudgeReward
from slimrl.config.mistakes import known_keys
from slimrl.config.rewards import RewardsConfig, Weight
from slimrl.config.schema import TrainConfig
from slimrl.records import Answer, Completion, Group, Played, Problem
from slimrl.rewards import JUDGED, TRIED, load_rewards
from slimrl.rewards.calls import TrainerState, arguments
from slimrl.rewards.gold import check_gold
from slimrl.rewards.scoring import Sampled, score
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES
from tests.conftest import ROOT
from tests.judges import serving

PAGE = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = [text for kind, text in BLOCKS if kind == "python"]
SETTINGS = [text for kind, text in BLOCKS if kind == "yaml"]
PROBLEM = Problem("p/1", "How many of 12, 13 and 18?", "18", columns={"solution": "$18$"})
TASK = Task("test", (PROBLEM,), (), (), STYLES["hashes"], Grader("numeric"), "", {})
TEXTS = ["#### 18", "please 17"]


def written(folder: Path, settings: str) -> TrainConfig:
    """The settings of a block, with the files of the page beside them; of two of a name the later one, which has more."""
    for text in FILES:
        (folder / text.split()[1]).write_text(text)
    (folder / "mine.yaml").write_text(settings)
    return load_config(TrainConfig, [str(folder / "mine.yaml")])


def group_of(config: RewardsConfig, folder: Path) -> Group:
    rewards = load_rewards(config, TASK, max_new_tokens=8, output=folder)
    assert check_gold(TASK, [PROBLEM], rewards).failures == ()
    done = [Completion((1,), (1, 2, 1, 2), (0.0,) * 4, "stop") for _ in TEXTS]
    return score(Sampled(PROBLEM, done, TEXTS, step=0, strict=True), rewards, TASK)


def test_the_page_has_the_examples_that_are_run_here() -> None:
    assert len(BLOCKS) == len(FILES) + len(SETTINGS) == 12
    assert all(re.match(r"# \w+\.py\n", text) for text in FILES)


EXPECTED: list[tuple[str, Any]] = [
    ("custom: {rewards.py:short", [1.0 - 0.5 * 0.07, -0.5 * 0.09]),
    ("cosine_length", None),
    ("rewards.py:polite", [1.0 - 0.5 * 0.07 + 0.2 + 1.0, -0.5 * 0.09 + 0.2 + 1.0]),
    ("services.py", [2.5, 1.5]),
    ("logs.py", [1.0 + 1 / 3, 1 / 3]),
]


@pytest.mark.parametrize(("named", "rewards"), EXPECTED, ids=[named for named, _ in EXPECTED])
def test_examples_score(named: str, rewards: list[float] | None, tmp_path: Path) -> None:
    (settings,) = (text for text in SETTINGS if named in text)
    group = group_of(written(tmp_path, settings).rewards, tmp_path)
    assert not any(r.unscorable for r in group.rollouts)
    if rewards is not None:
        assert [r.reward for r in group.rollouts] == pytest.approx(rewards)
    if named == "logs.py":
        assert [dict(r.logged) for r in group.rollouts] == [{"brief": {"words": 2}}] * 2
        assert group.metrics == {"most_words": (2.0,)}


def test_the_cosine_of_the_page_is_that_of_the_package(tmp_path: Path) -> None:
    (settings,) = (text for text in SETTINGS if "cosine_length" in text)
    right, wrong = group_of(written(tmp_path, settings).rewards, tmp_path).rollouts
    # half of the budget; of three pairs of tokens one comes twice
    assert (right.scores["cosine_length"], wrong.scores["cosine_length"]) == pytest.approx((1.5, -0.5))
    assert right.scores["repetition"] == 0.0


def test_the_signature_of_the_page_is_called(tmp_path: Path) -> None:
    config = written(tmp_path, f"rewards: {{custom: {{{tmp_path}/signature.py:reward: 1}}}}\n").rewards
    assert [r.reward for r in group_of(config, tmp_path).rollouts] == [2.0, 0.0]


def test_the_columns_of_the_page_are_passed() -> None:
    """All of the table where an environment has played, and of a row without an answer neither it nor a solution."""
    table = PAGE.partition("| column | item |")[2].partition("\n\n")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    reward = load_rewards(RewardsConfig(format=1), TASK, max_new_tokens=8, output=Path())[0]
    done = [Completion((1,), (1, 2), (0.0,) * 2, "stop")]
    played, full, bare = (
        {*arguments(reward, Sampled(problem, done, ["#### 18"], step=0, strict=True, played=told), TASK)}
        for problem, told in ((PROBLEM, [Played()]), (PROBLEM, []), (Problem("p/2", "Say something.", ""), []))
    )
    assert played == named
    assert played - full == {"turns", "turn_rewards", "environment_score"}
    assert full - bare == {"answer", "solution"}
    several = Problem("p/3", "Which?", Answer("18", ("eighteen",)))
    sampled = Sampled(several, done, ["#### 18"], step=0, strict=True)
    assert arguments(reward, sampled, TASK)["answer"] == ["18"]


def test_trl_s_functions_of_the_page(tmp_path: Path) -> None:
    (settings,) = (text for text in SETTINGS if "trl.rewards" in text)
    config = written(tmp_path, settings).rewards
    assert [(custom.weight, custom.completions) for custom in config.custom.values()] == [
        (0.2, "auto"),
        (1, "auto"),
        (1, "auto"),
    ]
    pytest.importorskip("trl.rewards", reason="trl is not installed")
    assert list(group_of(config, tmp_path).rollouts[0].scores) == [spec.rpartition(":")[2] for spec in config.custom]


def test_the_judge_of_the_page_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (settings,) = (text for text in SETTINGS if "judge:" in text)
    with serving(lambda text, _: f"Clear.\nScore: {7 if '#### 18' in text else 2}") as server:
        config = written(tmp_path, settings.replace("http://localhost:8000/v1", server.endpoint)).rewards
        group = group_of(config, tmp_path)
    assert [r.scores["clarity"] for r in group.rollouts] == [7.0, 2.0]
    assert "asked: How many of 12, 13 and 18?\nThe right answer is 18. The pupil wrote:\n#### 18\n" in server.texts()[0]
    assert (tmp_path / "judge-cache.jsonl").is_file()


def test_every_key_of_a_judge_is_in_its_table_with_its_default() -> None:
    table = PAGE.partition("| key | default |")[2].partition("\n\n")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    defaults = {
        key: default
        for cells in rows
        for key, default in zip(
            re.findall(r"`(\w+)`", cells[0]), [*re.findall(r"[^,` |]+", cells[1]), "", ""], strict=False
        )
    }
    fields = JudgeReward.model_fields
    assert {*defaults} == {*fields}
    for key in ("weight", "temperature", "max_tokens", "concurrency", "retries", "timeout"):
        assert float(defaults[key]) == fields[key].default, key
    assert defaults["cache"] == fields["cache"].default


def test_every_built_in_reward_is_in_the_table() -> None:
    table = PAGE.partition("| setting | values |")[2].partition("\n\n")[0]
    named = {key for line in table.splitlines() for key in re.findall(r"`rewards\.(\w+)`", line.split(" | ")[0])}
    assert named == {*RewardsConfig.marked(Weight)}


def test_settings_and_numbers_of_the_page_are_those_of_the_package() -> None:
    keys = {*known_keys(TrainConfig)}
    for text in re.findall(r"`(rewards\.[^`*]*)`", PAGE):
        key = text.partition("=")[0]
        assert key in keys or key.startswith("rewards.custom."), text
        if "=" in text:
            parse_override(text)
    assert f"on {TRIED} rows (a judge on {JUDGED})" in PAGE
    assert f"tried on {JUDGED} rows only" in PAGE
    assert all(f"`{name}`" in PAGE for name in TrainerState.__dataclass_fields__)
    limit = RewardsConfig.model_fields["unscorable_limit"].default
    assert f"`rewards.unscorable_limit` ({limit:.0%}".replace("%", " %") in PAGE
