"""Four forms with equal numbers; nothing from outside becomes markup; every kind of study can be shown."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from markdown_it import MarkdownIt
from scipy import stats

from slimrl.report import plots, prose, tables
from slimrl.report.plots import curve_groups, effect_plot, held_out_points, mean_curve
from slimrl.report.report import as_csv, as_html, as_json, as_markdown, code, escaped, write_reports
from slimrl.statistics import Judgement, interval, judge
from slimrl.study.compare import Effect
from slimrl.study.results import Results
from slimrl.study.runs import Run
from slimrl.text import visible
from tests.study.synthetic import LINES, PRIMARY, make_results, renamed

FEW = dict(list(LINES.items())[:4])
VOID = {"meta", "br", "img", "link", "input", "hr", "base"}
TEXT_ATTRIBUTES = {"aria-label"}
URL_ATTRIBUTES = {"href", "src", "action", "formaction", "xlink:href", "srcset", "poster", "data", "background", "ping"}

SPITE = [
    "<script>window.owned=1</script>", "</script><script>alert(1)</script>", "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "<svg/onload=alert(1)//", "<svg><script>alert(1)</script></svg>",
    '" onmouseover="alert(1)', "' onfocus='alert(1)' autofocus='", "</style><script>alert(1)</script>", "]]><script>alert(1)</script>",
    "<![CDATA[<script>alert(1)</script>]]>", "<!-- <script>alert(1)</script> -->", "--><script>alert(1)</script>", "</pre><h1>owned</h1><pre>",
    "</title><base href=//evil.example>", "</svg><iframe src=javascript:alert(1)>", "</text></g></svg><img src=x>", "<a href=javascript:alert(1)>x</a>",
    "javascript:alert(1)", "[x](javascript:alert(1))", "![x](https://evil.example/x.png)", "[x]: https://evil.example", "<https://evil.example>",
    "https://evil.example/?q=1", "www.evil.example", "root@evil.example", "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<link rel=stylesheet href=//evil.example/x.css>", "<style>@import '//evil.example'</style>", "<div style=background:url(//evil.example)>",
    "<iframe srcdoc='<script>alert(1)</script>'>", "<form action=//evil.example><input type=submit>", "<object data=//evil.example>",
    "<math><mtext><img src=x onerror=alert(1)></mtext></math>", "&lt;script&gt;alert(1)&lt;/script&gt;", "&#60;script&#62;", "&amp;amp;",
    "{{ 7 * 7 }}", "{% for x in ().__class__.__bases__ %}{{ x }}{% endfor %}", "{# gone #}", "${7*7}", "#{7*7}", "%(name)s {0} {arm}",
    "=HYPERLINK(\"//evil.example\")", "+1+1", "-2+3", "@SUM(A1)", "\t=1+1", "\r=1+1", "  =1+1", "=cmd|' /C calc'!A0",
    "\x1b[31mred\x1b[0m", "\x1b]0;owned\x07", "\x9b2J", "a\u202egnp.exe", "\u2066bidi\u2069", "zero\u200bwidth\ufeff", "nul\x00byte", "lone \ud800 surrogate",
    "a | b | c", "| --- |", "\\| x", "a\\", "`code`", "``", "`a`|`b\\", "**bold** _slanted_ ~~gone~~", "# heading", "> quote", "- item", "1. item",
    "---", "===", "line\nbreak", "a\n\n<div>b</div>", "a\u2028b\u2029c", r"$\frac", r"$x^2$ and $$\sum$$", r"\input{/etc/passwd}", "100%", "x" * 5000,
    "ünïcode 数学 😀 \u202e", "<", ">", "&", '"', "'", "\\", "/", "<b", "</", "&#", "a'b\"c<d>e&f", "\N{COMBINING ACUTE ACCENT}" * 30, "null", "NaN",
    "<template><script>alert(1)</script></template>", "<details open ontoggle=alert(1)>", "[a][b]",
    "[1, 2](javascript:alert(1))", "<a", "_", "__proto__", "constructor", "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
]  # fmt: skip


@dataclasses.dataclass
class Element:
    """A start tag of a page, and the text that stands directly within it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


