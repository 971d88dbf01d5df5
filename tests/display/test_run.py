from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from slimrl.config.files import load_config
from slimrl.config.schema import TrainConfig
from slimrl.display.pace import Pace
from slimrl.display.run import Display
from slimrl.records import Completion, Problem, Rollout
from slimrl.results import Evaluation, GradedCompletion, SplitEvaluation
from slimrl.train import train
from tests.session.test_resume import content
from tests.session.test_session import SMALL


def test_model_made_text_is_neither_markup_nor_escape(capsys: pytest.CaptureFixture[str]) -> None:
    Display().say("[/nope] \x1b[2J [bold]x[/bold]", "dim")
    err = capsys.readouterr().err
    assert "[/nope] \\x1b[2J [bold]x[/bold]" in err
    assert "\x1b[2J" not in err


def test_a_sample_of_an_episode_has_its_turns(capsys: pytest.CaptureFixture[str]) -> None:
    completion = Completion((1,), (5, 6, 7), (-0.5, 0.0, -0.5), "stop", (False, True, False))
    said = (("assistant", "6*7?"), ("tool", "42\x1b[2J"), ("assistant", "#### 42"))
    episode = Rollout(
        Problem("a", "6*7", "42"), completion, "#### 42", True, {}, 1.0, turns=said, turn_rewards=(0.25, None)
    )
    Display()._sample(episode.sample("42"))
    plain = Rollout(episode.problem, completion, "#### 42", True, {}, 1.0)
    Display()._sample(plain.sample("42"))
    assert capsys.readouterr().err.split("\n") == [
        "question:", "    6*7", "policy, turn 1, reward 0.25:", "    6*7?", "tool:", "    42\\x1b[2J", "policy, turn 2:", "    #### 42",
        "extracted '42', gold '42', reward 1.00", "question:", "    6*7", "completion:", "    #### 42",
        "extracted '42', gold '42', reward 1.00", "",
    ]  # fmt: skip


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    Display(quiet=True).say("hello")
    assert capsys.readouterr().err == ""


def test_a_log_file_gets_a_line_on_a_long_evaluation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 40.0, 50.0, 80.0])
    monkeypatch.setattr("slimrl.display.run.time.monotonic", lambda: next(clock))
    display = Display()
    for done in (0, 1, 2, 3, 8):
        display.evaluating(done, 8)
    display.stop()
    assert capsys.readouterr().err == "measuring: 2 of 8 problems, 2m00s left\n"


@pytest.mark.parametrize(
    ("seen", "left"),
    [
        # all are sampled at once: the first one comes after 31 s, the others within the next 40
        ({31.0: 1, 40.0: 60, 61.0: 301}, ["", "", "20s left"]),
        # two thirds are cut off and come in one moment, the others are sampled then
        ({28.0: 1, 28.01: 256}, ["", "16s left"]),
        # one wave after the other
        ({10.0: 10, 20.0: 19, 40.0: 40}, ["", "", "6m00s left"]),
    ],
)
def test_the_time_left_of_an_evaluation_is_told_once_it_is_known(seen: dict[float, int], left: list[str]) -> None:
    pace = Pace()
    for begun in (0.0, 1000.0):
        assert pace.left(0, 400, begun) == ""
        assert [pace.left(done, 400, begun + at) for at, done in seen.items()] == left


def test_a_terminal_gets_a_bar_that_goes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    display = Display()
    for done in range(4):
        display.evaluating(done, 3)
        if done == 1:
            display.progress.refresh()
    bar = display.progress.tasks[display.measuring]
    assert (bar.completed, bar.total, bar.visible) == (3, 3, False)
    display.stop()
    assert "measuring" in capsys.readouterr().err
    assert not display.progress.live.is_started


