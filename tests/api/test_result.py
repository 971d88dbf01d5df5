"""Results: read from the run's folder, and shown in a console and in a notebook."""

from __future__ import annotations

import dataclasses
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas
import pytest

import slimrl
from slimrl.api.html import as_html
from slimrl.results import compare
from slimrl.runs.reader import read_metrics
from tests.api.conftest import SMALL
from tests.report.test_report import SPITE


class Tags(HTMLParser):
    """The tags and attributes of a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}


def test_a_result_is_its_folder(finished: slimrl.Result) -> None:
    again = slimrl.Result(str(finished.path))  # type: ignore[arg-type]
    assert again == finished
    assert again.verb == "train"
    assert again.before.step == 0
    assert again.after.step == again.summary["steps"] == 2
    assert again.before.accuracy == again.summary["before"]["accuracy"]
    assert again.changes == again.summary["difference"] == compare(finished.before, finished.after)
    sampled = again.summary["difference"]["test"]["sampled"]
    assert dataclasses.astuple(again.change) == tuple(sampled[key] for key in ("change", "low", "high", "n"))
    assert again.records == read_metrics(finished.path)
    assert isinstance(again.metrics, pandas.DataFrame)
    assert list(again.metrics["step"]) == [1, 2]
    assert again.findings == tuple(again.summary["findings"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.path = Path("x")  # type: ignore[misc]


def test_without_pandas_metrics_are_records(finished: slimrl.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert finished.metrics == finished.records


def test_the_model_is_that_of_the_run(finished: slimrl.Result) -> None:
    ids = finished.tokenizer("3", return_tensors="pt").input_ids
    assert finished.model(ids).logits.shape[:2] == ids.shape
    first, second = (finished.sample("How many is 3 plus 4?", n=3) for _ in range(2))
    assert first == second
    assert [answer.tokens for answer in first] == [
        answer.tokens for answer in slimrl.sample(finished.path, "How many is 3 plus 4?", 3)
    ]
    (greedy,) = finished.sample("How many is 3 plus 4?", greedy=True)
    assert str(greedy) == greedy.text


def test_the_console_reads_a_few_lines(finished: slimrl.Result) -> None:
    first, second, third, *_ = repr(finished).splitlines()
    assert first == f"<slimrl.Result {finished.path}>"
    assert second.startswith("2 steps in ")
    assert third.startswith(f"test, accuracy: {100 * finished.before.accuracy:.1f} % -> ")
    assert third.endswith(" on 4 problems")
    assert len(repr(finished.before)) < 200
    assert repr(slimrl.Result(Path("nowhere"))).startswith("<slimrl.Result nowhere: nowhere/run.json holds no summary")


def test_a_notebook_gets_a_table_with_curves_and_nothing_else(finished: slimrl.Result, tmp_path: Path) -> None:
    page = finished._repr_html_()
    tags = Tags(page)
    assert {"table", "svg", "path"} <= {*tags.tags}
    assert not {"script", "style", "link", "img", "iframe", "foreignobject"} & {*tags.tags}
    assert "http" not in page.replace("http://www.w3.org", "")
    assert len(page) < 60_000
    record = json.loads((finished.path / "run.json").read_text())
    shutil.copytree(finished.path, tmp_path / "spite")
    record["summary"]["findings"] = [*SPITE]
    (tmp_path / "spite" / "run.json").write_text(json.dumps(record))
    spite = Tags(slimrl.Result(tmp_path / "spite")._repr_html_())
    assert [tag for tag in spite.tags if tag != "p"] == [tag for tag in tags.tags if tag != "p"]
    assert not {name for name in spite.names if name.startswith("on")}


def test_text_in_a_page_is_text() -> None:
    page = as_html("<b>&\x1b", ["</p><script>x</script>"], [["<i>"], ["\u202ex"]], {"<u>": []})
    assert not {"b", "i", "u", "script"} & {*Tags(page).tags} - {"b"}
    assert Tags(page).tags.count("b") == 1
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_no_page_no_model_and_no_summary_are_said(tmp_path: Path) -> None:
    result = slimrl.train(output=tmp_path, **SMALL | {"steps": 1}, log={"model": False})
    with pytest.raises(slimrl.DataError, match=r"holds no model \(log\.model=false\)"):
        result.model  # noqa: B018
    (result.path / "report.html").unlink(missing_ok=True)
    with pytest.raises(slimrl.DataError, match="there is no such page"):
        result.show()
    shutil.rmtree(result.path / "evals")
    with pytest.raises(slimrl.DataError, match="evals holds no evaluation"):
        result.change  # noqa: B018
    assert "holds no evaluation" in result._repr_html_()


def test_the_page_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    (tmp_path / "report.html").write_text("")
    assert slimrl.Result(tmp_path).show() == tmp_path / "report.html"
    assert opened == [(tmp_path / "report.html").as_uri()]