class Page(HTMLParser):
    """What a page consists of: its elements in order, its tables by title, its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.comments: list[str] = []
        self.tables: list[dict[str, dict[str, str]]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"{[e.tag for e in self.open]} stay open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)
        if tag == "table":
            self.tables.append({})
        if tag == "th" and element.attributes.get("scope") == "row":
            self.row: dict[str, str] = {}
        if tag == "td" and "data-title" in element.attributes:
            self.title = element.attributes["data-title"]
            self.row[self.title] = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        self.open[-1].text += data
        tags = [element.tag for element in self.open]
        if "table" not in tags:
            return
        if self.open[-1].attributes.get("class") == "name":
            self.tables[-1][data] = self.row
        elif "td" in tags and "data-title" in next(e for e in self.open if e.tag == "td").attributes:
            self.row[self.title] += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def text(self) -> str:
        return "\n".join(element.text for element in self.elements if element.tag != "style")

    @property
    def shape(self) -> list[tuple[str, dict[str, str]]]:
        """Elements and attributes without what holds text, or how long a text is."""
        return [
            (e.tag, {k: "" if k in TEXT_ATTRIBUTES else re.sub("short|long", "", v) for k, v in e.attributes.items()})
            for e in self.elements
        ]


def markdown_tables(text: str) -> list[dict[str, dict[str, str]]]:
    """Tables of a Markdown text as a reader of it sees them: by row name, by title."""
    found: list[dict[str, dict[str, str]]] = []
    titles: list[str] = []
    cells: list[str] = []
    cell = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        match token.type:
            case "table_open":
                found.append({})
                titles = []
            case "tr_open":
                cells = []
            case "th_open" | "td_open":
                cell = True
            case "inline" if cell:
                cells.append("".join(child.content for child in token.children or ()))
                cell = False
            case "tr_close" if not titles:
                titles = cells
            case "tr_close":
                found[-1][cells[0]] = dict(zip(titles, cells, strict=True))
    return found


def numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"[-+]?\d+(?:\.\d+)?", text.replace(",", ""))]


def squeezed(text: str) -> str:
    return " ".join(text.split())


@cache
def ordinary() -> Results:
    """Eleven arms and an A/A arm, a run that diverged, one that failed, one that is missing, one arm without KL."""
    return make_results(
        status={("slow", 1): "diverged", ("decay", 3): "failed", ("decay", 4): "missing"}, unmeasured={"no-kl": ["kl"]}
    )


@cache
def ordinary_page() -> str:
    return as_html(ordinary())


# --- equal numbers -----------------------------------------------------------------------------------------------------


def test_four_forms_have_equal_numbers() -> None:
    results = ordinary()
    page, notes = Page(ordinary_page()), markdown_tables(as_markdown(results))
    data = json.loads(as_json(results))
    table = page.tables[0]
    effects = {effect["name"]: effect for effect in data["effects"]}
    arms = {arm["name"]: arm for arm in data["arms"]}
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert len(table) == len(arms) == 12
    for name, row in table.items():
        # page against Markdown: word for word
        for title, cell in row.items():
            assert squeezed(cell) == squeezed(notes[0][name][title])
        # page against data: to the shown digit
        arm = arms[name]["primary"]
        shown = numbers(row["Accuracy, %"])
        assert shown == [round(100 * arm[key], 1) for key in ("mean", "low", "high")]
        if name in effects:
            difference = effects[name]["difference"]
            expected = [round(100 * difference[key], 1) for key in ("mean", "low", "high")]
            assert numbers(row["Difference, points"]) == expected
            p = effects[name]["adjusted_p"]
            assert row["p (Holm)"] == ("< 0.001" if p < 0.001 else f"{p:.3f}")
            problems = effects[name]["problems"]
            assert numbers(row["Over problems, points"]) == [round(100 * problems[k], 1) for k in ("low", "high")]
        for key, title in (("tokens", "Tokens, relative"), ("seconds", "Seconds, relative")):
            assert numbers(row[title])[0] == round(arms[name]["measures"][key] / arms["base"]["measures"][key], 2)
        # data against the table of runs
        own = [r for r in rows if r["arm"] == name]
        assert len(own) == 5
        values = [
            0.0 if r["status"] == "diverged" else float(r[PRIMARY])
            for r in own
            if r["status"] in ("finished", "diverged")
        ]
        assert sum(values) / len(values) == pytest.approx(arm["mean"], abs=1e-12)
        tokens = [float(r["tokens"]) for r in own if r["status"] in ("finished", "diverged")]
        assert sum(tokens) / len(tokens) == pytest.approx(arms[name]["measures"]["tokens"])
    for ours, theirs in zip(page.tables[1:4], notes[1:4], strict=True):
        assert {name: {k: squeezed(v) for k, v in row.items()} for name, row in ours.items()} == {
            name: {k: squeezed(v) for k, v in row.items() if k in next(iter(ours.values()))}
            for name, row in theirs.items()
        }
    for figure in (data["noise"]["floor"], data["detectable"], data["margin"]):
        assert f"{100 * figure:.1f} points" in page.text
        assert f"{100 * figure:.1f} points" in as_markdown(results)
    for sentence in data["answer"]:
        assert sentence in page.text
        assert squeezed(sentence) in as_markdown(results)


def test_runs_are_told_in_full_by_csv_and_json() -> None:
    results = ordinary()
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    data = json.loads(as_json(results))["runs"]
    assert len(rows) == len(data) == 60
    for row, kept, run in zip(rows, data, results.runs, strict=True):
        assert (row["arm"], int(row["index"]), int(row["seed"])) == (run.arm, run.index, run.seed)
        assert (row["status"], row["reason"], row["weights"]) == (run.status, run.reason, run.weights)
        assert (int(row["steps"]), int(row["tokens"]), float(row["seconds"])) == (run.steps, run.tokens, run.seconds)
        for key in results.runs[0].after:
            assert (float(row[key]) if row[key] else None) == run.after.get(key)
        assert (float(row[f"before {PRIMARY}"]) if row[f"before {PRIMARY}"] else None) == run.before.get(PRIMARY)
        assert kept["before"] == run.before
        assert kept["after"] == run.after
        assert "items" not in kept
        assert kept["curves"]["accuracy"] == pytest.approx(list(run.curves["accuracy"]), rel=1e-5)


def test_json_has_null_for_the_unknown_and_short_curves() -> None:
    results = make_results({"no-kl": LINES["no-kl"]}, seeds=1, steps=500, unmeasured={"no-kl": ["kl"]})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(as_json(results), parse_constant=refuse)
    assert data["effects"][0]["difference"]["low"] is None
    assert data["noise"]["sd"] is None
    lost = next(run for run in data["runs"] if run["arm"] == "no-kl")["curves"]
    assert set(lost["kl"]) == {None}
    assert len(lost["step"]) == len(lost["kl"]) == 60
    assert (lost["step"][0], lost["step"][-1]) == (1, 500)


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_reports(make_results(FEW, seeds=3), tmp_path / "a")
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "svg.hashsalt": "other"}):
        second = write_reports(make_results(FEW, seeds=3), tmp_path / "b" / "c")
    names = sorted(path.name for path in first.parent.iterdir())
    assert names == ["report.html", "report.md", "results.csv", "results.json"]
    for name in names:
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = make_results(FEW, seeds=1)
    old = {path.name: path.read_bytes() for path in write_reports(results, tmp_path).parent.iterdir()}
    monkeypatch.setattr(prose, "legend", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_reports(replace(results, question="another"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old

    def full(path: Path, target: Path) -> None:
        raise OSError(f"no space for {path} as {target}")

    monkeypatch.undo()
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_reports(replace(results, question="another"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_training_reward_decides_nothing() -> None:
    results = make_results(FEW, seeds=2)
    other = replace(
        results, runs=tuple(replace(r, curves={**r.curves, "reward": [9.0] * r.steps}) for r in results.runs)
    )
    assert as_html(other) == as_html(results)
    assert as_markdown(other) == as_markdown(results)


# --- what it says ------------------------------------------------------------------------------------------------------


def test_rows_come_in_order() -> None:
    (table,) = tables.verdict_tables(ordinary())
    names = [row.name for row in table.rows]
    assert names[:2] == ["base", "base_again"]
    means = {effect.name: effect.difference.mean for effect in ordinary().effects}
    differences = [means[name] for name in names[2:]]
    assert differences == sorted(differences, reverse=True)
    assert len(differences) == 10
    assert list(Page(ordinary_page()).tables[0]) == names


def judged(*verdicts: str) -> Results:
    """A study of so many switches with these verdicts, the first with the largest difference."""
    results = make_results(dict(list(LINES.items())[: len(verdicts)]), seeds=2, steps=3)
    names = list(LINES)[: len(verdicts)]
    effects = []
    for effect in results.effects:
        if effect.kind == "switch":
            place = names.index(effect.name)
            sign = -1 if verdicts[place] == "worse" else 1
            values = [sign * (0.05 - 0.01 * place), sign * (0.05 - 0.01 * place)]
            judgement = Judgement(verdicts[place], f"{verdicts[place]}, it seems", 0.1, 0)  # type: ignore[arg-type]
            effect = replace(effect, difference=interval(values), judgement=judgement)
        effects.append(effect)
    bare = tuple(replace(arm, remarks=()) for arm in results.arms)
    return replace(results, effects=tuple(effects), arms=bare)


@pytest.mark.parametrize(
    ("verdicts", "sentences"),
    [
        (("better",), ["The switch raises held-out accuracy: no-kl by 5.0 points."]),
        (("undecided",), ["Nothing is decided: with 2 seeds a change of held-out accuracy is neither shown nor ruled out.", "Undecided: no-kl."]),
        (("no difference",), ["The switch is not shown to change held-out accuracy.", "No difference above 2.0 points: no-kl."]),
        (("better", "better", "worse"), ["2 of 3 switches raise held-out accuracy: no-kl by 5.0 points and clip_higher by 4.0 points; 1 of 3 lowers it: token_mean by 3.0 points."]),
        (("identical", "undecided"), ["None of 2 switches is shown to change held-out accuracy.", "Identical to the last bit: no-kl.", "Undecided: clip_higher."]),
        (("undecided",) * 9, ["Nothing is decided: with 2 seeds a change of held-out accuracy is neither shown nor ruled out.", "Undecided: no-kl, clip_higher, token_mean, no_std, overlong, format and 3 more."]),
    ],
)  # fmt: skip
def test_the_answer_follows_from_the_verdicts(verdicts: tuple[str, ...], sentences: list[str]) -> None:
    assert list(prose.answer(judged(*verdicts))) == sentences


def test_a_doubtful_winner_is_marked() -> None:
    results = judged("better", "better")
    doubtful = replace(results.arms[1], remarks=(("confounded", "two things at once"),))
    results = replace(results, arms=(results.arms[0], doubtful, *results.arms[2:]))
    assert prose.answer(results) == (
        "2 of 2 switches raise held-out accuracy: no-kl by 5.0 points and clip_higher by 4.0 points.",
        "Of these, with more than one change (see the remarks): no-kl.",
    )
    assert (("no-kl",), "changes more than one thing", "two things at once") in tables.remarks(results)


def test_a_winner_below_the_margin_is_marked() -> None:
    results = judged("better", "worse")
    assert prose.answer(replace(results, margin=0.045)) == (
        "1 of 2 switches raises held-out accuracy: no-kl by 5.0 points; 1 of 2 lowers it: clip_higher by 4.0 points.",
        "Of these, by less than the margin of 4.5 points: clip_higher.",
    )


def test_the_noise_floor_is_of_the_runs_that_are_there() -> None:
    results = make_results(FEW, seeds=4, steps=3, status={("base_again", 1): "missing", ("base", 0): "diverged"})
    meaning = prose.facts(results)["Noise floor"][1]
    assert meaning.startswith("Two sets of 3 runs")


def test_the_a_a_arm_is_no_switch() -> None:
    again = next(effect for effect in ordinary().effects if effect.kind == "noise")
    different = replace(again, difference=interval([0.02, 0.021, 0.019]))
    alone = replace(again, difference=interval([0.02]))
    unsure = replace(again, judgement=judge(again.difference, again.difference.p, 1e-6, 1))
    sure = replace(again, judgement=judge(again.difference, again.difference.p, 1.0, 1))
    bound = 100 * unsure.judgement.bound
    assert (
        tables.verdict_words(unsure)
        == f"noise check: nothing was changed, and no difference up to {bound:.1f} points is found"
    )
    assert tables.verdict_words(sure) == f"noise check: no difference larger than {bound:.1f} points"
    assert tables.verdict_words(different) == "noise check: differs by +2.0 points though nothing was changed"
    assert tables.verdict_words(alone) == "noise check: needs two seeds"


def test_remarks_and_inert_switches_are_told() -> None:
    page = Page(ordinary_page())
    found = tables.remarks(ordinary())
    kinds = {(arm, kind) for names, kind, _ in found for arm in names}
    assert len(found) == len({(kind, text) for _, kind, text in found})
    assert {("clip_higher", "cannot act"), ("format", "training reward not comparable"), ("no_std", "changes more than one thing"),
            ("format", "found inert in the run")} <= kinds  # fmt: skip
    for _, _, text in found:
        assert text in page.text
    marks = [element.text for element in page.elements if element.attributes.get("class") == "mark"]
    assert Counter(marks) == Counter(mark for row in tables.verdict_tables(ordinary())[0].rows for mark in row.marks)


@pytest.mark.parametrize("arms", [FEW, LINES], ids=["shared", "one each"])
def test_what_was_not_measured_is_said(arms: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "MOST_PANELS", 7)
    results = make_results(arms, seeds=1, steps=4, unmeasured={"no-kl": ["kl"]})
    names = [arm.name for arm in tables.ordered_arms(results)]
    lost = [(g.title, p) for g in curve_groups(names, results.runs) for p in g.panels if p.missing]
    assert [panel.missing for _, panel in lost] == [("no-kl",)]
    ((group, panel),) = lost
    assert "KL" in group + panel.title
    assert bool(panel.picture) == (len(arms) < 6)
    assert as_html(results).count("not measured") == 1


# --- every kind of study -----------------------------------------------------------------------------------------------


def test_one_seed_is_exploratory_and_undecided() -> None:
    results = make_results(FEW, seeds=1)
    page = Page(as_html(results))
    assert "Exploratory." in page.text
    assert "1 seed per arm, fewer than 5: a hint, not evidence." in page.text
    assert prose.answer(results)[0].startswith(("Nothing is decided", "None of 4"))
    assert page.tables[0]["no-kl"]["p (Holm)"] == "–"
    assert "[" not in page.tables[0]["no-kl"]["Accuracy, %"]
    assert "nan" not in page.text.lower()
    assert "inf" not in " ".join(cell for row in page.tables[0].values() for cell in row.values())


def test_no_run_at_all() -> None:
    nobody = {(arm, i): "missing" for arm in (*FEW, "base", "base_again") for i in range(5)}
    results = make_results(FEW, status=nobody)  # type: ignore[arg-type]
    page = Page(as_html(results))
    assert "Nothing can be said yet: no switch has a finished run to compare with one of the reference." in page.text
    assert "30 of 30 runs have no result yet" in page.text
    assert page.text.count("no result yet") == 6
    assert "No finished run has completions to show." in page.text
    assert set(page.tables[0]["no-kl"].values()) >= {"–", "0/5"}
    assert page.text.count("not measured") == 6
    assert "nan" not in (as_markdown(results) + as_csv(results)).lower()


def test_runs_that_diverged_failed_or_are_missing_are_told() -> None:
    results = ordinary()
    page = Page(ordinary_page())
    assert "2 of 60 runs have no result yet" in page.text
    assert squeezed(page.tables[0]["slow"]["Seeds finished"]) == "4/5 1 diverged"
    assert squeezed(page.tables[0]["decay"]["Seeds finished"]) == "3/5 1 failed"
    assert "Two sets of 5 runs" in page.text
    rows = [(row.name, *(cell.main for cell in row.cells)) for row in tables.troubled_runs(results).rows]
    assert sorted(rows) == [
        ("decay", "3", "failed", "out of memory", "0"),
        ("slow", "1", "diverged", "loss is not a number at step 10", "10"),
    ]
    assert "loss is not a number at step 10" in page.text


@pytest.mark.parametrize("design", ["factorial", "leave_one_out"])
def test_designs_whose_effects_are_no_arms(design: str) -> None:
    results = make_results(dict(list(LINES.items())[:2]), design=design, seeds=3, steps=5)
    page = Page(as_html(results))
    effects, arms = page.tables[:2]
    assert list(effects) == [effect.name for effect in tables.ordered_effects(results)]
    assert sorted(arms) == sorted(arm.name for arm in results.arms)
    for effect in results.effects:
        shown = numbers(effects[effect.name]["Difference, points"])[0]
        assert shown == round(100 * effect.difference.mean, 1)
    notes = markdown_tables(as_markdown(results))
    assert list(notes[0]) == list(effects)
    assert list(notes[1]) == list(arms)
    if design == "factorial":
        assert notes[0]["no-kl"]["What it is"] == "mean of the 2 arms with it less mean of the 2 without"
        assert notes[0]["no-kl x clip_higher"]["What it is"] == "both together, beyond the sum of each alone"
        assert effects["no-kl"]["Chance of improvement"] == "–"
    else:
        assert notes[0]["no-kl"]["What it is"] == "all less without_no-kl"
        assert any(s.startswith("All switches together: ") for s in prose.answer(results))


def test_an_interaction_is_put_into_words() -> None:
    results = make_results(dict(list(LINES.items())[:2]), design="factorial", seeds=3, steps=3)

    def decided(effect: Effect) -> Effect:
        if effect.kind != "interaction":
            return effect
        return replace(
            effect,
            difference=interval([-0.031, -0.03, -0.029]),
            judgement=Judgement("worse", "worse by 3.0 points", 0.04, 0),
        )

    sentence = prose.answer(replace(results, effects=tuple(map(decided, results.effects))))[-1]
    assert sentence == "no-kl x clip_higher: both together give 3.0 points less than the sum of each."


def test_more_arms_than_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "MOST_PANELS", 7)
    results = make_results(seeds=1, steps=3)
    page = Page(as_html(results))
    assert "Drawn are the first 7 of 12 arms" in page.text
    assert len(page.tables[0]) == 12
    names = [arm.name for arm in tables.ordered_arms(results)]
    assert [e.text for e in page.elements if e.tag == "figcaption" and not e.text.isspace()][:42] == names[:7] * 6


def test_the_page_is_small() -> None:
    assert len(ordinary_page().encode()) < 1_500_000


# --- pictures ----------------------------------------------------------------------------------------------------------


def test_mean_curve_by_hand() -> None:
    run = ordinary().runs[0]

    def made(tokens: list[float], accuracy: list[float]) -> Run:
        return replace(run, curves={**run.curves, "tokens": tokens, "accuracy": accuracy})

    # at tokens 1, 2 and 3 the runs stand at (1, 2, 3), (2, 3, 4) and (6, 7, 8); the second ends first, and a gap is bridged
    runs = [
        made([1, 2, 3, 4], [1, 2, 3, 4]),
        made([1, 3], [2, 4]),
        made([0, 1, 2, 5], [5, 6, math.nan, 10]),
        made([1, 2], [math.nan] * 2),
    ]
    curve = mean_curve(runs, "tokens", "accuracy")
    assert curve is not None
    assert list(curve.x) == pytest.approx([1, 5 / 3, 7 / 3, 3])
    assert list(curve.mean) == pytest.approx([3, 3 + 2 / 3, 4 + 1 / 3, 5])
    half = stats.t.ppf(0.975, 2) * math.sqrt(7 / 3)  # of 1, 2 and 6: standard deviation sqrt(7), three runs
    assert list(curve.high - curve.mean) == pytest.approx([half] * 4)
    assert list(curve.mean - curve.low) == pytest.approx([half] * 4)
    two = mean_curve(runs[:2], "tokens", "accuracy")
    assert two is not None
    assert all(map(math.isnan, two.low))
    assert mean_curve(runs[3:], "tokens", "accuracy") is None
    assert mean_curve([], "tokens", "accuracy") is None


def test_held_out_points_by_hand() -> None:
    run = ordinary().runs[0]
    runs = [
        replace(run, held_out=[(0, 0, 0.2), (50, 5, 0.3), (100, 10, 0.4)]),
        replace(run, held_out=[(0, 0, 0.2), (200, 30, 0.6)]),
        replace(run, held_out=[(0, 0, math.nan)]),
    ]
    half = stats.t.ppf(0.975, 1) * 0.1  # of 0.4 and 0.6: standard deviation sqrt(0.02), two runs
    assert held_out_points(runs, "tokens") == [(0, 0.2, 0), (150, 0.5, pytest.approx(half))]
    assert held_out_points(runs[:1], "seconds") == [(0, 0.2, 0), (5, 0.3, 0), (10, 0.4, 0)]


def test_the_effect_plot_has_room_for_every_mean() -> None:
    results = make_results(FEW, seeds=2, status={("no-kl", 0): "diverged"})
    effects = results.effects
    reach = [plots._reach(effects, results.noise.floor, results.margin, side) for side in (-1, 1)]
    for effect in effects:
        assert -reach[0] < 100 * effect.difference.mean < reach[1]
    assert min(reach) > 100 * results.margin
    assert reach[0] < 100 * max(abs(effect.difference.low) for effect in effects)
    unknown = [replace(e, difference=interval([]), pairs=()) for e in effects]
    assert "no result yet" in effect_plot(unknown, math.nan, 0.02)


def test_figures_do_not_share_names_and_are_described() -> None:
    page = Page(ordinary_page())
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len({*ids})
    used = {e.attributes["href"][1:] for e in page.elements if "href" in e.attributes}
    used |= {m for e in page.elements for v in e.attributes.values() for m in re.findall(r"url\(#([^)]*)\)", v)}
    assert len(used) > 70
    assert used <= {*ids}
    figures = [e.attributes for e in page.elements if e.tag == "svg"]
    assert len(figures) == 1 + 6 * 12 - 1  # effects, and six curves of twelve arms, of which one has no KL
    assert all(f["role"] == "img" and len(f["aria-label"]) > 20 and "viewbox" in f for f in figures)
    assert not re.search(r"#0101[0-9a-f]{2}", ordinary_page()), "a stand-in colour was left"


# --- nothing from outside acts -----------------------------------------------------------------------------------------


def spiteful(strings: list[str]) -> Results:
    """A study in which every string stands everywhere that text from outside can stand."""
    results = make_results({"decay": LINES["decay"]}, seeds=2, steps=3)
    base, arm, again = results.arms
    effect, noise = results.effects
    own = [run for run in results.runs if run.arm == "decay"]
    extra = [
        replace(arm, name=f"{i}{s}", overrides=(s, s), remarks=(("confounded", s), ("inert", s), ("reward", s)))
        for i, s in enumerate(strings)
    ]
    effects = [replace(effect, name=a.name, weights={a.name: 1.0, "base": -1.0}) for a in extra]
    runs = [replace(own[0], arm=a.name, inert=[s]) for a, s in zip(extra, strings, strict=True)]
    failed = [
        replace(own[1], arm=a.name, status="failed", reason=s, weights=s) for a, s in zip(extra, strings, strict=True)
    ]
    shown = {"text": "4", "right": True, "truncated": False}
    samples = [
        {
            "id": f"{s} ",
            "question": s,
            "answer": s,
            "before": {**shown, "text": s},
            "after": {"base": {**shown, "text": s, "said": [["assistant", s], ["tool", s]], "turn_rewards": [0.25]}},
        }
        for s in strings
    ]
    everything = replace(
        results,
        name=strings[0],
        question=strings[1],
        budget=strings[2],
        arms=(base, again, *extra),
        effects=(*effects, noise),
        runs=(*[r for r in results.runs if r.arm != "decay"], *runs, *failed),
        samples=tuple(samples),
        cannot_tell=tuple(strings),
        settings={f"{i}{s}": s for i, s in enumerate(strings)},
        versions={f"{i}{s}": s for i, s in enumerate(strings)},
    )
    return renamed(everything, {"base": strings[3], "base_again": f"again {strings[3]}"})


@pytest.fixture(scope="module")
def hostile() -> Results:
    assert len({*SPITE}) >= 100
    return spiteful(SPITE)


@pytest.fixture(scope="module")
def harmless() -> Results:
    return spiteful([f"harmless text number {i}" for i in range(len(SPITE))])


def check_inert(page: Page) -> None:
    """No script, no handler, no address but within the page."""
    allowed = {"html", "head", "meta", "title", "style", "body", "main", "header", "section", "article", "figure", "figcaption",
               "h1", "h2", "h3", "p", "div", "span", "a", "ul", "li", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td",
               "small", "strong", "i", "pre", "details", "summary", "svg", "g", "path", "defs", "use", "text", "clippath", "rect"}  # fmt: skip
    for element in page.elements:
        assert element.tag in allowed, element
        for name, value in element.attributes.items():
            assert not name.startswith("on"), element
            if name in URL_ATTRIBUTES:
                assert value.startswith("#"), element
            if name not in TEXT_ATTRIBUTES:
                assert "javascript:" not in value.lower(), element
                assert not re.search(r"url\((?!#)|//", value), element
        if element.tag == "style":
            assert not re.search(r"url\(|@import|//|image-set", element.text)
    assert not page.comments


def test_a_page_asks_for_nothing_and_runs_nothing() -> None:
    page = Page(ordinary_page())
    check_inert(page)
    policy = next(e.attributes for e in page.elements if "http-equiv" in e.attributes)
    assert policy["http-equiv"] == "Content-Security-Policy"
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    position = [e.tag for e in page.elements].index("style")
    assert page.elements.index(next(e for e in page.elements if "http-equiv" in e.attributes)) < position
    assert any(e.attributes == {"name": "referrer", "content": "no-referrer"} for e in page.elements)


def test_a_held_out_episode_is_shown_by_its_turns(harmless: Results) -> None:
    html = as_html(harmless)
    assert '<p class="who">policy, turn 1, reward 0.25</p>\n<pre class="tokens' not in html
    assert html.count('<p class="who">policy, turn 1, reward 0.25</p>') == len(harmless.samples)
    assert html.count('<p class="who">tool</p>\n<pre class=" given"') == len(harmless.samples)


@pytest.mark.parametrize("panels", ["one each", "shared"])
def test_hostile_text_stays_text_on_the_page(
    panels: str, hostile: Results, harmless: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    if panels == "one each":
        monkeypatch.setattr(plots, "MOST_PANELS", 7)
        monkeypatch.setattr(plots, "KINDS", plots.KINDS[:1])
        results, tame = hostile, harmless
    else:
        names = dict(zip(["base", "base_again", *FEW], SPITE, strict=False))
        results = renamed(make_results(FEW, seeds=1, steps=3), names)
        tame = renamed(make_results(FEW, seeds=1, steps=3), {old: f"x{i}" for i, old in enumerate(names)})
    html = as_html(results)
    page = Page(html)
    check_inert(page)
    assert page.shape == Page(as_html(tame)).shape, "hostile text became an element or an attribute"
    assert not [c for c in html if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    if panels == "one each":
        shown = {element.text for element in page.elements if element.tag == "pre"}
        for text in SPITE:
            whole = visible(text)
            assert whole in shown or whole[:3000] in "".join(shown)


def test_hostile_text_stays_text_in_markdown(hostile: Results, harmless: Results) -> None:
    text = as_markdown(hostile)
    assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

    def shape(markdown: str) -> list[str]:
        found = []
        for token in parser.parse(markdown):
            found.append(f"{token.type} {token.level}")
            kinds = {child.type for child in token.children or ()}
            assert kinds <= {"text", "code_inline", "strong_open", "strong_close", "text_special"}, token.content
        return found

    assert shape(text) == shape(as_markdown(harmless))
    assert len(markdown_tables(text)) == len(markdown_tables(as_markdown(harmless))) == 6


@pytest.mark.parametrize("text", SPITE)
def test_escaped_markdown_reads_as_it_was(text: str) -> None:
    for shown in (escaped(text), code(text)):
        (_, inline, _) = MarkdownIt("commonmark").parse(f"- x {shown}")[2:5]
        read = "".join(child.content for child in inline.children or ()).replace("\u200b", "")
        assert squeezed(read) == squeezed(f"x {visible(text)}")
    bare = MarkdownIt("commonmark").parse(f"x\n\n{escaped(text)}")
    assert [token.type for token in bare] == ["paragraph_open", "inline", "paragraph_close"] * 2
    assert not re.search(r"www\.|://|[^;]@|@\w", escaped(text))


def test_numbers_and_plain_words_are_not_defaced_in_markdown() -> None:
    for text in (
        "+1.4 [-0.6, +3.4]",
        "< 0.001",
        "54.6 [53.3, 55.8]",
        "1.00×",
        "▲ better by 4.5 points",
        "algorithm.kl_coef=0.0",
    ):
        assert escaped(text) == text
    assert code("no-kl") == "`no-kl`"


def test_cells_of_the_table_of_runs_are_no_formulas(hostile: Results) -> None:
    text = as_csv(hostile)
    rows = list(csv.reader(io.StringIO(text)))
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == text.count("\n") == len(hostile.runs) + 1
    for row in rows[1:]:
        for title, cell in zip(rows[0], row, strict=True):
            if title in ("arm", "status", "reason", "weights"):
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell
    reasons = {row[rows[0].index("reason")] for row in rows}
    assert {"'=cmd|' /C calc'!A0", "'+1+1", "'-2+3", "'@SUM(A1)", "'=1+1"} <= reasons
    negative = replace(hostile.runs[0], after={PRIMARY: -0.25}, seconds=-1e-9)
    assert ",-0.25," in as_csv(replace(hostile, runs=(negative,)))
    assert ",-1e-09," in as_csv(replace(hostile, runs=(negative,)))


def test_json_keeps_hostile_text_as_it_was(hostile: Results) -> None:
    data = json.loads(as_json(hostile))
    assert data["cannot_tell"] == SPITE
    assert [sample["question"] for sample in data["samples"]] == SPITE
    assert as_json(hostile).isascii()


def test_long_completions_are_cut_and_say_so() -> None:
    results = make_results({"decay": LINES["decay"]}, seeds=1, steps=2)
    sample = {**results.samples[0], "question": "y" * 10_000}
    page = Page(as_html(replace(results, samples=(sample,))))
    (shown,) = [e.text for e in page.elements if e.tag == "pre" and e.text.startswith("yy")]
    assert shown == "y" * 3000 + "\n[… 7,000 more characters]"


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (tables.probability, 0.0004, "< 0.001"),
        (tables.probability, 0.049, "0.049"),
        (tables.count, 1234567.4, "1,234,567"),
        (tables.setting, None, "null"),
        (tables.setting, ("a", 1), '["a", 1]'),
        (tables.setting, "test/sampled", "test/sampled"),
    ],
)
def test_numbers_as_text(form: Callable[[Any], str], value: Any, text: str) -> None:
    assert form(value) == text


def test_intervals_as_text() -> None:
    assert tables.span(-0.012, 0.034, sign=True) == "[-1.2, +3.4]"
    assert tables.span(0.512, 0.534, sign=False) == "[51.2, 53.4]"
    assert tables.span(-math.inf, math.inf, sign=True) == ""
    assert tables.times(3.0, 2.0) == "1.50×"
    assert tables.times(3.0, 0.0) == tables.times(math.nan, 2.0) == "–"
