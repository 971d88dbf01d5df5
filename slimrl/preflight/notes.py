"""Sentences that a user should read before the first step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean

from slimrl.config.schema import RootConfig, TrainConfig
from slimrl.model.policy import Policy
from slimrl.model.precision import is_narrow
from slimrl.model.prompts import PLAIN_STOP, Prompter
from slimrl.rewards import Reward
from slimrl.rewards.calls import is_asynchronous
from slimrl.rewards.gold import GoldReport, GoldTrial
from slimrl.tasks import Task
from slimrl.tasks.rows import bad_rows
from slimrl.tasks.styles import MARKERS

LEAST_MOVED = 1e-4
"""Share of narrow weights that change in an update, below which a run is told so. At the default rates it is between 4e-4 and
6e-2 (SmolLM2-135M, Qwen2.5-Coder-0.5B)."""
UNMOVED_STEPS, LOOKED_AT = 3, 50
"""Steps in a row with fewer, of those with a gradient, and the steps among which they are looked for."""


def gold_sentence(gold: GoldReport) -> str:
    """The failures of a gold self-check in one sentence, with the first rows."""
    count = len({failure.id for failure in gold.failures})
    shown = ", ".join(
        f"{f.id} (answer {f.answer!r}: {f.reward} gives {'nothing' if f.got is None else f'{f.got:g}'} of {f.expected:g})"
        for f in gold.failures[:5]
    )
    return f"the gold answer cannot earn the maximum reward on {count} of {gold.n} rows: {shown}"


def trial_note(trial: GoldTrial) -> str:
    """A note on what gold answers got from a reward of which the best value is not known."""
    rows = f"{trial.rows} gold answers"
    if not trial.scores:
        return f"{trial.reward} applies to none of {rows}"
    low, high, mean = min(trial.scores), max(trial.scores), fmean(trial.scores)
    got = f"each {low:g}" if low == high else f"between {low:g} and {high:g}, mean {mean:.3g}"
    return f"{trial.reward}: {len(trial.scores)} of {rows} tried have a score, {got}"


def warmup_notes(config: TrainConfig) -> list[str]:
    """A warm-up that does not end within the run."""
    optimizer = config.optimizer
    updates = config.steps * optimizer.minibatches * optimizer.epochs
    if optimizer.warmup_steps < updates:
        return []
    return [
        f"optimizer.warmup_steps={optimizer.warmup_steps} is not less than the run's {updates} updates, so the learning rate "
        "only rises"
    ]


def rejected_note(task: Task) -> str:
    if not task.rejected:
        return ""
    n = len(task.rejected)
    rows = f"{n:,} of {n + len(task.train) + len(task.test):,} rows {'is' if n == 1 else 'are'} left out"
    return f"{rows} (a run keeps {'it' if n == 1 else 'them'} in rejected.jsonl): {bad_rows(task.rejected)}"


def form_note(config: RootConfig) -> str:
    """An instruction of the user's own that does not ask for the form in which answers are read."""
    style, marker = config.task.style, MARKERS[config.task.style]
    if config.task.instruction in ("", "auto") or marker in config.task.instruction:
        return ""
    return (
        f"task.instruction does not name {marker}, the form in which task.style={style} reads answers; in a YAML file a # behind "
        "a space begins a comment, so quote the text"
    )


