"""Before the first step: what the model will see, whether it can stop, whether a reward can teach it anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from slimrl.algorithm.groups import has_signal
from slimrl.config.schema import TrainConfig
from slimrl.kernels.native import problem
from slimrl.model.policy import Policy
from slimrl.preflight.effects import Seen, confounded_switches, inert_switches
from slimrl.preflight.setup import TrainSetup
from slimrl.records import Group, Problem

PROBE_PROBLEMS = 16


@dataclass(frozen=True)
class Examination:
    """What `slimrl doctor --json` prints; shares are of the probe's completions or groups."""

    first_prompt: str
    stop_ids: dict[str, str]
    """Stop id to its text."""
    completions: int
    stop: float
    """Share that ends with a stop id within the budget."""
    parses: float
    """Share in the required form."""
    right: float
    """Share that is right, strictly."""
    groups: int
    signal: float
    """Share of groups whose rewards differ: only these can teach."""
    gold_checked: int
    gold_failed: int
    reward_maximum: float
    inert: list[str]
    confounded: list[str]
    warnings: list[str]
    samples: list[dict[str, str | float]]


def examine(setup: TrainSetup) -> Examination:
    """Sample a few groups from the training problems with draws of their own, and look at them."""
    problems = list(islice(setup.training_problems(step=0, count=PROBE_PROBLEMS), PROBE_PROBLEMS))
    groups = setup.roll_out(problems, stream="probe", step=0, strict=True)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    style = setup.task.style
    stop = float(np.mean([r.completion.finish == "stop" for r in rollouts]))
    parses = float(np.mean([style.well_formed(r.text) for r in rollouts]))
    right = float(np.mean([r.correct for r in rollouts]))
    signal = float(np.mean([has_signal(group, "reward") for group in groups]))
    tokenizer = setup.policy.tokenizer
    return Examination(
        first_prompt=setup.prompter.text(setup.task.messages(problems[0])),
        stop_ids={str(i): str(tokenizer.convert_ids_to_tokens(i)) for i in setup.policy.stop_ids},
        completions=len(rollouts),
        stop=stop,
        parses=parses,
        right=right,
        groups=len(groups),
        signal=signal,
        gold_checked=setup.gold.n,
        gold_failed=len({failure.id for failure in setup.gold.failures}),
        reward_maximum=setup.gold.maximum,
        inert=inert_switches(setup.config, look(groups, setup.config)),
        confounded=confounded_switches(setup.config, look(groups, setup.config)),
        warnings=[
            *_slow(setup.policy),
            *_without_bos(setup, problems[0]),
            *_thinks(setup, stop),
            *_unscorable(groups),
            *_warnings(stop, parses, right, signal, len(groups), style.name, setup.config),
        ],
        samples=[
            {
                "question": r.problem.question,
                "answer": r.problem.answer,
                "extracted": setup.task.grade(r.text, r.problem.answer).extracted_strict,
                "reward": r.reward,
                "text": r.text,
            }
            for r in (group.rollouts[0] for group in groups[:3])
        ],
    )


def look(groups: Sequence[Group], config: TrainConfig, *, carried: int = 0) -> Seen:
    """Count what the switches depend on."""
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    lengths = [len(completion.token_ids) for completion in completions]
    return Seen(
        completions=len(completions),
        truncated=sum(completion.finish == "length" for completion in completions),
        longest=max(lengths, default=0),
        shortest=min(lengths, default=0),
        groups=len(groups),
        constant=sum(not has_signal(group, config.algorithm.signal) for group in groups),
        carried=carried,
    )


def _slow(policy: Policy) -> list[str]:
    if policy.device.type != "cpu" or policy.model.dtype != torch.float32 or not problem():
        return []
    return [
        f"decode steps take torch's own operations, which are slower: what SlimRL brings for this CPU is not compiled, since "
        f"{problem()}; install g++, or name a compiler in CXX"
    ]


def _without_bos(setup: TrainSetup, asked: Problem) -> list[str]:
    if not setup.prompter.misses_bos(setup.task.messages(asked)):
        return []
    return [
        f"the tokenizer begins a text with {setup.policy.tokenizer.bos_token}, which the chat template does not write, so "
        "prompts begin without it, as they do in transformers; where the model was trained with it, add it to the template"
    ]


def _thinks(setup: TrainSetup, stop: float) -> list[str]:
    """Templates of this kind let a model think first unless they are told otherwise."""
    chat = setup.prompter.chat
    if stop >= 0.5 or chat is None or "enable_thinking" not in chat.source or "enable_thinking" in chat.arguments:
        return []
    return [
        "the chat template has a switch for thinking, which is on; task.template_arguments={enable_thinking: false} turns it "
        "off, and completions become shorter"
    ]


def _unscorable(groups: Sequence[Group]) -> list[str]:
    reasons = [rollout.unscorable for group in groups for rollout in group.rollouts]
    share = sum(map(bool, reasons)) / len(reasons)
    return [f"{share:.0%} of the completions are unscorable ({next(filter(None, reasons))})"] if share else []


def _warnings(
    stop: float, parses: float, right: float, signal: float, groups: int, style: str, config: TrainConfig
) -> list[str]:
    found = []
    if signal == 0:
        found.append(
            f"none of {groups} groups carries a signal (no two rewards within a group differ), so nothing can be learnt "
            "yet; warm-start with slimrl sft, or choose easier problems or a larger rollout.group_size"
        )
    if stop < 0.5:
        found.append(
            f"only {stop:.0%} of the completions stop by themselves within {config.rollout.budget} tokens; raise "
            "rollout.max_new_tokens, or check the stop ids above"
        )
    if parses < 0.05 and right == 0:
        found.append(
            f"{parses:.0%} of the completions have the required form ({style}); see task.style and task.instruction"
        )
    return found
