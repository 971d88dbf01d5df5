"""Values that the methods of an environment, or its tools, may return at once or as awaitables."""

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any, TypeVar

from slimrl.errors import DataError

Value = TypeVar("Value")


class LostError(DataError):
    """The process of an environment has ended."""


class LateError(Exception):
    """A value is not there in time."""


def awaited(found: Any) -> Any:
    """The value itself, or the one that it is awaited for in an event loop of its own."""

    async def value() -> Any:
        return await found

    return asyncio.run(value()) if inspect.isawaitable(found) else found


def opened(reset: Callable[..., Any], problem: Any) -> Any:
    """The value of an environment's `reset`, which may take the problem or, as one that always begins the same, nothing."""
    try:
        takes_it = bool(inspect.signature(reset).parameters)
    except (TypeError, ValueError):
        takes_it = True
    return awaited(reset(problem) if takes_it else reset())


def within(seconds: float, find: Callable[[], Value]) -> Value:
    """The value of a function that a thread calls. Raises LateError where it takes longer, or what the function raises."""
    found = Future[Value]()

    def work() -> None:
        try:
            found.set_result(find())
        except BaseException as error:
            found.set_exception(error)

    Thread(target=work, daemon=True).start()
    if wait([found], seconds).not_done:
        raise LateError
    return found.result()
