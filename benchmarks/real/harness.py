"""GSM8K by lm-evaluation-harness and by SlimRL, problem by problem: the same model, prompts and budget, greedily.

python harness.py MODEL DATA ROWS --instruction TEXT --max-new-tokens 512 --problems 200 --work FOLDER

Runs in an environment that has `lm_eval`, and imports nothing of SlimRL. DATA is the test split of GSM8K, JSONL or Parquet; ROWS
is what this left on the same file, in float32 as the harness runs here:

slimrl eval MODEL --task recipes/eval/gsm8k.yaml task.path=TRAIN task.test_path=DATA model.dtype=float32 evaluation.samples=1
    evaluation.problems=200 --out ROWS

The harness's task is its own `gsm8k`, read from the installed package and written to FOLDER with four changes: local data, no
examples, the bare question under the chat template with SlimRL's instruction as system message, and the budget. Filters, stop
texts and the metric stay: `strict-match` is set beside strict accuracy, `flexible-extract` beside lenient accuracy. Two
comparisons are made: of the verdicts end to end, and of both graders on SlimRL's texts, where sampling can make no difference.
Each disagreement is printed with its cause.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter
from lm_eval.tasks import TaskManager

TASK = "gsm8k_as_slimrl"
OWN = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
PAIRS = {"strict-match": "strict", "flexible-extract": "lenient"}
"""The verdict of SlimRL that is set beside each filter of the harness."""
SHOWN = 70
"""Characters of a text that a disagreement shows."""


@dataclass(frozen=True)
class Verdict:
    """One problem under one filter, and under SlimRL's verdict of the same kind."""

    id: str
    filter: str
    ours: bool
    theirs: bool
    """End to end, on the harness's own completion."""
    theirs_on_our_text: bool
    same_text: bool
    our_answer: str
    their_answer: str
    their_answer_on_our_text: str
    gold: str
    cause: str
    """Of each difference; empty where there is none."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("data", type=Path, help="GSM8K's test split, JSONL or Parquet")
    parser.add_argument("rows", type=Path, help="what slimrl eval --out wrote, with greedy completions")
    parser.add_argument(
        "--instruction", required=True, help="the system message that slimrl eval used; empty sends none"
    )
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--problems", type=int, required=True, help="the first N of the data")
    parser.add_argument("--work", type=Path, required=True, help="folder of the task, of answers and of results")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def write_task(given: argparse.Namespace) -> dict[str, Any]:
    """The harness's task with local data and SlimRL's prompt, as a file of the work folder."""
    task = yaml.safe_load(OWN.read_text(encoding="utf-8"))
    for key in ("tag", "dataset_name", "training_split", "fewshot_split"):
        task.pop(key, None)
    task |= {
        "task": TASK,
        "dataset_path": "parquet" if given.data.suffix == ".parquet" else "json",
        "dataset_kwargs": {"data_files": {"test": str(given.data.resolve())}},
        "doc_to_text": "{{question}}",
        "num_fewshot": 0,
    }
    # transformers takes a penalty from the model's own generation config, greedy or not
    task["generation_kwargs"] |= {"max_gen_toks": given.max_new_tokens, "repetition_penalty": 1.0}
    given.work.mkdir(parents=True, exist_ok=True)
    (given.work / f"{TASK}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
    return dict(task)


def harness_samples(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The harness's record of every problem under every filter."""
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": given.model, "dtype": given.dtype},
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(given.work), include_defaults=False),
        batch_size=given.batch,
        device=given.device,
        limit=given.problems,
        system_instruction=given.instruction or None,
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    assert found is not None
    return list(found["samples"][TASK])


