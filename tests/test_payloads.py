"""Hostile text in every place that shows what a model or a data set wrote: terminal, page, Markdown, CSV, errors, JSON."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from slimrl import cli
from slimrl.algorithm.groups import Collected
from slimrl.cli.output import print_json
from slimrl.config.files import build
from slimrl.config.schema import TrainConfig
from slimrl.display.run import Display
from slimrl.records import Completion, Group, Problem, Rollout
from slimrl.report import plots
from slimrl.report.report import as_csv, as_html, as_json, as_markdown
from slimrl.results import DoctorReport, Evaluation, GradedCompletion, SplitEvaluation, TrainSummary, compare
from slimrl.study.results import Results
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES
from slimrl.text import HIDDEN
from tests.report.test_report import SPITE, Page, check_inert, spiteful

ESCAPES = [
    "\x1b[2J", "\x1b[H", "\x1b[31m", "\x1b[0m", "\x1b[1m", "\x1b[8mhidden", "\x1b[?1049h", "\x1b[?25l", "\x1b[6n", "\x1b[c", "\x1b[>c", "\x1b[21t",
    "\x1b[1A\x1b[2K", "\x1b[999D", "\x1b[999;999H", "\x1b[5i", "\x1b[4i", "\x1b[20t", "\x1b[3;0;0t", "\x1b[38;2;1;2;3m", "\x1b[1;5r", "\x1b[!p",
    "\x1b]0;title\x07", "\x1b]2;title\x1b\\", "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\", "\x1b]52;c;ZWNobyBwd25lZA==\x07",
    "\x1b]52;c;?\x07", "\x1b]4;1;rgb:ff/00/00\x07", "\x1b]10;?\x07", "\x1b]11;?\x07", "\x1b]50;fixed\x07", "\x1b]1337;File=name=x:AAAA\x07",
    "\x1b]9;notify\x07", "\x1b]777;notify;a;b\x07", "\x1b]133;C\x07", "\x1bP$q\"p\x1b\\", "\x1bP+q544e\x1b\\", "\x1bPq#0;2;0;0;0\x1b\\",
    "\x1b_Gf=24;AAAA\x1b\\", "\x1b^private\x1b\\", "\x1bXstring\x1b\\", "\x1bc", "\x1b7\x1b8", "\x1bD", "\x1bE", "\x1bM", "\x1b(0qqq", "\x1b)0", "\x1b#8",
    "\x1b%G", "\x1b=", "\x1b>", "\x1b", "\x1b\x1b[A", "\x1b[", "\x1b]", "\x1b[200~paste\x1b[201~", "\x1b[<0;1;1M", "\x1b[?2004h", "\x1b[?1000h", "\x1b[?7l",
    "\x9b2J", "\x9b31m", "\x9d0;title\x9c", "\x9d52;c;AAAA\x9c", "\x90q\x9c", "\x9e\x9c", "\x9f\x9c", "\x98\x9c", "\x84", "\x85next line", "\x8d", "\x8e", "\x8f",
    "good\rbad", "good\x08\x08bad", "bell\x07", "\x0eshift", "\x0fshift", "\x0b", "\x0c", "\x7f", "\x00", "\x04", "\x1a", "\x13", "\x11", "\x05", "\x16", "\x1c\x1d\x1e\x1f",
]  # fmt: skip
BIDI = [
    *(f"a{c}b" for c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u200b\u200c\u200d\u2060\ufeff\xad\u180e\u2061\u2064\u206a"
      "\u206f\ufff9\ufffa\ufffb\u2028\u2029\U000e0001\U000e0041\U000e007f\U0001d173"),
    "\u202egpj.exe", "if (x\u2066 ) { \u2069\u2067", "\ud800", "\udfff", "\ud83d", "\udc80", "\U0001f468\u200d\U0001f469", "#### 1\u20288",
]  # fmt: skip
MARKUP = [
    "[/nope]", "[/]", "[red]x[/red]", "[bold", "[link=https://evil.example]x[/link]", "[@click=app.quit]x[/]", "[[x]]", "\\[red]x", ":smile:",
    "[red][/blue]", "[on red blink]x", "[progress.description]", "[#ff0000]x", "{task.description}", "[reverse]x", "[not a tag", "]", "[",
]  # fmt: skip
HTML = [
    "<script>alert('XSS')</script>", "<SCRIPT SRC=//evil.example/x.js></SCRIPT>", "<IMG SRC=\"javascript:alert('XSS');\">", "<IMG SRC=JaVaScRiPt:alert(1)>",
    "<IMG \"\"\"><SCRIPT>alert(1)</SCRIPT>\">", "<IMG SRC=# onmouseover=\"alert(1)\">", "<IMG SRC= onmouseover=alert(1)>", "<IMG onmouseover=alert(1)>",
    "<IMG SRC=/ onerror=\"alert(1)\"></img>", "<IMG SRC=\"jav\tascript:alert(1);\">", "<IMG SRC=\"jav&#x09;ascript:alert(1);\">", "<IMG SRC=\"jav&#x0A;ascript:alert(1);\">",
    "<SCRIPT/XSS SRC=//evil.example/x.js></SCRIPT>", "<BODY onload!#$%&()*~+-_.,:;?@[/|\\]^`=alert(1)>", "<<SCRIPT>alert(1);//\\<</SCRIPT>",
    "<SCRIPT SRC=//evil.example/x.js?< B >", "<IMG SRC=\"`<javascript:alert>`('XSS')\"", "<iframe src=//evil.example/ <", "\\\";alert('XSS');//",
    "</script><script>alert(1);</script>", "</TITLE><SCRIPT>alert(1);</SCRIPT>", "<INPUT TYPE=\"IMAGE\" SRC=\"javascript:alert(1);\">", "<BODY BACKGROUND=\"javascript:alert(1)\">",
    "<IMG DYNSRC=\"javascript:alert(1)\">", "<IMG LOWSRC=\"javascript:alert(1)\">", "<STYLE>li {list-style-image: url(\"javascript:alert(1)\");}</STYLE><UL><LI>x",
    "<IMG SRC='vbscript:msgbox(1)'>", "<svg onload=alert(1)>", "<BODY ONLOAD=alert(1)>", "<BGSOUND SRC=\"javascript:alert(1);\">", "<BR SIZE=\"&{alert(1)}\">",
    "<LINK REL=\"stylesheet\" HREF=\"javascript:alert(1);\">", "<STYLE>@import'//evil.example/x.css';</STYLE>", "<META HTTP-EQUIV=\"Link\" Content=\"<//evil.example/x.css>; REL=stylesheet\">",
    "<STYLE>BODY{-moz-binding:url(\"//evil.example/x.xml#x\")}</STYLE>", "<STYLE>@im\\port'\\ja\\vasc\\ript:alert(1)';</STYLE>", "<IMG STYLE=\"xss:expr/*XSS*/ession(alert(1))\">",
    "<XSS STYLE=\"behavior: url(x.htc);\">", "<META HTTP-EQUIV=\"refresh\" CONTENT=\"0;url=data:text/html base64,PHNjcmlwdD4=\">", "<IFRAME SRC=\"javascript:alert(1);\"></IFRAME>",
    "<IFRAME SRC=# onmouseover=\"alert(1)\"></IFRAME>", "<FRAMESET><FRAME SRC=\"javascript:alert(1);\"></FRAMESET>", "<TABLE BACKGROUND=\"javascript:alert(1)\">", "<TABLE><TD BACKGROUND=\"javascript:alert(1)\">",
    "<DIV STYLE=\"background-image: url(javascript:alert(1))\">", "<DIV STYLE=\"width: expression(alert(1));\">", "<!--[if gte IE 4]><SCRIPT>alert(1);</SCRIPT><![endif]-->", "<BASE HREF=\"javascript:alert(1);//\">",
    "<OBJECT TYPE=\"text/x-scriptlet\" DATA=\"//evil.example/x\"></OBJECT>", "<EMBED SRC=\"data:image/svg+xml;base64,PHN2Zz4=\" AllowScriptAccess=\"always\"></EMBED>", "<XML ID=\"xss\"><I><B><IMG SRC=\"javas<!-- -->cript:alert(1)\"></B></I></XML>",
    "<? echo('x'); ?>", "<HEAD><META HTTP-EQUIV=\"CONTENT-TYPE\" CONTENT=\"text/html; charset=UTF-7\"></HEAD>+ADw-SCRIPT+AD4-alert(1);+ADw-/SCRIPT+AD4-", "<A HREF=\"//0x42.0x66.0x7.0x93/\">x</A>",
    "<a onmouseover=\"alert(1)\">x</a>", "<video><source onerror=alert(1)></video>", "<audio src onerror=alert(1)>", "<marquee onstart=alert(1)>", "<keygen autofocus onfocus=alert(1)>", "<select autofocus onfocus=alert(1)>",
    "<textarea autofocus onfocus=alert(1)>", "<details open ontoggle=alert(1)>x</details>", "<isindex type=image src=1 onerror=alert(1)>", "<x contenteditable onblur=alert(1)>", "<math href=javascript:alert(1)>x</math>", "<button form=x formaction=javascript:alert(1)>",
    "<portal src=//evil.example>", "<dialog open onclose=alert(1)>", "<slot onslotchange=alert(1)>", "<style>*{background:url(//evil.example)}</style>", "&quot;&gt;&lt;script&gt;", "\" style=\"x:expression(1)", "'-alert(1)-'", "`-alert(1)-`", "{{constructor.constructor('alert(1)')()}}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{% include '/etc/passwd' %}", "<%= 7*7 %>", "<!ENTITY x SYSTEM 'file:///etc/passwd'>", "<xsl:value-of select='x'/>", "<use href=//evil.example#x />", "<animate onbegin=alert(1)>", "<foreignObject><script>alert(1)</script>",
]  # fmt: skip
FORMULAS = [
    "=cmd|'/C calc'!A0", "=cmd|'/C powershell IEX(x)'!A0", "+cmd|'/C calc'!A0", "-cmd|'/C calc'!A0", "@SUM(1+1)*cmd|'/C calc'!A0", "=HYPERLINK(\"//evil.example\",\"x\")",
    "=IMPORTXML(\"//evil.example\",\"//a\")", "=IMAGE(\"//evil.example\")", "=WEBSERVICE(\"//evil.example\")", "=DDE(\"cmd\";\"/C calc\";\"x\")", "\t=1+1", "\r=1+1", "\n=1+1", " =1+1", "\u3000=1+1",
    "\uff1d1+1", "\uff0b1+1", "\uff0d1+1", "\uff20SUM(1)", "\";=1+1", "a,=1+1", "a\",\"=1+1", "a\n=1+1", "a\r\n=1+1", "=1+1\",\"", "+1", "-1", "@x", "=", "--1", "\x00=1+1",
]  # fmt: skip
PAYLOADS = list(dict.fromkeys([*ESCAPES, *BIDI, *MARKUP, *HTML, *FORMULAS, *SPITE]))


def hidden(text: str) -> list[str]:
    """Characters that act instead of showing, but for the line's end."""
    return [c for c in text if c not in "\n\t" and unicodedata.category(c) in HIDDEN]


