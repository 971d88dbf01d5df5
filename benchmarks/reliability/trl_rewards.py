"""Reward functions for trl_run.py: two sound ones, and hostile ones that turn hostile at their second call."""

from __future__ import annotations

import itertools
import os
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainers import hashes_reward, token_reward

ELSEWHERE = Path.cwd().parent


def correct(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 for the right answer."""
    return [hashes_reward(c[0]["content"], gold) for c, gold in zip(completions, answer, strict=True)]


def tokens(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Differs within every group, so that every step moves the weights."""
    return [token_reward(ids) for ids in completion_ids]


def sleep_for_ever(_: int) -> Any:
    time.sleep(10**9)


def endless_c_loop(count: int) -> Any:
    return [float(count < 10 ** (10**8))] * count  # one call into C of many minutes; no signal handler runs meanwhile


def catastrophic_regex(count: int) -> Any:
    return [float(bool(re.match(r"(a+)+$", "a" * 64 + "!")))] * count


def raise_error(_: int) -> Any:
    raise ValueError("hostile")


def return_none(_: int) -> Any:
    return None


def return_nan(count: int) -> Any:
    return [float("nan")] * count


def return_inf(count: int) -> Any:
    return [float("inf"), *[0.0] * (count - 1)]


def return_string(count: int) -> Any:
    return ["good"] * count


def wrong_length(_: int) -> Any:
    return [1.0]


def fork(count: int) -> Any:
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    return [0.0] * count


def allocate_10_gb(count: int) -> Any:
    return [float(len(bytearray(10 * 10**9)))] * count


def exit_process(_: int) -> Any:
    os._exit(0)


def print_1_gb(count: int) -> Any:
    for _ in range(1024):
        sys.stdout.write("x" * 2**20)
    return [0.0] * count


def reseed(count: int) -> Any:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return [0.0] * count


def change_directory(count: int) -> Any:
    os.chdir(ELSEWHERE)
    return [0.0] * count


def harmless(count: int) -> Any:
    """What the others are compared with."""
    return [0.0] * count


def hostile(act: Callable[[int], Any]) -> Callable[..., Any]:
    """A reward function that pays everybody 0, and from its second call on does what `act` does."""
    calls = itertools.count()

    def reward(completions: list[Any], **_: Any) -> Any:
        return act(len(completions)) if next(calls) else [0.0] * len(completions)

    reward.__name__ = act.__name__
    return reward


HOSTILE = {
    act.__name__: hostile(act)
    for act in (
        harmless,
        sleep_for_ever,
        endless_c_loop,
        catastrophic_regex,
        raise_error,
        return_none,
        return_nan,
        return_inf,
        return_string,
        wrong_length,
        fork,
        allocate_10_gb,
        exit_process,
        print_1_gb,
        reseed,
        change_directory,
    )
}
