"""Continuous batching over fixed slots, with the trainer's own module.

A prompt is prefilled once and its keys are shared by all samples of its group. Rows that finish leave the batch and
waiting ones take their slots; a group is handed over as soon as its last row is done. What is drawn depends on a row's
uniforms and its logits alone: slots, order and the way in which steps are executed change no more than rounding.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimrl.errors import SettingsError
from slimrl.machine.limits import is_out_of_memory
from slimrl.machine.profiler import OFF, Profiler
from slimrl.machine.signals import NEVER
from slimrl.model.architecture import TOLERANCE, probe_tokens, relative_gap
from slimrl.model.attention import CausalRows, Prefill
from slimrl.model.cost import cost_of
from slimrl.model.loading import Policy
from slimrl.model.packing import Packed, pack
from slimrl.model.precision import in_float32, is_narrow
from slimrl.records import Completion
from slimrl.rollout.cache import Cache, DecodeStep, Seats
from slimrl.rollout.graphs import Runner, make_runner
from slimrl.rollout.sampling import draw

PREFILL_TOKENS = 8192
"""Prompt tokens in one prefill: bounds its memory."""
PATIENCE = 16
"""Finished rows are let go when they are a 1/PATIENCE of the batch: leaving costs more than a few idle rows do."""

OnGroup = Callable[[int, tuple[Completion, ...]], None]


@dataclass(frozen=True)
class Request:
    """One prompt and the uniforms of its samples."""

    prompt_ids: tuple[int, ...]
    uniforms: NDArray[np.float64]
    """[samples, max_new_tokens]; greedy decoding reads only its shape."""


@dataclass(frozen=True)
class Prefilled:
    """Prompts whose keys, values and next-token logits are known."""

    plan: Prefill
    packed: Packed
    logits: Tensor
    """[prompts, V] float32."""


class RolloutEngine:
    """Samples completions; holds the policy itself, so there is no second copy of the weights to keep in step."""

    def __init__(self, policy: Policy, *, slots: int, compiled: bool = False, runner: Runner | None = None) -> None:
        """`compiled` decode steps go through torch.compile, at the first of them.

        Raises SettingsError for a model whose layers carry more than keys and values from token to token, or where
        nothing can be compiled.
        """
        self.policy = policy
        self.slots = slots
        self.runner = runner or make_runner(policy.device)
        self.state: State | None = None
        self.watch = OFF
        """Set by whoever wants to know where the time goes."""
        self.stop = NEVER
        """Set by whoever may be told to stop."""
        self._probe()
        self.step = _compiled() if compiled else _step
        self.compiled = compiled
        self.cost = cost_of(policy)

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        greedy: bool = False,
        on_group: OnGroup = lambda _request, _completions: None,
    ) -> list[tuple[Completion, ...]]:
        """Completions of every request, in order; log-probabilities in nats under softmax(logits / temperature).

        `on_group` gets a request's index and its completions when the last of them is done, while others go on. Where
        memory runs out, `slots` is halved for good and what is not done is sampled again from the same uniforms.
        Raises ValueError for a prompt that leaves no room for `max_new_tokens` in the model's context, SettingsError where
        memory does not suffice for one slot, and Stopped between decode steps.
        """
        longest = max((len(r.prompt_ids) for r in requests), default=0)
        if longest + max_new_tokens > self.policy.context:
            raise ValueError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the context of {self.policy.context}"
            )
        done: dict[int, tuple[Completion, ...]] = {}
        left = list(range(len(requests)))

        def hand_over(place: int, completions: tuple[Completion, ...]) -> None:
            done[left[place]] = completions
            on_group(left[place], completions)

        while left:
            try:
                self._sample([requests[i] for i in left], max_new_tokens, temperature, greedy, hand_over)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.slots == 1:
                    raise SettingsError(
                        "memory ran out while sampling a single completion; lower rollout.max_new_tokens or set "
                        "model.dtype=bfloat16"
                    ) from None
            else:
                break
            self._make_room()
            left = [index for index in left if index not in done]
        return [done[index] for index in range(len(requests))]

    def _sample(
        self, requests: Sequence[Request], max_new_tokens: int, temperature: float, greedy: bool, on_group: OnGroup
    ) -> None:
        run = _Run(self, requests, max_new_tokens, temperature, greedy, on_group)
        run.admit()
        while run.active:
            self.stop.check()
            with self.watch.part("decode"):
                if max_new_tokens > 1:  # else the tokens drawn on entering are all there are
                    run.decode()
                run.settle()

    def _make_room(self) -> None:
        """Half the slots; called with no traceback around, which would hold on to the tensors."""
        self.slots = max(1, self.slots // 2)
        self.state = None
        self.runner.clear()
        gc.collect()
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()

    def prefill(self, prompts: Sequence[tuple[int, ...]]) -> Prefilled:
        """Keys, values and next-token logits of prompts."""
        lengths = torch.tensor([len(p) for p in prompts])
        width = int(lengths.max())
        ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts])
        if self.watch.on:
            pairs = float((lengths**2).sum() / 2)
            self.watch.count(flops=self.cost.forward(int(lengths.sum()), len(prompts), pairs))
        packed = pack(ids, lengths, lengths, torch.arange(len(prompts)), device=self.policy.device)
        plan = Prefill(packed.plan)
        hidden = self.policy.hidden(packed.ids[None], packed.positions[None], plan)[0]
        last = packed.places.gather(1, (lengths - 1)[:, None].to(packed.places.device)).squeeze(1)
        return Prefilled(plan, packed, self.policy.head(hidden.index_select(0, last)))

    @torch.inference_mode()
    def _probe(self) -> None:
        """Refuse a model that our cache cannot carry: two decode steps must give what the whole row gives, in float32.

        Layers with a state of their own would start anew at every token, and positions that a model counts by itself
        would begin again at 0.
        """
        policy = self.policy
        ids, positions = probe_tokens(policy.head.vocabulary, policy.context, policy.device)
        with in_float32(policy.model):
            known, row = ids.shape[1] - 2, tuple(ids[0].tolist())
            prefilled = self.prefill([row[:known], row])
            wanted = prefilled.logits[1]
            # The torch operations where a narrow model decodes with them, though its keys are float32 here.
            cache = Cache(prefilled.plan, prompts=1, width=known, slots=1, columns=2, recorded=is_narrow(policy.model))
            cache.fill(0, prefilled.plan, prefilled.packed.places[:1, :known])
            zero = torch.zeros(1, dtype=torch.long, device=policy.device)
            heads = torch.arange(cache.heads, device=policy.device)
            seats = Seats(heads[None, :, None], heads, zero)
            for time in range(2):
                step = DecodeStep(
                    cache, seats, time=time, ages=zero + time, lengths=zero + known, width=known,
                    extent=time + 1, alike=True,
                )  # fmt: skip
                place = slice(known + time, known + time + 1)
                hidden = policy.hidden(ids[:, place], positions[:, place], step)
            gap = relative_gap(policy.head(hidden[:, 0]), wanted)
            if gap <= TOLERANCE:
                return
            forwards, backwards = (policy.hidden(ids, p, CausalRows()) for p in (positions, positions.flip(1)))
            blind = relative_gap(backwards, forwards) <= TOLERANCE
        raise SettingsError(
            f"{type(policy.model).__name__} "
            + (
                "does not read the positions that it is given, so a token that is fed by itself is taken for the first of its row"
                if blind
                else f"gives other logits token by token than over the whole row (by {gap:.1e} of the largest, in float32), so "
                "it keeps more than keys and values, which SlimRL's sampler does not carry"
            )
        )


class State:
    """What a step reads and writes, on the device; row i of each tensor belongs to slot i.

    Token buffers have a column beyond C for what a finished row goes on drawing until it is let go.
    """

    def __init__(self, slots: int, columns: int, stop_ids: Sequence[int], device: torch.device) -> None:
        self.stop_ids = torch.tensor(stop_ids, dtype=torch.long, device=device)
        self.tokens = torch.zeros((slots, columns + 1), dtype=torch.long, device=device)
        self.logprobs = torch.zeros((slots, columns + 1), device=device)
        self.uniforms = torch.zeros((slots, columns + 1), dtype=torch.float64, device=device)
        self.counts = torch.ones(slots, dtype=torch.long, device=device)
        """Tokens drawn; the last of them is fed next."""
        self.lengths = torch.ones(slots, dtype=torch.long, device=device)
        """Tokens of the prompt."""
        self.done = torch.ones(slots, dtype=torch.bool, device=device)
        self.time = torch.zeros((), dtype=torch.long, device=device)
        self.slots, self.columns = slots, columns
        self.cache: Cache | None = None
        self.seats: dict[tuple[int, ...], Seats] = {}
        """Seat tables by their shapes, where addresses must stay."""

    def move(self, source: Tensor, target: Tensor) -> None:
        """Move slots `source` [n] into `target` [n]."""
        for tensor in (self.tokens, self.logprobs, self.uniforms, self.counts, self.lengths, self.done):
            tensor[target] = tensor[source]

    def record(self, rows: slice, logits: Tensor, *, temperature: float, greedy: bool) -> None:
        """Draw the next token of these slots from float32 logits [rows, V]."""
        counts, done = self.counts[rows], self.done[rows]
        place = counts[:, None]
        uniform = self.uniforms[rows].gather(1, place).squeeze(1)
        tokens, logprobs = draw(logits, uniform, temperature=temperature, greedy=greedy)
        self.tokens[rows].scatter_(1, place, tokens[:, None])
        self.logprobs[rows].scatter_(1, place, logprobs[:, None])
        counts += ~done
        done |= (tokens[:, None] == self.stop_ids).any(1) | (counts >= self.columns)


def _step(
    policy: Policy,
    state: State,
    seats: Seats,
    *,
    rows: int,
    width: int,
    extent: int,
    alike: bool,
    time: Tensor | int,
    temperature: float,
    greedy: bool,
    watch: Profiler,
) -> None:
    """Feed the last token of the first `rows` slots and draw the next.

    Where steps are recorded, every tensor that is read or written here must outlive the call: only the policy's, the
    state's and the seat table's do.
    """
    assert state.cache is not None
    counts, lengths = state.counts[:rows], state.lengths[:rows]
    ages = counts - 1
    fed = state.tokens[:rows].gather(1, ages[:, None])
    plan = DecodeStep(
        state.cache, seats, time=time, ages=ages, lengths=lengths, width=width, extent=extent, alike=alike
    )
    hidden = policy.hidden(fed, (lengths + ages)[:, None], plan)
    logits = policy.head(hidden[:, 0])
    with watch.part("sampling"):
        state.record(slice(0, rows), logits, temperature=temperature, greedy=greedy)
    if isinstance(time, Tensor):
        time += 1


def _compiled() -> Callable[..., None]:
    """The decode step through torch.compile, for all sizes at once; raises SettingsError where that cannot work."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(1))
    except Exception as error:  # it raises many kinds, with pages of text, for want of a compiler
        raise SettingsError(
            "rollout.compile=true, but torch.compile does not work here (on a CPU it needs a C++ compiler such as g++); "
            "install one, or set rollout.compile=false"
        ) from error
    # What is compiled is kept by the function's code, which another engine's module must not be taken for.
    torch._dynamo.reset()
    # One version each for first steps, single rows, windows and the like; beyond the limit torch would go back to Python.
    torch._dynamo.config.recompile_limit = 64
    # The module does not change between steps, and asking each of its parts whether it has costs as much as a layer.
    unguarded: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    return torch.compile(_step, dynamic=True, options=unguarded)