def test_there_are_enough_of_them() -> None:
    assert len(PAYLOADS) >= 300
    assert sum(bool(hidden(text)) for text in PAYLOADS) > 100


# --- terminal ----------------------------------------------------------------------------------------------------------


CHOSEN = "algorithm.clip_high"
"""A switch that a user chose, of which it is said that it is inert."""


def show(payloads: list[str]) -> None:
    """Each payload wherever the display of a run shows text that is not ours."""
    display, config = Display(samples_every=1, samples=1), build(TrainConfig, {"algorithm": {"clip_high": 0.28}})
    grader = Grader("numeric")
    steps = len(payloads)
    for number, text in enumerate(payloads):
        problem = Problem(text, text, text)
        rollout = Rollout(problem, Completion((1,), (2,), (0.0,), "stop"), text, False, {}, 0.0, text)
        group = Group((rollout,), number)
        sample: dict[str, Any] = {"question": text, "text": text, "extracted": text, "answer": text, "reward": 0.0}
        report = DoctorReport(
            first_prompt=text, stop_ids={"2": text}, stop_texts=[text], completions=1, stop=1.0, parses=1.0, right=1.0, groups=1, signal=1.0,
            gold_checked=1, gold_failed=1, reward_maximum=1.0, inert=[f"{CHOSEN}: {text}"], confounded=[text], warnings=[text], samples=[sample], notes=[text],
        )  # fmt: skip
        display.opening(report, config)
        display.probes(report)
        task = Task(text, (problem,), (), (), STYLES["answer"], grader, text, {})
        metrics = {"num_tokens": 1.0, "time/total": 1.0, "update/skipped": 1.0, "sampling/fell_back": 0.0}
        display.step(number, steps, metrics, Collected((group,), (), (group,), 1), task)
        row = GradedCompletion("a", "sampled", 0, False, False, False, "stop", 1, text, text, text, text, text)
        evaluation = Evaluation(number, SplitEvaluation((row,)), SplitEvaluation(()))
        display.evaluation(evaluation)
        row_summary = evaluation.test.summary()
        summary = TrainSummary(
            run=str(Path("runs") / re.sub("[/\x00]", "", text)[:40]), before=row_summary, after=row_summary, difference=compare(evaluation, evaluation), harder={}, steps=1, weights="", optimizer="", unscorable={text: 1},
            tokens_generated=1, seconds=1.0, inert=[f"{CHOSEN}: {text}"], confounded=[text], profile={},
            memory={"measured": 1.0, "estimated": 1.0, "error": 0.0, "planned": 1.0},
        )  # fmt: skip
        display.closing(summary, config)
    display.stop()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Standard error is taken for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return monkeypatch


