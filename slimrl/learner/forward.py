"""Forward passes of models over rows, in micro-batches that fit the memory plan.

Rows are on the CPU, where their layout is made. Results are [B, L] with 0 where nothing was asked: those of `statistics`,
which carry gradients, on the model's device, all others on the CPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import torch
from torch import Tensor

from slimrl.algorithm.batch import balanced, microbatches, packed_tokens, take
from slimrl.algorithm.kl import Divergence
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.learner.divided import extra_parts
from slimrl.learner.recompute import checkpointed
from slimrl.machine.limits import is_out_of_memory
from slimrl.machine.profiler import OFF, Profiler
from slimrl.machine.progress import Progress, silent
from slimrl.machine.ranks import ALONE, Ranks
from slimrl.machine.signals import NEVER, Stop, Stopped
from slimrl.model.head import Reference, mean_probabilities, token_logprobs, token_statistics
from slimrl.model.packing import Packed, pack
from slimrl.model.policy import Policy, cost_of
from slimrl.records import Plan, Rows


@dataclass(frozen=True)
class VocabularyKl:
    """A divergence over the whole vocabulary from a reference."""

    reference: Policy
    divergence: Divergence


class Attempt:
    """One try of a block; out of memory within it is swallowed and noted. `fits` says afterwards whether the block was done.

    Its end is the same on all ranks: what one of them raises, all raise.
    """

    fits = False

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> bool:
        if error is not None and not isinstance(error, Exception | Stopped):
            return False
        found = self.ranks.agree(error)
        self.fits = found is None
        if found is not None and found is not error and not is_out_of_memory(found):
            raise found from None
        return found is not None and is_out_of_memory(found)


class Microbatcher:
    """Runs models over rows in micro-batches. Where memory runs out, `plan` has smaller ones from then on."""

    def __init__(
        self,
        config: TrainConfig,
        plan: Plan,
        *,
        profiler: Profiler = OFF,
        stop: Stop = NEVER,
        progress: Progress = silent,
        ranks: Ranks = ALONE,
    ) -> None:
        """`progress` is told of the completions that an update is done with, over all passes of a step."""
        self.plan, self.ranks = plan, ranks
        self.temperature = config.rollout.temperature
        self.fixed_split = config.algorithm.aggregation == "microbatch_token_mean"
        """Results depend on the micro-batches, which must not become smaller."""
        self.profiler, self.stop, self.progress = profiler, stop, progress

    def split(self, rows: Rows, chosen: Tensor) -> list[Tensor]:
        """The chosen rows [n] in parts that fit the plan, and as many for every rank."""
        parts = microbatches(
            rows.lengths[chosen],
            rows.prompt_lengths[chosen],
            rows.groups[chosen],
            max_tokens=self.plan.microbatch_tokens,
            ranks=1 if self.fixed_split else self.ranks.size,
        )
        return [chosen[part] for part in parts]

    def own(self, rows: Rows, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Of the parts of a split those that this rank computes, so that all have about the same number of tokens."""
        if self.ranks.size == 1:
            return iter(parts)
        dealt = balanced([packed_tokens(take(rows, part)) for part in parts], self.ranks.size)
        return self.ranks.activity.each(parts[index] for index in dealt[self.ranks.rank])

    def extra(self, rows: Rows, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Parts of a split that this rank computes to no effect, as `extra_parts` has them."""
        tokens = [packed_tokens(take(rows, part)) for part in parts]
        return self.ranks.activity.each(parts[index] for index in extra_parts(tokens, self.ranks))

    def attempts(self, rows: Rows) -> Iterator[Attempt]:
        """`for attempt in attempts(rows): with attempt: ...` repeats a block, with micro-batches half as large each time, until
        memory suffices for it.

        Raises SettingsError where single rows do not fit, or the result would depend on the split.
        """
        while True:
            attempt = Attempt(self.ranks)
            yield attempt
            if attempt.fits:
                return
            longest, tokens = int(rows.lengths.max()), self.plan.microbatch_tokens
            if self.fixed_split or tokens <= longest:
                cause = (
                    "and its split is part of the result" if self.fixed_split else "even for one completion at a time"
                )
                raise SettingsError(
                    f"memory ran out in the update with optimizer.microbatch_tokens={tokens}, {cause}; set "
                    "optimizer.activation_checkpointing=on or model.dtype=bfloat16, or lower rollout.max_new_tokens"
                )
            self.plan = replace(self.plan, microbatch_tokens=max(tokens // 2, longest))
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def statistics(
        self,
        policy: Policy,
        rows: Rows,
        kl: VocabularyKl | None = None,
        *,
        with_entropy: bool = False,
        measured: bool = True,
        passes: int = 1,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability, entropy and divergence from a reference of the tokens that carry loss: [B, L] nats, 0 elsewhere.

        All rows are one micro-batch. The entropy carries gradient only `with_entropy`, and else is 0 unless `measured`; the
        divergence is 0 without `kl`.
        `passes` is the work, in forward passes, that the profiler counts: 3 where a backward pass follows.
        """
        packed = packed_rows(rows, policy.device)
        if self.profiler.on:
            own = rows.lengths - rows.prompt_lengths
            pairs = float((own * (rows.prompt_lengths + own / 2)).sum())
            work = cost_of(policy).forward(len(packed.ids), float(rows.loss_mask.sum()), pairs)
            self.profiler.count(flops=passes * work)
        mask = rows.loss_mask.to(policy.device)
        places = packed.places[mask]
        with checkpointed(policy.model, self.plan.recompute):
            hidden = policy.packed_hidden(packed).index_select(0, places)
        targets = rows.targets.to(policy.device)[mask]
        blank = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        if kl is None and not with_entropy:
            logprobs, entropy = token_logprobs(
                policy.head, hidden, targets, temperature=self.temperature, with_entropy=measured
            )
            return blank.masked_scatter(mask, logprobs), blank.masked_scatter(mask, entropy), blank
        other = None
        if kl is not None:
            with torch.no_grad():
                states = kl.reference.packed_hidden(packed).index_select(0, places)
            other = Reference(kl.reference.head, states, kl.divergence)
        found = token_statistics(policy.head, hidden, targets, temperature=self.temperature, reference=other)
        logprobs, entropy, divergence = (blank.masked_scatter(mask, part) for part in found)
        return logprobs, entropy if with_entropy else entropy.detach(), divergence

    @torch.no_grad()
    def logprobs(self, policy: Policy, rows: Rows, mask: Tensor) -> Tensor:
        """[B, L] nats on the CPU at `mask` [B, L], without gradients. Raises Stopped between micro-batches."""
        rows = replace(rows, loss_mask=mask)
        return self.over_parts(rows, mask.any(1), lambda part: self.statistics(policy, part, measured=False)[0])

    @torch.no_grad()
    def entropies(self, policy: Policy, rows: Rows, *, may_stop: bool) -> Tensor:
        """[B, L] nats on the CPU. Raises Stopped between micro-batches only if it `may_stop`."""
        wanted = rows.loss_mask.any(1)
        return self.over_parts(rows, wanted, lambda part: self.statistics(policy, part)[1], may_stop=may_stop)

    @torch.no_grad()
    def mean_probabilities(self, policy: Policy, rows: Rows) -> Tensor:
        """[V] float32 mean of the policy's probabilities over the tokens that carry loss."""
        for attempt in self.attempts(rows):
            with attempt:
                total = torch.zeros(policy.head.vocabulary, dtype=torch.float64, device=policy.device)
                for chosen in self.own(rows, self.split(rows, rows.loss_mask.any(1).nonzero().squeeze(-1))):
                    self.stop.check()
                    part = take(rows, chosen)
                    packed = packed_rows(part, policy.device)
                    places = packed.places[part.loss_mask.to(policy.device)]
                    hidden = policy.packed_hidden(packed).index_select(0, places)
                    total += mean_probabilities(policy.head, hidden, temperature=self.temperature)
        self.ranks.add([total])
        return (total / max(1, int(rows.loss_mask.sum()))).float()

    def over_parts(
        self, rows: Rows, wanted: Tensor, compute: Callable[[Rows], Tensor], *, may_stop: bool = True
    ) -> Tensor:
        """[B, L] on the CPU, from what `compute` returns for parts of the `wanted` rows [B] bool."""
        result = torch.zeros(rows.inputs.shape)
        for attempt in self.attempts(rows):
            with attempt:
                for chosen in self.own(rows, self.split(rows, wanted.nonzero().squeeze(-1))):
                    if may_stop:
                        self.stop.check()
                    part = compute(take(rows, chosen))
                    result[chosen, : part.shape[1]] = part.cpu()
        self.ranks.add([result])  # each row is 0 on all ranks but one
        return result


def packed_rows(rows: Rows, device: torch.device) -> Packed:
    """Rows on one axis, each prompt once for its group."""
    return pack(rows.inputs, rows.lengths, rows.prompt_lengths, rows.groups, device=device)
