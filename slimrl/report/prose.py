"""The sentences of a study's report: the answer, its uncertainty, and the meaning of the columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from slimrl.report.tables import NOISE, SYMBOLS, one_to_one, ordered_effects
from slimrl.statistics import FEWEST_SEEDS
from slimrl.study.compare import Effect
from slimrl.study.primary import read_primary
from slimrl.study.results import Results, fewest_seeds
from slimrl.text import counted, points

MOST_NAMES = 6
"""In a sentence."""
SPLITS = {
    "test": "held-out test problems",
    "harder": "held-out problems with one more step",
    "twins": "twins of held-out test problems",
}
MODES = {"sampled": "completions sampled as in training", "greedy": "greedy completions"}
DESIGNS = {
    "one_at_a_time": "Each switch alone is compared with {reference}",
    "leave_one_out": "All switches together are compared with all but one",
    "factorial": "Every combination of the switches is run, and an effect is averaged over the others' settings",
}


GAINS = (
    "Each run against its own untrained model, on the same problems and draws, with 95 % intervals over seeds. By form is the "
    "strict gain less the lenient one. Sharpening makes single samples right more often; what is new is right within all "
    "samples of a problem where none was. With few samples a problem sharpening raises that too."
)
"""Explains the table of gains."""


def lead(results: Results) -> str:
    """The design and the measure, in words."""
    design = DESIGNS[results.design].format(reference=results.reference)
    seeds = counted(results.seeds, "seed")
    return f"{design}. Measured by {measure(results.primary)}. {seeds} per arm, {results.budget}."


def answer(results: Results) -> tuple[str, ...]:
    """The findings, by the verdicts on the switches; the first sentence has the changes."""
    effects, noun = ordered_effects(results), read_primary(results.primary).noun
    switches = [effect for effect in effects if effect.kind == "switch"]
    if not switches:
        return ("No switch was tried: the runs of the same settings show the noise.",)
    if not any(effect.difference.n for effect in switches):
        return ("Nothing can be said yet: no switch has a finished run to compare with one of the reference.",)
    by = {verdict: [e for e in switches if e.judgement.verdict == verdict] for verdict in SYMBOLS}
    words = {"no difference": f"No difference above {points(results.margin)}"}
    words |= {"identical": "Identical to the last bit", "undecided": "Undecided"}
    rest = [
        f"{text}: {listed(effect.name for effect in by[verdict])}" for verdict, text in words.items() if by[verdict]
    ]
    changed = [*by["better"], *by["worse"]]
    if changed:
        first = _changes(by["better"], by["worse"], len(switches), noun)
    elif len(by["undecided"]) == len(switches):
        seeds = counted(results.seeds, "seed")
        first = f"Nothing is decided: with {seeds} a change of {noun} is neither shown nor ruled out"
    else:
        subject = "The switch is not" if len(switches) == 1 else f"None of {len(switches)} switches is"
        first = f"{subject} shown to change {noun}"
    small = [effect.name for effect in changed if abs(effect.difference.mean) < results.margin]
    mixed = [arm.name for arm in results.arms if "confounded" in {kind for kind, _ in arm.remarks}]
    doubtful = [effect.name for effect in changed if one_to_one(results) and effect.name in mixed]
    doubts = []
    if small:
        doubts.append(f"Of these, by less than the margin of {points(results.margin)}: {listed(small)}")
    if doubtful:
        doubts.append(f"Of these, with more than one change (see the remarks): {listed(doubtful)}")
    together = [f"All switches together: {e.judgement.words}" for e in effects if e.kind == "together"]
    interactions = [
        f"{e.name}: both together give {points(abs(e.difference.mean))} {'more' if e.difference.mean > 0 else 'less'} than the "
        "sum of each"
        for e in effects
        if e.kind == "interaction" and e.judgement.verdict in ("better", "worse")
    ]
    return tuple(f"{sentence}." for sentence in (first, *doubts, *rest, *together, *interactions))


def _changes(better: Sequence[Effect], worse: Sequence[Effect], total: int, noun: str) -> str:
    """The first sentence of the answer if a switch changes something."""
    parts: list[str] = []
    for effects, verb in ((better, "raise"), (worse, "lower")):
        if effects:
            subject = "The switch" if total == 1 else f"{len(effects)} of {total}{'' if parts else ' switches'}"
            sizes = listed(f"{effect.name} by {points(abs(effect.difference.mean))}" for effect in effects)
            what = "it" if parts else noun
            parts.append(f"{subject} {verb}{'s' if len(effects) == 1 else ''} {what}: {sizes}")
    return "; ".join(parts)


def notices(results: Results) -> dict[str, str]:
    """Reasons for caution: a sentence by its word."""
    found = {}
    if results.exploratory:
        fewest = fewest_seeds(results.effects, results.seeds)
        seeds = f"{fewest} of " * (fewest < results.seeds) + counted(results.seeds, "seed")
        found["Exploratory"] = f"{seeds} per arm, fewer than {FEWEST_SEEDS}: a hint, not evidence."
    if not results.complete:
        missing = sum(not run.counts for run in results.runs)
        found["Incomplete"] = f"{missing} of {len(results.runs)} runs have no result yet, so every figure may change."
    return found


def facts(results: Results) -> dict[str, tuple[str, str]]:
    """The uncertainty of the answer: figure and meaning by title."""
    finished, diverged = (sum(run.status == status for run in results.runs) for status in ("finished", "diverged"))
    noise = (
        f"Two sets of {_repeats(results)} runs with the same settings differ by less than this in 95 of 100 studies."
    )
    found = "4 of 5 such studies find a true difference of this size. "
    found += "Smaller ones may be missed, and one half as large usually is."
    margin = "Differences smaller than this do not matter; declared before the first run."
    left_out = f"{diverged or 'None'} diverged{f', which counts as {_lost(results)}' if diverged else ''}."
    return {
        "Seeds": (f"{results.seeds} per arm", "Training runs of each arm; they differ only in the random seed."),
        "Noise floor": (floor(results), noise),
        "Can be found": (points(results.detectable), found),
        "Margin": (points(results.margin), margin),
        "Runs finished": (f"{finished} of {len(results.runs)}", left_out),
    }


def _lost(results: Results) -> str:
    """The result of a run that diverged, in words."""
    return "no answer right" if read_primary(results.primary).is_share else "the lowest score of the reward"


def legend(results: Results) -> dict[str, str]:
    """The meaning of each column of the verdict tables, by title."""
    return {
        "Arm": "One set of settings, trained once for each seed; below its name stands what it changes.",
        **_measured(results.primary),
        "Difference": f"{'Accuracy' if read_primary(results.primary).is_share else 'Score'} of the arm less that of the "
        "reference with the same seed, as a mean over seeds, in points (hundredths). With the same seed arms get the same "
        "problems and random draws. The A/A arm has seeds of its own, and its runs are paired with the reference's in order. In "
        "brackets Student's 95 % interval over seeds.",
        "Verdict": "Better or worse: p is below 0.05, even where the difference is small. No difference: the whole interval lies "
        f"within the margin of {points(results.margin)}. Undecided: neither of these. The training reward plays no part.",
        "p (Holm)": "How often chance alone would give such a difference, adjusted by Holm's method for the number of switches "
        "that were tried. The A/A arm and all switches together stand outside of it.",
        "Over problems": "95 % interval of the same difference over held-out problems: how far it would change if the same "
        "trained models were tested on other problems. Seeds in which a run diverged are left out.",
        "Chance of improvement": "How often a run of the arm beats a run of the other, over all pairs of seeds, ties counted "
        "half; 50 % is none.",
        "Noise floor": "In 95 of 100 studies two sets of runs with the same settings and different seeds differ by less than "
        "this. It follows from the spread of the reference and of its A/A arm, which repeats the reference with other seeds.",
        "Tokens, seconds": "Sampled in training, and spent in training without set-up and evaluation, as a multiple of the "
        "reference's; seconds depend on what else the machine did, as the A/A arm shows.",
        "Seeds": f"Runs finished of runs planned. One that diverged counts as {_lost(results)}; it is never left out.",
    }


def _measured(primary: str) -> dict[str, str]:
    """The legend of the column of the primary measure."""
    found = read_primary(primary)
    if found.reward:
        return {
            found.reward: f"{measure(primary).capitalize()} ({primary}), times 100, with its 95 % interval over seeds."
        }
    text = f"Share right, in the form asked for (strict), of {SPLITS[found.split]}, {MODES[found.mode]} ({primary}), with its "
    return {"Accuracy": f"{text}95 % interval over seeds."}


def measure(primary: str) -> str:
    """The primary measure in words."""
    found = read_primary(primary)
    what = f"the mean score of the reward {found.reward}" if found.reward else "accuracy"
    return f"{what} on {SPLITS[found.split]}, {MODES[found.mode]}"


def curve(primary: str) -> str:
    """The training curve that goes with the primary measure."""
    reward = read_primary(primary).reward
    return (
        f"mean score of the reward {reward} in training"
        if reward
        else "share of sampled training completions that are right"
    )


def _repeats(results: Results) -> int:
    """The runs of a set that the noise floor is about: those of the reference or of its A/A arm, whichever are fewer."""
    twins = {results.reference, *(effect.name for effect in results.effects if effect.kind == NOISE)}
    counted = [arm.finished + arm.diverged for arm in results.arms if arm.name in twins]
    return min((n for n in counted if n > 1), default=results.seeds)


def floor(results: Results) -> str:
    """The noise floor in words."""
    return f"± {points(results.noise.floor)}" if math.isfinite(results.noise.floor) else "unknown"


def listed(names: Iterable[str], most: int = MOST_NAMES) -> str:
    """Names in a sentence, at most the first few of them."""
    all_names = list(names)
    shown = all_names if len(all_names) <= most + 1 else [*all_names[:most], f"{len(all_names) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
