"""The sampler of a run: the policy's own module, or vLLM beside it, which must be shown to compute the trained module."""

from __future__ import annotations

from collections.abc import Sequence

from slimrl.config.schema import RootConfig
from slimrl.errors import SettingsError
from slimrl.machine.profiler import Profiler
from slimrl.machine.ranks import ranks_here
from slimrl.machine.signals import Stop
from slimrl.model.policy import Policy
from slimrl.model.precision import is_narrow
from slimrl.preflight.estimate import GIB, MemoryEstimate
from slimrl.rollout import Sampler
from slimrl.rollout.agreement import largest_difference
from slimrl.rollout.engine import RolloutEngine
from slimrl.rollout.vllm import VllmSampler, demand_vllm

PROMPTS, TOKENS = 4, 32
"""Of held-out problems (else of those to train on), and of each greedy completion, before the first step."""
ROUNDING, NARROW_ROUNDING = 0.01, 0.5
"""Nats by which rounding may change the log-probability of a token: of a float32 model, and of a narrower one."""


def demand_engine(config: RootConfig, policy: Policy) -> None:
    """Raises SettingsError where `rollout.engine` is not installed, or does not work with a model as it was loaded."""
    if config.rollout.engine != "vllm":
        return
    if ranks_here().size > 1:
        raise SettingsError(
            "several processes (torchrun) do not work with rollout.engine=vllm; start one, or remove it"
        )
    if policy.stop_texts.texts:
        why = "rollout.stop=auto, since prompts are plain" if config.rollout.stop == "auto" else "rollout.stop"
        raise SettingsError(
            f"completions end at the text {policy.stop_texts.texts[0]!r} ({why}), and vLLM ends them by tokens; set "
            "rollout.stop=[], or remove rollout.engine=vllm"
        )
    demand_vllm()


def demand_agreement(sampler: Sampler, policy: Policy, prompts: Sequence[tuple[int, ...]], budget: int) -> float:
    """Compare greedy completions of `sampler` and of the policy's module; returns the largest difference in nats.

    Raises SettingsError where rounding does not explain it.
    """
    own = RolloutEngine(policy, slots=len(prompts))
    found = largest_difference(own, sampler, prompts, max_new_tokens=min(TOKENS, budget))
    bound = NARROW_ROUNDING if is_narrow(policy.model) else ROUNDING
    if found.nats > bound:
        raise SettingsError(
            "rollout.engine=vllm: vLLM does not compute what the trained module does (greedy answer to held-out problem "
            f"{found.prompt + 1}, token {found.token + 1}: log-probabilities differ by {found.nats:.3g} nats, by rounding "
            f"at most {bound:g}); remove rollout.engine"
        )
    return found.nats


def engine_note(memory: MemoryEstimate, nats: float) -> str:
    """The promises that a run with vLLM does not keep, and what it costs."""
    return (
        f"vLLM samples (rollout.engine=vllm) and takes about {memory.sampler / GIB:.2f} GiB for weights of its own and "
        f"{memory.cache / GIB:.2f} GiB for its cache; its greedy answers agree with the trained module's to {nats:.1g} nats. It "
        "decides what is computed together and so how numbers are rounded: the run is not repeated or resumed to the last bit"
    )


def make_engine(
    config: RootConfig,
    policy: Policy,
    memory: MemoryEstimate,
    profiler: Profiler,
    stop: Stop,
    compared: Sequence[tuple[int, ...]],
) -> tuple[Sampler, str]:
    """The sampler of `rollout.engine`, and a note on it; another one than the module's own answers the prompts `compared`."""
    slots, compiled = memory.plan.slots, config.rollout.compile
    if config.rollout.engine == "builtin":
        return RolloutEngine(policy, slots=slots, compiled=compiled, profiler=profiler, stop=stop), ""
    sampler = VllmSampler(policy, slots=slots, cache_bytes=memory.cache, profiler=profiler, stop=stop)
    return sampler, engine_note(memory, demand_agreement(sampler, policy, compared, config.rollout.budget))
