"""The page of a run: what it says, what it is made of, and that nothing from outside becomes markup or runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimrl.report import inspector
from slimrl.report import run as run_page
from slimrl.report.chart import chart, ticks
from slimrl.report.episodes import turns_said
from slimrl.report.inspector import MOST_STEPS, chosen_steps, inspect, read_stored
from slimrl.report.quantities import QUANTITIES, columns_of, number, shown
from slimrl.report.record import read_run
from slimrl.report.run import MOST_BYTES, SCRIPT, RunPage, run_html, write_run_page
from slimrl.report.run_tables import headline, moved, notices, remarks, said_in
from slimrl.report.run_text import WIDTH, run_text
from slimrl.runs.curves import Line, Panel
from slimrl.runs.tokens import TokenRow
from tests.report.runs import token_bytes, write_run
from tests.report.test_report import SPITE, Element, Page, check_inert
from tests.test_payloads import PAYLOADS, hidden

OWN = {"input", "label", "script", "circle", "fieldset", "legend"}
"""Elements that a study's page has none of."""


class RunHtml(Page):
    """A page whose table rows may leave out the ends of cells and rows, as HTML allows."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "tr"):
            self._close({"td"})
        if tag == "tr":
            self._close({"tr"})
        super().handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag == "tbody":
            self._close({"td"})
            self._close({"tr"})
        super().handle_endtag(tag)

    def _close(self, tags: set[str]) -> None:
        if self.open and self.open[-1].tag in tags:
            self.open.pop()


def page_of(folder: Path) -> RunHtml:
    return RunHtml(run_html(read_run(folder)))


def check_harmless(page: RunHtml) -> None:
    """`check_inert` of all but our own script, which is the one that the policy lets run."""
    scripts = [element for element in page.elements if element.tag == "script"]
    assert [script.text for script in scripts] in ([], [SCRIPT.read_text()])
    assert all(not script.attributes for script in scripts)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.read_bytes()).digest()).decode()
    policy = next(e.attributes["content"] for e in page.elements if "http-equiv" in e.attributes)
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )
    kept: list[Element] = []
    for element in page.elements:
        if element.tag == "input":
            assert set(element.attributes) <= {"type", "name", "id", "checked"}
            assert element.attributes["type"] == "radio"
        if element.tag not in OWN:
            kept.append(element)
    page.elements = kept
    check_inert(page)


# --- what it says ------------------------------------------------------------------------------------------------------


def test_the_headline_has_the_change_and_its_interval(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "mine"))
    assert headline(run) == "Held-out accuracy rose by 50.0 points [+12.5, +81.2]"
    changes = {"change": -0.5, "low": -0.8, "high": -0.25, "n": 4}
    assert headline(replace(run, difference={"test": {"sampled": changes}})) == (
        "Held-out accuracy fell by 50.0 points [-80.0, -25.0]"
    )
    changes = {"change": 0.1, "low": -0.25, "high": 0.5, "n": 4}
    assert headline(replace(run, difference={"test": {"sampled": changes}})) == (
        "Held-out accuracy is not shown to have changed: +10.0 points [-25.0, +50.0]"
    )
    rewards = {"rewards/brief": {"change": 0.5, "low": 0.25, "high": 0.75, "n": 4}, "sampled": changes}
    judged = replace(run, difference={"test": rewards}, settings={"task.checker": "none"})
    assert headline(judged) == "The held-out reward brief rose by 0.50 [+0.25, +0.75]"


def test_the_page_has_the_numbers_of_the_files(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "mine"))
    table = page.tables[0]
    assert table["Test, sampled"] == {
        "Before": "25.0 [10.0, 90.0]", "After": "75.0 [10.0, 90.0]", "Paired change": "+50.0 [+12.5, +81.2]",
    }  # fmt: skip
    assert table["Test, brief"] == {"Before": "0.50 [0.00, 2.00]", "After": "1.50 [0.00, 2.00]", "Paired change": "–"}
    assert "25.0 % right before, 75.0 % after 3 steps" in page.text
    assert "+50.0 [+12.5, +81.2]" in " ".join(run_text(read_run(tmp_path / "mine")).split())
    assert "Of 4 held-out test problems 2 are right more often than before, 0 less often" in page.text
    for sentence in ("1.5 million parameters", "3 of 3", "1.50 GiB", "300", "25.0 %"):
        assert sentence in page.text, sentence


def test_problems_won_and_lost_show_both_ends(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine", [f"text {i}" for i in range(500)])
    won, lost, compared = moved(read_run(folder))
    assert ([one.id for one in won], lost, compared) == (["p1", "p2"], [], 4)
    assert (won[0].before.strict, won[0].after.strict, won[0].shares) == (False, True, (0.0, 1.0))
    assert won[0].before.text != won[0].after.text


def test_remarks_are_all_that_the_run_told(tmp_path: Path) -> None:
    found = remarks(read_run(write_run(tmp_path / "mine", [f"text {i}" for i in range(500)])))
    kinds = [kind for kind, _ in found]
    assert kinds == ["warning", "changes more than one thing", "unscorable", "cannot act", "step 1", "note"]


def test_a_run_on_its_way_is_compared_as_far_as_it_is_known(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine", status="running")
    run = read_run(folder)
    assert run.state == "interrupted", "no process holds its lock"
    assert run.difference["test"]["sampled"]["change"] == 0.5
    assert f"The run was interrupted; slimrl train --resume {folder} continues it." in page_of(folder).text
    with (folder / "config.yaml").open("a") as file:
        file.write("rewards:\n  custom:\n    __main__:brief: 0.5\n")
    way = f'slimrl.train(resume="{folder}", rewards=[...])'
    assert ("Interrupted", f"The run was interrupted; {way} continues it.") in notices(read_run(folder))
    (folder / "evals" / "step-00000003.json").unlink()
    assert headline(read_run(folder)).startswith("25.0 % [10.0, 90.0] of held-out answers are right before training")


# --- tokens ------------------------------------------------------------------------------------------------------------


def test_every_token_has_its_element_and_its_row(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine", ["a", "b\n", "<c>"], length=25)
    inspected = inspect(read_stored(read_run(folder)))
    assert len(inspected.steps) == 3
    for step in inspected.steps:
        for group in step.groups:
            assert len(group.completions) == 4
            for one in group.completions:
                assert one.tokens.count("<i") == one.numbers.count("<tr>") == 25
                assert one.columns == (
                    "sampler", "trainer", "trainer − sampler", "ratio", "clipped", "KL", "entropy", "weight", "advantage",
                )  # fmt: skip
                assert one.cut == 0


def test_colours_by_hand() -> None:
    by = {quantity.key: quantity for quantity in QUANTITIES}
    entropy = by["e"].classes(np.array([0.0, 0.05, 0.3, 5.0, np.nan], dtype=np.float32))
    assert entropy == ["", "e1", "e2", "e5", "e0"]
    ratio = by["r"].classes(np.array([0.0, 0.03, 0.5, -0.03, -0.5], dtype=np.float32))
    assert ratio == ["", "r1", "r3", "r4", "r6"]
    assert [label for _, label in by["r"].legend()] == [
        "≤ −0.2", "−0.05–0.2", "−0.01–0.05", "< 0.01", "+0.01–0.05", "+0.05–0.2", "≥ 0.2"
    ]  # fmt: skip
    for quantity in QUANTITIES:
        assert len(quantity.labels) == len(quantity.ends) + 1


def test_numbers_by_hand() -> None:
    numbers = {
        "sampler": [-1.0, -2.0], "gap": [0.5, np.nan], "log_ratio": [np.log(2), 0.0], "clipped": [1.0, 0.0], "entropy": [0.25, np.nan],
    }  # fmt: skip
    row = TokenRow(("a", "b"), {name: np.array(values, dtype=np.float32) for name, values in numbers.items()})
    keys = [quantity.key for quantity in shown([row])]
    assert keys == ["p", "g", "r", "e"], "KL, weight and advantage are unknown"
    assert columns_of(keys, row) == {
        "sampler": ["−1.000", "−2.000"], "trainer": ["−0.500", ""], "gap": ["0.50000", ""], "ratio": ["2.000", "1.000"],
        "clipped": ["yes", ""], "entropy": ["0.250", ""],
    }  # fmt: skip
    still = TokenRow(("a",), {"sampler": row.numbers["sampler"][:1], "log_ratio": np.zeros(1, dtype=np.float32)})
    assert [quantity.key for quantity in shown([still])] == ["p"], "a ratio of 1 everywhere says nothing"
    assert [number(x) for x in (0.0, -0.0001, 12345.0)] == ["0", "0", "1.23e+04"]


def test_steps_are_the_ends_those_with_an_event_and_others_between(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "mine", steps=60))
    run = replace(run, events=[{"step": 31, "event": "fault"}])
    found = chosen_steps(run, range(1, 61))
    assert len(found) == len({*found}) == MOST_STEPS
    assert {1, 31, 60} <= {*found}
    assert max(b - a for a, b in pairwise(found)) < 15
    assert chosen_steps(run, [2, 5]) == [2, 5]


def test_groups_with_a_signal_and_the_best_and_the_worst_come_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine", steps=1, groups=2, size=4, length=30)
    path = folder / "rollouts" / "step-00000001.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for place, reward in enumerate([0.0] * 4 + [0.5, 1.0, 0.0, 0.5]):
        rows[place]["reward"] = reward
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (step,) = inspect(read_stored(read_run(folder)), most_tokens=60).steps
    (group,) = step.groups
    assert [one.sample for one in group.completions] == [1, 2]
    assert group.note == "2 of 4 completions shown"


def test_a_completion_without_a_score_gives_a_group_no_signal_and_comes_last(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine", steps=1, groups=2, size=4, length=30)
    path = folder / "rollouts" / "step-00000001.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for place, reward in enumerate([None, 1.0, 1.0, 1.0, None, -0.5, 1.0, 0.5]):
        rows[place]["reward"] = reward
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (step,) = inspect(read_stored(read_run(folder)), most_tokens=60).steps
    (group,) = step.groups
    assert [one.sample for one in group.completions] == [1, 2]


@pytest.mark.parametrize("mode", ["none", "cut", "noise", "other"])
def test_without_numbers_there_are_texts(tmp_path: Path, mode: str) -> None:
    folder = write_run(tmp_path / "mine", ["the text"], steps=1, tokens=mode != "none")
    file = folder / "rollouts" / "step-00000001.npz"
    if mode == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    elif mode == "noise":
        data = bytearray(file.read_bytes())
        data[200:260] = bytes(60)
        file.write_bytes(data)
    elif mode == "other":
        file.write_bytes(token_bytes([3], ["x"])[:-1] + b"\x00")
    page = page_of(folder)
    assert "Numbers of the tokens" not in page.text or mode == "other"
    assert "the text" in page.text
    check_harmless(page)


@pytest.mark.parametrize(
    "missing", ["config.yaml", "metrics.jsonl", "events.jsonl", "evals", "rollouts", "run.json", "lines"]
)
def test_whatever_is_missing_or_damaged_is_left_out(tmp_path: Path, missing: str) -> None:
    folder = write_run(tmp_path / "mine", steps=2)
    for path in [folder / missing] if (folder / missing).is_file() else [*(folder / missing).glob("*")]:
        path.write_bytes(b"\xff{]\n")
    if missing == "lines":
        for path in folder.rglob("*.jsonl"):
            path.write_bytes(path.read_bytes()[:-9])
    page = page_of(folder)
    assert "<h1" not in page.text
    check_harmless(page)
    assert run_text(read_run(folder))


def mutations(value: Any) -> Iterator[Any]:
    """A value without each of its parts in turn, and with null in the place of each."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {name: other for name, other in value.items() if name != key}
            yield {**value, key: None}
            yield from ({**value, key: changed} for changed in mutations(inner) if isinstance(inner, dict))


