"""Runs whose completions are episodes: trained, measured, recorded and resumed like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slimrl.api.asking import Answer, sample_of
from slimrl.config.files import load_config
from slimrl.config.schema import EvalConfig, SftRunConfig, TrainConfig
from slimrl.errors import SettingsError
from slimrl.evaluate import evaluate
from slimrl.preflight.notes import unpaid_note
from slimrl.preflight.setup import prepare_measuring
from slimrl.runs.measured import read_evaluation
from slimrl.runs.reader import read_metrics
from slimrl.runs.tokens import read_tokens
from tests.environments.test_processes import gone
from tests.forks import command
from tests.session.test_resume import StopAt, content, interrupt, run

ECHO = '''
class Echo:
    """Asks for the answer once more, until it was given `times` times."""

    def __init__(self, times=2):
        self.times, self.left = times, times

    def reset(self, problem):
        self.problem = problem
        return [{"role": "user", "content": problem.question + " Twice."}]

    def step(self, text):
        self.left -= 1
        return [{"role": "user", "content": f"And again, {len(text)}?"}], self.left == 0

    def score(self):
        return self.times - self.left
'''


@pytest.fixture
def echo(tmp_path: Path) -> str:
    file = tmp_path / "echo.py"
    file.write_text(ECHO)
    return f"environment.name={file}:Echo"


def rows(folder: Path, step: int = 1) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "rollouts" / f"step-{step:08d}.jsonl").read_text().splitlines()]


def test_episodes_are_trained_recorded_and_resumed(echo: str, tmp_path: Path) -> None:
    settings = (
        echo,
        "steps=2",
        "rewards.environment=0.5",
        "rollout.max_new_tokens=64",
        "log.tokens=all",
        "task.arithmetic.max_steps=1",
    )
    stop = StopAt(-1)
    run(tmp_path, "a", *settings, stop=stop)
    found = rows(tmp_path / "a")
    twice = [row for row in found if len(row["turns"]) == 3]  # type: ignore[arg-type]
    assert len(twice) > len(found) / 2
    for row in twice:
        first, between, last = row["turns"]  # type: ignore[misc]
        assert [first[0], between, last] == [
            "assistant",
            ["user", f"And again, {len(first[1])}?"],
            ["assistant", row["text"]],
        ]
    assert {row["scores"]["environment"] for row in found} <= {0.0, 1.0, 2.0}  # type: ignore[index]
    assert all(row["environment_score"] == row["scores"]["environment"] for row in found)  # type: ignore[index]
    measured = read_evaluation(tmp_path / "a", 2)
    assert measured is not None
    for one in measured.test.rows:
        assert one.said[-1 if one.finish == "stop" else 0][0] == "assistant"
        assert one.turns == sum(role == "assistant" for role, _ in one.said)
        assert one.environment_score == one.scores["environment"]
    metrics = read_metrics(tmp_path / "a")[0]
    assert metrics["turns/mean"] == np.mean([(len(row["turns"]) + 1) // 2 for row in found])  # type: ignore[arg-type]
    assert metrics["num_tokens"] == sum(row["tokens"] for row in found)  # type: ignore[misc]
    tokens = read_tokens(tmp_path / "a", 1)
    for line, row in enumerate(found):
        given = np.isnan(tokens[line].numbers["sampler"])
        assert (~given).sum() == row["tokens"]
        assert bool(given.any()) == (len(row["turns"]) == 3)  # type: ignore[arg-type]
        weights = tokens[line].numbers["weight"]
        assert np.isnan(weights[given]).all()
    assert interrupt(tmp_path, "b", round(0.6 * (-1 - stop.left)), *settings) == 75
    run(tmp_path, "b", *settings, resume=True)
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_a_resumed_run_has_the_environment_that_it_began_with(echo: str, tmp_path: Path) -> None:
    assert interrupt(tmp_path, "a", 3, echo, "steps=2") == 75
    (tmp_path / "echo.py").write_text(ECHO + "\n# changed\n")
    with pytest.raises(
        SettingsError, match=r"the file of environment.name, or the files or functions of rewards.custom changed"
    ):
        run(tmp_path, "a", echo, "steps=2", resume=True)


def test_a_failing_environment_stops_the_first_step_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("class Bad:\n    def step(self, text):\n        raise KeyError('mine')\n")
    with pytest.raises(
        SettingsError,
        match=r"the environment raised KeyError: 'mine' \(bad.py:3 in step\), on problem .*environment.name",
    ):
        run(tmp_path, "a", f"environment.name={file}:Bad", "steps=1")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["environment.name=", "environment.turns=3"], "environment.turns has no effect without environment.name"),
        (["environment.name=", "rewards.environment=1"], "rewards.environment has no effect without environment.name"),
        (
            ["environment.name=", "algorithm.credit=turn"],
            "algorithm.credit=turn has no effect without environment.name",
        ),
        (
            ["environment.turns=1", "algorithm.credit=turn"],
            "algorithm.credit=turn has no effect with environment.turns=1",
        ),
        (["algorithm.surrogate=gspo", "algorithm.credit=turn"], "credit=turn.; set algorithm.surrogate=gspo_token"),
        (
            ["algorithm.normalize_components=true", "algorithm.credit=turn"],
            "algorithm.credit=turn takes them apart by turn",
        ),
    ],
)
def test_refusals(settings: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load_config(TrainConfig, [], ["environment.name=a.py:A", *settings])


def test_a_class_that_returns_no_reward_of_either_kind_is_refused_in_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("class Plain:\n    def step(self, text):\n        return [], True\n")
    with pytest.raises(
        SettingsError,
        match=r"rewards.environment pays what .*Plain' returns, which has no score\(\), and whose step returned no reward in any of "
        r"\d+ episodes; return the reward of each turn, 0 where it earns nothing, or write score\(\)",
    ):
        run(tmp_path, "a", f"environment.name={tmp_path}/plain.py:Plain", "rewards.environment=1", "steps=1")


PAID = """
class Paid:
    \"\"\"Asks twice, and pays each turn by its length.\"\"\"

    left = 2

    def step(self, text):
        self.left -= 1
        return [{"role": "user", "content": "And again?"}], self.left == 0, len(text) % 7 / 4
