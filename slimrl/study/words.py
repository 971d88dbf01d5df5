"""What a study's report says in sentences: the answer, how sure it is, and what the columns mean."""

from __future__ import annotations

import math
from collections.abc import Iterable

from slimrl.study.results import Effect, Results
from slimrl.study.statistics import FEWEST_SEEDS
from slimrl.study.tables import SYMBOLS, one_to_one, ordered_effects, percent

MOST_NAMES = 6
"""Of a list within a sentence."""
SPLITS = {"test": "held-out test problems", "harder": "held-out problems with one more step"}
MODES = {"sampled": "completions sampled as in training", "greedy": "greedy completions"}
DESIGNS = {
    "one_at_a_time": "Each switch alone is compared with {reference}",
    "leave_one_out": "All switches together are compared with all but one",
    "factorial": "Every combination of the switches is run, and an effect is averaged over the others' settings",
}


def lead(results: Results) -> str:
    """What was compared, in a sentence."""
    design = DESIGNS[results.design].format(reference=results.reference)
    return f"{design}. Measured by accuracy on {measure(results.primary)}. {_seeds(results.seeds)} per arm, {results.budget}."


def answer(results: Results) -> tuple[str, ...]:
    """What was found, from the verdicts on the switches alone; the first sentence says most of it."""
    effects = ordered_effects(results)
    switches = [effect for effect in effects if effect.kind == "switch"]
    if not any(effect.difference.n for effect in switches):
        return ("Nothing can be said yet: no switch has a finished run to compare with one of the reference.",)
    by = {verdict: [e for e in switches if e.judgement.verdict == verdict] for verdict in SYMBOLS}
    decided = [
        f"{_subject(len(by[verdict]), len(switches), verb)} held-out accuracy: {listed(_sized(e, results) for e in by[verdict])}"
        for verdict, verb in (("better", "raise"), ("worse", "lower"))
        if by[verdict]
    ]
    rest = [
        f"{verdict}: {listed(effect.name for effect in by[key])}"
        for key, verdict in (
            ("no difference", f"No difference above {points(results.margin)}"),
            ("identical", "Identical to the last bit"),
            ("undecided", "Undecided"),
        )
        if by[key]
    ]
    if decided:
        first = "; ".join(decided)
    elif len(by["undecided"]) == len(switches):
        first = (
            f"Nothing is decided: {_seeds(results.seeds)} neither show a change of held-out accuracy nor rule one out"
        )
    else:
        subject = "The switch is not" if len(switches) == 1 else f"None of {len(switches)} switches is"
        first = f"{subject} shown to change held-out accuracy"
    together = [f"All switches together: {e.judgement.words}" for e in effects if e.kind == "together"]
    interactions = [
        f"{e.name}: both together give {points(abs(e.difference.mean))} {'more' if e.difference.mean > 0 else 'less'} than the "
        "sum of each"
        for e in effects
        if e.kind == "interaction" and e.judgement.verdict in ("better", "worse")
    ]
    return tuple(f"{sentence}." for sentence in (first, *rest, *together, *interactions))


def _subject(number: int, total: int, verb: str) -> str:
    subject = "The switch" if total == 1 else f"{number} of {total} switches"
    return f"{subject} {verb}{'s' if number == 1 else ''}"


def _sized(effect: Effect, results: Results) -> str:
    kinds = {kind for arm in results.arms if arm.name == effect.name for kind, _ in arm.remarks}
    doubt = " (but see its remarks)" if one_to_one(results) and "confounded" in kinds else ""
    return f"{effect.name} by {points(abs(effect.difference.mean))}{doubt}"