@pytest.mark.parametrize("episodes", [False, True])
def test_odd_values_do_not_end_a_page(tmp_path: Path, episodes: bool) -> None:
    """Each value of the first object of each file is missing or null in turn."""
    folder = write_run(tmp_path / "mine", steps=2, groups=1, size=2, length=3, episodes=episodes)
    tried = 0
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl")):
        before = file.read_text()
        first, end, rest = before.partition("\n")
        for changed in mutations(json.loads(first)):
            file.write_text(json.dumps(changed) + end + rest)
            try:
                assert run_html(read_run(folder))
            except Exception as error:
                raise AssertionError(f"{file.name}: {json.dumps(changed)[:2000]}") from error
            tried += 1
        file.write_text(before)
    assert tried > 100


def test_numbers_stay_with_their_completion_where_another_is_damaged(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine", steps=1, groups=1, size=4)
    file = folder / "rollouts" / "step-00000001.jsonl"
    whole = inspect(read_stored(read_run(folder))).steps[0].groups[0].completions
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:-9], *lines[2:]]) + "\n")
    (group,) = inspect(read_stored(read_run(folder))).steps[0].groups
    assert [one.sample for one in group.completions] == [0, 2, 3]
    assert [one.tokens for one in group.completions] == [whole[i].tokens for i in (0, 2, 3)]
    assert "3 of 3" not in group.note
    longer = json.loads(lines[0]) | {"tokens": 99}
    file.write_text("\n".join([json.dumps(longer), *lines[1:]]) + "\n")
    (group,) = inspect(read_stored(read_run(folder))).steps[0].groups
    assert [bool(one.tokens) for one in group.completions] == [False, True, True, True], (
        "another completion stands there"
    )


