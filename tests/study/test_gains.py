"""Primary measures, rewards as such, and the origin of a gain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from slimrl.errors import SettingsError
from slimrl.report.prose import answer, lead
from slimrl.report.tables import gain_table, remarks
from slimrl.statistics import Interval, interval
from slimrl.study.gains import BY_FORM, origin
from slimrl.study.primary import read_primary
from slimrl.study.results import Results, collect
from slimrl.study.runs import planned_runs
from slimrl.study.spec import load_study
from tests.conftest import ROOT
from tests.study.folders import write_run


def over_seeds(**means: float) -> dict[str, Interval]:
    """Gains of five seeds that differ by a point."""
    keys = {"strict": "test/sampled", "form": BY_FORM, "best": "lenient_pass@n"}
    return {keys.get(name, name): interval([mean + d / 100 for d in (-1, 0, 0, 0, 1)]) for name, mean in means.items()}


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        (
            over_seeds(strict=0.3, lenient=0.3, form=0.0, best=0.2),
            "new: within 8 samples it solves 20.0 points more of the problems",
        ),
        (
            over_seeds(strict=0.3, lenient=0.25, form=0.05, best=0.2),
            "new: within 8 samples it solves 20.0 points more of the problems; 5.0 points of the strict gain by form",
        ),
        (
            over_seeds(strict=0.3, lenient=0.3, form=0.0, best=0.0),
            "sharpening, as far as shown: within 8 samples the change is +0.0 points [-0.9, +0.9]",
        ),
        (
            over_seeds(strict=0.3, lenient=0.0, form=0.3, best=0.0),
            "form, as far as shown: read leniently, the change is +0.0 points [-0.9, +0.9]",
        ),
        (over_seeds(strict=0.0, lenient=0.0, form=0.0, best=0.0), "no gain shown"),
        (over_seeds(strict=-0.1, lenient=-0.1, form=0.0, best=0.0), "a loss of 10.0 points"),
        (over_seeds(strict=0.3, lenient=0.3, form=0.0), "more right answers"),
        ({key: interval([0.3]) for key in ("test/sampled", "lenient", BY_FORM)}, "too few runs to tell"),
        ({}, "too few runs to tell"),
    ],
)
def test_origins(gains: Mapping[str, Interval], sentence: str) -> None:
    assert origin(gains, 8) == sentence


def test_primary_measures() -> None:
    assert read_primary("test/rewards/format").reward == "format"
    assert read_primary("twins/greedy").mode == "greedy"
    row = {"split": "test", "mode": "sampled", "strict": True, "scores": {"format": None, "tone": 0.5}}
    assert read_primary("test/sampled").value(row) == 1.0
    assert read_primary("test/rewards/tone").value(row) == 0.5
    assert read_primary("test/rewards/format").value(row) is None
    assert read_primary("harder/sampled").value(row) is None
    for wrong in ("test", "test/rewards/", "reward", "test/pass", "test/rewards/a/b"):
        with pytest.raises(ValueError, match="is no held-out measure"):
            read_primary(wrong)
    with pytest.raises(ValueError, match="write harder/sampled"):
        read_primary("harder/rewards/correct")


STUDY = """
question: does it?
seeds: 3
primary: test/rewards/format
settings: {rewards: {format: 0.5}, evaluation: {samples: 2, twins: 5}}
arms:
  good: algorithm.kl_coef=0
"""
PER_RUN = {"base": (0.5, 0.6, 0.4), "base_again": (0.6, 0.4, 0.5), "good": (2.1, 2.3, 1.9)}
"""Scores, beyond 1, as of a reward with bounds of -1 and 3."""


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Runs with a reward, several samples and twins; the last of `good` diverged."""
    (tmp_path / "study.yaml").write_text(STUDY)
    expanded = load_study([str(tmp_path / "study.yaml")])
    for run in planned_runs(expanded, tmp_path):
        status = "diverged" if run.name == "good-2" else "finished"
        write_run(run, [1, 2, 3 + run.index], status=status)
        for file in sorted((run.folder / "evals").glob("*.json")):
            late = file.stem != "step-00000000"
            score = PER_RUN[run.arm.name][run.index] if late else 0.1
            found = json.loads(file.read_text())
            found["test"] |= {"rewards/format": score, "rewards/format/low": 0.0, "rewards/format/least": -1.0}
            found["test"] |= {"pass@n": 0.5, "lenient_pass@n": 0.6 + 0.1 * late, "disputed": 0.0}
            found["twins"] = {"accuracy": 0.2, "drop": 0.05 * late + 0.01 * run.index}
            file.write_text(json.dumps(found))
            rows = [json.loads(line) for line in file.with_suffix(".jsonl").read_text().splitlines()]
            scored = [row | {"scores": {"format": score}} for row in rows]
            file.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
        state = json.loads((run.folder / "run.json").read_text())
        state["summary"]["findings"] = ["no signal: in none of 9 groups"] if run.arm.name == "good" else []
        (run.folder / "run.json").write_text(json.dumps(state))
    return collect(expanded, tmp_path)


