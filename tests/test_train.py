"""The whole loop on the built-in model: it learns, it repeats itself bit for bit, and its records are true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.config.sections import ModelConfig
from slimrl.display.run import Display
from slimrl.errors import DivergedError
from slimrl.model.loading import load_policy
from slimrl.results import TrainSummary
from slimrl.runs.durable import digest
from slimrl.train import train
from tests.conftest import ROOT
from tests.quick import quick_runs  # noqa: F401

SMALL = (
    "steps=3",
    "rollout.problems=4",
    "rollout.group_size=4",
    "evaluation.problems=8",
    "evaluation.harder_problems=4",
)


def run(output: Path, name: str, *settings: str, recipe: str = "") -> TrainSummary:
    files = [str(ROOT / "recipes" / recipe)] if recipe else []
    config = load_config(TrainConfig, files, [f"output={output}", f"name={name}", *settings])
    return train(config, Display(quiet=True))


def weights(summary: TrainSummary) -> dict[str, torch.Tensor]:
    return load_file(Path(summary.run) / "final" / "model.safetensors")


def metrics(summary: TrainSummary) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(summary.run) / "metrics.jsonl").read_text().splitlines()]


def same(first: TrainSummary, second: TrainSummary) -> bool:
    a, b = weights(first), weights(second)
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TrainSummary:
    """The small run, to which others are compared."""
    return run(tmp_path_factory.mktemp("plain"), "a", *SMALL)


METHODS = ("grpo", "dapo", "dr-grpo", "case-study-final", "gpg", "gspo", "cispo", "sapo", "rloo", "ppo")


@pytest.mark.parametrize("recipe", METHODS)
def test_each_recipe_learns(recipe: str, tmp_path: Path) -> None:
    """A short run; the README has the long ones. 15 points on 200 problems are five standard errors."""
    summary = run(
        tmp_path, "r", "steps=8", "rollout.problems=16", "evaluation.problems=200", "evaluation.harder_problems=0",
        "evaluation.greedy=false", "optimizer.learning_rate=3e-4", recipe=f"{recipe}.yaml",
    )  # fmt: skip
    assert summary.difference["test"]["sampled"]["change"] > 0.15
    assert summary.difference["test"]["sampled"]["low"] > 0
    gaps = [row["sampling/sampling_logp_difference/max"] for row in metrics(summary)]
    assert max(gaps) < 1e-4
    # an update of nothing but groups without a signal moves nothing
    assert sum(row["update/applied_fraction"] for row in metrics(summary)) / 8 > 0.8


def test_a_run_repeats_bit_for_bit_and_the_seed_matters(plain: TrainSummary, tmp_path: Path) -> None:
    assert same(plain, run(tmp_path, "b", *SMALL))
    assert not same(plain, run(tmp_path, "c", *SMALL, "seed=1"))


def test_what_is_only_looked_at_changes_nothing(plain: TrainSummary, tmp_path: Path) -> None:
    """Evaluation, stored rollouts and shown samples leave weights bitwise equal; slots leave the tokens equal."""
    watched = run(tmp_path, "b", *SMALL, "evaluation.every=1", "log.samples_every=1", "log.rollouts=false")
    assert same(plain, watched)
    narrow = run(tmp_path, "c", *SMALL, "steps=1", "rollout.slots=3", "optimizer.learning_rate=1e-12")
    wide = run(tmp_path, "d", *SMALL, "steps=1", "optimizer.learning_rate=1e-12")
    texts = [
        [
            json.loads(line)["text"]
            for line in (Path(s.run) / "rollouts" / "step-00000001.jsonl").read_text().splitlines()
        ]
        for s in (narrow, wide)
    ]
    assert texts[0] == texts[1]


def test_a_token_budget_ends_the_run_and_changes_nothing_before(tmp_path: Path) -> None:
    whole = run(tmp_path, "a", *SMALL, "evaluation.every=1")
    after_two = int(metrics(whole)[1]["num_tokens"])
    step = after_two // 2
    for name, budget in (("b", after_two), ("c", after_two + step // 10), ("d", after_two - step // 10)):
        short = run(tmp_path, name, *SMALL, f"max_tokens={budget}", "evaluation.every=1", "log.model=false")
        assert (short.steps, short.tokens_generated) == (2, after_two)
        assert not (Path(short.run) / "final").exists()
        assert sorted(p.stem for p in (Path(short.run) / "evals").glob("*.json"))[-1] == "step-00000002"
    assert [m["loss"] for m in metrics(short)] == [m["loss"] for m in metrics(whole)][:2]


def test_the_fingerprint_is_that_of_the_weights(plain: TrainSummary, tmp_path: Path) -> None:
    second = run(tmp_path, "b", *SMALL, "optimizer.learning_rate=2.00001e-4")
    assert not same(plain, second)
    assert plain.weights != second.weights
    again = load_policy(ModelConfig(path=str(Path(plain.run) / "final")), seed=0)
    assert digest(again.trainable.items()) == plain.weights


def test_a_diverged_run_says_so_in_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimrl.learner.learner.surrogate", lambda *a, **_: a[1] * float("nan"))
    with pytest.raises(DivergedError, match=r"3 steps in a row, up to step 6, .* after one roll-back already"):
        run(tmp_path, "a", *SMALL, "steps=9")
    state = json.loads((tmp_path / "a" / "run.json").read_text())
    assert state["status"] == "diverged"
    events = [json.loads(line) for line in (tmp_path / "a" / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["fault"] * 3 + ["rolled back"] + ["fault"] * 3 + ["diverged"]
    assert {event["what"] for event in events if event["event"] == "fault"} == {"the loss is nan"}


def test_clip_bounds_are_bitwise_inert_with_one_update_and_said_to_be(plain: TrainSummary, tmp_path: Path) -> None:
    second = run(tmp_path, "b", *SMALL, "algorithm.clip_high=0.28")
    assert same(plain, second)
    assert any(sentence.startswith("algorithm.clip_low and clip_high") for sentence in second.inert)
    third = run(tmp_path, "c", *SMALL, "algorithm.clip_high=0.28", "optimizer.minibatches=2", "seed=1")
    assert not any(sentence.startswith("algorithm.clip_low") for sentence in third.inert)


def test_dynamic_sampling_trains_on_groups_with_a_signal_only(tmp_path: Path) -> None:
    summary = run(tmp_path, "a", *SMALL, recipe="dapo.yaml")
    for step, row in enumerate(metrics(summary), start=1):
        assert row["sampling/groups"] <= 12
        assert row["sampling/trained_groups"] + row["sampling/surplus_groups"] >= 1
        rows = [
            json.loads(line)
            for line in (Path(summary.run) / "rollouts" / f"step-{step:08d}.jsonl").read_text().splitlines()
        ]
        trained: dict[str, set[bool]] = {}
        for r in rows:
            if r["trained"]:
                trained.setdefault(r["id"], set()).add(r["correct"])
        assert all(verdicts == {True, False} for verdicts in trained.values())
        assert len(trained) == row["sampling/trained_groups"]


def test_nothing_to_learn_is_no_update_and_is_said(tmp_path: Path, tiny_folder: Path) -> None:
    summary = run(tmp_path, "a", *SMALL, f"model.path={tiny_folder}", "algorithm.dynamic_sampling=refill")
    assert all(row["update/skipped"] == 1 for row in metrics(summary))
    before, after = load_file(tiny_folder / "model.safetensors"), weights(summary)
    assert all(torch.equal(before[key], after[key]) for key in after)


def test_bfloat16_module_with_float32_masters_learns_too(tmp_path: Path) -> None:
    summary = run(tmp_path, "a", *SMALL, "model.dtype=bfloat16", "optimizer.learning_rate=1e-3")
    assert {str(t.dtype) for t in weights(summary).values()} == {"torch.bfloat16"}
    assert 0 < metrics(summary)[0]["update/applied_fraction"] < 1