def test_a_page_is_bounded_whatever_the_length_of_its_texts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ["x" * 200_000], steps=12)
    assert len(run_html(read_run(folder)).encode()) <= MOST_BYTES


def test_a_page_of_long_tokens_is_bounded_and_reads_each_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "run", ["é<" * 4000, "\u202e" * 300], steps=12, length=120)
    read: list[str] = []
    for reader in ("read_lines", "read_tokens"):
        own = getattr(inspector, reader)
        monkeypatch.setattr(inspector, reader, lambda *place, own=own: read.append(str(place[-1])) or own(*place))
    sizes: list[int] = []
    monkeypatch.setattr(run_page, "inspect", lambda stored, most: sizes.append(most) or inspect(stored, most))
    assert len(run_html(read_run(folder)).encode()) <= MOST_BYTES
    assert len(sizes) > 1, "less of it was drawn again"
    assert len(read) == len({*read}) == 2 * 12


def test_fewer_tokens_are_the_first_of_those_that_were_read(tmp_path: Path) -> None:
    stored = read_stored(read_run(write_run(tmp_path / "mine", steps=2, groups=2, size=4, length=50)))
    count = {
        most: [len(group.completions) for step in inspect(stored, most).steps for group in step.groups]
        for most in (800, 600, 400, 10)
    }
    assert count == {800: [4, 4, 4, 4], 600: [4, 2, 4, 2], 400: [4, 4], 10: [2, 2]}
    (first, *_) = inspect(stored, 10).steps[0].groups[0].completions
    assert (first.tokens.count("<i"), first.numbers.count("<tr>"), first.cut) == (2, 2, 48)


