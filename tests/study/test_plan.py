"""What a study will take, and what it can see."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimrl.errors import DataError
from slimrl.preflight.observed import Observed
from slimrl.statistics import detectable_effect, seeds_needed
from slimrl.study import plan as planning
from slimrl.study.plan import Measured, plan_study, sentences
from slimrl.study.results import collect
from slimrl.study.runs import planned_runs
from slimrl.study.spec import Expanded, load_study
from tests.forks import studies_fork as studies_fork
from tests.study.folders import write_run

STUDY = """
seeds: 4
spread: 0.03
settings: {steps: 10}
arms:
  filter: algorithm.overlong_filtering=true
  dynamic: algorithm.dynamic_sampling=refill
  clip: algorithm.clip_high=0.3
"""
SEEN = Observed(completions=64, truncated=0, longest=20, shortest=3, groups=8, constant=4)


@pytest.fixture
def expanded(tmp_path: Path) -> Expanded:
    (tmp_path / "study.yaml").write_text(STUDY)
    return load_study([str(tmp_path / "study.yaml")])


def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(runs=0, step_seconds=2.0, other_seconds=16.0, step_tokens=1000.0, seen=SEEN)
    monkeypatch.setattr(planning, "_probe", lambda *_: measured)


def test_cost_by_hand(expanded: Expanded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed(monkeypatch)
    plan = plan_study(expanded, tmp_path, slots=2, effects=())
    cost = {arm.name: (arm.tokens, arm.seconds) for arm in plan.arms}
    assert cost["base"] == (4 * 10_000, 4 * 36)
    # half of the groups carry no signal, so twice as many are sampled
    assert cost["dynamic"] == (4 * 20_000, 4 * 56)
    assert plan.hours == pytest.approx((4 * 4 * 36 + 4 * 56) / 2 / 3600)
    assert (plan.runs, plan.left, plan.slots) == (20, 20, 2)


def test_finished_runs_replace_the_probe_and_are_not_counted_again(expanded: Expanded, tmp_path: Path) -> None:
    for run in planned_runs(expanded, tmp_path)[:5]:
        write_run(run, [1, 2], steps=10, tokens=500)
    plan = plan_study(expanded, tmp_path, slots=1, effects=())
    assert (plan.left, plan.measured_on) == (15, 1)
    cost = {arm.name: (arm.tokens, arm.seconds) for arm in plan.arms}
    # 10 steps of 500 tokens in 20 s; the whole run took 10 s by its own clock, so there is nothing beside the steps
    assert cost["base"] == (4 * 5000, 4 * 20)


def test_power_is_said_for_the_declared_spread_and_comparisons(
    expanded: Expanded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed(monkeypatch)
    plan = plan_study(expanded, tmp_path, slots=1, effects=(0.01, 0.05))
    assert plan.detectable == detectable_effect(4, 0.03, 3)
    assert plan.needed == {"1": seeds_needed(0.01, 0.03, 3), "5": seeds_needed(0.05, 0.03, 3)}
    text = " ".join(sentences(plan))
    assert f"{100 * plan.detectable:.1f} points" in text
    assert "as the study file expects" in text


def test_a_measured_spread_replaces_the_expected_one(expanded: Expanded, tmp_path: Path) -> None:
    for run in planned_runs(expanded, tmp_path):
        right = range(1, 3 + (run.index % 2 if run.arm.name == "dynamic" else 0))
        write_run(run, list(right), weights="" if run.arm.name == "dynamic" else f"{run.index}")
    plan = plan_study(expanded, tmp_path, slots=1, effects=())
    assert plan.spread == pytest.approx(0.1 / 3**0.5), "differences of 0, 0.1, 0, 0.1"
    assert plan.spread_from == "measured on 1 arm"


@pytest.mark.parametrize(
    ("right", "source"), [((1, 9), "measured on the A/A arm"), ((4, 4), "as the study file expects")]
)
def test_noise_replaces_the_expected_spread_where_it_is_larger_and_no_switch_is_measured(
    expanded: Expanded, tmp_path: Path, right: tuple[int, int], source: str
) -> None:
    for run in planned_runs(expanded, tmp_path):
        if run.arm.name in ("base", "base_again"):
            write_run(run, list(range(right[run.index % 2] if run.arm.is_repeat else right[0])), steps=10)
    plan = plan_study(expanded, tmp_path, slots=1, effects=())
    sd = 0.1 * (right[1] - right[0]) / 3**0.5
    assert plan.spread == pytest.approx(max(sd, expanded.study.spread)), "differences of 0, 0.8, 0 and 0.8, or none"
    assert plan.spread_from == source
    results = collect(expanded, tmp_path)
    assert (results.detectable, plan.detectable) == (plan.detectable, detectable_effect(4, plan.spread, 3))


def test_what_the_probe_shows_to_be_idle_is_said(
    expanded: Expanded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed(monkeypatch)
    remarks = {arm.name: dict(arm.remarks) for arm in plan_study(expanded, tmp_path, slots=1, effects=()).arms}
    assert "none of 64 completions was truncated" in remarks["filter"]["probe"]
    assert "inert" in remarks["clip"]
    assert "probe" not in remarks["dynamic"]
    assert remarks["base"] == {}


@pytest.mark.usefixtures("studies_fork")
def test_the_probe_runs_in_every_slot_and_leaves_nothing(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        f"seeds: 2\nsettings: {{model: {{path: {tiny_folder}}}, rollout: {{problems: 2, group_size: 2, max_new_tokens: 6}}, "
        "evaluation: {problems: 2, harder_problems: 0}}\narms: {kl: algorithm.kl_coef=0}\n"
    )
    expanded = load_study([str(tmp_path / "study.yaml")])
    plan = plan_study(expanded, tmp_path / "out", slots=2, effects=())
    assert plan.measured_on == 0
    assert plan.tokens > 0
    assert 0 < plan.hours < 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lock"]


JUDGED = """
seeds: 2
settings:
  steps: 10
  task: {name: gsm8k, path: rows.jsonl, test_path: rows.jsonl}
  rollout: {problems: 4, group_size: 3}
  evaluation: {problems: 5, samples: 2, greedy: true}
  rewards: {judge: {tone: {endpoint: "http://h", model: m, prompt: "{completion}", low: 0, high: 1}}}
