"""Peak memory before the first step: what each part will take, and how large slots and micro-batches may be.

A run has two peaks that never meet: rollouts (cache, prefill, logits of a decode step) and the update (gradients,
activations, chunks of logits). The part below both is fixed by the model. Slots and micro-batches change speed and
memory, never tokens or gradients, so `auto` may choose them by the memory that is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from slimrl.algorithm.kl import VOCABULARY
from slimrl.config.algorithm import AlgorithmConfig
from slimrl.config.schema import RootConfig, SftRunConfig, TrainConfig
from slimrl.kernels.embedding import SummedEmbedding
from slimrl.kernels.native import takes
from slimrl.learner.offload import ways_to_hold
from slimrl.learner.recompute import can_checkpoint
from slimrl.machine.limits import blocks_can_be_settled, free_memory, total_memory, used_memory
from slimrl.model.head import CHUNK_ELEMENTS
from slimrl.model.policy import Policy, cost_of
from slimrl.preflight.activations import activation_bytes
from slimrl.records import Plan
from slimrl.rollout.engine import PREFILL_TOKENS

MOST_TOKENS = 16384
"""Tokens of an automatic micro-batch at most: beyond, no machine gets faster."""
FEWEST_TOKENS = 2048
"""Below this, recomputing activations is cheaper than micro-batches that are smaller still."""
MOST_SLOTS, FEWEST_SLOTS = 4096, 8
SHARE = 0.9
"""Of the free memory that a plan may take."""
HEAD_COPIES, ENTROPY_COPIES = 2, 6
"""Logits of a chunk and one temporary, which kernels do not make; more where the entropy is differentiated (measured)."""
HEAP, HEAP_GIVEN_BACK, HEAP_SHARE = 2**30 * 9 // 100, 2**30 * 6 // 100, 0.20
"""Bytes of a CPU process beyond its tensors: libraries loaded on the way, and a share of what an update frees, which the C
library keeps in blocks that no longer fit. Fitted to peaks of models of 1, 27 and 494 million parameters."""
LAYER_COPIES = 4
"""Numbers of the widest product that a token has at once in a forward pass without gradients."""
DECODE_COPIES = 3
"""Logits, probabilities, and one temporary."""
GIB = 2**30
PARTS = (
    "process", "weights", "reference", "critic", "masters", "moments", "cache", "sampling", "gradients", "activations",
    "head", "heap",
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
    """Keys and values of all slots and their prompts."""
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
    critic: int
    """PPO's value function: weights, masters, moments and gradients."""
    cache_stays: bool
    """Recorded decode steps keep their cache during the update."""
    blocks_given_back: bool
    """The C library keeps no large block that was freed. Blocks that are kept make a step quicker."""
    free: int
    """Bytes that this process may hold in all, by the memory free when the plan was made."""
    plan: Plan

    @property
    def activations(self) -> int:
        return self.plan.microbatch_tokens * self.token_bytes

    @property
    def head(self) -> int:
        tokens = min(self.plan.microbatch_tokens, self.loss_tokens)
        return self.head_bytes * min(CHUNK_ELEMENTS, tokens * self.vocabulary)

    @property
    def peak(self) -> int:
        fixed = self.process + self.weights + self.critic + self.masters + self.moments
        rollout = self.cache + self.sampling
        update = self.gradients + self.activations + self.head + (self.cache if self.cache_stays else 0)
        if self.plan.offload:  # the reference's own pass comes before there are gradients
            return fixed + self.heap + max(rollout, update, self.reference + self.head)
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
        if self.plan.recompute:
            text += ", activations recomputed"
        if self.plan.offload:
            text += f", {self.reference / GIB:.2f} GiB of the reference beside them only while they are read"
        if self.fits:
            return text
        size, part = max((getattr(self, name), name) for name in PARTS)
        return (
            f"{text}, of which {part} {size / GIB:.2f}. This may not fit: lower rollout.slots or optimizer.microbatch_tokens, or "
            "set optimizer.activation_checkpointing=on or model.dtype=bfloat16"
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
        bool(table["reference_offload"]),
    )


class Call(NamedTuple):
    """The largest call of the sampler."""

    longest_prompt: int
    """Tokens."""
    rows: int
    """Completions: of a step, or all of an evaluation."""


