"""Results of studies that nobody ran: made by hand from known effects, quickly, and the same every time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from slimrl import statistics
from slimrl.config.files import settings_of
from slimrl.study.compare import ArmResult, Noise, compare
from slimrl.study.results import Results
from slimrl.study.runs import CURVES, Outcome, Run
from slimrl.study.spec import Arm, Expanded, Study, expand

PRIMARY = "test/sampled"
LINES = {
    "no-kl": "algorithm.kl_coef=0.0",
    "clip_higher": "algorithm.clip_high=0.28",
    "token_mean": "algorithm.aggregation=token_mean",
    "no_std": "algorithm.scale_rewards=none",
    "overlong": "algorithm.overlong_filtering=true",
    "format": "rewards.format=0.5",
    "slow": "optimizer.learning_rate=0.00002",
    "decay": "optimizer.weight_decay=0.1",
    "beta2": "optimizer.beta2=0.999",
    "small_groups": "rollout.group_size=4",
}
"""Ten arms, of which the others take as many as they need."""
EFFECTS = {"no-kl": 0.045, "token_mean": 0.002, "no_std": 0.02, "slow": -0.11, "small_groups": -0.03, "format": 0.03}
"""Accuracy that an arm adds; 0 for others. `clip_higher` changes nothing, to the last bit."""
QUESTION = "Which parts of GRPO help a small model to do sums?"


def make_results(
    lines: Mapping[str, str] = LINES,
    *,
    design: str = "one_at_a_time",
    seeds: int = 5,
    steps: int = 30,
    status: Mapping[tuple[str, int], Outcome] | None = None,
    unmeasured: Mapping[str, Collection[str]] | None = None,
    spread: float = 0.012,
) -> Results:
    """A study of these arms; `status` of runs by arm and seed index (else finished), curves that an arm lacks by arm."""
    study = Study.model_validate({"question": QUESTION, "arms": dict(lines), "design": design, "seeds": seeds})
    arms, comparisons, reference = expand(study, {}, {})
    expanded = Expanded("synthetic", "synthetic.yaml", study, arms, comparisons, reference)
    known = status or {}
    runs = {
        arm.name: [
            make_run(arm, i, steps, known.get((arm.name, i), "finished"), (unmeasured or {}).get(arm.name, ()), spread)
            for i in range(seeds)
        ]
        for arm in arms
    }
    effects = compare(expanded, runs)
    every = [run for arm in arms for run in runs[arm.name]]
    return Results(
        name=expanded.name,
        question=study.question,
        design=study.design,
        primary=study.primary,
        margin=study.margin,
        budget="equal steps",
        reference=reference,
        seeds=seeds,
        exploratory=seeds < statistics.FEWEST_SEEDS,
        complete=all(run.counts for run in every),
        arms=tuple(_over_seeds(arm, runs[arm.name]) for arm in arms),
        effects=effects,
        noise=_noise([*runs[reference], *runs[f"{reference}_again"]], seeds),
        detectable=statistics.detectable_effect(seeds, spread, expanded.tested),
        cannot_tell=(
            "True differences below about 2.6 points would mostly go unseen.",
            "One model (builtin), one task (arithmetic), one learning rate (0.0002) and one batch size: nothing follows for others.",
        ),
        samples=_samples([arm for arm in arms if not arm.is_repeat and runs[arm.name][0].status == "finished"]),
        settings=settings_of(expanded.arm(reference).config),
        versions={"slimrl": "0.1.0", "torch": "2.11.0", "device": "cpu"},
        runs=tuple(every),
    )


def make_run(
    arm: Arm,
    index: int,
    steps: int,
    status: Outcome = "finished",
    unmeasured: Collection[str] = (),
    spread: float = 0.012,
) -> Run:
    """A run whose figures follow from the arm's name and the seed."""
    random = np.random.default_rng([index, *_key(arm).encode()])
    end = 0.55 + sum(EFFECTS.get(part, 0.0) for part in _parts(arm.name)) + random.normal(0, spread)
    ran = {"finished": steps, "diverged": max(1, steps // 3)}.get(status, 0)
    step = np.arange(1, ran + 1)
    rise = 1 - np.exp(-3 * step / max(steps, 1))
    length = 24 - 6 * rise + random.normal(0, 0.4, ran)
    curves: dict[str, Any] = {
        "step": step.astype(float),
        "tokens": np.cumsum(256 * length),
        "seconds": np.cumsum(0.004 * length * 256 / 8 + random.random(ran)),
        "accuracy": 0.2 + (end - 0.2) * rise + random.normal(0, 0.02, ran),
        "length": length,
        "truncated": 0.3 * (1 - rise),
        "entropy": 0.9 - 0.5 * rise + random.normal(0, 0.02, ran),
        "kl": 0.05 * rise + random.normal(0, 0.001, ran),
        "reward": 0.2 + (end - 0.2) * rise,
        "no_signal": 0.3 + 0.3 * rise,
    }
    assert {*CURVES} <= {*curves}
    curves = {k: [math.nan] * ran if k in unmeasured else [float(x) for x in v] for k, v in curves.items()}
    before = {PRIMARY: 0.2, "test/greedy": 0.22, "lenient": 0.26, "format": 0.6, "truncated": 0.3, "mean_length": 24.0}
    right = end
    after = {
        PRIMARY: end,
        "test/greedy": end + 0.02,
        "lenient": end + 0.02,
        "format": 0.9,
        "truncated": 0.02,
        "mean_length": 18.5,
        "right": right,
        "right_out_of_form": end + 0.02 - right,
        "wrong_in_form": 0.9 - right,
        "wrong_out_of_form": 0.1 - (end + 0.02 - right),
    }
    middle = ran // 2
    held_out = [(0.0, 0.0, 0.2)]
    if ran > 2:
        held_out.append((curves["tokens"][middle], curves["seconds"][middle], 0.2 + 0.75 * (end - 0.2)))
        held_out.append((curves["tokens"][-1], curves["seconds"][-1], end))
    draws = random.random(60)
    done = status == "finished"
    return Run(
        arm=arm.name,
        index=index,
        seed=arm.seed(index),
        status=status,
        reason={"diverged": "loss is not a number at step 10", "failed": "out of memory"}.get(status, ""),
        folder=f"runs/{arm.name}-{index}",
        steps=ran,
        tokens=int(curves["tokens"][-1]) if ran else 0,
        seconds=curves["seconds"][-1] if ran else 0.0,
        weights=hashlib.sha256(f"{_key(arm)} {index}".encode()).hexdigest() if done else "",
        before=before if ran else {},
        after=after if done else {},
        items={f"p{i}": float(draw < end) for i, draw in enumerate(draws)} if done else {},
        curves=curves,
        held_out=held_out if done else held_out[:1] if ran else [],
        confounded=(),
        inert=["rewards.format is paid in full by every completion"] if "format" in _parts(arm.name) and done else [],
    )


def _parts(name: str) -> list[str]:
    if name in ("all", "all_again") or name.startswith("without_"):
        return [part for part in LINES if part != name.removeprefix("without_")]
    return name.split("+")


def _key(arm: Arm) -> str:
    return "base" if arm.name == "clip_higher" else arm.name


def _over_seeds(arm: Arm, runs: Sequence[Run]) -> ArmResult:
    finished, counted = [r for r in runs if r.status == "finished"], [r for r in runs if r.counts]
    measures = {key: fmean(r.after[key] for r in finished) for key in (finished[0].after if finished else ())}
    if counted:
        measures |= {key: fmean(getattr(r, key) for r in counted) for key in ("tokens", "seconds", "steps")}
        measures["no_signal"] = fmean(x for r in counted for x in r.curves["no_signal"])
    return ArmResult(
        name=arm.name,
        overrides=arm.overrides,
        remarks=tuple((remark.kind, remark.text) for remark in arm.remarks),
        planned=len(runs),
        finished=len(finished),
        diverged=sum(r.status == "diverged" for r in runs),
        failed=sum(r.status == "failed" for r in runs),
        primary=statistics.interval([r.value(PRIMARY) for r in counted]),
        measures=measures,
    )


def _noise(runs: Sequence[Run], seeds: int) -> Noise:
    values = [run.value(PRIMARY) for run in runs if run.counts]
    if len(values) < 3:
        return Noise(math.nan, math.nan)
    sd = float(np.std(values, ddof=1))
    return Noise(sd, float(stats.t.ppf(0.975, len(values) - 1)) * sd * math.sqrt(2 / seeds))


def _samples(arms: Sequence[Arm]) -> tuple[Mapping[str, Any], ...]:
    def shown(text: str, right: bool, truncated: bool = False) -> dict[str, Any]:
        return {"text": text, "right": right, "truncated": truncated}

    return tuple(
        {
            "id": f"test-{i}",
            "question": f"Ann has {i} boxes of 7 pens and gives 3 pens away. How many pens are left?",
            "answer": str(7 * i - 3),
            "before": shown(f"{i} boxes of 7 pens. I think that it is about {i}{i}{i}" * 2, False, truncated=True),
            "after": {
                arm.name: shown(
                    f"{i}*7={7 * i}\n{7 * i}-3={7 * i - 3 + (n + i) % 3}\n#### {7 * i - 3 + (n + i) % 3}",
                    (n + i) % 3 == 0,
                )
                for n, arm in enumerate(arms)
            },
        }
        for i in (2, 5, 8, 11)
        if arms
    )


def renamed(results: Results, names: Mapping[str, str]) -> Results:
    """The same study with other arm names, such as the study's reader would refuse."""

    def new(name: str) -> str:
        return names.get(name, name)

    return replace(
        results,
        reference=new(results.reference),
        arms=tuple(replace(arm, name=new(arm.name)) for arm in results.arms),
        effects=tuple(
            replace(e, name=new(e.name), weights={new(arm): weight for arm, weight in e.weights.items()})
            for e in results.effects
        ),
        runs=tuple(replace(run, arm=new(run.arm)) for run in results.runs),
        samples=tuple({**s, "after": {new(arm): shown for arm, shown in s["after"].items()}} for s in results.samples),
    )
