"""From run directories to verdicts: what is counted, what is paired, what is left out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from slimrl.errors import DataError
from slimrl.statistics import paired_difference
from slimrl.study.compare import Effect
from slimrl.study.declaration import declare
from slimrl.study.results import Results, collect
from slimrl.study.runs import planned_runs, run_folder
from slimrl.study.spec import Expanded, load_study
from tests.study.folders import PROBLEMS, write_run

STUDY = """
question: does it?
seeds: 3
arms:
  good: algorithm.kl_coef=0
  same: algorithm.clip_high=0.3
"""
BASE = ([1, 2, 3], [1, 2], [1, 2, 3, 4])
GOOD = ([1, 2, 3, 4, 5], [1, 2, 3, 5], [1, 2, 3, 4, 5, 6, 7])


@pytest.fixture
def expanded(tmp_path: Path) -> Expanded:
    (tmp_path / "study.yaml").write_text(STUDY)
    return load_study([str(tmp_path / "study.yaml")])


def fill(expanded: Expanded, folder: Path, **other: object) -> None:
    for run in planned_runs(expanded, folder):
        right = {"good": GOOD, "base_again": BASE[::-1]}.get(run.arm.name, BASE)[run.index]
        weights = f"base {run.index}" if run.arm.name in ("base", "same") else ""
        write_run(run, right, weights=weights, **other)  # type: ignore[arg-type]


def effect(results: Results, name: str) -> Effect:
    return next(e for e in results.effects if e.name == name)


def test_differences_are_taken_within_a_seed(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    results = collect(expanded, tmp_path)
    good = effect(results, "good")
    assert good.pairs == pytest.approx([0.2, 0.2, 0.3])
    assert good.difference.mean == pytest.approx(0.7 / 3)
    assert good.probability_of_improvement == pytest.approx(8.5 / 9), "5, 4, 7 against 3, 2, 4 right"
    assert good.adjusted_p == pytest.approx(2 * good.difference.p), "Holm over two switches"
    assert good.judgement.verdict == "better"
    assert results.complete
    assert results.exploratory, "three seeds"


def test_the_a_a_arm_stands_outside_of_holm_and_gives_the_noise_floor(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    results = collect(expanded, tmp_path)
    again = effect(results, "base_again")
    assert again.adjusted_p == again.difference.p
    assert again.difference.mean == pytest.approx(0.0)
    assert results.noise.sd == pytest.approx(0.1), "2, 3 and 4 of 10 right in both arms"
    assert results.noise.floor == pytest.approx(2.7764451 * 0.1 * math.sqrt(2 / 3)), "t with 4 degrees of freedom"


def test_equal_weights_in_every_seed_are_called_identical(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    same = effect(collect(expanded, tmp_path), "same")
    assert (same.identical, same.judgement.verdict) == (3, "identical")
    state = run_folder(tmp_path, "same", 1) / "run.json"
    state.write_text(state.read_text().replace("base 1", "something else"))
    same = effect(collect(expanded, tmp_path), "same")
    assert (same.identical, same.judgement.verdict) == (2, "undecided")


def test_equal_weights_that_are_measured_otherwise_are_not_identical(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("question: q\nseeds: 3\narms:\n  cold: rollout.temperature=0.5\n")
    expanded = load_study([str(tmp_path / "study.yaml")])
    for run in planned_runs(expanded, tmp_path):
        write_run(run, GOOD[run.index] if run.arm.name == "cold" else BASE[run.index], weights=f"w {run.index}")
    cold = effect(collect(expanded, tmp_path), "cold")
    assert (cold.identical, cold.judgement.verdict) == (3, "better")
    assert cold.difference.low < cold.difference.mean < cold.difference.high


def test_fewer_seeds_than_were_declared_are_told(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    expanded = load_study([str(tmp_path / "study.yaml")])
    fill(expanded, tmp_path)
    declare(expanded, tmp_path)

    def told(study: Expanded) -> int:
        return sum(
            "was declared with 3 seeds, and only 2" in sentence for sentence in collect(study, tmp_path).cannot_tell
        )

    assert told(expanded) == 0
    (tmp_path / "study.yaml").write_text(STUDY.replace("seeds: 3", "seeds: 2"))
    assert told(load_study([str(tmp_path / "study.yaml")])) == 1


def test_what_arms_vary_is_neither_an_accident_nor_the_same_everywhere(tmp_path: Path) -> None:
    arms = "  narrow: model.dtype=bfloat16\n  fast: optimizer.learning_rate=1e-3\n"
    (tmp_path / "study.yaml").write_text(
        f"question: q\nseeds: 3\nsettings: {{model: {{dtype: float32}}}}\narms:\n{arms}"
    )
    expanded = load_study([str(tmp_path / "study.yaml")])
    for run in planned_runs(expanded, tmp_path):
        write_run(run, BASE[run.index])
        path = run.folder / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": run.arm.config.model.dtype}))
    results = collect(expanded, tmp_path)
    assert results.versions["dtype"] == "bfloat16 or float32"
    assert not any("made alike" in sentence for sentence in results.cannot_tell)
    assert any(
        s.startswith("One model (builtin), one task (arithmetic) and one batch size") for s in results.cannot_tell
    )


def test_a_token_budget_is_judged_by_finished_runs_and_the_steps_of_their_arms(tmp_path: Path) -> None:
    text = (
        "question: q\nseeds: 3\nsettings: {steps: 9}\nbudget: {equal: tokens, tokens: 900}\narms:\n  short: steps=3\n"
    )
    (tmp_path / "study.yaml").write_text(text)
    expanded = load_study([str(tmp_path / "study.yaml")])
    for run in planned_runs(expanded, tmp_path):
        short, lost = run.arm.name == "short", run.name == "base-1"
        write_run(
            run, BASE[run.index], steps=3 if short else 2 if lost else 9, status="diverged" if lost else "finished"
        )
    (found,) = [sentence for sentence in collect(expanded, tmp_path).cannot_tell if "token budget" in sentence]
    assert found == "Steps ended before the token budget did in short; raise steps."


def test_a_diverged_run_counts_as_nothing_right_and_is_never_left_out(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    runs = [run for run in planned_runs(expanded, tmp_path) if run.arm.name == "good"]
    for part in sorted(runs[1].folder.rglob("*"), reverse=True):
        part.unlink() if part.is_file() else part.rmdir()
    runs[1].folder.rmdir()
    write_run(runs[1], [], status="diverged")
    results = collect(expanded, tmp_path)
    good = effect(results, "good")
    assert good.pairs == pytest.approx([0.2, -0.2, 0.3])
    assert good.problems["n"] == PROBLEMS
    arm = next(arm for arm in results.arms if arm.name == "good")
    assert (arm.finished, arm.diverged, arm.planned) == (2, 1, 3)
    assert results.complete, "a diverged run is a result"
    assert any("diverged" in sentence for sentence in results.cannot_tell)


def test_runs_that_are_missing_take_their_pair_out_and_are_said_to_be(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    (run_folder(tmp_path, "base", 0) / "run.json").unlink()
    results = collect(expanded, tmp_path)
    assert effect(results, "good").seeds == [1, 2]
    assert effect(results, "good").pairs == pytest.approx([0.2, 0.3])
    assert not results.complete
    assert results.cannot_tell[0].startswith("1 of 12 runs")


def test_a_run_that_broke_off_is_no_result(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path, status="running")
    results = collect(expanded, tmp_path)
    assert {run.status for run in results.runs} == {"missing"}
    assert all(math.isnan(e.difference.mean) for e in results.effects)
    assert results.samples == (), "a text from the middle of a run is not one from after it"


def test_an_empty_folder_is_reported_without_a_number(expanded: Expanded, tmp_path: Path) -> None:
    results = collect(expanded, tmp_path)
    assert {e.judgement.verdict for e in results.effects} == {"undecided"}
    assert math.isnan(results.noise.floor)


def test_items_are_paired_by_problem_over_the_same_seeds(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    good = effect(collect(expanded, tmp_path), "good")
    before = {f"test/{i}": sum(i in right for right in BASE) / 3 for i in range(PROBLEMS)}
    after = {f"test/{i}": sum(i in right for right in GOOD) / 3 for i in range(PROBLEMS)}
    assert good.problems == pytest.approx(paired_difference(before, after))


def test_a_single_seed_has_an_interval_over_problems_only(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("seeds: 3", "seeds: 1"))
    expanded = load_study([str(tmp_path / "study.yaml")])
    fill(expanded, tmp_path)
    good = effect(collect(expanded, tmp_path), "good")
    assert good.judgement.verdict == "undecided"
    assert good.difference.high == math.inf
    # two gained of ten, none lost; with 1.25 more each way (3.25 - 1.25) / 12.5 in the middle
    assert (good.problems["low"] + good.problems["high"]) / 2 == pytest.approx(2 / 12.5)


def test_accuracy_is_split_into_answer_and_form(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    after = next(run for run in collect(expanded, tmp_path).runs if run.arm == "good").after
    cells = [after[key] for key in ("right", "right_out_of_form", "wrong_in_form", "wrong_out_of_form")]
    assert cells == pytest.approx([0.5, 0.0, 0.4, 0.1]), "problem 0 is out of form, and wrong"


def test_what_every_run_found_inert_is_said_of_the_arm_that_switches_it(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "seeds: 2\narms: {filter: algorithm.overlong_filtering=true, kl: algorithm.kl_coef=0}\n"
    )
    expanded = load_study([str(tmp_path / "study.yaml")])
    fill(expanded, tmp_path, inert=["algorithm.overlong_filtering: none of 8 completions was truncated"])
    remarks = {arm.name: [kind for kind, _ in arm.remarks] for arm in collect(expanded, tmp_path).arms}
    assert remarks == {"base": [], "filter": ["inert"], "kl": [], "base_again": []}


def test_an_arm_one_part_of_which_is_idle_is_not_called_inert(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "seeds: 2\narms: {both: [algorithm.overlong_filtering=true, algorithm.kl_coef=0]}\n"
    )
    expanded = load_study([str(tmp_path / "study.yaml")])
    fill(expanded, tmp_path, inert=["algorithm.overlong_filtering: none of 8 completions was truncated"])
    (both,) = (arm for arm in collect(expanded, tmp_path).arms if arm.name == "both")
    assert [kind for kind, _ in both.remarks] == ["confounded"]
    assert both.remarks[0][1].startswith("adds nothing here: algorithm.overlong_filtering")


def test_a_switch_that_was_idle_in_the_reference_is_idle_when_it_is_off(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "seeds: 2\nsettings: {algorithm: {overlong_filtering: true}}\narms: {keep: algorithm.overlong_filtering=false}\n"
    )
    expanded = load_study([str(tmp_path / "study.yaml")])
    for run in planned_runs(expanded, tmp_path):
        said = [] if run.arm.name == "keep" else ["algorithm.overlong_filtering: none of 8 completions was truncated"]
        write_run(run, [1, 2], inert=said)
    (keep,) = (arm for arm in collect(expanded, tmp_path).arms if arm.name == "keep")
    assert [kind for kind, _ in keep.remarks] == ["inert"]


def test_what_every_run_found_mixed_up_is_said_of_its_arm(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("seeds: 2\narms: {plain: algorithm.scale_rewards=none}\n")
    expanded = load_study([str(tmp_path / "study.yaml")])
    fill(expanded, tmp_path)
    for run in planned_runs(expanded, tmp_path):
        path = run.folder / "run.json"
        state = json.loads(path.read_text())
        state["summary"]["confounded"] = ["algorithm.scale_rewards: advantages have another size"]
        path.write_text(json.dumps(state))
    (plain,) = (arm for arm in collect(expanded, tmp_path).arms if arm.name == "plain")
    assert any("advantages have another size" in text for kind, text in plain.remarks if kind == "confounded")


def test_too_few_results_are_exploratory_whatever_was_planned(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("seeds: 3", "seeds: 5"))
    expanded = load_study([str(tmp_path / "study.yaml")])
    for run in planned_runs(expanded, tmp_path):
        if run.arm.name == "base" or run.index < 4:
            write_run(run, [1, 2 + run.index % 3])
    assert collect(expanded, tmp_path).exploratory


def test_a_finished_run_without_the_measure_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY + "primary: harder/sampled\n")
    expanded = load_study([str(tmp_path / "study.yaml")])
    fill(expanded, tmp_path)
    with pytest.raises(DataError, match="has no measure harder/sampled"):
        collect(expanded, tmp_path)


def test_runs_that_were_not_made_alike_are_named(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    path = run_folder(tmp_path, "good", 1) / "run.json"
    path.write_text(path.read_text().replace("2.13.0", "2.99.0"))
    results = collect(expanded, tmp_path)
    assert results.versions["torch"] == "2.13.0 or 2.99.0"
    assert any("not all made alike: torch" in sentence for sentence in results.cannot_tell)


def test_samples_show_the_same_problems_and_where_arms_disagree_first(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    samples = collect(expanded, tmp_path).samples
    assert [sample["id"] for sample in samples][:2] == ["test/4", "test/5"]
    assert set(samples[0]["after"]) == {"base", "good", "same"}
    assert samples[0]["question"] == "question 4"
    assert samples[0]["before"]["text"] == "text of 4 after 0"
    assert (samples[0]["after"]["good"]["right"], samples[0]["after"]["base"]["right"]) == (True, False)


def test_dearer_arms_are_named_where_steps_are_equal(expanded: Expanded, tmp_path: Path) -> None:
    for run in planned_runs(expanded, tmp_path):
        write_run(run, [1, run.index + 2], tokens=250 if run.arm.name == "good" else 100)
    assert any("good 2.50 times" in sentence for sentence in collect(expanded, tmp_path).cannot_tell)


def test_an_unreadable_file_makes_a_run_missing_and_no_traceback(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    (run_folder(tmp_path, "good", 0) / "run.json").write_text("{")
    assert [run.status for run in collect(expanded, tmp_path).runs].count("missing") == 1


def test_everything_is_plain_data(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    results = collect(expanded, tmp_path)
    json.dumps([run.after for run in results.runs])
    assert results.versions["torch"] == "2.13.0"
    assert results.settings["algorithm.kl_coef"] == 0.04


def test_runs_that_are_all_equal_say_nothing_of_spread(expanded: Expanded, tmp_path: Path) -> None:
    """Every seed has the same count of right answers: no interval, and no noise floor, is of no width."""
    for run in planned_runs(expanded, tmp_path):
        write_run(run, [0, 1, 2], weights=f"{run.name}")
    results = collect(expanded, tmp_path)
    assert all(arm.primary.mean == pytest.approx(0.3) for arm in results.arms)
    assert all((arm.primary.low, arm.primary.high) == (-math.inf, math.inf) for arm in results.arms)
    assert all((e.difference.low, e.difference.high) == (-math.inf, math.inf) for e in results.effects)
    assert {e.judgement.verdict for e in results.effects} == {"undecided"}
    assert all(e.problems["low"] < 0 < e.problems["high"] for e in results.effects)
    assert math.isnan(results.noise.floor)


def test_runs_that_are_equal_to_the_last_bit_differ_on_no_problem(expanded: Expanded, tmp_path: Path) -> None:
    fill(expanded, tmp_path)
    same = effect(collect(expanded, tmp_path), "same")
    assert same.judgement.verdict == "identical"
    assert (same.difference.low, same.difference.high) == (0.0, 0.0)
    assert (same.problems["low"], same.problems["high"]) == (0.0, 0.0)
