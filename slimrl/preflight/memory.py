"""Peak memory before the first step: what each part will take, and how large slots and micro-batches may be.

A run has two peaks that never meet: rollouts (cache, prefill, logits of a decode step) and the update (gradients,
activations, chunks of logits). The part below both is fixed by the model. Slots and micro-batches change speed and
memory, never tokens or gradients, so `auto` may choose them by the memory that is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import nn

from slimrl.algorithm.kl import VOCABULARY
from slimrl.config.algorithm import AlgorithmConfig
from slimrl.config.schema import RootConfig, SftRunConfig, TrainConfig
from slimrl.kernels.embedding import SummedEmbedding
from slimrl.kernels.native import takes
from slimrl.learner.divided import divisible
from slimrl.learner.offload import ways_to_hold
from slimrl.learner.recompute import can_checkpoint, layers_of
from slimrl.machine.limits import blocks_can_be_settled, compiles_kernels, free_memory, total_memory, used_memory
from slimrl.machine.ranks import ranks_here
from slimrl.model.head import CHUNK_ELEMENTS
from slimrl.model.policy import Policy, cost_of
from slimrl.model.quantized import quantized_layers
from slimrl.preflight.activations import activation_bytes, with_gradients
from slimrl.preflight.estimate import KERNELS, MemoryEstimate
from slimrl.records import Plan
from slimrl.rollout.engine import PREFILL_TOKENS
from slimrl.rollout.vllm import cache_tokens, own_bytes

MOST_TOKENS = 16384
"""Tokens of an automatic micro-batch at most: beyond, no machine gets faster."""
FEWEST_TOKENS = 2048
"""Below this, recomputing activations is cheaper than micro-batches that are smaller still."""
MOST_SLOTS, FEWEST_SLOTS = 4096, 8
SHARE = 0.9
"""Of the free memory that a plan may take."""
HEAD_COPIES, ENTROPY_COPIES = 2, 6
"""Logits of a chunk and one temporary, which kernels do not make; more where the entropy is differentiated (measured)."""
LAYER_COPIES = 4
"""Numbers of the widest product that a token has at once in a forward pass without gradients."""
DECODE_COPIES = 3
"""Logits, probabilities, and one temporary."""


CUDA_CONTEXT = 2**29
"""Bytes of a GPU that CUDA takes for itself, about."""


@dataclass(frozen=True)
class Devices:
    """GPUs that a plan is made for without them."""

    count: int
    gib: float
    """Memory of each."""
    kept: Mapping[bool, float]
    """Bytes that a token of the whole model leaves to the backward pass, by whether layers are computed again."""

    @property
    def budget(self) -> int:
        """Bytes of each that a plan may take."""
        return int(SHARE * (self.gib * 2**30 - CUDA_CONTEXT))


class Call(NamedTuple):
    """The largest call of the sampler."""

    longest_prompt: int
    """Tokens."""
    rows: int
    """Completions that one device draws: its share of a step, or of an evaluation."""
    devices: Devices | None = None
    """Those that the plan is for; None for the one that holds the policy."""


def devices_of(config: RootConfig) -> int:
    """Devices that work on a run: those that the settings start, or torchrun has started."""
    return max(config.devices, ranks_here().size)


def rows_of_a_call(config: RootConfig, evaluated: int) -> int:
    """Completions that a device draws in the largest call of the sampler: a step, or an evaluation of so many problems.

    A device draws all completions of a problem. Problems are assumed to be dealt evenly; the rows of one more wait for slots.
    """
    devices = devices_of(config)
    rows = -(-evaluated // devices) * (config.evaluation.samples + config.evaluation.greedy)
    if isinstance(config, TrainConfig):
        return max(rows, -(-config.rollout.problems // devices) * config.rollout.group_size)
    return rows


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
    longest_prompt, rows, devices = call
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
    compared = teacher or policy
    beside = LAYER_COPIES * _widest(compared) * compared.model.dtype.itemsize
    activations = {again: _token_bytes(policy, devices, again) for again in ways} if training else {}
    if teacher is not None:
        activations = {again: token_bytes + beside for again, token_bytes in activations.items()}
    fixed = replace(
        _fixed_parts(policy, config, training, teacher, devices), loss_tokens=loss_tokens, pass_bytes=beside
    )
    if not training:
        return _choose_slots(fixed, policy, config, slots, longest_prompt, rows)
    if fixed.keeps_cache:
        # Slots leave room for a micro-batch, and an evaluation passes through those of a step.
        rows = min(rows, trained)
        room = replace(fixed.plan, microbatch_tokens=min(most, max(longest, FEWEST_TOKENS)))
        fixed = replace(fixed, token_bytes=min(activations.values()), plan=room)
    # While recomputing is still to be tried, micro-batches need not become so small that they are slow.
    fewest = {again: longest if again or len(ways) == 1 else max(longest, FEWEST_TOKENS) for again in ways}
    if tokens != "auto":
        fewest = dict.fromkeys(ways, most)
    for offload in ways_to_hold(config, policy, kept, teacher):
        held = replace(fixed, plan=replace(fixed.plan, offload=offload))
        estimate = _choose_slots(held, policy, config, slots, longest_prompt, rows)
        estimate = _choose_sizes(estimate, policy, activations, most, fewest)
        if estimate.fits:
            break
    return estimate


def _token_bytes(policy: Policy, devices: Devices | None, checkpointing: bool) -> int:
    if devices is None:
        return activation_bytes(policy, checkpointing=checkpointing)
    layers = policy.model.config.get_text_config().num_hidden_layers
    return with_gradients(devices.kept, layers, checkpointing=checkpointing)


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


def _fixed_parts(
    policy: Policy, config: RootConfig, training: bool, teacher: Policy | None, devices: Devices | None
) -> MemoryEstimate:
    """The parts that slots and micro-batches have no influence on."""
    cost, device, model = cost_of(policy), policy.device, policy.model
    parameters = sum(p.numel() for p in policy.trainable.values())
    narrow = model.dtype != torch.float32
    ranks = devices_of(config)
    layers = divisible(policy) if training and config.parallel == "fsdp" and ranks > 1 and policy.lora is None else {}
    own = -(-parameters // ranks) if config.optimizer.sharded or layers else parameters
    loaded, reference = cost.weight_bytes, 0
    algorithm = config.algorithm if isinstance(config, TrainConfig) else None
    if teacher is not None:
        reference = cost_of(teacher).weight_bytes
        loaded += reference
    elif algorithm and algorithm.kl_coef:
        reference = _copied_bytes(model)
    on_gpu = devices is not None or device.type == "cuda"
    used, budget = (0, devices.budget) if devices is not None else _room(device, config.memory_share)
    return MemoryEstimate(
        process=max(0, used - loaded) if device.type == "cpu" else 0,
        weights=cost.weight_bytes,
        reference=reference,
        masters=(4 * own if narrow else 4 * _size(layers) // ranks) if training else 0,
        moments=8 * own if training else 0,
        cache=0,
        sampling=0,
        gradients=_gradient_bytes(policy, layers, ranks) if training else 0,
        token_bytes=0,
        vocabulary=policy.head.vocabulary,
        loss_tokens=0,
        head_bytes=_head_bytes(policy, algorithm),
        chunk_logits=CHUNK_ELEMENTS["cuda" if on_gpu else "cpu"],
        critic=_critic_bytes(policy) if algorithm and algorithm.baseline == "critic" else 0,
        cache_stays=on_gpu,
        # a C library that keeps what is freed keeps the weights that an update releases
        blocks_given_back=bool(layers) and not on_gpu and blocks_can_be_settled(),
        free=budget,
        plan=Plan(slots=0, microbatch_tokens=0, recompute=False),
        widened=max([layer.widened_bytes for _, layer in quantized_layers(model)], default=0),
        sampler=own_bytes(policy, on_gpu=on_gpu) if config.rollout.engine == "vllm" else 0,
        kernels=KERNELS if compiles_kernels() and not on_gpu else 0,
        gathered=_gathered_bytes(policy) if layers else 0,
        released=model.dtype.itemsize * _size(layers),
        devices=ranks,
    )


def _size(weights: Mapping[str, nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights.values())


def _gathered_bytes(policy: Policy) -> int:
    """The weights of a layer and of the one that is fetched meanwhile, the layer's gradient, and the float32 sums of two layers,
    of which one's are still on their way.
    """
    width: int = policy.model.dtype.itemsize
    largest: int = max(sum(p.numel() for p in layer.parameters()) for layer in layers_of(policy.trunk))
    return largest * (3 * width + 2 * 4)


def _room(device: torch.device, share: float) -> tuple[int, int]:
    """Bytes that this process uses, and those that it may use in all."""
    used = used_memory(device)
    if share < 1:  # of all memory, so that the use by others at this moment decides nothing
        return used, int(SHARE * share * total_memory(device))
    return used, int(SHARE * free_memory(device)) + used


def _gradient_bytes(policy: Policy, layers: Mapping[str, nn.Parameter], ranks: int) -> int:
    """Float32 gradients, and beside them what autograd makes in a narrow type: those of the vocabulary's tables it does not,
    where the embedding adds in place; elsewhere the largest stands there once more. Of divided `layers` a rank has its part.
    """
    weights = [p for name, p in policy.trainable.items() if name not in layers]
    embedding, parts = policy.model.get_input_embeddings(), 4 * -(-_size(layers) // ranks)
    total = parts + sum(4 * p.numel() for p in weights)
    largest = max((p.numel() * p.element_size() for p in weights), default=0)
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
        longest = config.rollout.budget + longest_prompt
        places = slots * longest
        if config.environment.name and not fixed.cache_stays:
            # Episodes that wait beside the slots, as many at most. Those of a GPU wait in the memory of the host.
            places += min(slots, max(0, rows - slots)) * longest
        if config.rollout.engine == "vllm":
            places = cache_tokens(policy, slots=slots, longest=longest)
        return replace(
            estimate,
            plan=replace(estimate.plan, slots=slots),
            cache=places * cost.cache_bytes,
            sampling=max(prefill, DECODE_COPIES * slots * fixed.vocabulary * 4),
        )

    if setting != "auto":
        return with_slots(fixed, setting)
    # Fewer slots free nothing for the update, so they are chosen as if there were none (except with a cache that stays).
    lean = fixed if fixed.keeps_cache else replace(fixed, gradients=0)
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
