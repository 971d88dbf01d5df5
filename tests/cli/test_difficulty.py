"""`slimrl difficulty`: the file it writes, how it goes on, what it refuses, and that training reads it as docs/data.md says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from slimrl.cli.arguments import model_settings
from slimrl.errors import SettingsError
from tests.conftest import ROOT
from tests.session.test_resume import StopAt

ROWS = 24
FEW = ("task.path=sums.jsonl", "rollout.max_new_tokens=8")
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("## Difficulty, measured beforehand")[2]
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of problems that a model without training solves now and then: what it writes is right by its length."""
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(ROWS)]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    from slimrl.tasks import Task
    from slimrl.tasks.answers import Grade

    def by_length(_self: Task, text: str, answer: str) -> Grade:
        right = len(text) % 3 == int(answer) % 3
        return Grade(right, right, answer if right else "", "")

    monkeypatch.setattr(Task, "grade", by_length)
    return file


def lines(file: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def timeless(file: str | Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "date"} for line in lines(file)]


def test_rates_of_all_training_problems(slimrl, tiny_folder: Path) -> None:
    result = slimrl("difficulty", tiny_folder, *FEW, "--samples", 4, "--json")
    assert result.code == 0, result.err
    header, *rows = lines("rates-jsonl.jsonl")
    assert header["weights"]
    assert (header["task"], header["split"], header["samples"], header["template"]) == ("jsonl", "train", 4, "chat")
    assert (header["style"], header["checker"], header["temperature"]) == ("hashes", "numeric", 1.0)
    assert [*rows[0]] == ["id", "question", "right", "samples", "rate"]
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows), "in the order of the problems"
    found = json.loads(result.out)
    assert {*found} == {
        *re.findall(r"`(\w+)`", METRICS.partition("- `slimrl difficulty --json`:")[2].partition("\n- ")[0])
    }
    assert found["n"] == len(rows) == sum(found["histogram"])
    assert found["mean"] == pytest.approx(sum(row["right"] for row in rows) / (4 * len(rows)))
    assert 0 < found["mean"] < 1, "the rates say something"
    assert found["histogram"] == [sum(row["right"] == right for row in rows) for right in range(5)]
    assert "never right" in result.err
    assert "task.rates=rates-jsonl.jsonl" in result.err
    held_out = slimrl(
        "difficulty", tiny_folder, *FEW, "--samples", 2, "--split", "test", "--out", "test.jsonl", "--json"
    )
    assert json.loads(held_out.out)["n"] == ROWS - len(rows)
    assert {row["id"] for row in lines("test.jsonl")[1:]}.isdisjoint(row["id"] for row in rows)


def test_it_goes_on_where_it_was_and_ends_the_same(slimrl, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("difficulty", tiny_folder, *FEW, "--samples", 3, "rollout.slots=6")
    assert slimrl(*command, "--out", "whole.jsonl").code == 0
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["slimrl.cli.difficulty"], "Stop", lambda: StopAt(12))  # its verb has its name
        stopped = slimrl(*command, "--out", "parts.jsonl")
    assert stopped.code == 75
    kept = len(lines("parts.jsonl")) - 1
    total = len(lines("whole.jsonl")) - 1
    assert 0 < kept < total
    assert f"stopped by a test with {kept} of {total} problems measured; give the command again" in stopped.err
    with Path("parts.jsonl").open("a") as file:
        file.write('{"id": "jsonl/000')  # a process that was killed while it wrote
    sampled = []
    from slimrl.preflight import difficulty

    grade = difficulty._grade
    monkeypatch.setattr(difficulty, "_grade", lambda *given: sampled.append(given[1].id) or grade(*given))
    again = slimrl(*command, "--out", "parts.jsonl")
    assert again.code == 0, again.err
    assert f"parts.jsonl has {kept} of {total} problems, {total - kept} are left" in again.err
    assert len(sampled) == total - kept
    assert timeless("parts.jsonl") == timeless("whole.jsonl")
    done = Path("parts.jsonl").read_bytes()
    assert slimrl(*command, "--out", "parts.jsonl").code == 0
    assert Path("parts.jsonl").read_bytes() == done
    assert len(sampled) == total - kept


