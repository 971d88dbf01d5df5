"""Continuous batching over fixed slots, with the trainer's own module.

A prompt is prefilled once and its keys are shared by all samples of its group. Rows that finish leave the batch and
waiting ones take their slots; a group is handed over as soon as its last row is done. What is drawn depends on a row's
uniforms and its logits alone: slots, order and the way in which steps are executed change no more than rounding.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimrl.errors import SettingsError
from slimrl.machine.limits import is_out_of_memory
from slimrl.machine.profiler import OFF, Profiler
from slimrl.machine.progress import Progress, silent
from slimrl.machine.signals import NEVER, Stop
from slimrl.model.policy import Policy, cost_of
from slimrl.records import Completion, Finish
from slimrl.rollout import OnGroup, Request, demand_room, ignore
from slimrl.rollout.cache import Aside, Cache, RowLayout, StepShape
from slimrl.rollout.episodes import Episodes
from slimrl.rollout.graphs import Runner, make_runner
from slimrl.rollout.probe import check_one_call, demand_plain_decoding
from slimrl.rollout.sampling import GREEDY
from slimrl.rollout.scheduler import Scheduler
from slimrl.rollout.state import State, Step, compiled_step, decode_step, prefill

PREFILL_TOKENS = 8192
"""Prompt tokens in one prefill: bounds its memory."""


class RolloutEngine:
    """The `Sampler` that holds the policy itself, so there is no second copy of the weights to keep equal."""

    def __init__(
        self,
        policy: Policy,
        *,
        slots: int,
        compiled: bool = False,
        runner: Runner | None = None,
        profiler: Profiler = OFF,
        stop: Stop = NEVER,
    ) -> None:
        """`compiled` decode steps go through torch.compile, at the first of them; `runner` is by default the device's.

        Raises SettingsError for a model whose layers carry more than keys and values from token to token, or where
        nothing can be compiled.
        """
        self.policy, self.slots, self.exact = policy, slots, True
        self.compiled, self.profiler, self.stop = compiled, profiler, stop
        self.runner = runner or make_runner(policy.device)
        self.places = self._places()
        self.state: State | None = None
        """Buffers of the last call, where addresses must stay."""
        self.on_tokens: Callable[[Sequence[int]], object] | None = None
        """Told the ids that the first slot has drawn so far, at every look at them: for a call with a single completion."""
        demand_plain_decoding(policy)
        check_one_call(policy)
        self.step = compiled_step() if compiled else decode_step
        self.cost = cost_of(policy)

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        on_group: OnGroup = ignore,
        progress: Progress = silent,
    ) -> list[tuple[Completion, ...]]:
        """See `Sampler`. Where memory runs out, `slots` is halved for good, and what is not done is sampled again from the
        same uniforms.

        Raises ValueError for a prompt that leaves no room for `max_new_tokens` in the model's context, SettingsError where
        memory does not suffice for one slot, and Stopped between decode steps.
        """
        demand_room(requests, max_new_tokens, self.policy.context)
        done: dict[int, tuple[Completion, ...]] = {}
        left = list(range(len(requests)))
        total = sum(request.completions for request in requests)
        progress(0, total)

        def hand_over(place: int, completions: tuple[Completion, ...]) -> None:
            on_group(left[place], completions)
            done[left[place]] = completions

        while left:
            asked = [requests[i] for i in left]
            told = partial(_shifted, progress, total - sum(request.completions for request in asked), total)
            try:
                _Run(self, asked, max_new_tokens, temperature, hand_over, told).run()
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.slots == 1:
                    raise SettingsError(
                        "memory ran out while sampling a single completion; lower rollout.max_new_tokens or set "
                        "model.dtype=bfloat16"
                    ) from None
            # not in the except block, whose traceback holds on to the tensors
            self.limit_slots(self.slots // 2)
            left = [index for index in left if index not in done]
        return [done[index] for index in range(len(requests))]

    def weights_changed(self) -> None:
        """Every step reads the weights of the module that learns; recorded ones read where they were."""
        places = self._places()
        if places != self.places:
            self.runner.clear()
        self.places = places

    def _places(self) -> list[int]:
        """The addresses of the weights."""
        return [weight.data_ptr() for weight in self.policy.model.parameters()]

    def limit_slots(self, slots: int) -> None:
        """Use at most this many slots from now on; frees the buffers of more."""
        if slots >= self.slots:
            return
        self.slots = slots
        self.state = None
        self.runner.clear()
        gc.collect()
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()


def _shifted(progress: Progress, before: int, total: int, done: int) -> None:
    """Tell of `done` completions, with those that were done before."""
    progress(before + done, total)


class _Run:
    """One call of `generate`: what the scheduler decides, carried out on the device."""

    def __init__(
        self,
        engine: RolloutEngine,
        requests: Sequence[Request],
        max_new_tokens: int,
        temperature: float,
        on_group: OnGroup,
        on_completions: Callable[[int], object],
    ) -> None:
        self.engine, self.policy, self.runner, self.profiler = engine, engine.policy, engine.runner, engine.profiler
        self.requests, self.max_new_tokens = requests, max_new_tokens
        self.temperature, self.on_group, self.on_completions = temperature, on_group, on_completions
        self.done = 0
        """Completions that have ended."""
        self.greedy = any(r.greedy for r in requests)
        self.schedule = Scheduler([r.completions for r in requests])
        self.prompt_lengths = np.array([len(r.prompt_ids) for r in requests])
        self.turn_tokens = np.array([r.turn_tokens for r in requests], dtype=np.int64)
        self.state = self._buffers()
        self.logits: dict[int, Tensor] = {}
        """Next-token logits [V] of prefilled prompts that still have samples waiting."""
        self.aside: dict[int, Aside] = {}
        """Prompts by request, while no sample of theirs has a slot and others need their places in the store."""
        self.episodes: Episodes | None = None
        if any(r.on_turn for r in requests):
            stops = set(self.policy.stop_ids)
            self.episodes = Episodes(requests, self.schedule, self.state, stops, engine.stop.check)
        self.drawn: dict[int, Completion] = {}
        """By sample, until its group is complete."""
        self.layout: RowLayout | None = None
        """None after rows or prompts have come, gone or moved."""

    def run(self) -> None:
        self.admit()
        while self.schedule.active:
            self.engine.stop.check()
            with self.profiler.part("decode"):
                if self.max_new_tokens > 1:  # else the tokens drawn on entering are all there are
                    self.decode()
                if self.engine.on_tokens is not None:
                    self.engine.on_tokens(self.state.tokens[0, : int(self.state.counts[0])].tolist())
                self.settle()

    def admit(self) -> None:
        """Fill free slots with rows that were parked and with waiting samples, whose first tokens are drawn from the prompts'
        logits.
        """
        state, schedule, episodes = self.state, self.schedule, self.episodes
        first = schedule.active
        if episodes is not None:
            back = episodes.returning
            schedule.come_back(list(back), [row.tokens for row in back.values()])
        fresh = schedule.active
        schedule.enter(state.cache.slots, restart=episodes is None or not episodes.parked)
        if not schedule.time:
            state.time.zero_()
        samples = schedule.rows[first:]
        if not len(samples):
            return
        entering = schedule.request_of[samples]
        self._store(list(dict.fromkeys(entering.tolist())))
        inside = samples - schedule.first_of[entering]
        taken = np.full(self.max_new_tokens, GREEDY)
        drawn = zip((self.requests[r].uniforms for r in entering), inside, strict=True)
        uniforms = np.stack([rows[i] if i < len(rows) else taken for rows, i in drawn])
        rows = slice(first, first + len(samples))
        state.enter(rows, uniforms, self.prompt_lengths[entering], self.turn_tokens[entering])
        if episodes is not None:
            episodes.come_back(first)
        if fresh < schedule.active:
            logits = torch.stack([self.logits[r] for r in entering[fresh - first :].tolist()])
            state.record(slice(fresh, rows.stop), logits, temperature=self.temperature, greedy=self.greedy)
        self.logits = {r: row for r, row in self.logits.items() if r >= schedule.first_waiting}
        self.layout = None

    def decode(self) -> None:
        """Run the steps up to the next look: feed every slot's last token, draw the next."""
        runner, schedule, cache = self.runner, self.schedule, self.state.cache
        rows = runner.round_up(schedule.active, 16)
        lengths = self.prompt_lengths[schedule.stored]
        width = min(cache.width, runner.round_up(int(lengths.max()), 32))
        used_columns = min(cache.columns, schedule.time + runner.steps)
        used_columns = min(cache.columns, runner.round_up(used_columns, 32))
        # At time 0 all slots were empty, so rows that entered then own every column up to now.
        own_all = used_columns == schedule.time + 1 and not schedule.entered_at.any()
        shape = StepShape(rows, width, used_columns, unmasked=own_all and bool((lengths == width).all()))
        self.layout = layout = self.layout or self._new_layout(rows)
        time = self.state.time if runner.keeps else schedule.time
        profiler = OFF if runner.keeps or self.engine.compiled else self.profiler
        step = Step(layout, shape, time, self.temperature, self.greedy)
        run = partial(self.engine.step, self.policy, self.state, step, profiler)
        key = (layout.table.shape, shape, self.temperature, self.greedy)
        for _ in range(runner.steps):
            runner.run(key, run)
        self._count(shape)
        schedule.time += runner.steps

    def _count(self, shape: StepShape) -> None:
        """The work of the steps just run: products of the active rows, and each key and value read once."""
        cost, steps, active = self.engine.cost, self.runner.steps, self.schedule.active
        pairs = active * (shape.width + shape.used_columns)
        places = len(self.schedule.stored) * shape.width + active * shape.used_columns
        read = cost.weight_bytes + cost.cache_bytes * places
        self.profiler.count(flops=steps * cost.forward(active, active, pairs), decode_bytes=float(steps * read))

    def settle(self) -> None:
        """Let finished rows leave, those that can be parked too, and waiting ones enter, once there are enough of them."""
        schedule, state, episodes = self.schedule, self.state, self.episodes
        leaving, now = state.done[: schedule.active].cpu().numpy(), False
        if episodes is not None:
            leaving, now = episodes.settle(leaving)
        if now or schedule.worth_closing(leaving):
            slots = leaving.nonzero()[0]
            self._hand_over(slots if episodes is None else episodes.park(slots))
            state.close_slots(schedule.close_slots(leaving), min(schedule.time, state.cache.columns))
            state.close_prompts(schedule.close_prompts())
            self.layout = None
            self.admit()

    def _hand_over(self, slots: NDArray[np.int64]) -> None:
        """Turn finished slots into completions, and hand over every group whose last one is among them."""
        index = torch.from_numpy(slots).to(self.policy.device)
        state, stops = self.state, set(self.policy.stop_ids)
        drawn = (part[index].tolist() for part in (state.counts, state.read, state.tokens, state.logprobs))
        for sample, count, read, ids, nats in zip(self.schedule.rows[slots].tolist(), *drawn, strict=True):
            stopped = ids[count - 1] in stops or read == self.policy.stop_texts.found
            finish: Finish = "stop" if stopped else "length"
            if self.episodes is not None:
                finish = self.episodes.over.pop(sample)
            self._finish(sample, ids[:count], nats[:count], finish)
        if self.episodes is not None:
            for sample, finish, row in self.episodes.take_ended():
                self._finish(sample, row.token_ids, row.logprobs, finish)
        self.on_completions(self.done)

    def _finish(self, sample: int, ids: Sequence[int], nats: Sequence[float], finish: Finish) -> None:
        request = int(self.schedule.request_of[sample])
        given = () if self.episodes is None else self.episodes.given(sample, len(ids))
        self.drawn[sample] = Completion(self.requests[request].prompt_ids, tuple(ids), tuple(nats), finish, given)
        self.done += 1
        if group := self.schedule.finish(sample):
            self.aside.pop(request, None)
            completions = tuple(self.drawn.pop(i) for i in group)
            # The scoring that this starts may be a user's code, with gradients of its own.
            with self.profiler.part("rewards"), torch.inference_mode(False):
                self.on_group(request, completions)

    def _buffers(self) -> State:
        """Buffers for this call: those of the last one where they must stay and are large enough."""
        engine, runner = self.engine, self.runner
        turns = any(r.on_turn for r in self.requests)
        # Rows that wait draw on until the host looks, which must not reach their own tokens.
        longest, columns = int(self.prompt_lengths.max()), self.max_new_tokens + (runner.steps if turns else 0)
        kept = engine.state
        fits = kept is not None and kept.cache.columns == columns and (kept.turns is not None) == turns
        if kept is not None and fits and kept.cache.width >= longest:
            kept.done.fill_(True)
            return kept
        runner.clear()
        slots = min(engine.slots, len(self.schedule.request_of))
        prompts = min(slots, len(self.requests))
        if runner.keeps:  # for calls with more samples, too
            slots = prompts = runner.round_up(engine.slots, 16)
        width = runner.round_up(longest, 32)
        cache = Cache(prompts=prompts, width=width, slots=slots, columns=columns, recorded=runner.keeps)
        ids, texts, device = self.policy.stop_ids, self.policy.stop_texts, self.policy.device
        state = State(cache, ids, texts, device, budget=self.max_new_tokens, turns=turns)
        engine.state = state if runner.keeps else None
        return state

    def _store(self, requests: Sequence[int]) -> None:
        """Store the keys and values of these prompts, where they are not: of those that were put aside, and of others, which are
        prefilled.
        """
        schedule, cache = self.schedule, self.state.cache
        missing = [request for request in requests if request not in schedule.stored]
        if excess := max(0, len(schedule.stored) + len(missing) - cache.prompts):
            idle = schedule.idle_prompts(excess)
            for place in idle.nonzero()[0].tolist():
                self.aside[int(schedule.stored[place])] = Aside(cache.read_prompt(place))
            self.state.close_prompts(schedule.close_prompts(idle))
        back = [request for request in missing if request in self.aside]
        for place, request in enumerate(back, len(schedule.stored)):
            cache.write_prompt(place, self.aside.pop(request).parts(self.policy.device))
        schedule.stored = np.concatenate([schedule.stored, np.array(back, dtype=np.int64)])
        self._prefill([request for request in missing if request not in back])

    def _prefill(self, requests: Sequence[int]) -> None:
        """Prefill prompts, as many at once as PREFILL_TOKENS allows, and store their keys and values."""
        left = np.array(requests, dtype=np.int64)
        while len(left):
            lengths = self.prompt_lengths[left].cumsum()
            batch = left[: max(1, int((lengths <= PREFILL_TOKENS).sum()))]
            with self.profiler.part("prefill"):
                own = self.prompt_lengths[batch]
                pairs = float((own**2).sum() / 2)
                self.profiler.count(flops=self.engine.cost.forward(int(own.sum()), len(batch), pairs))
                stored, places, logits = prefill(self.policy, [self.requests[r].prompt_ids for r in batch])
                self.state.cache.fill(len(self.schedule.stored), stored, places)
            self.schedule.stored = np.concatenate([self.schedule.stored, batch])
            self.logits |= zip(batch.tolist(), logits, strict=True)
            left = left[len(batch) :]

    def _new_layout(self, n: int) -> RowLayout:
        """The layout of the active rows, and of rows of slot 0 that fill up to n."""
        schedule, cache, device = self.schedule, self.state.cache, self.policy.device
        place, seat = schedule.seats()
        prompts = min(cache.prompts, self.runner.round_up(len(schedule.stored), 4))
        seats = self.runner.round_up(int(seat.max()) + 1, 1)
        table = np.zeros((prompts, seats), dtype=np.int64)
        table[place, seat] = np.arange(schedule.active)
        place, seat = (np.pad(x, (0, n - schedule.active)) for x in (place, seat))
        head = np.arange(cache.heads)
        layout = RowLayout(
            torch.from_numpy(table[:, None] * len(head) + head[:, None]).to(device),
            torch.from_numpy((place[:, None] * len(head) + head) * seats + seat[:, None]).flatten().to(device),
            torch.from_numpy(place).to(device),
        )
        if not self.runner.keeps:
            return layout
        kept = self.state.layouts.setdefault((n, prompts, seats), layout)
        for old, new in ((kept.table, layout.table), (kept.seat, layout.seat), (kept.prompt, layout.prompt)):
            old.copy_(new)
        return kept