def notices(results: Results) -> tuple[tuple[str, str], ...]:
    """Why to hold back: a word, and a sentence."""
    found = []
    if results.exploratory:
        found.append(
            ("Exploratory", f"{_seeds(results.seeds)} per arm, fewer than {FEWEST_SEEDS}: a hint, not evidence.")
        )
    missing = sum(not run.counts for run in results.runs)
    if not results.complete:
        found.append(
            ("Incomplete", f"{missing} of {len(results.runs)} runs have no result yet, so every figure may change.")
        )
    return tuple(found)


def facts(results: Results) -> tuple[tuple[str, str, str], ...]:
    """How sure the answer is: title, figure, meaning."""
    finished, diverged = (sum(run.status == status for run in results.runs) for status in ("finished", "diverged"))
    return (
        ("Seeds", f"{results.seeds} per arm", "Training runs of an arm, which differ in chance alone."),
        (
            "Noise floor",
            floor(results),
            f"Two sets of {results.seeds} runs with the same settings differ by less in 95 of 100 studies.",
        ),
        (
            "Can be found",
            points(results.detectable),
            "A true difference of this size shows in 4 of 5 such studies; smaller ones mostly go unseen.",
        ),
        ("Margin", points(results.margin), "Smaller differences do not matter; declared before the first run."),
        (
            "Runs finished",
            f"{finished} of {len(results.runs)}",
            f"{diverged or 'None'} diverged{', which counts as no answer right' if diverged else ''}.",
        ),
    )


def legend(results: Results) -> tuple[tuple[str, str], ...]:
    """Each column of the verdict table, once."""
    split = f"{results.seeds} training seeds"
    return (
        ("Arm", "One set of settings, trained once for each seed; below its name stands what it changes."),
        (
            "Accuracy",
            f"Share right, in the form asked for (strict), of {measure(results.primary)} ({results.primary}), with its 95 % "
            "interval over seeds.",
        ),
        (
            "Difference",
            "Mean over seeds of the difference within each seed, in points (hundredths of accuracy). Arms share problems and "
            f"draws within a seed, so the unit is the seed, not the problem. In brackets Student's 95 % interval over {split}.",
        ),
        (
            "Verdict",
            "Better or worse: p below 0.05. No difference: the whole interval lies within the margin of "
            f"{percent(results.margin)} points. Undecided: neither. Never drawn from the training reward.",
        ),
        (
            "p (Holm)",
            "How often chance alone would give such a difference, adjusted by Holm's method for the number of switches that "
            "were tried. The A/A arm and all switches together stand outside of it.",
        ),
        (
            "Over problems",
            "95 % interval of the same difference if other problems had been drawn for these same runs.",
        ),
        (
            "Chance of improvement",
            "How often a run of the arm beats a run of the other, over all pairs of seeds, ties counted half; 50 % is none.",
        ),
        (
            "Noise floor",
            "By how much two sets of runs with the same settings and other seeds differ at most in 95 of 100 studies, from the "
            "spread of the reference and its A/A arm, which repeats the reference with other seeds.",
        ),
        (
            "Tokens, seconds",
            "Sampled in training, and spent in training without set-up and evaluation, as a multiple of the reference's.",
        ),
        ("Seeds", "Runs finished of runs planned. One that diverged counts as no answer right; it is never left out."),
    )


def measure(primary: str) -> str:
    """The primary measure in words."""
    split, mode = primary.split("/")
    return f"{SPLITS[split]}, {MODES[mode]}"


def floor(results: Results) -> str:
    """The noise floor in words."""
    return f"± {points(results.noise.floor)}" if math.isfinite(results.noise.floor) else "unknown"


def points(difference: float) -> str:
    """A difference of shares without its sign."""
    return f"{percent(difference)} points" if math.isfinite(difference) else "unknown"


def listed(names: Iterable[str], most: int = MOST_NAMES) -> str:
    """Names in a sentence, the first of many."""
    all_names = list(names)
    shown = all_names if len(all_names) <= most + 1 else [*all_names[:most], f"{len(all_names) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _seeds(n: int) -> str:
    return f"{n} seed{'s' if n != 1 else ''}"