def test_a_limit_is_raised_later_and_lowered_for_a_look(slimrl, tiny_folder: Path) -> None:
    command = ("difficulty", tiny_folder, *FEW, "--samples", 2)
    assert slimrl(*command, "--limit", 5, "--out", "r.jsonl").code == 0
    assert len(lines("r.jsonl")) == 6
    assert slimrl(*command, "--out", "r.jsonl").code == 0
    assert slimrl(*command, "--out", "whole.jsonl").code == 0
    assert timeless("r.jsonl") == timeless("whole.jsonl")
    look = slimrl(*command, "--limit", 5, "--out", "r.jsonl", "--json")
    assert json.loads(look.out)["n"] == 5
    assert timeless("r.jsonl") == timeless("whole.jsonl")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--samples", 3], "was begun with samples=2, not 3; go on as it was begun, or give --out another name"),
        (["rollout.temperature=0.5"], "was begun with temperature=1.0, not 0.5"),
        (["task.style=boxed"], "was begun with first_prompt="),
        (["seed=1"], "was begun with seed=0, not 1"),
        (["--split", "test"], "was begun with split='train', not 'test'"),
    ],
)
def test_another_measurement_needs_another_file(more: list[object], sentence: str, slimrl, tiny_folder: Path) -> None:
    command = ("difficulty", tiny_folder, *FEW, "--limit", 2, "--out", "r.jsonl")
    assert slimrl(*command, "--samples", 2).code == 0
    before = Path("r.jsonl").read_bytes()
    result = slimrl(*command, *(["--samples", 2] if "--samples" not in more else []), *more)
    assert result.code == 2
    assert sentence in result.err
    assert Path("r.jsonl").read_bytes() == before


def test_a_question_that_changed_meanwhile_is_refused(slimrl, sums: Path, tiny_folder: Path) -> None:
    command = (
        "difficulty",
        tiny_folder,
        *FEW,
        "task.test_path=held.jsonl",
        "--samples",
        2,
        "--limit",
        3,
        "--out",
        "r.jsonl",
    )
    Path("held.jsonl").write_text('{"question": "What is 100 + 1?", "answer": "101"}\n')
    assert slimrl(*command).code == 0
    text = sums.read_text()
    sums.write_text(text.replace("What is 2 + 1?", "What is 3 - 0?"))
    result = slimrl(*command)
    assert result.code == 3
    assert "jsonl/train/00002 asked something else when r.jsonl was begun" in result.err


def test_what_has_no_rates(slimrl, tiny_folder: Path) -> None:
    def refused(*arguments: object) -> str:
        result = slimrl("difficulty", tiny_folder, *arguments)
        assert result.code == 2
        assert result.err.startswith("error: ")
        return str(result.err)

    assert "the problems of task arithmetic never end" in refused()
    assert "nothing is right" in refused(*FEW, "task.checker=none")
    assert "which takes --samples, --limit and --split" in refused(*FEW, "evaluation.samples=8")
    assert "sums.jsonl is no file of slimrl difficulty" in refused(*FEW, "--out", "sums.jsonl")
    assert "no such folder" in refused(*FEW, "--out", "nowhere/r.jsonl")
    assert "has an effect only in slimrl train" in refused(*FEW, "task.rates=r.jsonl")
    Path("sums.jsonl").write_text('{"question": "1?"}\n{"question": "2?"}\n')
    result = slimrl("difficulty", tiny_folder, *FEW, "--out", "r.jsonl")
    assert result.code == 2
    assert "has no answer, so there is no success rate" in result.err
    assert not Path("r.jsonl").exists()


def test_a_date_in_the_prompts_stays(slimrl, tiny_folder: Path) -> None:
    folder = Path("dated")
    shutil.copytree(tiny_folder, folder)
    template = folder / "chat_template.jinja"
    template.write_text("Today is {{ strftime_now('%H:%M:%S') }}.\n" + template.read_text())
    command = ("difficulty", "dated", *FEW, "--samples", 2, "--out", "r.jsonl")
    assert slimrl(*command, "--limit", 2, "task.date=2026-02-28T23:59:01").code == 0
    assert lines("r.jsonl")[0]["prompt_date"] == "2026-02-28T23:59:01"
    assert slimrl(*command, "--limit", 4).code == 0
    assert len(lines("r.jsonl")) == 5