"""


def test_turns_are_paid_recorded_carried_over_and_resumed(tmp_path: Path) -> None:
    (tmp_path / "paid.py").write_text(PAID)
    (tmp_path / "mine.py").write_text(
        "def mine(completions, turn_rewards, environment_score, **_):\n"
        "    return [sum(r or 0 for r in paid) + 100 * (score or 0) for paid, score in zip(turn_rewards, environment_score)]\n"
    )
    settings = (
        f"environment.name={tmp_path}/paid.py:Paid",
        f"rewards.custom={{{tmp_path}/mine.py:mine: 0}}",
        "steps=2",
        "rewards.environment=0.5",
        "algorithm.credit=turn",
        "algorithm.dynamic_sampling=refill",
        "algorithm.signal=reward",
        "rollout.max_new_tokens=64",
        "log.tokens=all",
        "task.arithmetic.max_steps=1",
    )
    stop = StopAt(-1)
    run(tmp_path, "a", *settings, stop=stop)
    found = rows(tmp_path / "a")
    metrics = read_metrics(tmp_path / "a")[0]
    every = [reward for row in found for reward in row.get("turn_rewards", [])]  # type: ignore[attr-defined]
    assert metrics["turns/reward"] == pytest.approx(np.mean(every))
    tokens = read_tokens(tmp_path / "a", 1)
    several = 0
    for line, row in enumerate(found):
        paid: list[float] = row.get("turn_rewards", [])  # type: ignore[assignment]
        said = [content for role, content in row["turns"] if role == "assistant"]  # type: ignore[attr-defined]
        assert paid == [len(text) % 7 / 4 for text in said[: len(paid)]]
        assert len(said) - len(paid) == (len(said) > len(paid)) <= (row["finish"] == "length")
        assert row["scores"]["environment"] == row["scores"]["mine"] == pytest.approx(sum(paid))  # type: ignore[index]
        assert row["reward"] == pytest.approx(row["scores"]["correct"] + 0.5 * sum(paid))  # type: ignore[index]
        if line in tokens:
            advantages = tokens[line].numbers["advantage"]
            several += len({*advantages[~np.isnan(advantages)]}) == 2
    assert several > 2, "turns have advantages of their own"
    assert interrupt(tmp_path, "b", round(0.6 * (-1 - stop.left)), *settings) == 75
    run(tmp_path, "b", *settings, resume=True)
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_with_one_turn_everywhere_credit_changes_no_bit_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "once.py").write_text(
        "class Once:\n    def step(self, text):\n        return [], True, len(text) % 7 / 4\n"
    )
    settings = (f"environment.name={tmp_path}/once.py:Once", "rewards.environment=0.5", "steps=2", "optimizer.epochs=2")
    by_turn, whole = (run(tmp_path, credit, *settings, f"algorithm.credit={credit}") for credit in ("turn", "episode"))
    assert by_turn.weights == whole.weights
    assert by_turn.optimizer == whole.optimizer
    assert any(said.startswith("algorithm.credit: none of ") for said in by_turn.inert)


@pytest.mark.parametrize("workers", [0, 1])
def test_own_rewards_see_turns_score_and_prompt(workers: int, echo: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def mine(completions, prompts, turns, environment_score, **_):\n"
        "    return [len(t) + 10 * (s or 0) + 100 * ('Twice.' in p) for t, s, p in zip(turns, environment_score, prompts)]\n"
    )
    settings = (f"rewards.custom={{{tmp_path}/mine.py:mine: 1}}", f"rewards.workers={workers}", "steps=1")
    run(tmp_path, "a", echo, *settings)
    for row in rows(tmp_path / "a"):
        turns: list[list[str]] = row["turns"]  # type: ignore[assignment]
        spoken = sum(role == "assistant" for role, _ in turns)
        heard = (
            {spoken - 1, spoken} if row["finish"] == "length" else {spoken}
        )  # the last turn was cut off, or its answer
        assert row["scores"]["mine"] in {len(turns) + 10 * times + 100 for times in heard}  # type: ignore[index]


def test_an_evaluation_counts_episodes_that_break_off_as_wrong(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("class Bad:\n    def step(self, text):\n        raise KeyError('mine')\n")
    small = ["evaluation.problems=4", "evaluation.harder_problems=0", f"environment.name={tmp_path}/bad.py:Bad"]
    setup = prepare_measuring(load_config(EvalConfig, [], small))
    rows = evaluate(setup, step=0).test.rows
    broken = [row for row in rows if row.unscorable == "the environment raised KeyError: 'mine' (bad.py:3 in step)"]
    assert len(broken) > len(rows) / 2
    assert not any(row.strict or row.lenient for row in broken)


def test_a_question_is_asked_in_the_environment(echo: str) -> None:
    question = "Tom has 3 apples. Then Tom buys 4 more. How many apples does Tom have now?"
    settings = {"environment.name": echo.partition("=")[2], "rollout.max_new_tokens": 64}
    (one,) = sample_of("builtin", question, 1, greedy=True, settings=settings)
    assert [role for role, _ in one.turns] == ["assistant", "user", "assistant"]
    assert one.turns[1] == ("user", f"And again, {len(one.turns[0][1])}?")
    assert (one.text, one.failed) == (one.turns[2][1], "")
    first, second = sample_of("builtin", question, 2, greedy=False, settings=settings)
    assert [one.turns[-1] for one in (first, second)] == [("assistant", one.text) for one in (first, second)]
    assert 0 < first.tokens < 64
    with pytest.raises(
        SettingsError, match=r"does not take a question by itself.*; environment.name= asks the model without it"
    ):
        sample_of("builtin", question, 1, greedy=True, settings={"environment.name": "guess"})


@pytest.mark.parametrize("workers", [0, 1])
def test_an_environment_that_reads_the_answer_is_not_given_an_empty_one(tmp_path: Path, workers: int) -> None:
    (tmp_path / "again.py").write_text(
        "class Early:\n    def reset(self, problem):\n        self.answer = problem.answer\n\n"
        "    def step(self, text):\n        return [], True\n\n\n"
        "class Late(Early):\n    def reset(self, problem):\n        self.problem = problem\n\n"
        "    def step(self, text):\n        return [], self.problem.answer in text\n\n\n"
        "class Careful(Early):\n    def reset(self, problem):\n        self.answer = getattr(problem, 'answer', None)\n"
    )

    def ask(name: str) -> Answer:
        settings = {"environment.name": f"{tmp_path}/again.py:{name}", "environment.workers": workers}
        return sample_of("builtin", "Tom has 3 apples.", 1, greedy=True, settings=settings)[0]

    with pytest.raises(
        SettingsError, match=r"does not take a question by itself.*reset reads problem.answer, and there is none"
    ):
        ask("Early")
    assert ask("Late").failed == "the environment reads problem.answer, and there is none"
    assert ask("Careful").failed == ""


def test_other_verbs(tmp_path: Path) -> None:
    assert load_config(SftRunConfig, [], ["environment.name=a.py:A"]).environment.turns == 8
    assert load_config(EvalConfig, [], ["environment.name=a.py:A"]).environment.turns == 8
    file = tmp_path / "some" / "a.yaml"
    file.parent.mkdir()
    file.write_text("environment: {name: 'mine.py:A'}\n")
    assert load_config(TrainConfig, [str(file)], []).environment.name == f"{tmp_path}/some/mine.py:A"


def test_an_episode_of_one_turn_trains_as_a_completion_does(tmp_path: Path) -> None:
    (tmp_path / "once.py").write_text("class Once:\n    def step(self, text):\n        return [], True\n")
    plain = run(tmp_path, "plain", "steps=2")
    once = run(tmp_path, "once", "steps=2", f"environment.name={tmp_path}/once.py:Once")
    assert (once.weights, once.optimizer) == (plain.weights, plain.optimizer)


WILD = """
import os, subprocess