def plan_memory(
    policy: Policy,
    config: RootConfig,
    call: Call,
    *,
    training: bool,
    kept: Plan | None = None,
    teacher: Policy | None = None,
) -> MemoryEstimate:
    """Estimate the peak of a run, and choose the sizes that the settings leave to `auto`.

    Without `training` there is no update, and the plan has no micro-batches. A run that is resumed has `kept` its sizes. A
    `teacher`, which is loaded already, is the reference.
    """
    longest_prompt, rows = call
    slots, tokens = config.rollout.slots, config.optimizer.microbatch_tokens
    recompute = config.optimizer.activation_checkpointing
    if kept is not None:
        slots = kept.slots if slots == "auto" else slots
        tokens = (kept.microbatch_tokens or tokens) if tokens == "auto" else tokens
        recompute = ("on" if kept.recompute else "off") if recompute == "auto" else recompute
    longest = longest_prompt + config.rollout.budget
    if recompute == "auto" and not can_checkpoint(policy.model):
        recompute = "off"
    trained = _rows_of_a_step(config, rows)
    packed, loss_tokens = _step_tokens(config, longest_prompt, trained)
    most = max(longest, min(MOST_TOKENS, packed)) if tokens == "auto" else tokens
    ways = {"auto": (False, True), "on": (True,), "off": (False,)}[recompute]
    beside = 0 if teacher is None else LAYER_COPIES * _widest(teacher) * teacher.model.dtype.itemsize
    activations = {again: activation_bytes(policy, checkpointing=again) + beside for again in ways} if training else {}
    fixed = replace(_fixed_parts(policy, config, training, teacher), loss_tokens=loss_tokens)
    if training and fixed.cache_stays:
        # Slots leave room for a micro-batch, and an evaluation passes through those of a step.
        rows = min(rows, trained)
        room = replace(fixed.plan, microbatch_tokens=min(most, max(longest, FEWEST_TOKENS)))
        fixed = replace(fixed, token_bytes=min(activations.values()), plan=room)
    estimate = _choose_slots(fixed, policy, config, slots, longest_prompt, rows)
    if not training:
        return estimate
    # While recomputing is still to be tried, micro-batches need not become so small that they are slow.
    fewest = {again: longest if again or len(ways) == 1 else max(longest, FEWEST_TOKENS) for again in ways}
    if tokens != "auto":
        fewest = dict.fromkeys(ways, most)
    for offload in ways_to_hold(config, policy, kept, teacher):
        estimate = replace(estimate, blocks_given_back=False, plan=replace(estimate.plan, offload=offload))
        estimate = _choose_sizes(estimate, policy, activations, most, fewest)
        if estimate.fits:
            break
    return estimate


def _choose_sizes(
    estimate: MemoryEstimate, policy: Policy, activations: Mapping[bool, int], most: int, fewest: Mapping[bool, int]
) -> MemoryEstimate:
    """As `_choose_tokens`, and on a CPU with freed blocks given back where that lets more fit."""
    found = _choose_tokens(estimate, activations, most, fewest)
    if policy.device.type == "cpu" and blocks_can_be_settled():
        lean = _choose_tokens(replace(estimate, blocks_given_back=True), activations, most, fewest)
        if lean.plan != found.plan or not found.fits:
            return lean
    return found


def _rows_of_a_step(config: RootConfig, rows: int) -> int:
    """Rows that one step trains on; `rows` where the settings are of no step."""
    if isinstance(config, TrainConfig):
        return config.rollout.problems * config.rollout.group_size
    return config.sft.batch_size if isinstance(config, SftRunConfig) else rows


def _step_tokens(config: RootConfig, longest_prompt: int, rows: int) -> tuple[int, int]:
    """Packed tokens of a step of so many rows, a group's prompt counted once, and those of them that carry loss, at most."""
    drawn = rows * config.rollout.budget
    if isinstance(config, TrainConfig):
        return config.rollout.problems * longest_prompt + drawn, drawn
    return rows * longest_prompt + drawn, rows * longest_prompt + drawn


def _choose_tokens(
    estimate: MemoryEstimate, activations: Mapping[bool, int], most: int, fewest: Mapping[bool, int]
) -> MemoryEstimate:
    """The estimate with the largest micro-batch that fits; `activations` are bytes of a token, and both mappings are by
    whether activations are computed again.
    """
    for again, token_bytes in activations.items():
        plan = replace(estimate.plan, microbatch_tokens=most, recompute=again)
        estimate = replace(estimate, plan=plan, token_bytes=token_bytes)
        while not estimate.fits and estimate.plan.microbatch_tokens // 2 >= fewest[again]:
            smaller = estimate.plan.microbatch_tokens // 2
            estimate = replace(estimate, plan=replace(estimate.plan, microbatch_tokens=smaller))
        if estimate.fits:
            break
    return estimate


