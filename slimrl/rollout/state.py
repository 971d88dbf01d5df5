"""The device side of the sampler: the prefill of prompts, the buffers of the slots, and the decode step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimrl.errors import SettingsError
from slimrl.machine.profiler import Profiler
from slimrl.model.attention import Prefill
from slimrl.model.packing import pack
from slimrl.model.policy import Policy
from slimrl.model.stops import StopTexts
from slimrl.rollout.cache import Cache, DecodeStep, RowLayout, StepShape
from slimrl.rollout.sampling import sample_tokens
from slimrl.rollout.scheduler import Moves

DRAWN = -1
"""Stands where a token is drawn, in the tokens that are given."""


def prefill(policy: Policy, prompts: Sequence[tuple[int, ...]]) -> tuple[Prefill, Tensor, Tensor]:
    """Keys and values of packed prompts, the places [prompts, L] of their tokens, and next-token logits [prompts, V] float32."""
    lengths = torch.tensor([len(p) for p in prompts])
    width = int(lengths.max())
    ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts])
    packed = pack(ids, lengths, lengths, torch.arange(len(prompts)), device=policy.device)
    plan = Prefill(packed.plan)
    hidden = policy.hidden(packed.ids[None], packed.positions[None], plan)[0]
    last = packed.places.gather(1, (lengths - 1)[:, None].to(packed.places.device)).squeeze(1)
    return plan, packed.places, policy.head(hidden.index_select(0, last))


class Turns(NamedTuple):
    """The turns of the rows; row i of each tensor belongs to slot i."""

    given: Tensor
    """[slots, width] tokens that take the place of drawn ones, and DRAWN elsewhere."""
    ends: Tensor
    """[slots] tokens with which the present turn is over."""


class State:
    """Everything that decode steps read and write, on the device; row i of each tensor belongs to slot i.

    Token buffers have a column beyond the cache's C, for what a finished row still draws until it leaves.
    """

    def __init__(
        self,
        cache: Cache,
        stop_ids: Sequence[int],
        stop_texts: StopTexts,
        device: torch.device,
        *,
        budget: int,
        turns: bool,
    ) -> None:
        """`budget` bounds the tokens of a row, and is at most C; with `turns` a row may be given tokens between drawn ones."""
        self.cache, self.device, self.budget = cache, device, budget
        slots, width = cache.slots, cache.columns + 1
        self.stop_ids = torch.tensor(stop_ids, dtype=torch.long, device=device)
        self.stop_texts = stop_texts
        self.read = torch.zeros(slots, dtype=torch.long, device=device)
        """State of the automaton of stop texts."""
        self.tokens = torch.zeros((slots, width), dtype=torch.long, device=device)
        self.logprobs = torch.zeros((slots, width), device=device)
        self.uniforms = torch.zeros((slots, width), dtype=torch.float64, device=device)
        self.counts = torch.ones(slots, dtype=torch.long, device=device)
        """Tokens drawn; the last of them is fed next."""
        self.lengths = torch.ones(slots, dtype=torch.long, device=device)
        """Tokens of the prompt."""
        self.done = torch.ones(slots, dtype=torch.bool, device=device)
        self.time = torch.zeros((), dtype=torch.long, device=device)
        self.turns: Turns | None = None
        """None where every row is one turn, of which all tokens are drawn."""
        if turns:
            given = torch.full((slots, width), DRAWN, dtype=torch.long, device=device)
            self.turns = Turns(given, torch.full((slots,), budget, dtype=torch.long, device=device))
        self.layouts: dict[tuple[int, ...], RowLayout] = {}
        """Layouts by their shapes, where addresses must stay."""

    def enter(
        self, rows: slice, uniforms: NDArray[np.float64], lengths: NDArray[np.int64], turn_tokens: NDArray[np.int64]
    ) -> None:
        """Give the slots of `rows` to new samples: uniforms [rows, budget], lengths of prompts, bounds of a turn (0: none)."""
        self.uniforms[rows, : self.budget] = torch.from_numpy(uniforms).to(self.device)
        self.lengths[rows] = torch.from_numpy(lengths).to(self.device)
        self.counts[rows] = 0
        self.read[rows] = 0
        self.done[rows] = False
        if self.turns is not None:
            self.turns.given[rows] = DRAWN
            bounds = np.where(turn_tokens, turn_tokens, self.budget).clip(max=self.budget)
            self.turns.ends[rows] = torch.from_numpy(bounds).to(self.device)

    def resume(self, slot: int, token_ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Give back to a row, which has just entered, the tokens that it had in another slot."""
        count = len(token_ids)
        self.tokens[slot, :count] = torch.tensor(token_ids, device=self.device)
        self.logprobs[slot, :count] = torch.tensor(logprobs, device=self.device)
        self.counts[slot] = count

    def go_on(self, slot: int, count: int, reply: Sequence[int], turn_tokens: int) -> None:
        """Let a row of `count` tokens, whose turn has ended, take these tokens before it draws further ones."""
        assert self.turns is not None
        end = count + len(reply)
        self.turns.given[slot, count:end] = torch.tensor(reply, device=self.device)
        self.turns.ends[slot] = min(self.budget, end + turn_tokens) if turn_tokens else self.budget
        self.read[slot] = 0
        self.done[slot] = False

    def record(self, rows: slice, logits: Tensor, *, temperature: float, greedy: bool) -> None:
        """Draw the next token of these slots from float32 logits [rows, V]."""
        counts, done = self.counts[rows], self.done[rows]
        place = counts[:, None]
        uniform = self.uniforms[rows].gather(1, place).squeeze(1)
        tokens, logprobs = sample_tokens(logits, uniform, temperature=temperature, greedy=greedy)
        given: Tensor | None = None
        ends: Tensor | int = self.budget
        if self.turns is not None:
            ends, instead = self.turns.ends[rows], self.turns.given[rows].gather(1, place).squeeze(1)
            given = instead != DRAWN
            tokens, logprobs = torch.where(given, instead, tokens), logprobs.masked_fill(given, 0.0)
        self.tokens[rows].scatter_(1, place, tokens[:, None])
        self.logprobs[rows].scatter_(1, place, logprobs[:, None])
        counts += ~done
        if self.stop_texts.texts:
            # A row that is done draws on until it leaves, which must not change how it ended.
            read = self.read[rows]
            after = self.stop_texts.moves[read, tokens]
            read.copy_(torch.where(done, read, after if given is None else after.masked_fill(given, 0)))
            done |= read == self.stop_texts.found
        stopped = (tokens[:, None] == self.stop_ids).any(1)
        done |= (stopped if given is None else stopped & ~given) | (counts >= ends)

    def close_slots(self, moves: Moves, used_columns: int) -> None:
        """Follow the scheduler: rows from the end move into the slots of those that left."""
        if len(moves.target):
            source, target = (torch.from_numpy(x).to(self.device) for x in (moves.source, moves.target))
            self.cache.move_slots(source, target, used_columns)
            for tensor in (self.tokens, self.logprobs, self.uniforms, self.counts, self.read, self.lengths, self.done):
                tensor[target] = tensor[source]
            for tensor in self.turns or ():
                tensor[target] = tensor[source]
        self.done[moves.kept :] = True

    def close_prompts(self, moves: Moves) -> None:
        """The same for the store of prompts."""
        if len(moves.target):
            source, target = (torch.from_numpy(x).to(self.device) for x in (moves.source, moves.target))
            self.cache.move_prompts(source, target)