def test_rates_need_no_rewards(slimrl, tiny_folder: Path) -> None:
    """A run whose functions and judge cannot be loaded is measured all the same, since right answers are counted."""
    shutil.copytree(tiny_folder, "run/final")
    judge = "{endpoint: 'http://h', model: m, prompt: '{completion}', low: 0, high: 1, api_key_env: NO_SUCH_KEY}"
    Path("run/config.yaml").write_text(
        f"task: {{path: ../sums.jsonl}}\nrewards: {{custom: {{gone.py:f: 1}}, judge: {{tone: {judge}}}}}\n"
    )
    measured = slimrl("difficulty", "run", *FEW, "--samples", 2, "--limit", 3, "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["n"] == 3
    refused = slimrl("difficulty", tiny_folder, *FEW, "rewards.format=1")
    assert refused.code == 2
    assert "rewards.format=1 has no effect in slimrl difficulty, which counts right answers; remove it" in refused.err


def test_measuring_a_run_needs_no_rates(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "task: {name: jsonl, path: rows.jsonl, rates: gone.jsonl, success_rate: [0.1, 0.9]}\n"
    )
    task = model_settings(str(tmp_path), [], None).task
    assert (task.rates, task.success_rate) == ("", [0.0, 1.0])
    with pytest.raises(SettingsError, match=r"task\.success_rate has an effect only in slimrl train"):
        model_settings(str(tmp_path), ["task.success_rate=[0, 1]"], None)


def test_every_command_of_the_page_runs(slimrl, sums: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, "my-model")
    shutil.copy(sums, "rows.parquet")  # a format is known by its bytes
    small = [
        "steps=2", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=8", "evaluation.problems=2",
        "evaluation.greedy=false", "rewards.gold_check=report",
    ]  # fmt: skip
    block, shown = re.findall(r"^```(?:json)?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    commands = block.splitlines()
    assert [command.split()[1] for command in commands] == ["difficulty", "train", "train"]
    said = []
    for number, command in enumerate(commands):
        more = small if number else ["rollout.max_new_tokens=8"]
        result = slimrl(*shlex.split(command)[1:], *more, *([f"name=r{number}"] if number else []))
        assert result.code == 0, (command, result.err)
        said.append(result.err)
    header, *rows = lines("rates.jsonl")
    written = [json.loads(line.replace(", ...}", "}")) for line in shown.splitlines()]
    assert [{*one} for one in written] == [{*one} & {*header} for one in written[:1]] + [{*rows[0]}]
    assert "training problems have a success rate from 0.1 to 0.9 (task.success_rate)" in said[1]
    by_id = {row["id"]: row["rate"] for row in rows}
    trained = [lines(path) for path in sorted(Path("runs/r1/rollouts").glob("*.jsonl"))]
    assert trained
    assert all(0.1 <= by_id[row["id"]] <= 0.9 for step in trained for row in step)
    first, last = (lines(path) for path in sorted(Path("runs/r2/rollouts").glob("*.jsonl")))
    ordered = sorted(by_id.values())
    assert ordered[1] < ordered[-2]
    assert sorted({row["id"]: by_id[row["id"]] for row in first}.values()) == ordered[-2:]
    assert sorted({row["id"]: by_id[row["id"]] for row in last}.values()) == ordered[:2]


STOPS = "rollout.stop=[a, e, i, o, u]"
"""By which turns of a model without training end."""
AGAIN = '''
import json
from pathlib import Path


class Again:
    """Asks twice and notes the last turn; breaks off in some episodes of problem 7, and in all of problem 9."""

    def __init__(self, breaks=()):
        self.left, self.breaks, self.text = 2, breaks, ""

    def reset(self, problem):
        self.problem = problem
        return [{"role": "user", "content": problem.question + " Think."}]

    def step(self, text):
        self.left -= 1
        number = int(self.problem.answer) - 1
        if number in self.breaks and (number == 9 or len(text) % 2):
            raise OSError("the service is down")
        self.text = text
        return [{"role": "user", "content": "Once more."}], self.left == 0

    def score(self):
        with Path("said.jsonl").open("a") as file:
            file.write(json.dumps([self.problem.id, int(self.problem.answer), self.left, self.text]) + "\\n")
        return 0.0
'''


def test_rates_of_episodes(slimrl, tiny_folder: Path) -> None:
    Path("again.py").write_text(AGAIN)
    few = (*FEW[:1], "rollout.max_new_tokens=60", STOPS, "environment.name=again.py:Again")
    result = slimrl("difficulty", tiny_folder, *few, "environment.arguments={breaks: [7, 9]}", "--samples", 4, "--json")
    assert result.code == 0, result.err
    header, *rows = lines("rates-jsonl.jsonl")
    assert header["environment"]["arguments"] == {"breaks": [7, 9]}
    assert header["environment"]["files"]
    said = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    assert {left for _, _, left, _ in said} >= {0}, "some episodes have both turns"
    over = {name for name, _, left, _ in said if not left}
    for row in rows:
        mine = [len(text) % 3 == answer % 3 for name, answer, left, text in said if name == row["id"] and not left]
        if len(mine) == row["samples"]:
            assert row["right"] == sum(mine)
    assert sum(row["id"] in over for row in rows) > len(rows) / 2
    samples = {row["id"]: row["samples"] for row in rows}
    assert samples["jsonl/00007"] < 4
    assert "jsonl/00009" not in samples
    assert {count for name, count in samples.items() if name != "jsonl/00007"} == {4}
    told = " ".join(result.err.split())
    assert "of 84 episodes broke off and are in no rate; the first, of jsonl/0000" in told
    assert re.search(
        r"the service is down \(\w+\.py:\d+ in step\); 1 problem without a rate, which the same command measures again",
        told,
    )
    other = slimrl("difficulty", tiny_folder, *few[:2], "--samples", 4)
    assert other.code == 2
    assert "rates-jsonl.jsonl was begun with environment={'name':" in other.err


def test_an_environment_that_never_works_is_an_error(slimrl, tiny_folder: Path) -> None:
    Path("bad.py").write_text("class Bad:\n    def step(self, text):\n        raise KeyError('mine')\n")
    small = (*FEW, "rollout.max_new_tokens=60", STOPS, "environment.name=bad.py:Bad", "--samples", 2, "--limit", 2)
    result = slimrl("difficulty", tiny_folder, *small)
    assert result.code == 2
    assert "the environment raised KeyError: 'mine' (bad.py:3 in step), on problem jsonl/" in result.err
