"""Asynchronous reward functions, awaited concurrently.

One event loop runs in a thread of its own for as long as the process does: clients that a user's module holds stay bound to
it from one group to the next, and a program with a loop of its own, such as a notebook, may call rewards too.
"""

import asyncio
import queue
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache

from slimrl.rewards.calls import Call
from slimrl.rewards.outcomes import Scored, Unscored


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="asynchronous rewards", daemon=True).start()
    return loop


def await_all(calls: Sequence[Call], seconds: float | None, times: int = 1) -> Iterator[tuple[str, Scored]]:
    """The results of all calls by reward name, each as soon as it is there; one that takes longer than `seconds`, so many
    `times`, is unscored.
    """
    done: queue.SimpleQueue[tuple[str, Scored]] = queue.SimpleQueue()

    async def run(call: Call) -> None:
        try:
            async with asyncio.timeout(None if seconds is None else seconds * times):
                found = await call.awaited()
        except TimeoutError:
            found = call.without(Unscored(late(seconds or 0.0, times)))
        except asyncio.CancelledError:  # raised by the function itself
            found = call.without(Unscored("raised CancelledError"))
        done.put((call.reward.name, found))

    async def run_all() -> None:
        await asyncio.gather(*map(run, calls))

    if calls:
        asyncio.run_coroutine_threadsafe(run_all(), _loop())
    for _ in calls:
        yield done.get()


def late(seconds: float, times: int = 1) -> str:
    """The reason of a reward that did not answer in time, which is `times` the deadline of a group."""
    return f"took longer than {f'{times} times ' if times > 1 else ''}rewards.deadline={seconds:g} s"
