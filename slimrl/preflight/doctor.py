"""A look at a run before its first step: the prompt, the ends of completions, the form of answers, and the signal of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch

from slimrl.algorithm.groups import has_signal
from slimrl.kernels.native import problem
from slimrl.model.policy import Policy
from slimrl.preflight.effects import confounded_switches, inert_switches
from slimrl.preflight.observed import observe
from slimrl.preflight.setup import TrainSetup
from slimrl.records import Group, Problem
from slimrl.results import DoctorReport

PROBE_PROBLEMS = 16


def examine(setup: TrainSetup) -> DoctorReport:
    """The findings on a few groups of training problems, sampled with random numbers of their own."""
    problems = list(islice(setup.training_problems(step=0, count=PROBE_PROBLEMS), PROBE_PROBLEMS))
    groups = setup.roll_out(problems, stream="probe", step=0, strict=True)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    style = setup.task.style
    stop = float(np.mean([r.completion.finish == "stop" for r in rollouts]))
    parses = float(np.mean([style.well_formed(r.text) for r in rollouts]))
    right = float(np.mean([r.correct for r in rollouts]))
    signal = float(np.mean([has_signal(group, "reward") for group in groups]))
    tokenizer = setup.policy.tokenizer
    observed = observe(groups, setup.config)
    return DoctorReport(
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
        inert=inert_switches(setup.config, observed),
        confounded=confounded_switches(setup.config, observed),
        warnings=[
            *_slow(setup.policy),
            *_without_bos(setup, problems[0]),
            *_thinks(setup, stop),
            *_unscorable(groups),
            *_no_signal(signal, len(groups)),
            *_out_of_form(stop, parses, right, setup),
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


def _no_signal(signal: float, groups: int) -> list[str]:
    if signal:
        return []
    return [
        f"none of {groups} groups carries a signal (no two rewards within a group differ), so nothing can be learnt "
        "yet; warm-start with slimrl sft, or choose easier problems or a larger rollout.group_size"
    ]


def _out_of_form(stop: float, parses: float, right: float, setup: TrainSetup) -> list[str]:
    found = []
    if stop < 0.5:
        found.append(
            f"only {stop:.0%} of the completions stop by themselves within {setup.config.rollout.budget} tokens; raise "
            "rollout.max_new_tokens, or check the stop ids above"
        )
    if parses < 0.05 and right == 0:
        found.append(
            f"{parses:.0%} of the completions have the required form ({setup.task.style.name}); see task.style and "
            "task.instruction"
        )
    return found
