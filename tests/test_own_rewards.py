"""Runs with rewards of one's own and judges, from the command's settings to the files of the run."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.errors import SettingsError
from slimrl.preflight.setup import prepare_training
from slimrl.report.run import write_run_page
from slimrl.train import train
from tests.judges import Server, serving
from tests.rewards.test_judge import KEY, dead

OWN = """
import asyncio

def short(completions, log_extra, log_metric, **_):
    lengths = [len(text) for text in completions]
    log_extra("characters", lengths)
    log_metric("longest", max(lengths))
    return [-length for length in lengths]

async def later(completions, trainer_state, **_):
    await asyncio.sleep(0)
    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimrl.rewards.judge.FIRST_WAIT", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)


def settings(model: Path, folder: Path, endpoint: str, *more: str) -> TrainConfig:
    (folder / "own.py").write_text(OWN)
    rows = [{"question": f"{i} pens and {i} pens?", "answer": str(2 * i)} for i in range(100)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    judge = f"{{endpoint: '{endpoint}', model: m, prompt: '{{question}} {{completion}}', low: 0, high: 9, retries: 0, api_key_env: JUDGE_KEY}}"
    given = [
        f"model.path={model}", f"output={folder}", f"task.path={folder}/rows.jsonl", "name=a", "steps=3", "rollout.problems=2", "rollout.group_size=2",
        "rollout.max_new_tokens=8", "evaluation.problems=1", "checkpoint.every=1",
        f"rewards.custom.{folder}/own.py:short=0.1", f"rewards.custom.{folder}/own.py:later=1", "rewards.repetition=0.5",
        "rewards.cosine_length=1", f"rewards.judge.quality={judge}", *more,
    ]  # fmt: skip
    return load_config(TrainConfig, [], given)


def rows_of(run: Path, what: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / what).read_text().splitlines()]


def test_a_run_pays_logs_and_records_all_of_them(tiny_folder: Path, tmp_path: Path) -> None:
    with serving(lambda text, _: f"Score: {len(text) % 10}") as server:
        config = settings(tiny_folder, tmp_path, server.endpoint)
        training = prepare_training(config)
        training.scorer.close()
        notes = training.setup.notes
        summary = train(config, Display(quiet=True))
    run = Path(summary.run)
    rows = rows_of(run)
    assert [row["rewards/later/mean"] for row in rows] == pytest.approx([0.0, 1 / 3, 2 / 3])
    assert all(row["logged/longest"] >= -row["rewards/short/mean"] > 0 for row in rows)
    assert all(
        {"rewards/quality/mean", "rewards/repetition/mean", "rewards/cosine_length/mean"} < row.keys() for row in rows
    )
    for row in rows_of(run, "rollouts/step-00000002.jsonl"):
        assert row["logged"] == {"short": {"characters": len(row["text"])}}
        assert row["scores"]["short"] == -len(row["text"])
        assert row["scores"]["quality"] == len(f"{row['question']} {row['text']}") % 10
    (price,) = (note for note in notes if note.startswith("judge quality: at most "))
    match = re.search(r"at most ([\d,]+) calls", price)
    assert match is not None
    assert 0 < len(server.asked) <= int(match[1])
    assert any(
        re.match(r"short: 64 of 64 gold answers tried have a score, between -\d+ and -\d+, mean -\S+$", note)
        for note in notes
    )
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert KEY.encode() not in path.read_bytes(), path
    assert (tmp_path / "judge-cache.jsonl").is_file()


class Listening(Display):
    """Remembers how often a judge had been asked when a note was said."""

    def __init__(self, server: Server) -> None:
        super().__init__(quiet=True)
        self.server, self.heard = server, dict[str, int]()

    def note(self, text: str, head: str = "note", style: str = "") -> None:
        super().note(text, head, style)
        self.heard.setdefault(text, len(self.server.asked))


def test_the_price_of_a_judge_is_said_before_its_first_call(tiny_folder: Path, tmp_path: Path) -> None:
    with serving(lambda text, _: f"Score: {len(text) % 10}") as server:
        screen = Listening(server)
        train(settings(tiny_folder, tmp_path, server.endpoint, "steps=1"), screen)
        (price,) = (text for text in screen.heard if text.startswith("judge quality: at most "))
        assert screen.heard[price] == 0 < max(screen.heard.values())


