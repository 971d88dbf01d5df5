"""Episodes of several turns: rows whose turn has ended wait for an environment, and go on behind what it writes.

The tokens of an environment are fed like drawn ones, one a step, in the batch of the others: nothing is prefilled again, and
the next turn is conditioned on exactly the ids that the completion holds. A row that waits keeps its slot. Keys and values of
drawn tokens lie in columns by the clock, which runs on meanwhile, so those of a row that goes on later are moved behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slimrl.records import Finish
from slimrl.rollout import Request
from slimrl.rollout.scheduler import Scheduler
from slimrl.rollout.state import State

PROMPT_SECONDS = 0.002
"""An answer within this time costs nothing; the keys and values of a row that waits longer are put aside."""
WAIT_SECONDS = 0.1
"""Time between two checks for a stop while all rows wait."""


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
        """`stops` are the ids that end a turn; `check` is called while all rows wait, and raises to end the call."""
        self.requests, self.schedule, self.state, self.stops, self.check = requests, schedule, state, stops, check
        self.waiting: dict[int, Waiting] = {}
        """By sample."""
        self.over: dict[int, Finish] = {}
        """Samples that have ended and how, until they leave."""
        self.spans: dict[int, list[range]] = {}
        """By sample: the places of the tokens that the environment wrote."""

    def settle(self, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of the rows [active] that draw no more: those that are over. The others wait, or go on from here."""
        self._ask(done)
        self._hear()
        while self.waiting and not self.over and self.idle:
            wait([row.reply for row in self.waiting.values()], timeout=WAIT_SECONDS, return_when=FIRST_COMPLETED)
            self.check()
            self._hear()
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
        slots, asked = [slot for slot, _ in rows], []
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
            asked.append(reply)
        wait(asked, timeout=PROMPT_SECONDS)

    def _hear(self) -> None:
        """Let rows go on, or end, whose environment has answered; keep what the others need."""
        slot_of = {sample: slot for slot, sample in enumerate(self.schedule.rows.tolist())}
        for sample, row in [*self.waiting.items()]:
            if row.reply.done():
                del self.waiting[sample]
                self._go_on(slot_of[sample], sample, row)
            elif row.stored is None:
                row.stored = self._keys(slot_of[sample], row.tokens)

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
