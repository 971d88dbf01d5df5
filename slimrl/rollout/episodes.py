"""Episodes of several turns: rows whose turn has ended wait for an environment, and go on behind what it writes.

The tokens of an environment are fed like drawn ones, one a step, in the batch of the others: nothing is prefilled again, and
the next turn is conditioned on exactly the ids that the completion holds. A row that waits keeps its slot. Keys and values of
drawn tokens lie in columns by the clock, which runs on meanwhile, so those of a row that goes on later are moved behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slimrl.records import Finish
from slimrl.rollout import Request
from slimrl.rollout.scheduler import Scheduler
from slimrl.rollout.state import State

SHARE = 4
"""Rows that wait go on where they are a 1/SHARE of the batch: more would idle, and fewer would hold up the others more often."""
WAIT_SECONDS = 0.1
"""Time between two checks for a stop while environments are waited for."""


@dataclass
class Waiting:
    """A row between two turns."""

    reply: Future[tuple[int, ...]]
    tokens: int
    """Tokens so far."""
    stored: list[Tensor] | None = None
    """Its keys and values, once the clock has left them behind."""


class Episodes:
    """The turns of the rows of one call of `generate`."""

    def __init__(
        self,
        requests: Sequence[Request],
        schedule: Scheduler,
        state: State,
        stops: set[int],
        check: Callable[[], object],
    ) -> None:
        """`stops` are the ids that end a turn; `check` is called while answers are waited for, and raises to end the call."""
        self.requests, self.schedule, self.state, self.stops, self.check = requests, schedule, state, stops, check
        self.waiting: dict[int, Waiting] = {}
        """By sample."""
        self.over: dict[int, Finish] = {}
        """Samples that have ended and how, until they leave."""
        self.spans: dict[int, list[range]] = {}
        """By sample: the places of the tokens that the environment wrote."""

    def settle(self, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of the rows [active] that draw no more: those that are over. The others wait, or go on from here.

        Rows that wait go on together, once they are many or nobody draws. Whatever the time that environments take, the same
        rows then share the same steps, whose rounding depends on it: a run can be repeated to the last bit.
        """
        self._ask(done)
        if self.waiting and (self.idle or SHARE * len(self.waiting) >= self.schedule.active):
            while late := [row.reply for row in self.waiting.values() if not row.reply.done()]:
                wait(late, timeout=WAIT_SECONDS)
                self.check()
            self._go_on_all()
        self._keep()
        return np.array([sample in self.over for sample in self.schedule.rows.tolist()], dtype=bool)

    @property
    def idle(self) -> bool:
        """True where no row draws."""
        return len(self.waiting) + len(self.over) == self.schedule.active

    def leave(self, sample: int, tokens: int) -> tuple[Finish, tuple[bool, ...]]:
        """Forget a sample that is over: how it ended, and `Completion.given`."""
        given = [False] * tokens
        for span in self.spans.pop(sample, []):
            given[span.start : span.stop] = [True] * len(span)
        return self.over.pop(sample), tuple(given) if any(given) else ()

    def _ask(self, done: NDArray[np.bool_]) -> None:
        """Hand the turns that have just ended to their environments."""
        schedule, state = self.schedule, self.state
        rows = [(slot, int(schedule.rows[slot])) for slot in done.nonzero()[0].tolist()]
        rows = [(slot, sample) for slot, sample in rows if sample not in self.waiting and sample not in self.over]
        if not rows:
            return
        slots = [slot for slot, _ in rows]
        counts, read, drawn = (part[slots].tolist() for part in (state.counts, state.read, state.tokens))
        for (_, sample), count, reading, ids in zip(rows, counts, read, drawn, strict=True):
            number = int(schedule.request_of[sample])
            request = self.requests[number]
            ended = ids[count - 1] in self.stops or reading == state.stop_texts.found
            if not ended or request.on_turn is None:
                self.over[sample] = "stop" if ended else "length"
                continue
            reply = request.on_turn(sample - int(schedule.first_of[number]), tuple(ids[:count]))
            self.waiting[sample] = Waiting(reply, count)

    def _go_on_all(self) -> None:
        for slot, sample in enumerate(self.schedule.rows.tolist()):
            if sample in self.waiting:
                self._go_on(slot, sample, self.waiting.pop(sample))

    def _keep(self) -> None:
        """Put aside the keys and values of the rows that wait, which would be written over."""
        for slot, sample in enumerate(self.schedule.rows.tolist()):
            row = self.waiting.get(sample)
            if row is not None and row.stored is None:
                row.stored = self._keys(slot, row.tokens)

    def _go_on(self, slot: int, sample: int, row: Waiting) -> None:
        schedule, state, reply = self.schedule, self.state, row.reply.result()
        end = row.tokens + len(reply)
        if not reply or end >= state.budget:
            self.over[sample] = "length" if reply else "stop"
            return
        begin = schedule.time - (row.tokens - 1)  # so that the last token, which has not been fed, is fed next
        if begin != schedule.entered_at[slot]:
            stored = self._keys(slot, row.tokens) if row.stored is None else row.stored
            state.cache.write_columns(slot, state.cache.columns_from(begin, row.tokens - 1), stored)
            schedule.entered_at[slot] = begin
        request = self.requests[int(schedule.request_of[sample])]
        state.go_on(slot, row.tokens, reply, request.turn_tokens)
        self.spans.setdefault(sample, []).append(range(row.tokens, end))

    def _keys(self, slot: int, tokens: int) -> list[Tensor]:
        cache, begin = self.state.cache, int(self.schedule.entered_at[slot])
        return cache.read_columns(slot, cache.columns_from(begin, tokens - 1))
