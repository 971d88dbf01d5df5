"""Files of graded completions, as `slimrl eval --out`, `slimrl grade --out` and the evaluations of a run leave them."""

from __future__ import annotations

import json
from dataclasses import replace

from slimrl.measures import Bounds, both_bounds, read_bounds
from slimrl.results import MODES, GradedCompletion, Mode, SplitEvaluation
from slimrl.tasks.answers import Grader
from slimrl.tasks.rows import Row, plain
from slimrl.tasks.sources import read_rows
from slimrl.tasks.votes import votes

Key = tuple[str, str, Mode, str]
"""Task, split, mode, and the problem's id."""


def read_outputs(file: str) -> dict[tuple[str, str], SplitEvaluation]:
    """The completions of a file by task and split, which are empty and `test` where the rows do not say.

    Raises DataError, naming file:line, for a row without an id and a verdict, and for samples of one problem with different
    questions or gold answers.
    """
    samples: dict[Key, list[GradedCompletion]] = {}
    bounds: dict[tuple[str, str], dict[str, Bounds]] = {}
    unvoted: set[Key] = set()
    for row in read_rows(file):
        key, completion = _key(row), _completion(row)
        own = samples.setdefault(key, [])
        if own and (own[0].question, own[0].answer) != (completion.question, completion.answer):
            row.fail(
                f"id {key[3][:60]!r} stood for another question or answer before; give each problem an id of its own"
            )
        own.append(replace(completion, sample=len(own)))
        known = bounds.setdefault(key[:2], {})
        known |= {name: both_bounds(known.get(name, ends), ends) for name, ends in _bounds(row).items()}
        if "vote" not in row.fields:  # of a version before there were votes
            unvoted.add(key)
    for key in unvoted:
        found = votes(Grader("numeric"), [(one.extracted_strict, one.strict) for one in samples[key]])
        samples[key] = [replace(one, vote=vote) for one, vote in zip(samples[key], found.cast, strict=True)]
    splits: dict[tuple[str, str], list[GradedCompletion]] = {}
    for (task, split, _, _), own in samples.items():
        splits.setdefault((task, split), []).extend(own)
    return {key: SplitEvaluation(tuple(rows), bounds[key]) for key, rows in splits.items()}


def _key(row: Row) -> Key:
    mode = row.optional_text("mode") or "sampled"
    if mode not in MODES:
        row.fail(f"mode {mode[:20]!r} is neither sampled nor greedy")
    return row.optional_text("task"), row.optional_text("split") or "test", mode, row.answer("id")


def _completion(row: Row) -> GradedCompletion:
    """A row as evaluations have it; what verdicts alone do not say is empty."""
    strict, vote = plain(row.fields.get("strict")), plain(row.fields.get("vote"))
    if not isinstance(strict, bool):
        row.fail(
            "the row has no verdict (strict: true or false); score the file first: slimrl grade FILE --task NAME --out NEW"
        )
    if not (vote is None or isinstance(vote, int)):
        row.fail("vote is neither a whole number nor null; leave it out, and equal answers are found again")
    extracted = row.optional_text("extracted_strict")
    return GradedCompletion(
        id=row.answer("id"),
        mode=_key(row)[2],
        sample=0,
        strict=strict,
        lenient=bool(plain(row.fields.get("lenient"))),
        well_formed=bool(plain(row.fields.get("well_formed", extracted != ""))),
        finish=row.optional_text("finish"),
        tokens=int(row.number("tokens")),
        thinking=int(row.number("thinking")),
        question=row.optional_text("question"),
        answer=_gold(row),
        extracted_strict=extracted,
        extracted_lenient=row.optional_text("extracted_lenient"),
        text=row.optional_text("text"),
        vote=vote,
        uncompared=bool(plain(row.fields.get("uncompared"))),
        independent=_independent(row),
        scores=_scores(row),
        unscorable=row.optional_text("unscorable"),
        turns=int(row.number("turns")),
    )


def _independent(row: Row) -> bool | None:
    verdict = plain(row.fields.get("independent"))
    if not (verdict is None or isinstance(verdict, bool)):
        row.fail("independent is neither true, false nor null; correct it, or leave it out")
    return verdict


def _scores(row: Row) -> dict[str, float | None]:
    """The scores of rewards by name; empty where the row has none."""
    found = plain(row.fields.get("scores"))
    numbers = found.values() if isinstance(found, dict) else ()
    if not (found is None or isinstance(found, dict)) or not all(
        n is None or isinstance(n, int | float) for n in numbers
    ):
        row.fail("scores is no object of numbers by reward; correct it, or leave it out")
    return found or {}


def _bounds(row: Row) -> dict[str, Bounds]:
    """The bounds of the scores by reward; empty where the row has none."""
    try:
        return read_bounds(plain(row.fields.get("bounds")) or {})
    except (ValueError, TypeError, AttributeError):
        row.fail("bounds is no object of [lowest, highest] by reward, with null for one that is not known; correct it")


def _gold(row: Row) -> str:
    """The gold answer as text, by which two files are matched; several right answers as JSON."""
    value = plain(row.fields.get("answer"))
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else row.answer("answer")
