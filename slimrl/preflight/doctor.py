"""A look at a run before its first step: the prompt, the ends of completions, the form of answers, and the signal of rewards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from slimrl.algorithm.groups import has_signal
from slimrl.config.schema import TrainConfig
from slimrl.errors import DataError
from slimrl.kernels.native import problem
from slimrl.model.policy import Policy
from slimrl.model.prompts import Prompter
from slimrl.model.templates import Messages
from slimrl.preflight.calls import call_warnings
from slimrl.preflight.effects import confounded_switches, inert_switches
from slimrl.preflight.observed import observe
from slimrl.preflight.price import PROBE_PROBLEMS
from slimrl.preflight.setup import Setup, TrainSetup
from slimrl.records import Group, Problem
from slimrl.results import DoctorReport

FEWEST_PROBLEMS = 2
SWITCHES = ("enable_thinking", "thinking")
"""The names that chat templates have for it: those of Qwen3 and most others, and those of Granite and DeepSeek V3.1."""
PROBE_TOKENS = 2**14
"""Bound on the new tokens of a probe, by which it has fewer problems where completions may be long."""


def examine(training: TrainSetup) -> DoctorReport:
    """The findings on a few groups of training problems, sampled with random numbers of their own."""
    setup, gold = training.setup, training.gold
    config, rollout, tokenizer, style = setup.config, setup.config.rollout, setup.policy.tokenizer, setup.task.style
    affordable = PROBE_TOKENS // (rollout.group_size * rollout.budget)
    count = min(PROBE_PROBLEMS, max(FEWEST_PROBLEMS, affordable))
    bounded = f"the probe has {count} problems instead of {PROBE_PROBLEMS}, since completions may have {rollout.budget} tokens"
    problems = list(islice(setup.training_problems(step=0, count=PROBE_PROBLEMS), count))
    groups = training.roll_out(problems, stream="probe", step=0, strict=True)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    stop = float(np.mean([r.completion.finish == "stop" for r in rollouts]))
    parses = float(np.mean([style.well_formed(r.text) for r in rollouts]))
    right = float(np.mean([r.correct for r in rollouts]))
    signal = float(np.mean([has_signal(group, "reward", config.algorithm.credit) for group in groups]))
    observed = observe(groups, config)
    return DoctorReport(
        first_prompt=setup.prompter.text(setup.task.messages(problems[0])),
        stop_ids={str(i): str(tokenizer.convert_ids_to_tokens(i)) for i in setup.policy.stop_ids},
        stop_texts=list(setup.policy.stop_texts.texts),
        completions=len(rollouts),
        stop=stop,
        parses=parses,
        right=right,
        groups=len(groups),
        signal=signal,
        gold_checked=gold.n,
        gold_failed=len({failure.id for failure in gold.failures}),
        reward_maximum=gold.maximum,
        inert=inert_switches(config, observed),
        confounded=confounded_switches(config, observed),
        warnings=[
            *_slow(setup.policy),
            *_prompt_warnings(setup, problems[0], stop),
            *call_warnings(groups),
            *_reward_warnings(groups, signal, taught=bool(config.algorithm.reference)),
            *_form_warnings(setup, stop, parses, right),
        ],
        samples=[
            r.sample(setup.task.grade(r.text, r.problem.answer).extracted_strict)
            for r in (group.rollouts[0] for group in groups[:3])
        ],
        notes=[*setup.notes, *([bounded] if count < PROBE_PROBLEMS else [])],
    )


def _slow(policy: Policy) -> list[str]:
    if policy.device.type != "cpu" or policy.model.dtype != torch.float32 or not problem():
        return []
    return [
        f"decode steps take torch's own operations, which are slower: what SlimRL brings for this CPU is not compiled, since "
        f"{problem()}; install g++, or name a compiler in CXX"
    ]


def _prompt_warnings(setup: Setup[TrainConfig], asked: Problem, stop: float) -> list[str]:
    found = []
    if setup.prompter.misses_bos(setup.task.messages(asked)):
        found.append(
            f"the tokenizer begins a text with {setup.policy.tokenizer.bos_token}, which the chat template does not write, so "
            "prompts begin without it, as they do in transformers; where the model was trained with it, add it to the template"
        )
    switch = thinking_switch(setup.prompter, setup.task.messages(asked)) if stop < 0.5 else None
    if switch is not None:
        name, on = switch
        found.append(
            "the chat template has a switch for thinking, which is on; "
            f"task.template_arguments={{{name}: false}} turns it off, and completions become shorter"
            if on
            else "the chat template has a switch for thinking, which is off, so it does not make completions long; "
            f"task.template_arguments={{{name}: true}} turns it on"
        )
    return found


def thinking_switch(prompter: Prompter, messages: Messages) -> tuple[str, bool] | None:
    """The argument of the chat template by which a model thinks first or not, and which of both holds where it is not given.

    None where this prompt depends on none, or on one that is set.
    """
    chat = prompter.chat
    if chat is None:
        return None

    def told(name: str, value: bool) -> str:
        return replace(prompter, chat=replace(chat, arguments={**chat.arguments, name: value})).text(messages)

    for name in SWITCHES:
        if name in chat.arguments or not re.search(rf"\b{name}\b", chat.source):
            continue
        try:
            on, off, untold = told(name, True), told(name, False), prompter.text(messages)
        except DataError:  # of a template that refuses one of them
            continue
        if on != off and untold in (on, off):
            return name, untold == on
    return None


def _reward_warnings(groups: Sequence[Group], signal: float, *, taught: bool) -> list[str]:
    """`taught` says that there is a teacher, from whom much can be learnt without a reward."""
    found = []
    reasons = [rollout.unscorable for group in groups for rollout in group.rollouts]
    if any(reasons):
        share = sum(map(bool, reasons)) / len(reasons)
        found.append(f"{share:.0%} of the completions are unscorable ({next(filter(None, reasons))})")
    if not signal and not taught:
        cut = [rollout.completion.finish == "length" for group in groups for rollout in group.rollouts]
        advice = "warm-start with slimrl sft, or choose easier problems or a larger rollout.group_size"
        if 2 * sum(cut) > len(cut):
            advice = "most completions are cut off, so raise rollout.max_new_tokens first"
        found.append(
            f"none of {len(groups)} groups carries a signal (no two rewards within a group differ), so nothing can be learnt "
            f"yet; {advice}"
        )
    return found


def _form_warnings(setup: Setup[TrainConfig], stop: float, parses: float, right: float) -> list[str]:
    found = []
    if stop < 0.5:
        ids, texts = setup.policy.stop_ids, setup.policy.stop_texts.texts
        ends = [f"{setup.policy.tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ids] + [
            repr(text) for text in texts
        ]
        found.append(
            f"only {stop:.0%} of the completions stop by themselves within {setup.config.rollout.budget} tokens; raise "
            f"rollout.max_new_tokens, or check that the model ends its turns with {' or '.join(ends)}"
        )
    if parses < 0.05 and right == 0:
        found.append(
            f"{parses:.0%} of the completions have the required form ({setup.task.style.name}); see task.style and "
            "task.instruction"
        )
    return found