arms: {twice: steps=20, unpaid: rewards.judge.tone.weight=0}
"""


def test_the_price_of_judges_is_the_sum_over_the_runs_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the plan's probe asks them for the first time."""
    (tmp_path / "study.yaml").write_text(JUDGED)
    expanded = load_study([str(tmp_path / "study.yaml")])
    told: list[str] = []
    measured = Measured(runs=0, step_seconds=2.0, other_seconds=16.0, step_tokens=1000.0, seen=SEEN)
    monkeypatch.setattr(planning, "_probe", lambda *_: told.append("the probe") or measured)
    plan = plan_study(expanded, tmp_path, slots=2, effects=(), say=told.append)
    # 8 gold answers and 16 groups of 3, two evaluations of 5 problems with 3 completions, steps of 12 completions
    fixed = 8 + 16 * 3 + 2 * 5 * 3
    total = 4 * (fixed + 10 * 12) + 2 * (fixed + 20 * 12)  # the base, its A/A arm and `twice`, two seeds of each
    assert plan.judge_calls == {"tone": total}
    rest = "calls without retries, over {} runs; what the cache holds is not asked again"
    assert told == [
        f"judge tone: at most {total:,} {rest.format(6)}",
        f"for this plan, judge tone: at most {2 * (fixed + 3 * 12)} {rest.format(2)}",
        "the probe",
    ]
    for run in planned_runs(expanded, tmp_path)[:4]:
        write_run(run, [1, 2], steps=10)
    left = plan_study(expanded, tmp_path, slots=2, effects=())
    assert left.judge_calls == {"tone": 2 * (fixed + 10 * 12) + (fixed + 20 * 12)}


def test_a_probe_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("settings: {model: {path: ./nowhere}}\narms: {kl: algorithm.kl_coef=0}\n")
    expanded = load_study([str(tmp_path / "study.yaml")])
    with pytest.raises(DataError, match=r"the probe of base failed: error: .*nowhere"):
        plan_study(expanded, tmp_path / "out", slots=1, effects=())


def test_threads_are_not_settled_by_a_plan(expanded: Expanded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed(monkeypatch)
    assert plan_study(expanded, tmp_path, slots=2, effects=()).threads == 1
    assert not (tmp_path / "slots.json").exists()