def test_a_terminal_without_colours_gets_no_escape_at_all(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.setenv("TERM", "dumb")
    show(PAYLOADS)
    shown = capsys.readouterr().err
    assert Display().console.is_terminal
    assert "[red]x[/red]" in shown, "markup stays text"
    assert set(hidden(shown)) == set()
    shown.encode()


def test_a_terminal_with_colours_gets_our_own_escapes_alone(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.setenv("TERM", "xterm-256color")
    show(["harmless", "text"])
    sequence = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~])?|\r")
    ours = set(sequence.findall(capsys.readouterr().err))
    assert "\x1b[1m" in ours, "there are colours"
    show(PAYLOADS)
    shown = capsys.readouterr().err
    assert set(sequence.findall(shown)) <= ours
    assert set(hidden(sequence.sub("", shown))) == set()
    shown.encode()


def test_errors_are_told_without_what_acts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As verbs, sections, settings and files: whatever a user types is quoted back."""
    for number, text in enumerate(PAYLOADS):
        forms = ["settings", f"x{text}"], ["train", f"x{text}=1"], ["train", f"./nowhere{text}.yaml"], [f"x{text}"]
        monkeypatch.setattr(sys, "argv", ["slimrl", *forms[min(number % 40, 3)]])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert stop.value.code == 2
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1, "an error is one line"
        assert hidden(captured.err + captured.out) == []
        captured.err.encode()


def test_json_on_standard_output_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(PAYLOADS)
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.removesuffix("\n").isprintable()
    assert json.loads(out) == PAYLOADS


@pytest.mark.parametrize("tty", [True, False])
def test_samples_are_raw_in_a_pipe_alone(
    tty: bool, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slimrl.model.policy.Policy.decode", lambda *_: "\u202e18\x07")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty, raising=False)
    arguments = ["sample", str(tiny_folder), "1+1?", "rollout.max_new_tokens=2", "model.device=cpu"]
    monkeypatch.setattr(sys, "argv", ["slimrl", *arguments])
    cli.main()
    assert capsys.readouterr().out == ("\\u202e18\\x07\n" if tty else "\u202e18\x07\n")


# --- reports -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile() -> Results:
    return spiteful(PAYLOADS)


def test_the_page_shows_them_as_text(hostile: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "MOST_PANELS", 3)
    monkeypatch.setattr(plots, "KINDS", plots.KINDS[:1])
    html = as_html(hostile)
    page = Page(html)
    check_inert(page)
    tame = Page(as_html(spiteful([f"harmless text number {i}" for i in range(len(PAYLOADS))])))
    assert page.shape == tame.shape, "hostile text became an element or an attribute"
    assert hidden(html) == []
    html.encode()


def test_markdown_shows_them_as_text(hostile: Results) -> None:
    text = as_markdown(hostile)
    assert hidden(text) == []
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    kinds = {child.type for token in parser.parse(text) for child in token.children or ()}
    assert kinds <= {"text", "code_inline", "strong_open", "strong_close", "text_special"}


def test_no_cell_of_the_csv_is_a_formula(hostile: Results) -> None:
    text = as_csv(hostile)
    assert hidden(text) == []
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == len(hostile.runs) + 1
    words = [cell for row in rows for cell in row if not re.fullmatch(r"-?[0-9.]+(?:e-?[0-9]+)?", cell)]
    assert len({*words}) > 300
    for cell in words:
        assert not re.match(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]", cell), cell


def test_data_keeps_them_as_they_were(hostile: Results) -> None:
    text = as_json(hostile)
    assert text.isascii()
    assert json.loads(text)["cannot_tell"] == PAYLOADS