def graded(task: Mapping[str, Any], name: str, text: str, target: str) -> tuple[bool, str]:
    """The harness's verdict on a text under a filter, and the answer that it found."""
    (steps,) = [entry["filter"] for entry in task["filter_list"] if entry["name"] == name]
    (regex,) = [{k: v for k, v in step.items() if k != "function"} for step in steps if step["function"] == "regex"]
    answer = next(iter(RegexFilter(**regex).apply([[text]], [{}])))[0]
    (metric,) = task["metric_list"]
    rules = {key: metric[key] for key in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
    return bool(exact_match_hf_evaluate([answer], [target], **rules)["exact_match"]), answer


def grading(ours: str, theirs: str) -> str:
    """The reason why two graders differ on one text, given the answers that they found in it."""
    if theirs == "[invalid]":
        return "grading: the harness finds no answer"
    if not ours:
        return "grading: SlimRL finds no answer"
    return f"grading: {'the answers are compared differently' if ours == theirs else 'they take different answers'}"


def sampling(mine: str, text: str, until: Sequence[str]) -> str:
    """The place where the harness's `text` differs from SlimRL's, or the rule by which it ends earlier."""
    at = next((i for i, (a, b) in enumerate(zip(mine, text, strict=False)) if a != b), min(len(mine), len(text)))
    stop = next((one for one in until if mine[len(text) :].startswith(one)), "") if mine.startswith(text) else ""
    return (
        f"sampling: {f'the harness stops at {stop!r}' if stop else f'the texts part at character {at} of {len(mine)}'}"
    )


def compare(given: argparse.Namespace, task: Mapping[str, Any]) -> list[Verdict]:
    """Both sides of every problem that both have. Raises SystemExit where they share none."""
    lines = [json.loads(line) for line in given.rows.read_text(encoding="utf-8").splitlines()]
    ours = {
        row["question"].strip(): row for row in lines if row["mode"] == "greedy" and row.get("split", "test") == "test"
    }
    verdicts = []
    for sample in harness_samples(given):
        row = ours.get(sample["doc"]["question"].strip())
        if row is None:
            continue
        name, text, target = sample["filter"], sample["resps"][0][0], sample["target"]
        verdict, theirs = bool(row[PAIRS[name]]), bool(sample["exact_match"])
        on_ours, answer = graded(task, name, row["text"], target)
        same, found = row["text"].strip() == text.strip(), row[f"extracted_{PAIRS[name]}"]
        why = [] if same or verdict == theirs else [sampling(row["text"], text, task["generation_kwargs"]["until"])]
        why += [] if verdict == on_ours else [grading(found, answer)]
        verdicts.append(
            Verdict(
                row["id"], name, verdict, theirs, on_ours, same,
                found, sample["filtered_resps"][0], answer, row["answer"], "; ".join(why),
            )
        )  # fmt: skip
    if not verdicts:
        raise SystemExit(f"{given.rows} and {given.data} share no problem; give the rows of slimrl eval on this file")
    return verdicts


def show(verdicts: Sequence[Verdict]) -> None:
    """Both comparisons as tables, and every disagreement."""
    total = len({one.id for one in verdicts})
    same = len({one.id for one in verdicts if one.same_text})
    print(f"{total} problems; texts equal on {same}")
    print(
        "| filter | verdict | both right | both wrong | only SlimRL | only the harness | the same on SlimRL's texts |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, kind in PAIRS.items():
        own = [one for one in verdicts if one.filter == name]
        pairs = Counter((one.ours, one.theirs) for one in own)
        on_ours = sum(one.ours == one.theirs_on_our_text for one in own)
        counts = [pairs[True, True], pairs[False, False], pairs[True, False], pairs[False, True]]
        print(f"| {name} | {kind} | {' | '.join(map(str, counts))} | {on_ours} of {len(own)} |")
    for one in verdicts:
        if one.ours != one.theirs or one.ours != one.theirs_on_our_text:
            print(
                f"\n{one.id} {one.filter}: SlimRL {one.ours} ({one.our_answer[:SHOWN]!r}), harness {one.theirs} "
                f"({one.their_answer[:SHOWN]!r}), harness on SlimRL's text {one.theirs_on_our_text} "
                f"({one.their_answer_on_our_text[:SHOWN]!r}), gold {one.gold!r}\n  {one.cause}"
            )


def main() -> None:
    given = options()
    task = write_task(given)
    verdicts = compare(given, task)
    show(verdicts)
    versions = {name: metadata.version(name) for name in ("lm_eval", "torch", "transformers")}
    result = {"versions": versions, "task": task, "verdicts": [asdict(one) for one in verdicts]}
    (given.work / "agreement.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