def _fixed_parts(policy: Policy, config: RootConfig, training: bool, teacher: Policy | None) -> MemoryEstimate:
    """The parts that slots and micro-batches have no influence on."""
    cost, device, model = cost_of(policy), policy.device, policy.model
    parameters = sum(p.numel() for p in policy.trainable.values())
    narrow = model.dtype != torch.float32
    loaded, reference = cost.weight_bytes, 0
    algorithm = config.algorithm if isinstance(config, TrainConfig) else None
    if teacher is not None:
        reference = cost_of(teacher).weight_bytes
        loaded += reference
    elif algorithm and algorithm.kl_coef:
        reference = _copied_bytes(model)
    used = used_memory(device)
    budget = int(SHARE * free_memory(device)) + used
    if config.memory_share < 1:  # of all memory, so that the use by others at this moment decides nothing
        budget = int(SHARE * config.memory_share * total_memory(device))
    return MemoryEstimate(
        process=max(0, used - loaded) if device.type == "cpu" else 0,
        weights=cost.weight_bytes,
        reference=reference,
        masters=4 * parameters if narrow and training else 0,
        moments=8 * parameters if training else 0,
        cache=0,
        sampling=0,
        gradients=_gradient_bytes(policy) if training else 0,
        token_bytes=0,
        vocabulary=policy.head.vocabulary,
        loss_tokens=0,
        head_bytes=_head_bytes(policy, algorithm),
        critic=_critic_bytes(policy) if algorithm and algorithm.baseline == "critic" else 0,
        cache_stays=device.type == "cuda",
        blocks_given_back=False,
        free=budget,
        plan=Plan(slots=0, microbatch_tokens=0, recompute=False),
    )


def _gradient_bytes(policy: Policy) -> int:
    """Float32 gradients, and beside them what autograd makes in a narrow type: those of the vocabulary's tables it does not,
    where the embedding adds in place; elsewhere the largest stands there once more.
    """
    weights, embedding = list(policy.trainable.values()), policy.model.get_input_embeddings()
    total, largest = sum(4 * p.numel() for p in weights), max(p.numel() * p.element_size() for p in weights)
    summed = {embedding.weight, policy.head.weight} if isinstance(embedding, SummedEmbedding) else set()
    narrow = sum(p.numel() * p.element_size() for p in weights if p.dtype != torch.float32 and p not in summed)
    return total + narrow + (0 if summed else largest)


def _choose_slots(
    fixed: MemoryEstimate,
    policy: Policy,
    config: RootConfig,
    setting: int | Literal["auto"],
    longest_prompt: int,
    rows: int,
) -> MemoryEstimate:
    """The estimate with as many slots as the setting says or, for `auto`, as fit."""
    cost = cost_of(policy)
    width = _widest(policy)

    def with_slots(estimate: MemoryEstimate, slots: int) -> MemoryEstimate:
        # As many prompts as slots: where few completions of each are left, every row has another one.
        tokens = min(PREFILL_TOKENS, slots * longest_prompt)
        prefill = (
            tokens * (cost.cache_bytes + LAYER_COPIES * width * policy.model.dtype.itemsize)
            + slots * fixed.vocabulary * 4
        )
        return replace(
            estimate,
            plan=replace(estimate.plan, slots=slots),
            cache=slots * (config.rollout.budget + longest_prompt) * cost.cache_bytes,
            sampling=max(prefill, DECODE_COPIES * slots * fixed.vocabulary * 4),
        )

    if setting != "auto":
        return with_slots(fixed, setting)
    # Fewer slots free nothing for the update, so they are chosen as if there were none (except with a cache that stays).
    lean = fixed if fixed.cache_stays else replace(fixed, gradients=0)
    slots = min(rows, MOST_SLOTS)
    while slots > FEWEST_SLOTS and not with_slots(lean, slots).fits:
        slots = max(FEWEST_SLOTS, slots // 2)
    return with_slots(fixed, slots)


def _widest(policy: Policy) -> int:
    """Numbers that a token has on the wider side of the widest product."""
    linear = [module for module in policy.trunk.modules() if isinstance(module, nn.Linear)]
    return max(max(module.in_features, module.out_features) for module in linear)


def _head_bytes(policy: Policy, algorithm: AlgorithmConfig | None) -> int:
    """Bytes of a logit in all float32 buffers that the terms of the loss ask for."""
    if algorithm and algorithm.kl_coef > 0 and algorithm.kl_estimator in VOCABULARY:
        return 4 * VOCABULARY[algorithm.kl_estimator].copies
    if algorithm and algorithm.entropy_coef:
        return 4 * ENTROPY_COPIES
    weight = policy.head.weight
    if policy.head.softcap or not takes(weight):
        return 4 * HEAD_COPIES
    # Logits become their gradient in place, or beside them in a narrow type.
    return 4 if weight.dtype == torch.float32 else 4 + weight.element_size()


def _copied_bytes(module: nn.Module) -> int:
    """Weights that a copy does not share: those that are trained."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)


def _critic_bytes(policy: Policy) -> int:
    masters = 4 if policy.model.dtype != torch.float32 else 0
    return sum(p.numel() * (p.element_size() + masters + 8 + 4) for p in policy.trunk.parameters() if p.requires_grad)


def compare_memory(estimate: MemoryEstimate, measured: int, *, largest_microbatch: int) -> dict[str, float]:
    """GiB planned for, estimated for the largest micro-batch that came up, and measured; the estimate's relative error."""
    of_largest = replace(estimate, plan=replace(estimate.plan, microbatch_tokens=largest_microbatch))
    return {
        "planned": estimate.peak / GIB,
        "estimated": of_largest.peak / GIB,
        "measured": measured / GIB,
        "error": of_largest.peak / measured - 1 if measured else float("nan"),
    }
