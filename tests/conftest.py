"""One thread and no GPU, in the commands that tests start too: they do not fight over cores, and sums come in one order."""

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# the processes that tests start run this checkout, whichever is installed
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")])
)
if not os.environ.get("SLIMRL_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a shell has put into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until all tests are collected: imports leave a million objects, all of which stay

import pytest
import torch

from slimrl.machine.threads import cores
from tests.tiny import save_tiny

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests of deadlines and of processes that are killed wait for a sixth of their time."""
    return cores() + 1


def pytest_collection_finish() -> None:
    """Imports and collected tests are garbage at no time, so no collection looks through them."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random Qwen2 of 0.1 million parameters with the built-in tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", ROOT / "slimrl" / "builtin")


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random Qwen2 of small width with the real Qwen2.5-0.5B-Instruct tokenizer, template and stop ids."""
    source = SHARED / "tokenizers" / "qwen2.5-0.5b-instruct"
    if not source.is_dir():
        pytest.skip("needs the real Qwen2.5 tokenizer beside the project (shared/data/tokenizers)")
    return save_tiny(tmp_path_factory.mktemp("models") / "qwen", source, layers=2, hidden=32)


class Ended(NamedTuple):
    """How a command has ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ended]:
    """The command `slimrl` in this process, which saves the seconds of its imports, in an empty folder; exceptions other than
    exits fail the test.
    """
    from slimrl import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["slimrl", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's curves and its page take a second each, as long as a small run; few files of tests look at them."""
    if request.module.__name__ != "tests.cli.test_cli":
        monkeypatch.setattr("slimrl.runs.directory.draw_curves", lambda *_: None)
    if request.module.__name__ not in (
        "tests.cli.test_cli",
        "tests.cli.test_show",
        "tests.report.test_run",
        "tests.report.test_browser",
    ):
        monkeypatch.setattr("slimrl.report.run.write_run_page", lambda path: path / "report.html")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are not forced onto the disk: that protects from a loss of power, which no test causes. A descriptor that is closed still
    raises OSError.
    """
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture(autouse=True)
def a_short_preflight(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 1,000 problems of the built-in task of which a run checks the gold answers are the same in most tests, and the 16 that it
    samples before the first step are looked at in few; each takes a quarter of a small run. One file of tests and all that run
    commands as processes have them all.
    """
    file = request.module.__name__
    if file != "tests.cli.test_cli":
        monkeypatch.setattr("slimrl.preflight.payment.GOLD_SAMPLE", 100)
        if not file.startswith("tests.preflight."):
            monkeypatch.setattr("slimrl.preflight.doctor.PROBE_PROBLEMS", 2)