# --- episodes ----------------------------------------------------------------------------------------------------------


def test_an_episode_is_shown_by_its_turns(tmp_path: Path) -> None:
    """Its tokens too; those of the environment have no number and no colour, and look different."""
    folder = write_run(tmp_path / "mine", ["said"], steps=1, groups=1, size=2, episodes=True)
    html = run_html(read_run(folder))
    assert re.findall(r'<p class="who">(.*?)</p>\n<pre class="(.*?)"', html)[-6:] == [
        ("policy, turn 1, reward 0.25, advantage +0.50", "tokens"),
        ("tool, user", "tokens given"),
        ("policy, turn 2, advantage -1.00", "tokens"),
        ("policy, turn 1, reward 0.25, advantage +0.50", "tokens"),
        ("tool, user", "tokens given"),
        ("policy, turn 2, advantage -1.00, cut off here", "tokens"),
    ]
    assert ".tokens.given i" in html.split("</style>")[0]
    (group,) = inspect(read_stored(read_run(folder))).steps[0].groups
    (one, _) = group.completions
    assert [turn.tokens.count("<i") for turn in one.turns] == [4, 2, 4]
    assert "class" not in one.turns[1].tokens
    assert one.numbers.count("<tr") == 10
    assert one.numbers.count("<tr class=given>") == 2
    assert one.facts == ("2 turns", "score 0.5", "said 3", "advantages -1.00 to +0.50", "8 tokens", "stopped")


