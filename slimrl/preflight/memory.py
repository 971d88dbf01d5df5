"""Peak memory before the first step: what each part will take, and how large slots and micro-batches may be.

A run has two peaks that never meet: rollouts (cache, prefill, logits of a decode step) and the update (gradients,
activations, chunks of logits). What lies below both is fixed by the model. Slots and micro-batches change speed and
memory, never tokens or gradients, so `auto` may choose them by the memory that is free.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slimrl.algorithm.kl import SAMPLED
from slimrl.config.schema import RootConfig, TrainConfig
from slimrl.kernels.embedding import SummedEmbedding
from slimrl.learner.recompute import can_checkpoint, checkpointed
from slimrl.machine.limits import free_memory, large_blocks_given_back, total_memory, used_memory
from slimrl.model.cost import cost_of
from slimrl.model.head import CHUNK_ELEMENTS
from slimrl.model.packing import pack
from slimrl.model.policy import Policy
from slimrl.rollout.engine import PREFILL_TOKENS

MOST_TOKENS = 16384
"""Tokens of an automatic micro-batch at most: beyond, no machine gets faster."""
FEWEST_TOKENS = 2048
"""Below this, recomputing activations is cheaper than micro-batches that are smaller still."""
MOST_SLOTS, FEWEST_SLOTS = 4096, 8
SHARE = 0.9
"""Of the free memory that a plan may take."""
HEAD_COPIES, ENTROPY_COPIES, KL_COPIES, GKL_COPIES = 2, 6, 9, 12
"""Logits of a chunk and one temporary; more where entropy or a divergence over the vocabulary is differentiated (measured)."""
HEAP, HEAP_GIVEN_BACK, HEAP_SHARE = 2**30 * 9 // 100, 2**30 * 6 // 100, 0.20
"""What a CPU process holds beyond its tensors: libraries loaded on the way, and a share of what an update frees, which the C
library keeps in blocks that no longer fit. Fitted to peaks of models of 1, 27 and 494 million parameters."""
DECODE_COPIES = 3
"""Logits, probabilities, and one temporary."""
GIB = 2**30
PARTS = (
    "process", "weights", "reference", "critic", "masters", "moments", "cache", "sampling", "gradients", "activations",
    "head", "heap",
)  # fmt: skip


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part, and what was chosen to fit."""

    process: int
    """Python and its libraries, measured; 0 on a GPU, where only tensors count."""
    weights: int
    reference: int
    """The frozen copy for the KL penalty."""
    masters: int
    """float32 copies of narrower weights."""
    moments: int
    """AdamW's two."""
    cache: int
    """Keys and values of all slots and their prompts."""
    sampling: int
    """Prefill, or logits of a decode step, whichever is larger."""
    gradients: int
    """All of them, and once more the largest where it is not added in place."""
    token_bytes: int
    """Activations that one token of a micro-batch leaves to the backward pass."""
    vocabulary: int
    head_copies: int
    """Buffers of a chunk of logits that a backward pass holds."""
    critic: int
    """PPO's value function: weights, masters, moments and gradients."""
    cache_stays: bool
    """Recorded decode steps keep their cache during the update."""
    blocks_given_back: bool
    """The C library keeps no large block that was freed."""
    free: int
    """What this process may hold in all, by the memory free when the plan was made."""
    slots: int
    microbatch_tokens: int
    activation_checkpointing: bool

    @property
    def activations(self) -> int:
        """Of one micro-batch."""
        return self.microbatch_tokens * self.token_bytes

    @property
    def head(self) -> int:
        """Chunks of logits in a backward pass."""
        return self.head_copies * 4 * min(CHUNK_ELEMENTS, self.microbatch_tokens * self.vocabulary)

    @property
    def peak(self) -> int:
        fixed = self.process + self.weights + self.reference + self.critic + self.masters + self.moments
        rollout = self.cache + self.sampling
        update = self.gradients + self.activations + self.head + (self.cache if self.cache_stays else 0)
        return fixed + self.heap + max(rollout, update)

    @property
    def heap(self) -> int:
        """What the C library keeps."""
        if self.cache_stays:
            return 0
        if self.blocks_given_back:
            return HEAP_GIVEN_BACK
        return int(HEAP + HEAP_SHARE * (self.gradients + self.activations + self.head))

    @property
    def fits(self) -> bool:
        return self.peak <= self.free

    def sentence(self) -> str:
        """What a person should know of it; run.json has the plan in full."""
        text = f"memory: at most about {_gib(self.peak)} of {_gib(self.free)} GiB"
        if self.activation_checkpointing:
            text += ", activations recomputed"
        if self.fits:
            return text
        size, part = max((getattr(self, name), name) for name in PARTS)
        return (
            f"{text}, of which {part} {_gib(size)}. This may not fit: lower rollout.slots or optimizer.microbatch_tokens, or set "
            "optimizer.activation_checkpointing=on or model.dtype=bfloat16"
        )

    def table(self) -> dict[str, Any]:
        """Everything, for JSON."""
        found = {
            "activations": self.activations,
            "head": self.head,
            "heap": self.heap,
            "peak": self.peak,
            "fits": self.fits,
        }
        return asdict(self) | found


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def plan_memory(policy: Policy, config: RootConfig, *, longest_prompt: int, rows: int, training: bool) -> MemoryPlan:
    """Estimate the peak of a run, and choose what is left to `auto`.

    `rows` are the completions of one step (or of an evaluation); without `training` there is no update.
    """
    cost, device = cost_of(policy), policy.device
    parameters = sum(p.numel() for p in policy.trainable.values())
    narrow = policy.model.dtype != torch.float32
    has_reference = isinstance(config, TrainConfig) and bool(config.algorithm.kl_coef)
    used = used_memory(device)
    budget = int(SHARE * free_memory(device)) + used
    if config.memory_share < 1:  # of all there is: what else holds memory just now must not decide what is chosen
        budget = int(SHARE * config.memory_share * total_memory(device))
    largest = max(p.numel() * p.element_size() for p in policy.trainable.values())
    in_place = not narrow and isinstance(policy.model.get_input_embeddings(), SummedEmbedding)
    apart = 0 if in_place else largest
    longest = longest_prompt + config.rollout.budget
    vocabulary, width = policy.head.vocabulary, _widest(policy)

    def with_slots(plan: MemoryPlan, slots: int) -> MemoryPlan:
        prompts = slots  # an evaluation has a prompt of its own for every row
        tokens = min(PREFILL_TOKENS, prompts * longest_prompt)
        prefill = tokens * (cost.cache_bytes + 4 * width * policy.model.dtype.itemsize) + prompts * vocabulary * 4
        columns = slots * config.rollout.budget + prompts * longest_prompt
        sampling = max(prefill, DECODE_COPIES * slots * vocabulary * 4)
        return replace(plan, slots=slots, cache=columns * cost.cache_bytes, sampling=sampling)

    plan = MemoryPlan(
        process=max(0, used - cost.weight_bytes) if device.type == "cpu" else 0,
        weights=cost.weight_bytes,
        reference=cost.weight_bytes if has_reference else 0,
        masters=4 * parameters if narrow and training else 0,
        moments=8 * parameters if training else 0,
        cache=0,
        sampling=0,
        gradients=(4 + policy.model.dtype.itemsize * narrow) * parameters + apart if training else 0,
        token_bytes=0,
        vocabulary=vocabulary,
        head_copies=_head_copies(config),
        critic=_critic_bytes(policy)
        if isinstance(config, TrainConfig) and config.algorithm.baseline == "critic"
        else 0,
        cache_stays=device.type == "cuda",
        blocks_given_back=large_blocks_given_back(),
        free=budget,
        slots=0,
        microbatch_tokens=0,
        activation_checkpointing=False,
    )
    # Fewer slots free nothing for the update, so they are chosen as if there were none (but for a cache that stays).
    lean = plan if plan.cache_stays else replace(plan, gradients=0)
    setting, again = config.rollout.slots, config.optimizer.activation_checkpointing
    slots = min(rows, MOST_SLOTS) if setting == "auto" else setting
    while setting == "auto" and slots > FEWEST_SLOTS and not with_slots(lean, slots).fits:
        slots = max(FEWEST_SLOTS, slots // 2)
    plan = with_slots(plan, slots)
    if not training:
        return plan

    fixed = config.optimizer.microbatch_tokens
    if again == "auto" and not can_checkpoint(policy.model):
        again = "off"
    most = min(MOST_TOKENS, rows * (longest_prompt + config.rollout.budget))
    for recompute in {"auto": (False, True), "on": (True,), "off": (False,)}[again]:
        plan = replace(
            plan,
            activation_checkpointing=recompute,
            token_bytes=activation_bytes(policy, checkpointing=recompute),
            microbatch_tokens=max(longest, most) if fixed == "auto" else fixed,
        )
        # While recomputing is still to be tried, micro-batches need not become so small that they are slow.
        fewest = longest if recompute or again == "off" else max(longest, FEWEST_TOKENS)
        while fixed == "auto" and not plan.fits and plan.microbatch_tokens // 2 >= fewest:
            plan = replace(plan, microbatch_tokens=plan.microbatch_tokens // 2)
        if plan.fits:
            break
    return plan


def _head_copies(config: RootConfig) -> int:
    """By what a loss needs of the logits beyond the sampled token's log-probability."""
    if not isinstance(config, TrainConfig):
        return HEAD_COPIES
    algorithm = config.algorithm
    if algorithm.kl_coef > 0 and algorithm.kl_estimator not in SAMPLED:
        return GKL_COPIES if algorithm.kl_estimator == "gkl" else KL_COPIES
    return ENTROPY_COPIES if algorithm.entropy_coef else HEAD_COPIES


def _critic_bytes(policy: Policy) -> int:
    trunk = list(policy.trunk.parameters())
    count, held = sum(p.numel() for p in trunk), sum(p.numel() * p.element_size() for p in trunk)
    narrow = policy.model.dtype != torch.float32
    return int(held + (4 * narrow + 8 + 4) * count)


def apply_plan(config: RootConfig, plan: MemoryPlan) -> RootConfig:
    """The settings with numbers where they said `auto`."""
    rollout = config.rollout.model_copy(update={"slots": plan.slots})
    again: Literal["on", "off"] = "on" if plan.activation_checkpointing else "off"
    chosen = {"microbatch_tokens": plan.microbatch_tokens, "activation_checkpointing": again}
    optimizer = config.optimizer.model_copy(update=chosen if plan.microbatch_tokens else {})
    return config.model_copy(update={"rollout": rollout, "optimizer": optimizer})


def compare_memory(plan: MemoryPlan, measured: int, *, largest_microbatch: int) -> dict[str, float]:
    """GiB planned for, estimated for the largest micro-batch that came up, and measured; the estimate's relative error."""
    estimated = replace(plan, microbatch_tokens=largest_microbatch).peak
    return {
        "planned": plan.peak / GIB,
        "estimated": estimated / GIB,
        "measured": measured / GIB,
        "error": estimated / measured - 1 if measured else float("nan"),
    }


def activation_bytes(policy: Policy, *, checkpointing: bool) -> int:
    """Bytes that a forward pass keeps for the backward one, a token: counted on two short rows of this very module."""
    sizes = (16, 48)
    kept = [_saved(policy, size, checkpointing) for size in sizes]
    slope = (kept[1] - kept[0]) / (sizes[1] - sizes[0])
    layers = policy.model.config.get_text_config().num_hidden_layers
    if not checkpointing:
        return int(slope * (1 + 1 / layers))
    whole = [_saved(policy, size, False) for size in sizes]
    # One layer at a time is computed again, and its gradients stand beside it.
    return int(slope + 2 * (whole[1] - whole[0]) / (sizes[1] - sizes[0]) / layers)


def _saved(policy: Policy, size: int, checkpointing: bool) -> int:
    """Bytes of distinct storages that one packed row of `size` tokens leaves to the backward pass, weights apart."""
    lengths = torch.tensor([size])
    ids = torch.arange(size)[None] * 7 % policy.head.vocabulary
    packed = pack(ids, lengths, lengths, torch.zeros(1, dtype=torch.long), device=policy.device)
    own = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    seen: dict[int, int] = {}
    held: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # no address may be given out twice while they are counted
        return tensor

    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        checkpointed(policy.model, checkpointing),
    ):
        policy.packed_hidden(packed)
    return sum(seen.values())


def _widest(policy: Policy) -> int:
    """Numbers a token has at once, at most, in a layer of a forward pass without gradients."""
    linear = (module for module in policy.trunk.modules() if isinstance(module, nn.Linear))
    return max(max(module.in_features, module.out_features) for module in linear)
