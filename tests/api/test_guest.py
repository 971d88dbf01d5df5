"""A call leaves the program as it found it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
import transformers

import slimrl
from slimrl.api.guest import guest
from slimrl.machine.limits import KERNEL_CACHES, bound_kernel_caches
from slimrl.machine.signals import INTERRUPTED, PREEMPTED
from slimrl.machine.threads import fix_threads


def test_threads_environment_and_messages_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    monkeypatch.setenv(KERNEL_CACHES[0], "7")
    transformers.logging.set_verbosity_info()
    before, threads = dict(os.environ), torch.get_num_threads()
    try:
        with guest():
            fix_threads(threads + 1)
            bound_kernel_caches()
            assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
            assert transformers.logging.get_verbosity() == transformers.logging.ERROR
        assert (dict(os.environ), torch.get_num_threads()) == (before, threads)
        assert transformers.logging.get_verbosity() == transformers.logging.INFO
    finally:
        transformers.logging.set_verbosity_warning()


def stopped(code: int) -> None:
    with guest() as stop:
        stop.ask("X", code)
        stop.check()


def test_stops_are_ordinary_exceptions() -> None:
    for code, kind in ((INTERRUPTED, KeyboardInterrupt), (PREEMPTED, slimrl.StoppedError)):
        with pytest.raises(kind, match=r"^stopped by X, before there was anything to lose$"):
            stopped(code)


def test_a_handler_of_the_program_stays_in_force() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with guest() as stop:
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            signal.raise_signal(signal.SIGTERM)
            stop.check()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_jupyter_kernel_in_a_cell_with_await_leaves_ctrl_c_to_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own handler only notes the signal until the cell awaits, which a call never does."""

    def handle_sigint(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(handle_sigint, "__module__", "ipykernel.ipkernel")
    before = signal.signal(signal.SIGINT, handle_sigint)
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"), guest():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is handle_sigint
    finally:
        signal.signal(signal.SIGINT, before)


def test_importing_the_package_is_fast_and_its_names_are_there() -> None:
    code = (
        "import sys, slimrl; assert {'train', 'terms', 'Result'} <= {*dir(slimrl)}; slimrl.SettingsError; slimrl.terms.Schedule\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'transformers', 'yaml'} & {*sys.modules}; assert not heavy, heavy\n"
        "slimrl.train, slimrl.sft, slimrl.evaluate, slimrl.study; assert 'torch' not in sys.modules\n"
        "import slimrl.train, slimrl.evaluate, slimrl.study; assert callable(slimrl.train) and callable(slimrl.study)\n"
        "from slimrl.train import make_learner\n"
        "from slimrl import *\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        slimrl.trian  # noqa: B018
