"""Everything that is settled before the first step, and refused here when it cannot work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from slimrl.config import RootConfig, TrainConfig
from slimrl.errors import SettingsError
from slimrl.model.loading import Policy, load_policy
from slimrl.model.prompts import Prompter, make_prompter
from slimrl.randomness import Stream, uniforms
from slimrl.records import Group, Problem
from slimrl.rewards import GoldReport, Reward, check_gold, load_rewards, score
from slimrl.rollout.engine import Request, RolloutEngine
from slimrl.tasks import Task, load_task
from slimrl.tasks.order import ENDLESS

GOLD_SAMPLE = 1000
"""Training problems whose gold answer is checked where the supply is endless; finite sets are checked whole."""
TAUGHT_INSTRUCTION = "slimrl_instruction"
"""Key of a model's config.json under which `slimrl sft` notes the system message that it taught with."""


@dataclass(frozen=True)
class Setup:
    """A policy, a task whose prompts fit it, and the engine over them."""

    config: RootConfig
    policy: Policy
    task: Task
    prompter: Prompter
    engine: RolloutEngine
    notes: tuple[str, ...]
    """What a user should know before the first step, in plain sentences."""

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        return self.prompter.ids(self.task.messages(problem))

    def requests(self, problems: Sequence[Problem], *, stream: Stream, step: int, samples: int) -> list[Request]:
        """Prompts with the uniforms that decide their completions."""
        return [
            Request(
                self.prompt_ids(problem),
                uniforms(
                    self.config.seed,
                    stream,
                    step,
                    problem.id,
                    samples=samples,
                    positions=self.config.rollout.max_new_tokens,
                ),
            )
            for problem in problems
        ]

    def held_out(self) -> list[Problem]:
        """The evaluation problems, the same ones every time."""
        return list(islice(self.task.test, self.config.evaluation.problems))

    def harder(self) -> list[Problem]:
        return list(islice(self.task.harder, self.config.evaluation.harder_problems))


@dataclass(frozen=True)
class TrainSetup(Setup):
    """A setup with what is paid."""

    config: TrainConfig
    rewards: tuple[Reward, ...]
    gold: GoldReport

    def roll_out(self, problems: Sequence[Problem], *, stream: Stream, step: int, strict: bool = False) -> list[Group]:
        """Sample and score one group per problem; `strict` makes a failing reward an error instead of unscorable."""
        rollout = self.config.rollout
        requests = self.requests(problems, stream=stream, step=step, samples=rollout.group_size)
        sampled = self.engine.generate(requests, max_new_tokens=rollout.max_new_tokens, temperature=rollout.temperature)
        return [
            score(
                problem,
                completions,
                [self.policy.decode(c.token_ids) for c in completions],
                self.rewards,
                self.task,
                step=step,
                strict=strict,
            )
            for problem, completions in zip(problems, sampled, strict=True)
        ]


def prepare(config: RootConfig) -> Setup:
    """Load model and task, and drop prompts that do not fit the context (counted, never cut).

    Raises SettingsError or DataError, one sentence each.
    """
    policy = load_policy(config.model, seed=config.seed)
    prompter = make_prompter(policy.tokenizer, config.task.template)
    task = load_task(config.task, seed=config.seed)
    taught = getattr(policy.model.config, TAUGHT_INSTRUCTION, None)
    if config.task.instruction == "auto" and taught is not None:
        task = replace(task, instruction=taught)
    notes = [_template_note(prompter, config)]
    room = policy.context - config.rollout.max_new_tokens
    if room < 1:
        raise SettingsError(
            f"rollout.max_new_tokens={config.rollout.max_new_tokens} fills the model's context of {policy.context} "
            "tokens; lower it"
        )

    def fits(problem: Problem) -> bool:
        return len(prompter.ids(task.messages(problem))) <= room

    whole = {"train": task.train, "test": task.test, "harder": task.harder}
    kept = {split: _fitting(problems, fits) for split, problems in whole.items()}
    for split, problems in kept.items():
        total = len(whole[split])
        if len(problems) < total:
            notes.append(
                f"{total - len(problems)} of {total} {split} prompts do not fit {room} tokens beside "
                f"{config.rollout.max_new_tokens} new ones and are left out"
            )
        if total and not len(problems):
            raise SettingsError(
                f"no {split} prompt fits the context of {policy.context} tokens beside rollout.max_new_tokens="
                f"{config.rollout.max_new_tokens}; lower it"
            )
    task = replace(task, train=kept["train"], test=kept["test"], harder=kept["harder"])
    engine = RolloutEngine(policy, slots=config.rollout.slots)
    return Setup(config, policy, task, prompter, engine, tuple(note for note in notes if note))


def prepare_training(config: TrainConfig) -> TrainSetup:
    """`prepare`, the rewards, and the gold self-check: a gold answer that cannot earn the maximum stops the run."""
    setup = prepare(config)
    if len(setup.task.train) < config.rollout.problems:
        raise SettingsError(
            f"rollout.problems={config.rollout.problems} exceeds the {len(setup.task.train)} training problems; lower it"
        )
    rewards = load_rewards(config.rewards, setup.task, max_new_tokens=config.rollout.max_new_tokens)
    every = setup.task.train if len(setup.task.train) < ENDLESS else islice(setup.task.train, GOLD_SAMPLE)
    gold = check_gold(setup.task, [*every, *setup.held_out(), *setup.harder()], rewards)
    notes = list(setup.notes)
    if gold.failures:
        sentence = gold_sentence(gold)
        if config.rewards.gold_check == "refuse":
            raise SettingsError(f"{sentence}; mend the data, or set rewards.gold_check=report to go on")
        notes.append(sentence)
    return TrainSetup(
        config=config,
        policy=setup.policy,
        task=setup.task,
        prompter=setup.prompter,
        engine=setup.engine,
        notes=tuple(notes),
        rewards=rewards,
        gold=gold,
    )


def gold_sentence(gold: GoldReport) -> str:
    """The failures of a gold self-check in one sentence, with the first rows."""
    rows = {failure.id for failure in gold.failures}
    shown = ", ".join(
        f"{f.id} (answer {f.answer!r}: {f.reward} gives {'nothing' if f.got is None else f'{f.got:g}'} of {f.expected:g})"
        for f in gold.failures[:5]
    )
    return f"the gold answer cannot earn the maximum reward on {len(rows)} of {gold.n} rows: {shown}"


def _fitting(problems: Sequence[Problem], fits: object) -> Sequence[Problem]:
    """Those that fit; an endless supply is checked on its first rows and must fit whole."""
    assert callable(fits)
    if len(problems) < ENDLESS and isinstance(problems, list | tuple):
        return [problem for problem in problems if fits(problem)]
    sample: Iterator[Problem] = islice(problems, 64)
    return problems if all(fits(problem) for problem in sample) else []


def _template_note(prompter: Prompter, config: RootConfig) -> str:
    if prompter.template == "plain" and config.task.template == "auto":
        return 'the tokenizer has no chat template, so prompts are plain ("Question: ... Answer:")'
    if not prompter.system_role:
        return "the chat template takes no system message, so the instruction opens the user's turn"
    return ""