def test_a_command_in_a_cell_of_a_notebook_draws_no_bars(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`!slimrl train` has a terminal there, whose moving cursor the cell would show as lines without end."""
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    display = Display()
    display.evaluating(0, 3)
    display.sampling(1, 3)
    display.say("words", "bold")
    display.stop()
    assert capsys.readouterr().err == "words\n"


def terminal(width: int) -> Display:
    """A display on a terminal of this many characters, which keeps what it is told to draw."""
    display = Display()
    display.console = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)
    display.progress.live.console = display.console
    return display


def drawn(display: Display) -> list[str]:
    """The lines of the bars as they are now."""
    console = Console(file=io.StringIO(), width=display.console.width)
    console.print(display.progress.get_renderable())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_the_parts_of_a_step_have_a_bar_with_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("slimrl.display.run.time.monotonic", lambda: clock[0])
    display = terminal(80)
    clock[0] = 100.0
    display.sampling(0, 4096)
    display.progress.update(display.bar, visible=True, rest="4d06h left")
    clock[0] += 750.0
    lines = drawn(display)
    assert [line.split()[0] for line in lines] == ["training", "sampling"], "each bar is one line"
    assert lines[1].endswith(" 0 of 4,096 completions, 12m30s")
    display.sampling(1024, 4096)
    assert " 1,024 of 4,096 completions" in drawn(display)[1]
    display.sampling(4096, 4096)
    assert drawn(display)[1].split()[0] == "scoring", "rewards may take longer than sampling"
    display.updating(0, 8192)
    assert drawn(display)[1].startswith("updating")
    assert drawn(display)[1].endswith(" 0 of 8,192 completions, 0s")
    display.updating(8192, 8192)
    assert [line.split()[0] for line in drawn(display)] == ["training"], "the bar of a part goes with it"
    display.sampling(0, 8)
    display.stop()
    assert [line.split()[0] for line in drawn(display)] == ["training"]


@pytest.mark.parametrize("width", [80, 60])
def test_bars_fit_a_narrow_terminal(width: int) -> None:
    display = terminal(width)
    display.progress.update(display.bar, visible=True, rest="4d06h left")
    display.sampling(0, 99_999)
    display.sampling(88_888, 99_999)
    display.stop()
    display.progress.update(display.part, visible=True)
    lines = drawn(display)
    assert len(lines) == 2
    assert max(map(len, lines)) <= width


def test_a_log_file_and_a_quiet_run_have_no_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_terminal in (False, True):
        if is_terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
        display = Display(quiet=is_terminal)
        display.sampling(0, 8)
        display.sampling(8, 8)
        display.updating(0, 8)
        assert not display.progress.live.is_started
        display.stop()
    assert capsys.readouterr().err == ""


class Heard(Display):
    """A display that keeps what it is told of a step."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.told: list[tuple[str, int, int]] = []

    def sampling(self, done: int, total: int) -> None:
        self.told.append(("sampling", done, total))

    def updating(self, done: int, total: int) -> None:
        self.told.append(("updating", done, total))


def test_a_run_tells_the_parts_of_each_step_and_is_the_same_without(tmp_path: Path) -> None:
    settings = [*SMALL[1:], "steps=2", "rollout.problems=2", "rollout.group_size=3", "optimizer.epochs=2", "name=a"]
    screens = {"told": Heard(), "quiet": Display(quiet=True)}
    for name, screen in screens.items():
        train(load_config(TrainConfig, [], [f"output={tmp_path / name}", *settings]), screen)
    assert content(tmp_path / "told" / "a") == content(tmp_path / "quiet" / "a"), "it decides nothing"
    heard = screens["told"]
    assert isinstance(heard, Heard)
    sampled = [(done, total) for part, done, total in heard.told if part == "sampling"]
    assert (sampled.count((0, 6)), sampled.count((6, 6))) == (2, 2)
    assert {total for _, total in sampled} == {6}
    updated = [(done, total) for part, done, total in heard.told if part == "updating"]
    assert {total for _, total in updated} <= {12}
    parts = [part for part, done, _ in heard.told if done == 0]
    assert parts[0] == "sampling"
    assert "updating" in parts
    starts = [number for number, (_, done, _) in enumerate(heard.told) if done == 0]
    for start, end in zip(starts, [*starts[1:], len(heard.told)], strict=True):
        counts = [done for _, done, _ in heard.told[start:end]]
        assert counts == sorted(counts), "nothing that is done is taken back"
        assert counts[-1] == heard.told[start][2]


def test_warnings_on_an_evaluation_name_its_task_and_split(capsys: pytest.CaptureFixture[str]) -> None:
    """Each is shown once, so those on other tasks and splits would be missed."""
    rows = tuple(
        GradedCompletion(
            name, "sampled", 0, False, False, False, "length", 9, "?", "1", "", "", "so", unscorable="reward r failed"
        )
        for name in "ab"
    )
    display = Display()
    for task in ("gsm8k", "svamp", "svamp"):
        display.evaluation(Evaluation(0, SplitEvaluation(rows), SplitEvaluation(())), task=task)
    shown = " ".join(capsys.readouterr().err.split())
    for task in ("gsm8k", "svamp"):
        assert shown.count(f"most completions ({task}, test) were cut off; raise rollout.max_new_tokens") == 1
        assert shown.count(f"held-out completions ({task}, test) without a score: reward r failed") == 1


def test_rewards_held_out_fit_a_terminal() -> None:
    """A name has a line of its own, whatever its length, and the numbers of all rewards stand in the same columns."""
    names = ["think_format_reward", "get_repetition_penalty_reward", "get_soft_overlong_punishment", "a"]
    ends, difference = {}, {}
    for key in [f"{mode}/{name}" for name in names for mode in ("rewards", "greedy_rewards")]:
        ends |= {key: -0.75, f"{key}/low": -0.75, f"{key}/high": -0.5, f"{key}/least": -1.0}
        difference[key] = {"change": -0.1, "low": -0.25, "high": 0.25}
    summary = SimpleNamespace(
        before=ends, after=ends, harder={}, twins={}, difference={"test": difference}, findings=[]
    )
    display = Display()
    display.console = Console(file=io.StringIO(), width=80)
    display._held_out_tables(summary)  # type: ignore[arg-type]
    lines = display.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    lines = [line.rstrip() for line in lines[lines.index("rewards held out, with 95 % intervals") + 1 :]]
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line in names] == names
    rows = [line for line in lines if line.startswith("  test, ")]
    assert len(rows) == 2 * len(names)
    assert len(lines) == len(rows) + len(names) + 1, "nothing is folded"
    assert {line.index("-0.75 [-0.75, -0.50]") for line in rows} == {16}
    assert [number for number, line in enumerate(lines) if "paired change" in line] == [0]
