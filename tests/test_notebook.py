"""docs/first-steps.ipynb: it runs as it stands, in a kernel of this interpreter, and its stored outputs are those of its cells."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "first-steps.ipynb"
STORED: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
INTERRUPTED = """
import asyncio
import os
import signal

await asyncio.sleep(0)


async def interrupting(completions, trainer_state, **columns):
    await asyncio.sleep(0.001)
    if trainer_state.global_step == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return [len(text) / 1000 for text in completions]


small = {"rollout": {"problems": 2, "group_size": 2}, "evaluation": {"problems": 2, "greedy": False}}
try:
    slimrl.train("builtin", rows, rewards=["correct", interrupting], steps=1000, name="long", **small)
except KeyboardInterrupt as stopped:
    print(stopped)
"""
"""Awaits, so that the kernel has its own handler of the signal, and trains in the event loop of the kernel."""
ALIVE = 'await asyncio.sleep(0)\nprint("the kernel goes on")'


def text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def shown(outputs: list[dict[str, Any]], kind: str = "text/plain") -> str:
    """What a cell shows as one text: streams and data of one kind."""
    return "\n".join(text(one.get("text") or one.get("data", {}).get(kind, "")) for one in outputs)


def kinds(cell: dict[str, Any]) -> list[tuple[str, ...]]:
    """The kinds of a cell's outputs, without what some versions of libraries say on stderr."""
    said = [one for one in cell["outputs"] if one.get("name") != "stderr" or "slimrl.train(" in text(cell["source"])]
    return sorted((one["output_type"], one.get("name", ""), *sorted(one.get("data", ()))) for one in said)


def code(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["cell_type"] == "code"]


def outputs_of(cells: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    """The outputs of the cell with this part of its source."""
    (cell,) = (cell for cell in code(cells) if part in text(cell["source"]))
    found: list[dict[str, Any]] = cell["outputs"]
    return found


@pytest.fixture(scope="module")
def notebook() -> ModuleType:
    """docs/site/notebook.py, which belongs to no package."""
    for needed in ("nbclient", "ipykernel"):
        pytest.importorskip(needed, reason="pip install '.[dev]'")
    spec = importlib.util.spec_from_file_location("site_notebook", ROOT / "docs" / "site" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs_and_shows_what_its_text_says(notebook: ModuleType, tmp_path: Path) -> None:
    import nbformat
    from nbformat.v4 import new_code_cell

    read = nbformat.read(NOTEBOOK, as_version=4)
    read.cells += [new_code_cell(INTERRUPTED), new_code_cell(ALIVE)]
    cells: list[dict[str, Any]] = notebook.settle(notebook.execute(read, tmp_path)).cells
    assert [kinds(cell) for cell in code(cells)[:-2]] == [kinds(cell) for cell in code(STORED)]

    trained = outputs_of(cells, "result = slimrl.train(")
    assert re.search(r"^held out \(test\) after step 12: ", shown(trained), re.MULTILINE)
    assert not re.search(r"warning|Warning|\x1b|\r", shown(trained))
    assert "<svg" in shown(trained, "text/html")
    changed = re.search(r"test, accuracy: [\d.]+ % -> [\d.]+ %, \+[\d.]+ points \[\+[\d.]+, \+[\d.]+\]", shown(trained))
    assert changed, "the interval holds no 0"
    assert changed[0].partition(", ")[2].partition(": ")[2] in shown(outputs_of(cells, "slimrl.compare(result.before"))
    assert shown(outputs_of(cells, 'slimrl.sample("builtin"')).count("=") < shown(
        outputs_of(cells, "result.sample")
    ).count("=")
    elsewhere = shown(outputs_of(cells, '"arithmetic"'))
    assert re.search(
        r"^test, sampled: [^;]*\[\+[\d.]+, \+[\d.]+\] on 40 problems; won \d+, lost \d+$", elsewhere, re.MULTILINE
    )
    assert "\nharder, sampled: " in elsewhere
    assert "####" in shown(outputs_of(cells, "AutoModelForCausalLM.from_pretrained"))
    assert "reward_funcs: complete" in shown(outputs_of(cells, "from-trl train_grpo.py"))
    assert "aggregation: token_mean  # loss_type=dapo: TRL's default" in shown(outputs_of(cells, '"mine.yaml"'))

    (printed,) = (one["text"] for one in cells[-2]["outputs"] if one.get("name") == "stdout")
    assert printed == 'stopped by SIGINT after step 1; resume with slimrl.train(resume="runs/long", rewards=[...])\n'
    assert shown(cells[-1]["outputs"]) == "the kernel goes on\n"
    (run,) = (tmp_path / "runs").glob("jsonl-train-*")
    assert (run / "report.html").is_file()
    (exported,) = tmp_path.glob("my-model-*")
    loads_with_its_tokenizer(exported)


def loads_with_its_tokenizer(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert "## Held-out accuracy" in (folder / "README.md").read_text(encoding="utf-8")


def test_stored_outputs_are_those_of_the_cells(notebook: ModuleType) -> None:
    import nbformat

    read = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(read)
    assert read.metadata.slimrl.sources == notebook.sources(read), "run python docs/site/notebook.py"
    assert [cell.execution_count for cell in code(read.cells)] == [*range(1, len(code(read.cells)) + 1)]
    assert not [cell for cell in read.cells if cell.metadata]


def test_stored_outputs_name_nothing_of_a_machine() -> None:
    stored = "\n".join(text(value) for cell in code(STORED) for one in cell["outputs"] for value in leaves(one))
    assert not re.search(
        r"(?<![\w.<])/(?:home|root|tmp|usr|Users|work|opt|mnt|var)\b|[A-Z]:\\|site-packages|\x1b", stored
    )
    for name in {socket.gethostname(), Path.home().name} - {"root", ""}:
        assert not re.search(rf"\b{re.escape(name)}\b", stored)
    assert NOTEBOOK.stat().st_size < 200_000


def leaves(value: Any) -> Iterator[str]:
    """The texts in an output, pictures left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "image/png":
                yield from leaves(inner)
    elif isinstance(value, list):
        yield "".join(map(str, value))
    elif isinstance(value, str):
        yield value