def test_an_episode_whose_turns_have_one_advantage_shows_it_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine", steps=1, groups=1, size=2, episodes=True)
    file = folder / "rollouts" / "step-00000001.npz"
    with np.load(file) as archive:
        arrays = dict(archive)
    arrays["advantage"][np.isfinite(arrays["advantage"])] = 0.5
    np.savez_compressed(file, **arrays)
    (one, _) = inspect(read_stored(read_run(folder))).steps[0].groups[0].completions
    assert "advantage +0.50" in one.facts
    assert [turn.title for turn in one.turns] == ["policy, turn 1, reward 0.25", "tool, user", "policy, turn 2"]
    assert "advantage" not in one.columns


def test_without_numbers_of_tokens_an_episode_has_its_texts(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "mine", [f"text {i}" for i in range(500)], steps=1, groups=1, size=2, tokens=False, episodes=True
    )
    (_, one) = inspect(read_stored(read_run(folder))).steps[0].groups[0].completions
    titles = ["policy, turn 1, reward 0.25", "tool", "user", "policy, turn 2, cut off here"]
    assert [turn.title for turn in one.turns] == titles
    html = run_html(read_run(folder))
    assert all(f">{turn.text}</pre>" in html for turn in one.turns)


def test_held_out_episodes_are_shown_by_their_turns(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "mine", [f"text {i}" for i in range(500)], episodes=True))
    won, *_ = moved(run)
    assert [turn.title for turn in said_in(won[0].after)] == [
        "policy, turn 1, reward 0.25",
        "tool",
        "user",
        "policy, turn 2",
    ]
    html = run_html(run)
    assert all(f">{turn.text}</pre>" in html for turn in said_in(won[0].before))


def test_a_terminal_shows_an_episode_by_its_turns(tmp_path: Path) -> None:
    found = run_text(read_run(write_run(tmp_path / "mine", ["fine\npolicy, turn 9"], steps=1, episodes=True)))
    start = found.index("    policy, turn 1, reward 0.25, advantage +0.50\n")
    assert found[start:].split("\n")[:8] == [
        "    policy, turn 1, reward 0.25, advantage +0.50", "        fine", "        policy, turn 9",
        "    tool, user", "        fine", "        policy, turn 9", "        fine", "        policy, turn 9",
    ]  # fmt: skip


def test_an_episode_of_many_turns_is_bounded() -> None:
    said = [["assistant", "x" * 100]] * 1000
    shown_turns = turns_said(said)
    assert sum(len(turn.text) for turn in shown_turns) < 3000 + 60 * 40
    assert shown_turns[-1].title == "940 more turns and messages"