class _Run:
    """One `generate` call, as the host sees it: which samples wait, which occupy slots, which prompts are stored."""

    def __init__(
        self,
        engine: RolloutEngine,
        requests: Sequence[Request],
        max_new_tokens: int,
        temperature: float,
        greedy: bool,
        on_group: OnGroup,
    ) -> None:
        self.engine, self.policy, self.runner = engine, engine.policy, engine.runner
        self.requests, self.max_new_tokens = requests, max_new_tokens
        self.temperature, self.greedy, self.on_group = temperature, greedy, on_group
        samples = [len(r.uniforms) for r in requests]
        self.request_of = np.repeat(np.arange(len(requests)), samples)
        self.first_of = np.concatenate([[0], np.cumsum(samples)])
        self.unfinished = np.array(samples)
        self.entered = 0
        """Samples enter in order, so one number says which wait."""
        self.drawn: dict[int, Completion] = {}
        self.rows = np.zeros(0, dtype=np.int64)
        """[active] sample on each slot."""
        self.born = np.zeros(0, dtype=np.int64)
        """[active] time at which it entered."""
        self.stored: list[int] = []
        """Request whose prompt lies at each place of the prompt store."""
        self.logits: dict[int, Tensor] = {}
        """Next-token logits [V] of stored prompts that still have samples waiting."""
        self.time = 0
        self.seats: Seats | None = None
        self.state = self._state()

    @property
    def active(self) -> int:
        return len(self.rows)

    @property
    def waiting(self) -> int:
        return len(self.request_of) - self.entered

    def decode(self) -> None:
        """Run the steps up to the next look: feed every slot's last token, draw the next."""
        state, runner = self.state, self.runner
        assert state.cache is not None
        n = self._room(self.active)
        seats, width, same_length = self._seating(n)
        columns = state.columns
        extent = min(columns, runner.room(min(self.time + runner.steps, columns), 32))
        # At time 0 all slots were empty, so rows born then own every column up to now.
        alike = same_length and extent == self.time + 1 and not self.born.any()
        step = partial(
            self.engine.step, self.policy, state, seats, rows=n, width=width, extent=extent, alike=alike,
            time=state.time if runner.keeps else self.time, temperature=self.temperature, greedy=self.greedy,
            watch=OFF if runner.keeps or self.engine.compiled else self.engine.watch,
        )  # fmt: skip
        key = (n, *seats.table.shape, width, extent, alike, self.temperature, self.greedy)
        for _ in range(runner.steps):
            runner.run(key, step)
        self._count(width, extent)
        self.time += runner.steps

    def _count(self, width: int, extent: int) -> None:
        """The work of the steps just run: products of the active rows, and each key and value read once."""
        cost, steps = self.engine.cost, self.runner.steps
        pairs = self.active * (width + extent)
        read = cost.weight_bytes + cost.cache_bytes * (len(self.stored) * width + self.active * extent)
        self.engine.watch.count(
            flops=steps * cost.forward(self.active, self.active, pairs), decode_bytes=float(steps * read)
        )

    def settle(self) -> None:
        """Let finished rows go and waiting ones in, once there are enough of them."""
        done = self.state.done[: self.active].cpu().numpy()
        finished = int(done.sum())
        if finished == self.active or finished >= max(1, self.active // PATIENCE):
            self._hand_over(done.nonzero()[0])
            self._close_slots(done)
            self._close_prompts()
            self.seats = None
            self.admit()

    def admit(self) -> None:
        """Fill free slots with waiting samples, and draw their first tokens from the prompts' logits."""
        if not self.active:
            self.time = 0
            self.state.time.zero_()
        entering = self.request_of[self.entered : self.entered + self.state.slots - self.active]
        if not len(entering):
            return
        self._store([r for r in dict.fromkeys(entering.tolist()) if r not in self.logits])
        state, device, first = self.state, self.policy.device, self.active
        rows = slice(first, first + len(entering))
        samples = np.arange(self.entered, self.entered + len(entering))
        inside = samples - self.first_of[entering]
        uniforms = np.stack([self.requests[r].uniforms[i] for r, i in zip(entering, inside, strict=True)])
        lengths = [len(self.requests[r].prompt_ids) for r in entering]
        state.uniforms[rows, : self.max_new_tokens] = torch.from_numpy(uniforms).to(device)
        state.lengths[rows] = torch.tensor(lengths, device=device)
        state.counts[rows] = 0
        state.done[rows] = False
        logits = torch.stack([self.logits[r] for r in entering.tolist()])
        state.record(rows, logits, temperature=self.temperature, greedy=self.greedy)
        self.rows = np.concatenate([self.rows, samples])
        self.born = np.concatenate([self.born, np.full(len(samples), self.time)])
        self.entered += len(entering)
        pending = self.request_of[self.entered] if self.waiting else len(self.requests)
        self.logits = {r: row for r, row in self.logits.items() if r >= pending}
        self.seats = None

    def _state(self) -> State:
        """Buffers for this call: those of the last one where they must stay and are large enough."""
        runner, kept = self.runner, self.engine.state
        longest = max((len(r.prompt_ids) for r in self.requests), default=0)
        if kept is not None and kept.columns == self.max_new_tokens and kept.cache and kept.cache.width >= longest:
            kept.done.fill_(True)
            return kept
        runner.clear()
        slots = self._room(self.engine.slots) if runner.keeps else min(self.engine.slots, len(self.request_of))
        state = State(slots, self.max_new_tokens, self.policy.stop_ids, self.policy.device)
        self.engine.state = state if runner.keeps else None
        return state

    def _room(self, rows: int) -> int:
        return self.runner.room(rows, 16)

    def _store(self, requests: Sequence[int]) -> None:
        """Prefill prompts, as many at once as PREFILL_TOKENS allows, and store their keys and values."""
        left = list(requests)
        while left:
            batch, tokens = 0, 0
            while batch < len(left) and (
                not batch or tokens + len(self.requests[left[batch]].prompt_ids) <= PREFILL_TOKENS
            ):
                tokens += len(self.requests[left[batch]].prompt_ids)
                batch += 1
            with self.engine.watch.part("prefill"):
                prefilled = self.engine.prefill([self.requests[r].prompt_ids for r in left[:batch]])
                cache = self._cache(prefilled.plan)
                cache.fill(len(self.stored), prefilled.plan, prefilled.packed.places)
                self.stored += left[:batch]
                self.logits |= zip(left[:batch], prefilled.logits, strict=True)
            left = left[batch:]

    def _cache(self, example: Prefill) -> Cache:
        state, runner = self.state, self.runner
        if state.cache is None:
            width = runner.room(max(len(r.prompt_ids) for r in self.requests), 32)
            prompts = state.slots if runner.keeps else min(state.slots, len(self.requests))
            state.cache = Cache(
                example, prompts=prompts, width=width, slots=state.slots, columns=state.columns, recorded=runner.keeps
            )
        return state.cache

    def _seating(self, n: int) -> tuple[Seats, int, bool]:
        """The seat table for n rows, the longest prompt in use, and whether all prompts have its length."""
        lengths = np.array([len(self.requests[r].prompt_ids) for r in self.stored])
        assert self.state.cache is not None
        width = min(self.state.cache.width, self.runner.room(int(lengths.max()), 32))
        same = bool((lengths == width).all())
        if self.seats is None:
            self.seats = self._seats(n)
        return self.seats, width, same

    def _seats(self, n: int) -> Seats:
        place_of = {request: place for place, request in enumerate(self.stored)}
        place = np.array([place_of[r] for r in self.request_of[self.rows].tolist()])
        order = np.argsort(place, kind="stable")
        counts = np.bincount(place, minlength=len(self.stored))
        starts = np.cumsum(counts) - counts
        seat = np.empty(self.active, dtype=np.int64)
        seat[order] = np.arange(self.active) - starts[place[order]]
        assert self.state.cache is not None
        prompts = min(len(next(iter(self.state.cache.prompt_keys.values()))), self.runner.room(len(self.stored), 4))
        seats = self.runner.room(int(counts.max()), 1)
        table = np.zeros((prompts, seats), dtype=np.int64)
        table[place, seat] = np.arange(self.active)
        place, seat = (np.concatenate([x, np.zeros(n - self.active, dtype=np.int64)]) for x in (place, seat))
        head = np.arange(self.state.cache.heads)
        device = self.policy.device
        found = Seats(
            torch.from_numpy(table[:, None] * len(head) + head[:, None]).to(device),
            torch.from_numpy((place[:, None] * len(head) + head) * seats + seat[:, None]).flatten().to(device),
            torch.from_numpy(place).to(device),
        )
        if not self.runner.keeps:
            return found
        kept = self.state.seats.setdefault((n, prompts, seats), found)
        kept.table.copy_(found.table)
        kept.seat.copy_(found.seat)
        kept.prompt.copy_(found.prompt)
        return kept

    def _hand_over(self, slots: NDArray[np.int64]) -> None:
        """Turn finished slots into completions, and give every group whose last one is among them."""
        index = torch.from_numpy(slots).to(self.policy.device)
        counts = self.state.counts[index].tolist()
        tokens, logprobs = self.state.tokens[index].tolist(), self.state.logprobs[index].tolist()
        stops = set(self.policy.stop_ids)
        for row, count, ids, nats in zip(self.rows[slots].tolist(), counts, tokens, logprobs, strict=True):
            request = self.request_of[row]
            finish = "stop" if ids[count - 1] in stops else "length"
            prompt = self.requests[request].prompt_ids
            self.drawn[row] = Completion(prompt, tuple(ids[:count]), tuple(nats[:count]), finish)  # type: ignore[arg-type]
            self.unfinished[request] -= 1
            if not self.unfinished[request]:
                group = tuple(self.drawn.pop(i) for i in range(self.first_of[request], self.first_of[request + 1]))
                # What is scored meanwhile may be anyone's code, with gradients of its own.
                with self.engine.watch.part("rewards"), torch.inference_mode(False):
                    self.on_group(int(request), group)

    def _close_slots(self, done: NDArray[np.bool_]) -> None:
        """Close the holes of finished rows with the rows at the end, so that active slots stay contiguous."""
        assert self.state.cache is not None
        kept, target, source = _closed(done)
        if len(target):
            to, of = (torch.from_numpy(x).to(self.policy.device) for x in (target, source))
            self.state.cache.move_slots(of, to, min(self.time, self.state.columns))
            self.state.move(of, to)
            self.rows[target], self.born[target] = self.rows[source], self.born[source]
        self.rows, self.born = self.rows[:kept], self.born[:kept]
        self.state.done[kept:] = True

    def _close_prompts(self) -> None:
        """Likewise for prompts none of whose samples is left."""
        assert self.state.cache is not None
        kept, target, source = _closed(self.unfinished[self.stored] == 0)
        if len(target):
            to, of = (torch.from_numpy(x).to(self.policy.device) for x in (target, source))
            self.state.cache.move_prompts(of, to)
            for hole, mover in zip(target, source, strict=True):
                self.stored[hole] = self.stored[mover]
        del self.stored[kept:]


def _closed(gone: NDArray[np.bool_]) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """How many stay, the holes among the first so many, and those behind that go into them."""
    kept = int((~gone).sum())
    return kept, gone[:kept].nonzero()[0], (~gone[kept:]).nonzero()[0] + kept