def template_notes(policy: Policy, prompter: Prompter, config: RootConfig) -> list[str]:
    """Notes on the ways in which prompts and completions become text."""
    found = []
    if prompter.chat is None and config.task.template == "auto":
        why, instead = "the tokenizer has no chat template", ""
        if policy.tokenizer.chat_template:
            why, instead = "the model was trained on plain prompts", "; set task.template=chat for the chat template"
        found.append(f'{why}, so prompts are plain ("Question: ... Answer:"){instead}')
    if prompter.chat is not None and prompter.chat.arguments != config.task.template_arguments:
        given = ", ".join(f"{name}: {json.dumps(value)}" for name, value in prompter.chat.arguments.items())
        found.append(f"prompts are made with {{{given}}}, as the model was trained (task.template_arguments)")
    stops = policy.stop_texts.texts
    if config.rollout.stop == "auto" and stops and (prompter.chat is not None or stops != (PLAIN_STOP,)):
        found.append(f"completions end at {' or '.join(map(repr, stops))}, as the model was trained (rollout.stop)")
    if policy.opening:
        found.append(
            f"prompts end with {policy.opening.strip()}, so completions begin within the thinking; their text begins with that "
            "mark, and answers are read behind the mark that ends it"
        )
    if config.environment.name and prompter.drops_thinking:
        found.append(
            "the chat template leaves the thinking of turns before a user's message out; episodes keep it, as it was drawn, and "
            "a program that renders a whole conversation with the template does not"
        )
    if not prompter.system_role:
        found.append("the chat template takes no system message, so the instruction opens the user's turn")
    if config.task.date != "auto" and not prompter.date:
        found.append("task.date has no effect, since the template writes no date")
    special = {i for i, token in policy.tokenizer.added_tokens_decoder.items() if token.special}
    if kept_ids := policy.form_ids & special:
        kept = ", ".join(prompter.control.ids[i] for i in sorted(kept_ids))
        found.append(f"{kept} are special tokens, and stay in the text of completions, since answers are read by them")
    return found


def program_notes(config: TrainConfig, rewards: Sequence[Reward]) -> list[str]:
    """Notes on reward functions that only the calling program has: on the plain ones, and on those that are asynchronous."""
    own = {spec.rpartition(":")[2] for spec in config.rewards.of_the_program}
    later = [reward.name for reward in rewards if reward.name in own and is_asynchronous(reward.function)]
    plain = [reward.name for reward in rewards if reward.name in own and reward.name not in later]
    where = {
        ", ".join(plain): "it is scored in this process, beside nothing else and without rewards.deadline",
        ", ".join(later): "it is awaited in this process",
    }
    return [
        f"{names}: no worker can load this part of the program, so {how}; only this program can resume the run (a function in a "
        "file or a module has no such limits)"
        for names, how in where.items()
        if names
    ]


def teacher_note(teacher: Policy | None, config: RootConfig) -> str:
    """A note on the model of `algorithm.reference`, where there is one."""
    if teacher is None or not isinstance(config, TrainConfig):
        return ""
    size = f"{teacher.parameters / 1e6:.3g} million weights"
    return f"the KL penalty draws the policy to {config.algorithm.reference} ({size}), which reads the policy's prompts"


def unmoved_note(policy: Policy, peak: float, history: Sequence[Mapping[str, float]]) -> str:
    """A note where the last steps of `history`, their metrics, changed hardly any weight of a narrow model; else empty.

    Steps without a gradient say nothing of it, nor do those whose learning rate is below half of its `peak`.
    """
    if not is_narrow(policy.model):
        return ""
    moved = [row for row in history[-LOOKED_AT:] if row.get("grad_norm", 0.0) > 0 and row["learning_rate"] >= peak / 2]
    last = moved[-UNMOVED_STEPS:]
    if len(last) < UNMOVED_STEPS or any(row["update/applied_fraction"] >= LEAST_MOVED for row in last):
        return ""
    name = str(policy.model.dtype).removeprefix("torch.")
    return (
        f"at optimizer.learning_rate={peak:g} an update changes fewer than one in {1 / LEAST_MOVED:,.0f} of the {name} weights "
        "(the rest of it waits in float32 copies for further updates); raise it to learn sooner, or set model.dtype=float32"
    )


def unpaid_note(config: TrainConfig, scores: bool) -> list[str]:
    """A note where the environment `scores` episodes and that earns nothing."""
    if not scores or "environment" in config.rewards.built_in:
        return []
    return [
        f"score() of {config.environment.name} is recorded and pays nothing, since rewards.environment is 0; "
        "rewards.environment=1 pays it, and the rewards of turns"
    ]
