"""The engines of all ranks as one `Sampler`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from slimrl.algorithm.batch import balanced
from slimrl.environments.episodes import Rules
from slimrl.machine.progress import Progress, silent
from slimrl.machine.ranks import RankLostError, Ranks, loss_stops
from slimrl.machine.signals import Stopped
from slimrl.parallel.orders import Draw
from slimrl.preflight.environment import Dealt, dealt, heard, played, portable
from slimrl.records import Completion, Played
from slimrl.rollout import OnGroup, Request, Sampler, ignore

Drawn = list[tuple[Completion, ...]]
Found = list[tuple[tuple[Completion, ...], tuple[Played, ...]]]
"""Completions of each request, and the records of their episodes."""


class DividedSampler:
    """Deals requests to the ranks, whole groups of about the same work to each, and samples the leader's share itself.

    A completion depends on its own prompt and uniforms alone, so the ranks draw the tokens that one process would draw, but
    for rounding. Each rank plays the episodes of its share with environments of its own, and their records come back.
    """

    def __init__(self, sampler: Sampler, ranks: Ranks) -> None:
        self.sampler, self.ranks = sampler, ranks
        self.slots, self.exact = sampler.slots, sampler.exact

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        on_group: OnGroup = ignore,
        progress: Progress = silent,
    ) -> Drawn:
        """See `Sampler`; `on_group` hears of the groups of other ranks when all are done, and `progress` is told of this rank's.

        Raises Stopped where a rank is lost.
        """
        with loss_stops():
            return self._generate(requests, Draw(max_new_tokens, temperature), on_group, progress)

    def _generate(self, requests: Sequence[Request], order: Draw, on_group: OnGroup, progress: Progress) -> Drawn:
        # half the budget, whatever was sampled before: a resumed run has to deal groups as an undisturbed one does
        work = [len(r.prompt_ids) + r.completions * order.max_new_tokens / 2 for r in requests]
        parts = balanced(work, self.ranks.size)
        self.ranks.tell(order)
        self.ranks.deal([[dealt(requests[index]) for index in part] for part in parts])
        own = [requests[index] for index in parts[0]]

        def done(place: int, completions: tuple[Completion, ...]) -> None:
            heard(own[place], portable(played(own[place], completions)))
            with self.ranks.activity.of(computes=False):  # it may score them
                on_group(parts[0][place], completions)

        def told(drawn: int, _: int) -> None:
            self.ranks.check()
            progress(round(drawn * share), total)

        total = sum(request.completions for request in requests)
        share = total / max(1, sum(request.completions for request in own))
        try:
            with self.ranks.activity.of(computes=True):
                mine = self.sampler.generate(
                    own,
                    max_new_tokens=order.max_new_tokens,
                    temperature=order.temperature,
                    on_group=done,
                    progress=told,
                )
        except Stopped:  # the others, which hear of it by themselves, are still to give their state
            with suppress(RankLostError):
                self.ranks.exchange([])
            raise
        self.slots = self.sampler.slots
        found: dict[int, tuple[Completion, ...]] = dict(zip(parts[0], mine, strict=True))
        others: list[Found | BaseException] = self.ranks.exchange([])
        for part, drawn in zip(parts[1:], others[1:], strict=True):
            if isinstance(drawn, BaseException):
                raise drawn
            for index, (completions, records) in zip(part, drawn, strict=True):
                heard(requests[index], records)
                found[index] = completions
                on_group(index, completions)
        return [found[index] for index in range(len(requests))]

    def weights_changed(self) -> None:
        """Followers are told with every step that they take."""
        self.sampler.weights_changed()

    def limit_slots(self, slots: int) -> None:
        """Of this rank; `Take` tells the others."""
        self.sampler.limit_slots(slots)
        self.slots = self.sampler.slots


@dataclass(frozen=True)
class Share:
    """A follower's part in `DividedSampler.generate`."""

    sampler: Sampler
    ranks: Ranks
    rules: Rules | None = None
    """Of episodes; None where a completion is one turn."""

    def draw(self, order: Draw) -> None:
        """Sample what is dealt to this rank, and send completions and episodes, or the error that prevents it."""
        parts: list[Dealt] = self.ranks.deal()
        requests = [part.received(self.rules) for part in parts]
        records: dict[int, tuple[Played, ...]] = {}

        def done(place: int, completions: tuple[Completion, ...]) -> None:
            records[place] = portable(played(requests[place], completions))

        self.sampler.weights_changed()
        found: Found | BaseException
        try:
            drawn = self.sampler.generate(
                requests, max_new_tokens=order.max_new_tokens, temperature=order.temperature, on_group=done
            )
            found = [(completions, records[place]) for place, completions in enumerate(drawn)]
        except (Exception, Stopped) as error:
            found = error
        self.ranks.exchange(found)
