"""Continuous batching over fixed slots, with the trainer's own module.

A prompt is prefilled once for all samples of its group. Rows that finish leave the batch; waiting ones take their
slots. What is drawn depends only on the uniforms of a row, so slots and order change speed and never tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimrl.errors import SettingsError
from slimrl.model.attention import CausalRows, Prefill
from slimrl.model.loading import TOLERANCE, Policy
from slimrl.records import Completion
from slimrl.rollout.cache import DecodeStep, SlotCache
from slimrl.rollout.draws import draw

PREFILL_TOKENS = 8192
"""Padded prompt tokens in one prefill: bounds its memory."""


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
    logits: Tensor
    """[prompts, V] float32."""


class RolloutEngine:
    """Samples completions; holds the policy itself, so there is no second copy of the weights to keep in step."""

    def __init__(self, policy: Policy, *, slots: int) -> None:
        self.policy = policy
        self.slots = slots
        self._probe()

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        greedy: bool = False,
    ) -> list[tuple[Completion, ...]]:
        """Completions of every request, in order; log-probabilities in nats under softmax(logits / temperature).

        Raises ValueError for a prompt that leaves no room for `max_new_tokens` in the model's context.
        """
        longest = max((len(r.prompt_ids) for r in requests), default=0)
        if longest + max_new_tokens > self.policy.context:
            raise ValueError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the context of {self.policy.context}"
            )
        run = _Run(self, requests, max_new_tokens, temperature, greedy)
        while run.waiting or run.active:
            run.admit()
            if run.active:
                run.decode()
        return run.completions()

    def prefill(self, prompts: Sequence[tuple[int, ...]]) -> Prefilled:
        """Keys, values and next-token logits of prompts, padded on the right to the longest."""
        lengths = torch.tensor([len(p) for p in prompts], device=self.policy.device)
        width = int(lengths.max())
        ids = torch.tensor([[*p, *[self.policy.pad_id] * (width - len(p))] for p in prompts], device=self.policy.device)
        positions = torch.arange(width, device=self.policy.device).expand_as(ids)
        plan = Prefill()
        hidden = self.policy.hidden(ids, positions, plan)
        last = hidden[torch.arange(len(prompts), device=ids.device), lengths - 1]
        return Prefilled(plan, self.policy.head(last))

    @torch.inference_mode()
    def _probe(self) -> None:
        """Refuse a model that our cache cannot carry: one decode step must give what the whole row gives.

        Layers with a state of their own (convolutions, linear attention) would start anew at every token.
        """
        policy = self.policy
        length = min(12, policy.context)
        ids = torch.arange(length, device=policy.device)[None] * 7 % policy.head.vocabulary
        positions = torch.arange(length, device=policy.device)[None]
        whole = policy.head(policy.hidden(ids, positions, CausalRows())[:, -1])
        prefilled = self.prefill([tuple(ids[0, :-1].tolist())]).plan
        layers = policy.model.config.get_text_config().num_hidden_layers
        gap = float("inf")
        if len(prefilled.keys) == layers:
            cache = SlotCache(prefilled, slots=1, positions=length)
            cache.fill(0, prefilled, torch.zeros(1, dtype=torch.long, device=policy.device))
            step = DecodeStep(cache, positions[0, -1:], length)
            stepped = policy.head(policy.hidden(ids[:, -1:], positions[:, -1:], step)[:, -1])
            gap = ((stepped - whole).abs().max() / whole.abs().max().clamp(min=1e-6)).item()
        if not gap <= TOLERANCE[policy.model.dtype]:
            raise SettingsError(
                f"{type(policy.model).__name__} keeps more than keys and values from token to token, which SlimRL's sampler "
                "does not carry; it trains Qwen2, Qwen3, Llama, Gemma 3, SmolLM2 and other plain attention models"
            )


class _Run:
    """The state of one `generate` call: which samples wait, which occupy slots, what has been drawn."""

    def __init__(
        self, engine: RolloutEngine, requests: Sequence[Request], max_new_tokens: int, temperature: float, greedy: bool
    ) -> None:
        self.engine, self.requests = engine, requests
        self.max_new_tokens, self.temperature, self.greedy = max_new_tokens, temperature, greedy
        device = engine.policy.device
        self.samples = [len(r.uniforms) for r in requests]
        total = sum(self.samples)
        self.prompt_of = np.repeat(np.arange(len(requests)), self.samples)
        stacked = np.concatenate([r.uniforms for r in requests]) if requests else np.zeros((0, max_new_tokens))
        self.uniforms = torch.from_numpy(stacked).to(device)
        self.tokens = torch.zeros((total, max_new_tokens), dtype=torch.long, device=device)
        self.logprobs = torch.zeros((total, max_new_tokens), device=device)
        self.counts = torch.zeros(total, dtype=torch.long, device=device)
        self.stop_ids = torch.tensor(engine.policy.stop_ids, device=device)
        self.waiting: deque[int] = deque(range(total))
        self.prefilled: dict[int, tuple[Prefilled, int]] = {}
        self.cache: SlotCache | None = None
        self.rows = torch.zeros(0, dtype=torch.long, device=device)
        """[active] completion index of each occupied slot."""
        self.positions = torch.zeros(0, dtype=torch.long, device=device)
        """[active] position of the token that each slot feeds next."""
        self.longest = 0
        """Largest of `positions`, kept on the host."""

    @property
    def active(self) -> int:
        return len(self.rows)

    def admit(self) -> None:
        """Fill free slots with waiting samples, and draw their first tokens from the prompts' logits."""
        while self.waiting and self.active < self.engine.slots:
            free = self.engine.slots - self.active
            entering = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
            self._prefill_missing(entering)
            logits = self._enter(entering)
            rows = torch.tensor(entering, device=self.rows.device)
            self.rows = torch.cat([self.rows, rows])
            lengths = [len(self.requests[self.prompt_of[i]].prompt_ids) for i in entering]
            self.longest = max(self.longest, *lengths)
            self.positions = torch.cat([self.positions, torch.tensor(lengths, device=self.rows.device)])
            self._record(self.active - len(entering), logits)
            last = self.prompt_of[self.waiting[0]] if self.waiting else len(self.requests)
            self.prefilled = {p: kept for p, kept in self.prefilled.items() if p >= last}

    def decode(self) -> None:
        """Feed every slot's last token and draw the next."""
        assert self.cache is not None
        policy = self.engine.policy
        last = self.tokens[self.rows, self.counts[self.rows] - 1]
        step = DecodeStep(self.cache, self.positions, self.longest + 1)
        hidden = policy.hidden(last[:, None], self.positions[:, None], step)
        self.positions = self.positions + 1
        self.longest += 1
        self._record(0, policy.head(hidden[:, 0]))

    def completions(self) -> list[tuple[Completion, ...]]:
        """Everything drawn, grouped by request."""
        tokens, logprobs, counts = self.tokens.tolist(), self.logprobs.tolist(), self.counts.tolist()
        stops = set(self.engine.policy.stop_ids)
        groups, row = [], 0
        for request, samples in zip(self.requests, self.samples, strict=True):
            group = []
            for index in range(row, row + samples):
                ids = tuple(tokens[index][: counts[index]])
                finish = "stop" if ids[-1] in stops else "length"
                group.append(Completion(request.prompt_ids, ids, tuple(logprobs[index][: counts[index]]), finish))  # type: ignore[arg-type]
            groups.append(tuple(group))
            row += samples
        return groups

    def _prefill_missing(self, entering: Sequence[int]) -> None:
        """Prefill the prompts of `entering` that are not yet, as many at once as PREFILL_TOKENS allows."""
        missing = [p for p in dict.fromkeys(self.prompt_of[i] for i in entering) if p not in self.prefilled]
        while missing:
            width, batch = 0, 0
            for prompt in missing:
                width = max(width, len(self.requests[prompt].prompt_ids))
                if batch and width * (batch + 1) > PREFILL_TOKENS:
                    break
                batch += 1
            prefilled = self.engine.prefill([self.requests[p].prompt_ids for p in missing[:batch]])
            self.prefilled |= {p: (prefilled, i) for i, p in enumerate(missing[:batch])}
            missing = missing[batch:]

    def _enter(self, entering: Sequence[int]) -> Tensor:
        """Copy prompts into slots behind the active ones; returns their next-token logits [entering, V]."""
        logits = []
        start = 0
        while start < len(entering):
            prefilled, _ = self.prefilled[self.prompt_of[entering[start]]]
            end = start
            rows = []
            while end < len(entering) and self.prefilled[self.prompt_of[entering[end]]][0] is prefilled:
                rows.append(self.prefilled[self.prompt_of[entering[end]]][1])
                end += 1
            index = torch.tensor(rows, device=self.rows.device)
            if self.cache is None:
                longest = max(len(r.prompt_ids) for r in self.requests)
                slots = min(self.engine.slots, sum(self.samples))
                self.cache = SlotCache(prefilled.plan, slots=slots, positions=longest + self.max_new_tokens)
            self.cache.fill(self.active + start, prefilled.plan, index)
            logits.append(prefilled.logits[index])
            start = end
        return torch.cat(logits)

    def _record(self, first: int, logits: Tensor) -> None:
        """Draw for the slots from `first` on, store the tokens, and let finished rows leave."""
        rows = self.rows[first:]
        counts = self.counts[rows]
        tokens, logprobs = draw(logits, self.uniforms[rows, counts], temperature=self.temperature, greedy=self.greedy)
        self.tokens[rows, counts] = tokens
        self.logprobs[rows, counts] = logprobs
        self.counts[rows] = counts + 1
        done = torch.isin(tokens, self.stop_ids) | (counts + 1 == self.max_new_tokens)
        if done.any():
            self._leave(torch.cat([done.new_zeros(first), done]))

    def _leave(self, done: Tensor) -> None:
        """Close the holes of finished rows with the rows at the end, so that active slots stay contiguous."""
        assert self.cache is not None
        kept = int((~done).sum())
        holes = done[:kept].nonzero().squeeze(-1)
        movers = (~done[kept:]).nonzero().squeeze(-1) + kept
        if len(holes):
            self.cache.move(movers, holes, self.longest + 1)
            self.rows[holes], self.positions[holes] = self.rows[movers], self.positions[movers]
        self.rows, self.positions = self.rows[:kept].clone(), self.positions[:kept].clone()
        self.longest = int(self.positions.max()) if kept else 0