class Deadly(Display):
    """Ends the judge after a step."""

    def __init__(self, after: int, server: ExitStack) -> None:
        super().__init__(quiet=True)
        self._after, self._server = after, server

    def step(self, step: int, *rest: Any) -> None:
        super().step(step, *rest)
        if step + 1 == self._after:
            self._server.close()


def test_a_judge_that_dies_is_counted_and_one_that_is_dead_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with ExitStack() as block:
        server: Server = block.enter_context(serving(lambda *_: "Score: 5"))
        config = settings(tiny_folder, tmp_path, server.endpoint)
        summary = train(config, Deadly(2, block))
    rows = rows_of(Path(summary.run))
    assert [row["unscorable"] for row in rows] == [0.0, 0.0, 1.0]
    assert "reward" not in rows[2]
    ((reason, count),) = summary.unscorable.items()
    assert reason.startswith("reward quality cannot reach its judge at http://127.0.0.1:")
    assert count == 4
    last = rows_of(Path(summary.run), "rollouts/step-00000003.jsonl")
    assert all(row["reward"] is None and "quality" not in row["scores"] and row["unscorable"] for row in last)
    (tmp_path / "judge-cache.jsonl").unlink()
    with pytest.raises(SettingsError, match="reward quality cannot reach its judge"):
        train(settings(tiny_folder, tmp_path, dead(), "name=b"), Display(quiet=True))


def test_a_run_goes_on_with_the_replies_that_it_paid_for(tiny_folder: Path, tmp_path: Path) -> None:
    """Interrupted after a step, and resumed: the same end as in one go, and no question asked twice."""
    with serving(lambda text, _: f"Score: {len(text) % 10}") as server:
        whole = train(settings(tiny_folder, tmp_path, server.endpoint), Display(quiet=True))
        asked = len(server.asked)
        again = settings(tiny_folder, tmp_path, server.endpoint, "name=b", "rewards.judge.quality.concurrency=2")
        second = train(again, Display(quiet=True))
        assert (second.weights, len(server.asked)) == (whole.weights, asked)
        run = Path(second.run)
        state = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(state | {"status": "interrupted"}))
        for step in (run / "checkpoints").glob("step-*3"):
            for file in step.iterdir():
                file.unlink()
            step.rmdir()
        changed = settings(tiny_folder, tmp_path, server.endpoint, "name=b", "rewards.judge.quality.timeout=9")
        resumed = train(changed, Display(quiet=True), resume=True)
        assert (resumed.weights, resumed.steps, len(server.asked)) == (whole.weights, 3, asked)
        other = settings(tiny_folder, tmp_path, server.endpoint, "name=a", "rewards.judge.quality.model=n")
        with pytest.raises(SettingsError, match=r"is finished with rewards\.judge="):
            train(other, Display(quiet=True), resume=True)


FAILS = """
def paid(completions, trainer_state, **_):
    return [[0.0, float("nan")][trainer_state.global_step > 1]] * len(completions)

def seen(completions, trainer_state, **_):
    return [0.0] * (len(completions) - (trainer_state.global_step > 1))
"""


def test_a_run_says_at_its_end_which_rewards_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(FAILS)
    own = [f"rewards.custom.{tmp_path}/own.py:{name}" for name in ("paid=1", "seen=0")]
    small = ["rollout.problems=2", "rollout.group_size=2", "evaluation.problems=1", "evaluation.harder_problems=0"]
    summary = train(
        load_config(TrainConfig, [], [f"output={tmp_path}", "steps=3", *small, *own, "rewards.workers=0"]), Display()
    )
    assert summary.unscorable == {"reward paid returned nan": 4}
    assert summary.unmeasured == {"reward seen returned 1 values for 2 completions": 4}
    told = " ".join(capsys.readouterr().err.split())
    assert "unscorable: 4 completions: reward paid returned nan" in told
    assert "unmeasured: 4 completions: reward seen returned 1 values for 2 completions" in told
    assert "reward seen returned 1 values" in write_run_page(Path(summary.run)).read_text()