@dataclass(frozen=True)
class Step:
    """One decode step, except for what the state holds."""

    layout: RowLayout
    shape: StepShape
    time: Tensor | int
    """The clock: a tensor where steps are recorded, and then the step advances it."""
    temperature: float
    greedy: bool


def decode_step(policy: Policy, state: State, step: Step, profiler: Profiler) -> None:
    """Feed the last token of each of the step's rows and draw the next.

    Where steps are recorded, every tensor that is read or written here must outlive the call: only the policy's, the
    state's and the layout's do.
    """
    rows = step.shape.rows
    counts, lengths = state.counts[:rows], state.lengths[:rows]
    ages = counts - 1
    fed = state.tokens[:rows].gather(1, ages[:, None])
    plan = DecodeStep(state.cache, step.layout, step.shape, time=step.time, ages=ages, lengths=lengths)
    hidden = policy.hidden(fed, (lengths + ages)[:, None], plan)
    logits = policy.head(hidden[:, 0])
    with profiler.part("sampling"):
        state.record(slice(0, rows), logits, temperature=step.temperature, greedy=step.greedy)
    if isinstance(step.time, Tensor):
        step.time.add_(1)


def compiled_step() -> Callable[[Policy, State, Step, Profiler], None]:
    """`decode_step` through torch.compile, for all sizes at once; raises SettingsError where that cannot work."""
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
    # The module does not change between steps, and asking each of its parts if it has costs as much as a layer.
    unguarded: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    return torch.compile(decode_step, dynamic=True, options=unguarded)
