"""Imports without collections, and processes that end without taking torch apart."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from slimrl.machine.interpreter import importing
from tests.conftest import ROOT

BEGIN = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from slimrl.machine.interpreter import as_process\n"
ALIVE = "class Alive:\n    def __del__(self): print('taken apart')\nalive = Alive()\n"


def process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=60)


def test_nothing_is_collected_within_the_block_and_again_after_it() -> None:
    collections: list[str] = []
    gc.callbacks.append(lambda phase, _: collections.append(phase))
    try:
        with importing():
            assert not gc.isenabled()
            kept = [[] for _ in range(100_000)]
        assert gc.isenabled()
        assert collections == []
        frozen = gc.get_freeze_count()
        assert frozen > len(kept)
        with importing():
            with importing():
                pass
            assert not gc.isenabled(), "a block inside leaves the outer one as it was"
    finally:
        gc.callbacks.pop()
        gc.unfreeze()


@pytest.mark.parametrize(("command", "code"), [("lambda: None", 0), ("lambda: sys.exit(75)", 75)])
def test_a_process_ends_with_its_code_and_takes_nothing_apart(command: str, code: int) -> None:
    done = process(f"{ALIVE}as_process({command})")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert process(f"{ALIVE}({command})()").stdout == "taken apart\n", "what it is compared with"


def test_threads_end_handlers_are_called_and_files_are_written(tmp_path: Path) -> None:
    file = tmp_path / "left-open"
    done = process(
        "import atexit, threading, time\n"
        f"log = open({str(file)!r}, 'w')\n"
        "def work():\n"
        "    threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
        "    atexit.register(print, 'handler')\n"
        "    log.write('whole')\n"
        "    sys.stdout.write('out ')\n"
        "as_process(work)"
    )
    assert (done.returncode, done.stdout) == (0, "out thread\nhandler\n")
    assert file.read_text() == "whole"


def test_an_error_ends_the_process_as_usual() -> None:
    done = process("as_process(lambda: 1 / 0)")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert process("as_process(lambda: sys.exit('a sentence'))").stderr == "a sentence\n"