@pytest.mark.parametrize("said", [None, "text", [["assistant"]], [["assistant", 3]], {"a": 1}, [[None, "x"]], 7])
def test_what_is_no_episode_is_none(said: Any) -> None:
    assert turns_said(said, ["x", None, True, float("nan")]) == ()


# --- nothing from outside is markup ------------------------------------------------------------------------------------


@pytest.mark.parametrize("episodes", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_hostile_texts_stay_texts(tmp_path: Path, tokens: bool, episodes: bool) -> None:
    for name, texts in (("a", PAYLOADS), ("b", [f"harmless {i}" for i in range(len(PAYLOADS))])):
        write_run(tmp_path / name / "run", texts, steps=12, tokens=tokens, episodes=episodes)
    html = run_html(read_run(tmp_path / "a" / "run"))
    page, tame = RunHtml(html), page_of(tmp_path / "b" / "run")
    assert [element.tag for element in page.elements] == [element.tag for element in tame.elements]
    assert hidden(html) == []
    html.encode()
    check_harmless(page)


@pytest.mark.parametrize("episodes", [False, True])
def test_hostile_texts_in_a_terminal(tmp_path: Path, episodes: bool) -> None:
    found = run_text(read_run(write_run(tmp_path / "run", PAYLOADS, steps=12, episodes=episodes)))
    assert hidden(found) == []
    found.encode()
    ordinary = run_text(read_run(write_run(tmp_path / "fine")))
    assert max(map(len, ordinary.split("\n"))) <= WIDTH


def test_the_page_of_a_long_run_is_bounded(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [*SPITE, "\u202e" * 50], steps=20, groups=4, size=8, length=100)
    for step in range(21, 201):
        for end in ("jsonl", "npz"):
            (folder / "rollouts" / f"step-{step:08d}.{end}").symlink_to(folder / "rollouts" / f"step-00000001.{end}")
    run = read_run(folder)
    html = run_html(run)
    assert len(html.encode()) <= MOST_BYTES
    assert html.count('<details class="step"') == MOST_STEPS


# --- its look ----------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_is_readable_on_every_colour_and_the_steps_differ_in_lightness(tmp_path: Path) -> None:
    css = run_html(read_run(write_run(tmp_path / "run")))
    for ink, scheme in (("#1c2025", css.split("--s1")[1]), ("#e5e8eb", css.split("--s1")[2])):
        colours = dict(re.findall(r"--(\w\d): (#\w{6})", "--s1" + scheme.split("}")[0]))
        assert set(colours) == {*(f"s{i}" for i in range(1, 6)), *(f"{side}{i}" for side in "ud" for i in range(1, 4))}
        for colour in colours.values():
            light, dark = sorted((luminance(ink), luminance(colour)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, colour
        for side, n in (("s", 5), ("u", 3), ("d", 3)):
            levels = [luminance(colours[f"{side}{i}"]) for i in range(1, n + 1)]
            assert levels == sorted(levels, reverse=ink == "#1c2025")


class Ids(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.targets += [found["for"] or ""] if tag == "label" else []


def test_every_control_has_its_label_and_its_rules(tmp_path: Path) -> None:
    html = run_html(read_run(write_run(tmp_path / "run")))
    found = Ids(html)
    assert len(found.ids) == len({*found.ids})
    assert found.targets == [name for name in found.ids if name.startswith("q-")]
    assert len(found.targets) == len(QUANTITIES) + 1
    for quantity in QUANTITIES:
        assert f"#inspector:has(#q-{quantity.key}:checked) .view .only-{quantity.key}" in html


def test_controls_stand_in_groups_with_a_legend(tmp_path: Path) -> None:
    """A screen reader says what a control belongs to; the picker's two come by the script, each in a label of its own."""
    html = run_html(read_run(write_run(tmp_path / "run")))
    groups = re.findall(r"<fieldset[^>]*>\s*<legend>([^<]+)</legend>(.*?)</fieldset>", html, re.DOTALL)
    assert [legend for legend, _ in groups] == ["Colour of the tokens", "Step and problem that are shown"]
    assert groups[0][1].count('type="radio"') == html.count('type="radio"') == len(QUANTITIES) + 1
    assert 'document.createElement("label")' in SCRIPT.read_text()


def test_ticks_by_hand() -> None:
    assert ticks(0, 100) == [0, 25, 50, 75, 100]
    assert ticks(0.13, 0.41) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert ticks(1, 12, whole=True) == [5, 10]
    assert ticks(3, 3, whole=True) == [3]
    assert ticks(5, 5) == [5.0] or len(ticks(5, 5)) >= 1


def test_a_chart_has_every_point_and_skips_what_is_unknown() -> None:
    panel = Panel("Entropy", (Line("entropy", ((1.0, 0.5), (2.0, float("nan")), (3.0, 0.25))),))
    picture = str(chart(panel))
    assert picture.count("L") == 1, "one line between two points"
    assert 'aria-label="Entropy, from the first to the last point: entropy: 0.5 to 0.25"' in picture
    assert not chart(Panel("nothing", ()))


# --- while the run goes on ---------------------------------------------------------------------------------------------


def test_the_page_is_refreshed_seldom_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(run_page.time, "monotonic", lambda: clock[0])
    made: list[float] = []

    def write(path: Path) -> Path:
        made.append(clock[0])
        clock[0] += 1.0  # the time that it takes
        return path

    monkeypatch.setattr(run_page, "write_run_page", write)
    page = RunPage()
    page.begin(tmp_path, {}, 0)
    page.evaluation(0, {})
    for step in range(1, 101):
        clock[0] += 1.0
        page.step(step, {})
    assert made == [0.0, 51.0, 102.0]
    page.finish({})
    page.close()
    assert len(made) == 4


@pytest.mark.parametrize(
    ("took", "closing", "is_made"), [(1.0, 0.0, True), (1.0, 4.5, False), (6.0, 0.0, False), (0.0, 0.0, False)]
)
def test_after_a_signal_the_last_page_is_made_only_if_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: float, closing: float, is_made: bool
) -> None:
    """`took` are the seconds of the page before, 0 where there was none, and `closing` those of the checkpoint and the trackers."""
    clock, signalled, made = [100.0], [0.0], []
    monkeypatch.setattr(run_page.time, "monotonic", lambda: clock[0])

    def write(path: Path) -> Path:
        made.append(clock[0])
        clock[0] += took
        return path

    monkeypatch.setattr(run_page, "write_run_page", write)
    with RunPage(lambda: signalled[0] and clock[0] - signalled[0]) as page:
        page.begin(tmp_path, {}, 0)
        if took:
            page.evaluation(0, {})
        clock[0] += 1000.0
        signalled[0] = clock[0]
        clock[0] += 0.1
        page.step(10, {})  # the step in which the signal came
        page.evaluation(10, {})
        assert made == ([100.0] if took else []), "no refresh: the checkpoint comes first"
        page.close()
        clock[0] += closing
        assert made == ([100.0] if took else []), "other sinks come first"
    assert len(made) == bool(took) + is_made


def test_a_page_that_fails_does_not_hide_how_the_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> Path:
        raise ValueError("a defect")

    monkeypatch.setattr(run_page, "write_run_page", fail)

    def end() -> None:
        with RunPage() as page:
            page.begin(tmp_path, {}, 0)
            raise KeyError("the run")

    with pytest.raises(KeyError, match="the run"):
        end()


def test_a_page_that_cannot_be_written_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Path:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(run_page, "write_run_page", refuse)
    page = RunPage()
    page.begin(tmp_path, {}, 0)
    page.evaluation(0, {})
    page.close()


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    first = write_run_page(folder).read_bytes()
    assert write_run_page(folder).read_bytes() == first
    assert [path.name for path in folder.glob(".*")] == []
