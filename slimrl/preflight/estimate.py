"""The estimate of a run's peak memory: its parts in bytes, and the plan of sizes that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from slimrl.records import Plan

HEAP, HEAP_GIVEN_BACK, HEAP_SHARE = 80 * 2**20, 49 * 2**20, 0.20
"""Bytes of a CPU process beyond its tensors: libraries loaded on the way, and a share of what an update frees, which the C
library keeps in blocks that no longer fit. Fitted, with KERNELS, to peaks of models of 1, 27 and 494 million parameters."""
KERNELS = 12 * 2**20
"""Bytes of the kernels that oneDNN compiles for the shapes it meets and keeps (`bound_kernel_caches`)."""
GIB = 2**30
PARTS = (
    "process", "weights", "sampler", "reference", "critic", "masters", "moments", "cache", "sampling", "gradients",
    "activations", "head", "gathered", "widened", "heap", "kernels",
)  # fmt: skip


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part, and the sizes that were chosen to fit."""

    process: int
    """Python and its libraries, measured; 0 on a GPU, where only tensors count."""
    weights: int
    reference: int
    """The frozen copy for the KL penalty."""
    masters: int
    """float32 copies of narrower weights."""
    moments: int
    """The two of AdamW."""
    cache: int
    """Keys and values of all slots and their prompts, and on a CPU of the episodes that wait beside them."""
    sampling: int
    """Prefill, or logits of a decode step, whichever is larger."""
    gradients: int
    """All of them in float32; those that a pass makes in a narrow type, and the largest once more where it is not added in
    place, stand beside them.
    """
    token_bytes: int
    """Activations that one token of a micro-batch leaves to the backward pass."""
    vocabulary: int
    loss_tokens: int
    """Tokens of a step that carry loss, at most."""
    head_bytes: int
    """Of each logit of a chunk, for all buffers that a backward pass holds of it."""
    chunk_logits: int
    """Logits of a chunk at most."""
    critic: int
    """PPO's value function: weights, masters, moments and gradients."""
    cache_stays: bool
    """Recorded decode steps keep their cache during the update."""
    blocks_given_back: bool
    """The C library keeps no large block that was freed. Blocks that are kept make a step quicker."""
    free: int
    """Bytes that this process may hold in all, by the memory free when the plan was made."""
    plan: Plan
    widened: int = 0
    """The largest packed weight while it is multiplied."""
    pass_bytes: int = 0
    """Of a token in the reference's pass, which keeps nothing for a backward one."""
    sampler: int = 0
    """That of another engine than the trained module: weights of its own, without its cache, which stays."""
    kernels: int = 0
    """Those that a CPU compiles on the way."""
    gathered: int = 0
    """The layers that are whole at once in a pass through divided ones, with their gradients."""
    released: int = 0
    """Weights that are not whole during such a pass."""
    devices: int = 1
    """Of the run, each of which takes what the other parts say."""

    @property
    def keeps_cache(self) -> bool:
        """True where the cache is there during the update too."""
        return self.cache_stays or self.sampler > 0

    @property
    def activations(self) -> int:
        return self.plan.microbatch_tokens * self.token_bytes

    @property
    def head(self) -> int:
        tokens = min(self.plan.microbatch_tokens, self.loss_tokens)
        return self.head_bytes * min(self.chunk_logits, tokens * self.vocabulary)

    @property
    def peak(self) -> int:
        held = (
            self.process,
            self.kernels,
            self.weights,
            self.sampler,
            self.critic,
            self.masters,
            self.moments,
            self.widened,
        )
        fixed = sum(held)
        staying = self.cache if self.keeps_cache else 0
        rollout = self.cache + self.sampling
        passing = self.activations + self.head + self.gathered - self.released
        update = self.gradients + max(0, passing) + staying
        if self.plan.offload:  # the reference's own pass comes before there are gradients
            compared = self.reference + self.plan.microbatch_tokens * self.pass_bytes + self.head + staying
            return fixed + self.heap + max(rollout, update, compared)
        return fixed + self.reference + self.heap + max(rollout, update)

    @property
    def heap(self) -> int:
        if self.cache_stays:
            return 0
        if self.blocks_given_back:
            return HEAP_GIVEN_BACK
        return int(HEAP + HEAP_SHARE * (self.gradients + self.activations + self.head))

    @property
    def fits(self) -> bool:
        return self.peak <= self.free

    def sentence(self) -> str:
        """The summary for a person; run.json has the plan in full."""
        text = f"memory: at most about {self.peak / GIB:.2f} of {self.free / GIB:.2f} GiB"
        if self.devices > 1:
            text += f" on each of {self.devices} devices"
        if self.plan.recompute:
            text += ", activations recomputed"
        if self.plan.offload:
            text += f", and the reference ({self.reference / GIB:.2f} GiB) only while it is read"
        if self.fits:
            return text
        size, part = max((getattr(self, name), name) for name in PARTS)
        return (
            f"{text}, of which {part} {size / GIB:.2f}. This may not fit: lower rollout.slots or optimizer.microbatch_tokens, or "
            "set optimizer.activation_checkpointing=on, model.dtype=bfloat16 or, to train an adapter, model.lora.rank=16"
        )

    def table(self) -> dict[str, Any]:
        """Everything, for JSON."""
        table = asdict(self)
        del table["plan"]
        plan = self.plan
        table |= {
            "slots": plan.slots,
            "microbatch_tokens": plan.microbatch_tokens,
            "activation_checkpointing": plan.recompute,
            "reference_offload": plan.offload,
        }
        derived = ("activations", "head", "heap", "peak", "fits")
        return table | {name: getattr(self, name) for name in derived}


def read_plan(table: Mapping[str, Any]) -> Plan:
    """The sizes in a `MemoryEstimate.table`, as run.json has it."""
    return Plan(
        int(table["slots"]),
        int(table["microbatch_tokens"]),
        bool(table["activation_checkpointing"]),
        bool(table.get("reference_offload", False)),  # younger than the others
    )


def compare_memory(estimate: MemoryEstimate, measured: int, *, largest_microbatch: int) -> dict[str, float]:
    """GiB planned for, estimated for the largest micro-batch that came up, and measured; the estimate's relative error."""
    of_largest = replace(estimate, plan=replace(estimate.plan, microbatch_tokens=largest_microbatch))
    return {
        "planned": estimate.peak / GIB,
        "estimated": of_largest.peak / GIB,
        "measured": measured / GIB,
        "error": of_largest.peak / measured - 1 if measured else float("nan"),
    }