def test_a_reward_can_be_primary_in_its_own_units(results: Results) -> None:
    good = next(effect for effect in results.effects if effect.name == "good")
    assert good.pairs == pytest.approx([1.6, 1.7, -1.4]), "what diverged counts as the lowest score, -1"
    assert good.difference.high > 1, "no share"
    base = next(arm for arm in results.arms if arm.name == "base")
    assert base.primary.mean == pytest.approx(0.5)
    assert good.problems["change"] == pytest.approx(1.65)
    assert -3.4 < good.problems["low"] < 1.65 < good.problems["high"] < 3.4
    assert "Measured by the mean score of the reward format on held-out test problems" in lead(results)
    assert "held-out format" in " ".join(answer(results))


UNBOUNDED = """
seeds: 2
primary: test/rewards/short
settings: {rewards: {custom: {mine.py:short: 0.1}}}
arms:
  long: algorithm.kl_coef=0
"""


@pytest.mark.parametrize("measured", [True, False])
def test_a_run_that_diverged_is_below_every_finished_one_where_a_reward_has_no_lower_bound(
    tmp_path: Path, measured: bool
) -> None:
    """The untrained model had scores of -0.6 at worst, or none at all; what was trained longer went down to -2."""
    (tmp_path / "study.yaml").write_text(UNBOUNDED)
    expanded = load_study([str(tmp_path / "study.yaml")])
    for run in planned_runs(expanded, tmp_path):
        write_run(run, [1, 2], status="diverged" if run.name == "long-1" else "finished")
        for file in (run.folder / "evals").glob("*.json"):
            late = file.stem != "step-00000000"
            score, least = (-1.9 if run.arm.name == "long" else -0.5, -2.0) if late else (-0.4, -0.6)
            found = json.loads(file.read_text())
            if late or measured:
                found["test"] |= {"rewards/short": score, "rewards/short/least": least}
            file.write_text(json.dumps(found))
    results = collect(expanded, tmp_path)
    values = {(run.arm, run.index): run.value("test/rewards/short") for run in results.runs}
    assert values.pop(("long", 1)) == -2.0 < min(values.values()) == -1.9
    long = next(effect for effect in results.effects if effect.name == "long")
    assert long.pairs == pytest.approx([-1.4, -1.5])


def test_gains_say_which_runs_they_are_without(results: Results) -> None:
    rows = {row.name: row for row in gain_table(results).rows}
    assert (rows["good"].detail, rows["base"].detail) == ("2 of 3 runs; 1 diverged", "")
    gone = replace(next(arm for arm in results.arms if arm.name == "good"), finished=0, diverged=3, gains={})
    (row,) = gain_table(replace(results, arms=(gone,))).rows
    assert (row.detail, str(row.cells[0])) == ("0 of 3 runs; 3 diverged", "too few runs to tell")


def test_gains_and_findings_are_in_the_report(results: Results) -> None:
    table = gain_table(results)
    assert table.titles[2:] == (
        "Strict",
        "Lenient",
        "By form",
        "pass@2, strict",
        "pass@2, lenient",
        "Disputed",
        "Drop on twins",
    )
    base = next(row for row in table.rows if row.name == "base")
    assert base.cells[5].main == "+10.0"
    assert base.cells[7].main == "+5.0"
    told = [text for names, _, text in remarks(results) if "good" in names]
    assert "in 2 of 2 runs, as in the first, no signal: in none of 9 groups" in told


def test_a_reward_that_an_arm_does_not_measure_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    for changed, sentence in (
        (
            STUDY.replace("arms:\n", "arms:\n  off: rewards.format=0\n"),
            "rewards of arm off, which lack format; .* rewards.watched",
        ),
        (STUDY.replace("test/rewards/format", "test/rewards/tone"), "rewards of arm base, which lack tone; "),
        (STUDY.replace("test/rewards/format", "twins/sampled").replace("twins: 5", "twins: 0"), "evaluation.twins=0"),
    ):
        file.write_text(changed)
        with pytest.raises(SettingsError, match=sentence):
            load_study([str(file)])
    file.write_text(STUDY.replace("arms:\n", "arms:\n  off: [rewards.format=0, 'rewards.watched=[format]']\n"))
    load_study([str(file)])


def test_the_controls_pay_for_what_is_no_skill_and_measure_it_alike() -> None:
    found = load_study([str(ROOT / "studies" / "controls.yaml")])
    assert [arm.name for arm in found.arms] == ["base", "format_only", "random", "shuffled", "base_again"]
    paid = {arm.name: arm.config.rewards.paid for arm in found.arms}
    assert paid == {
        "base": ("correct",), "format_only": ("format",), "random": ("random",), "shuffled": ("correct",), "base_again": ("correct",),
    }  # fmt: skip
    assert found.arm("shuffled").config.task.answers == "shuffled"
    assert found.study.seeds == 5
    assert len({(arm.config.steps, arm.config.evaluation.model_dump_json()) for arm in found.arms}) == 1
    assert found.arm("base").config.evaluation.samples > 1
    told = [remark.text for remark in found.arm("shuffled").remarks]
    assert told == ["other answers count as right in training, so training rewards are not comparable"]
