"""Asynchronous reward functions, awaited concurrently.

One event loop runs in a thread of its own for as long as the process does: clients that a user's module holds stay bound to
it from one group to the next, and a program with a loop of its own, such as a notebook, may call rewards too.
"""

import asyncio
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache

from slimrl.rewards.calls import Call
from slimrl.rewards.outcomes import Scored, Unscored

AT_ONCE = 16
"""Completions that are awaited at once in a process, as many as a judge is asked about: a client that sends no more than a few
requests at a time answers for these within `rewards.deadline`."""


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="asynchronous rewards", daemon=True).start()
    return loop


def await_all(calls: Sequence[Call], seconds: float | None) -> Iterator[tuple[Call, Scored]]:
    """Each call with its result, as soon as it is there; one that takes longer than `seconds` times its patience is unscored."""
    done: queue.SimpleQueue[tuple[Call, Scored]] = queue.SimpleQueue()

    async def run(call: Call) -> None:
        done.put((call, await _in_time(call, seconds)))

    async def run_all() -> None:
        await asyncio.gather(*map(run, calls))

    if calls:
        asyncio.run_coroutine_threadsafe(run_all(), _loop())
    for _ in calls:
        yield done.get()


class Awaiting:
    """Awaits the calls of several groups at once, while the process does other work.

    The calls of a group begin together, and groups in the order of `start`, as long as no more than AT_ONCE completions are
    awaited; a larger group is awaited alone.
    """

    def __init__(self) -> None:
        self._turn, self._free = asyncio.Lock(), asyncio.Semaphore(AT_ONCE)
        self._groups: dict[Future[None], list[Future[Scored]]] = {}

    def start(self, calls: Sequence[Call], seconds: float | None) -> Mapping[str, Future[Scored]]:
        """The result of each call by reward name; the time limit is that of `await_all`, from the moment the call begins."""
        found: dict[str, Future[Scored]] = {call.reward.name: Future() for call in calls}

        async def run(call: Call) -> None:
            result = await _in_time(call, seconds)
            if found[call.reward.name].set_running_or_notify_cancel():
                found[call.reward.name].set_result(result)

        async def run_all() -> None:
            places = min(AT_ONCE, calls[0].completions)
            async with self._turn:
                for _ in range(places):
                    await self._free.acquire()
            try:
                await asyncio.gather(*map(run, calls))
            finally:
                for _ in range(places):
                    self._free.release()

        if calls:
            group = asyncio.run_coroutine_threadsafe(run_all(), _loop())
            self._groups[group] = [*found.values()]
            group.add_done_callback(self._groups.pop)
        return found

    def close(self) -> None:
        """Cancel the calls whose results are not there yet."""
        for group, results in [*self._groups.items()]:
            for result in results:
                result.cancel()
            group.cancel()


async def _in_time(call: Call, seconds: float | None) -> Scored:
    try:
        async with asyncio.timeout(None if seconds is None else seconds * call.patience):
            return await call.awaited()
    except TimeoutError:
        return call.without(Unscored(late(seconds or 0.0, call.patience)))
    except asyncio.CancelledError:  # raised by the function itself
        return call.without(Unscored("raised CancelledError"))


def late(seconds: float, times: int = 1) -> str:
    """The reason of a reward that did not answer in time, which is `times` the deadline of a group."""
    return f"took longer than {f'{times} times ' if times > 1 else ''}rewards.deadline={seconds:g} s"
