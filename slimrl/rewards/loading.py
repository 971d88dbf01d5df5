"""The attempt to load each of the user's rewards, before anything is sampled for them."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from slimrl.config.rewards import RewardsConfig
from slimrl.errors import SettingsError
from slimrl.machine.worker import GIB, LOAD_SECONDS, Answer, LoadTimeoutError, Worker
from slimrl.rewards.custom import load_function
from slimrl.rewards.judge import check_judge


def unloadable(
    config: RewardsConfig, *, elsewhere: bool, show: Callable[[bytes], object] = lambda _: None
) -> dict[str, str]:
    """The functions (`file.py:function`) and judges that are paid or measured and cannot be loaded, with the sentence on each.

    With `elsewhere` functions are loaded in a process of their own, as workers load them, whose output is passed to `show`;
    one that ends it, or takes longer than LOAD_SECONDS, costs no other.
    """
    found = _elsewhere(config, show) if elsewhere else dict(_tries(config)((*config.custom,)))
    for name in config.judges:
        try:
            check_judge(name, config.judge[name])
        except SettingsError as error:
            found[name] = str(error)
    return {name: sentence for name, sentence in found.items() if sentence}


def _tries(config: RewardsConfig) -> Callable[[tuple[str, ...]], Iterator[tuple[str, str]]]:
    """The function that loads the functions of these names and tells, of each, why it could not; empty if it could."""
    files: dict[Path, object] = {}

    def answer(specs: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for spec in specs:
            try:
                load_function(spec, config.custom[spec].arguments, files=files)
            except SettingsError as error:
                yield spec, str(error)
            else:
                yield spec, ""

    return answer


def _load(config: RewardsConfig) -> Answer:
    """In a worker."""
    return _tries(config)


def _elsewhere(config: RewardsConfig, show: Callable[[bytes], object]) -> dict[str, str]:
    found: dict[str, str] = {}
    worker = Worker(partial(_load, config), memory=int(config.memory * GIB), output=show)
    try:
        for spec in config.custom:
            try:
                worker.start()
            except OSError:  # of the system; who starts workers for the scores says so
                return {}
            try:
                worker.ask((spec,))
                found[spec] = worker.reply(LOAD_SECONDS)[1]
            except (TimeoutError, LoadTimeoutError):
                worker.end()
                found[spec] = (
                    f"rewards.custom: {spec!r} takes longer than {LOAD_SECONDS:g} s to load; make it load faster"
                )
            except (EOFError, OSError):
                found[spec] = (
                    f"rewards.custom: {spec!r} ended its worker by {worker.end()} while it was loaded; correct it"
                )
    finally:
        worker.end()
    return found
