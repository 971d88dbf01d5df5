"""Episodes of several turns: rows whose turn has ended wait for an environment, and go on behind what it writes.

The tokens of an environment are fed like drawn ones, one a step, in the batch of the others: nothing is prefilled again, and
the next turn is conditioned on exactly the ids that the completion holds. Keys and values of drawn tokens lie in columns by
the clock, which runs on while a row waits, so those of a row that goes on later are moved behind it.

While there are samples that have not entered, rows that wait are parked: they leave their slots to those samples. At most as
many rows are parked as there are slots, and the others wait in their slots. Counts of rows alone decide who is parked and who
goes on. Whatever the time that environments take, the same rows then share the same steps, whose rounding depends on it: a
run can be repeated to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimrl.records import Finish
from slimrl.rollout import Request
from slimrl.rollout.cache import Aside
from slimrl.rollout.scheduler import Scheduler
from slimrl.rollout.state import State

SHARE = 4
"""Rows that wait go on where slots for them are a 1/SHARE of the batch: more would idle, and fewer would hold up the others more
often."""
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


@dataclass(frozen=True)
class Parked:
    """A row between two turns that has no slot."""

    reply: Future[tuple[int, ...]]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stored: Aside
    """Its keys and values."""

    @property
    def tokens(self) -> int:
        return len(self.token_ids)


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
        """By sample: rows that wait in their slots, in the order in which their turns ended."""
        self.parked: dict[int, Parked] = {}
        """Those that wait without one, whose turns ended before, in the same order."""
        self.returning: dict[int, Parked] = {}
        """Those that were parked, and take a slot next."""
        self.ended: list[tuple[int, Finish, Parked]] = []
        """Those whose episode has ended, and how."""
        self.over: dict[int, Finish] = {}
        """Samples that have ended in their slots and how, until they leave."""
        self.spans: dict[int, list[range]] = {}
        """By sample: the places of the tokens that the environment wrote."""

    def settle(self, done: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], bool]:
        """Of the rows [active] that draw no more: those that leave their slots, and True where that cannot be put off.

        Rows go on together, once many slots are idle or nobody draws: those first whose turns ended first.
        """
        self._ask(done)
        schedule, slots, waiting = self.schedule, self.state.cache.slots, len(self.waiting)
        free = slots - schedule.active + len(self.over)
        entering = min(free, schedule.fresh)
        parking = min(waiting, schedule.fresh - entering, slots - len(self.parked))
        stuck = waiting - parking + min(free - entering, len(self.parked))
        drawing = schedule.active - len(self.over) - waiting
        now = False
        if stuck and (SHARE * stuck >= schedule.active or not (drawing or entering or parking)):
            self._go_on_in(waiting - parking + free - entering)
            parking = len(self.waiting)  # those for which no slot is left
            now = bool(parking or self.returning or self.ended)
        self._keep()
        leaving = {*self.over, *list(self.waiting)[:parking]}
        idle = len(self.waiting) + len(self.over) == schedule.active
        return np.array([sample in leaving for sample in schedule.rows.tolist()], dtype=bool), now or idle

    def park(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Park those of the rows in these slots that wait; the slots of the others, which are over."""
        samples = self.schedule.rows[slots]
        waits = np.array([sample in self.waiting for sample in samples.tolist()], dtype=bool)
        if not waits.any():
            return slots
        index = torch.from_numpy(slots[waits]).to(self.state.device)
        drawn = (part[index].tolist() for part in (self.state.tokens, self.state.logprobs))
        found = {sample: row for sample, *row in zip(samples[waits].tolist(), *drawn, strict=True)}
        for sample in list(self.waiting):  # in the order in which their turns ended
            if sample in found:
                (ids, nats), row = found[sample], self.waiting.pop(sample)
                assert row.stored is not None
                parts = tuple(ids[: row.tokens]), tuple(nats[: row.tokens])
                self.parked[sample] = Parked(row.reply, *parts, Aside(row.stored))
        over: NDArray[np.int64] = slots[~waits]
        return over

    def come_back(self, first: int) -> None:
        """Give the slots from `first` on, which were entered, to the rows that return."""
        state, schedule = self.state, self.schedule
        for slot, (sample, row) in enumerate(self.returning.items(), first):
            state.resume(slot, row.token_ids, row.logprobs)
            columns = state.cache.columns_from(int(schedule.entered_at[slot]), row.tokens - 1)
            state.cache.write_columns(slot, columns, row.stored.parts(state.device))
            self._feed(slot, sample, row)
        self.returning.clear()

    def take_ended(self) -> list[tuple[int, Finish, Parked]]:
        """The samples that have ended without a slot, which are then forgotten."""
        ended, self.ended = self.ended, []
        return ended

    def given(self, sample: int, tokens: int) -> tuple[bool, ...]:
        """`Completion.given` of a sample that is over, and is then forgotten."""
        given = [False] * tokens
        for span in self.spans.pop(sample, []):
            given[span.start : span.stop] = [True] * len(span)
        return tuple(given) if any(given) else ()

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

    def _go_on_in(self, slots: int) -> None:
        """Let rows go on in so many slots, those first whose turns ended first, as soon as their answers are there."""
        queue = [*self.parked, *self.waiting]
        slot_of = {sample: slot for slot, sample in enumerate(self.schedule.rows.tolist())}
        while slots and queue:
            first, queue = queue[:slots], queue[slots:]
            self._await(first)
            for sample in first:
                if sample in self.parked:
                    slots -= self._return(sample, self.parked.pop(sample))
                else:
                    slots -= self._go_on(slot_of[sample], sample, self.waiting.pop(sample))

    def _await(self, samples: Sequence[int]) -> None:
        rows = [self.parked.get(sample) or self.waiting[sample] for sample in samples]
        while late := [row.reply for row in rows if not row.reply.done()]:
            wait(late, timeout=WAIT_SECONDS)
            self.check()

    def _return(self, sample: int, row: Parked) -> bool:
        """True where a parked row draws further tokens, for which it needs a slot."""
        if finish := self._finish(row):
            self.ended.append((sample, finish, row))
            return False
        self.returning[sample] = row
        return True

    def _go_on(self, slot: int, sample: int, row: Waiting) -> bool:
        """True where a row draws further tokens, in its slot."""
        schedule, cache = self.schedule, self.state.cache
        if finish := self._finish(row):
            self.over[sample] = finish
            return False
        begin = schedule.begin(row.tokens)
        if begin != schedule.entered_at[slot]:
            stored = self._keys(slot, row.tokens) if row.stored is None else row.stored
            cache.write_columns(slot, cache.columns_from(begin, row.tokens - 1), stored)
            schedule.entered_at[slot] = begin
        self._feed(slot, sample, row)
        return True

    def _finish(self, row: Waiting | Parked) -> Finish | None:
        """The finish of an episode that ends with this answer; None where it goes on."""
        reply = row.reply.result()
        if not reply:
            return "stop"
        return "length" if row.tokens + len(reply) >= self.state.budget else None

    def _feed(self, slot: int, sample: int, row: Waiting | Parked) -> None:
        reply, request = row.reply.result(), self.requests[int(self.schedule.request_of[sample])]
        self.state.go_on(slot, row.tokens, reply, request.turn_tokens)
        self.spans.setdefault(sample, []).append(range(row.tokens, row.tokens + len(reply)))

    def _keep(self) -> None:
        """Put aside the keys and values of the rows that wait, which would be written over."""
        for slot, sample in enumerate(self.schedule.rows.tolist()):
            row = self.waiting.get(sample)
            if row is not None and row.stored is None:
                row.stored = self._keys(slot, row.tokens)

    def _keys(self, slot: int, tokens: int) -> list[Tensor]:
        cache, begin = self.state.cache, int(self.schedule.entered_at[slot])
        return cache.read_columns(slot, cache.columns_from(begin, tokens - 1))