class Wild:
    \"\"\"Prints, forks and starts processes before it answers, if it is `wild`.\"\"\"

    def __init__(self, pids=""):
        self.pids, self.turns = pids, 0

    def step(self, text):
        self.turns += 1
        if self.pids:
            print("y" * 2**20)
            started = subprocess.Popen(["sleep", "600"], start_new_session=self.turns == 1)
            with open(self.pids, "a") as file:
                file.write(f"{started.pid}\\n")
            if not os.fork():
                os.execvp("sleep", ["sleep", "600"])
        return [{"role": "user", "content": "Again."}], self.turns == 2
"""


def test_a_wild_environment_changes_no_token_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "wild.py").write_text(WILD)
    small = ["steps=1", "rollout.problems=2", "rollout.group_size=2", "rollout.max_new_tokens=24"]
    small += ["evaluation.problems=2", "evaluation.harder_problems=0", f"output={tmp_path}"]
    pids = tmp_path / "pids"
    own = {"wild": f"environment.arguments={{pids: {pids}}}", "tame": "environment.workers=0"}
    words = ("train", "--json", "environment.name=wild.py:Wild", *small)
    begun = [command(*words, f"name={n}", own[n], folder=tmp_path, quick=True) for n in own]
    for code, out, err in [process.ended() for process in begun]:
        assert code == 0, err[-2000:]
        assert json.loads(out)["weights"], "nothing else is on stdout"
    assert rows(tmp_path / "wild") == rows(tmp_path / "tame")
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) > 4
    assert all(map(gone, started))


@pytest.mark.parametrize(("weight", "scores", "told"), [(0.0, True, True), (1.0, True, False), (0.0, False, False)])
def test_a_score_that_pays_nothing_is_told(weight: float, scores: bool, told: bool, echo: str) -> None:
    config = load_config(TrainConfig, [], [echo, f"rewards.environment={weight}"])
    assert ("rewards.environment=1 pays it" in "".join(unpaid_note(config, scores))) == told


def test_memory_for_processes_that_are_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"environment\.memory acts on environment\.workers, and there are none"):
        run(tmp_path, "a", "environment.name=calculator", "environment.memory=2", "steps=1")
