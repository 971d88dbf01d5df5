"""Everything that is settled before the first step, and refused here when it cannot work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, fields, replace
from datetime import datetime
from itertools import islice
from typing import Generic, TypeVar

from slimrl.config.defaults import Chosen, choose
from slimrl.config.files import with_chosen
from slimrl.config.schema import RootConfig, TrainConfig
from slimrl.config.sections import RolloutConfig
from slimrl.errors import DataError, SettingsError
from slimrl.machine.profiler import OFF, Profiler
from slimrl.machine.signals import NEVER, Stop
from slimrl.machine.threads import settle_threads
from slimrl.model.loading import load_policy, sampling_settings, taught_instruction
from slimrl.model.policy import Policy
from slimrl.model.prompts import Prompter, make_prompter
from slimrl.model.templates import USER_TURN, Messages
from slimrl.preflight.memory import MemoryEstimate, plan_memory
from slimrl.preflight.notes import form_note, gold_sentence, rejected_note, template_notes
from slimrl.randomness import Stream, uniforms
from slimrl.records import Completion, Group, Plan, Problem
from slimrl.rewards import Reward, load_rewards
from slimrl.rewards.gold import GoldReport, Submit, check_gold
from slimrl.rewards.scoring import Sampled, unpaid_when_truncated
from slimrl.rewards.workers import Scorer, worker_count
from slimrl.rollout import Request, Sampler
from slimrl.rollout.engine import RolloutEngine
from slimrl.tasks import Task, chat_messages, load_task
from slimrl.tasks.curriculum import ENDLESS, Curriculum, problems_for_step
from slimrl.tasks.numbers import parse_number
from slimrl.tasks.styles import STYLES
from slimrl.text import visible

Config = TypeVar("Config", bound=RootConfig)

LOOKED_AT = 256
"""Training prompts whose length the memory plan reckons with, and worked solutions whose length a budget does."""
LONG = 0.95
"""Share of the worked solutions that a budget of `auto` holds at least; a few very long ones must not decide it."""
GOLD_SAMPLE = 1000
"""Training problems whose gold answer is checked where the supply is endless; finite sets are checked whole."""

WAIT_SECONDS = 0.2
"""Between looks whether to stop, while rewards are waited for."""


@dataclass(frozen=True)
class Setup(Generic[Config]):
    """A policy, a task whose prompts fit it, and the engine over them."""

    config: Config
    """The settings with numbers where `auto` depends on the model or the task (`chosen`)."""
    policy: Policy
    task: Task
    prompter: Prompter
    engine: Sampler
    profiler: Profiler
    stop: Stop
    held_out: tuple[Problem, ...]
    """The evaluation problems, the same ones every time."""
    harder: tuple[Problem, ...]
    """Those of the harder split; empty where there is none, or none is wanted."""
    notes: tuple[str, ...]
    """What a user should know before the first step, in plain sentences."""
    memory: MemoryEstimate
    """The memory that the run will take, with the plan of its sizes."""
    chosen: Mapping[str, int | float]
    """Numbers that model and task decided where settings say `auto`, by dotted key."""

    def training_problems(self, *, step: int, count: int) -> Iterator[Problem]:
        """This step's problems whose prompts fit, then spares."""
        problems = problems_for_step(self.task.train, seed=self.config.seed, step=step, count=count)
        return (problem for problem in problems if len(self.prompt_ids(problem)) <= self.room)

    @property
    def room(self) -> int:
        """Longest prompt, in tokens, beside which a completion fits the context."""
        return self.policy.context - self.config.rollout.budget

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Raises DataError, naming the problem, where its prompt cannot be encoded as it is."""
        return encode_prompt(self.prompter, self.task, problem)

    def read_back(self, texts: Sequence[str]) -> list[str]:
        """Texts as completions that hold them are decoded."""
        return [self.policy.read_back(ids) for ids in self.prompter.completion_ids(texts)]

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
                    positions=self.config.rollout.budget,
                ),
            )
            for problem in problems
        ]


@dataclass(frozen=True)
class TrainSetup(Setup[TrainConfig]):
    """A setup with rewards and an order of the problems."""

    rewards: tuple[Reward, ...]
    gold: GoldReport
    scorer: Scorer
    """To be closed when the run is over."""
    curriculum: Curriculum
    """The order of the problems, and what it has learned of them."""

    def training_problems(self, *, step: int, count: int) -> Iterator[Problem]:
        """This step's problems whose prompts fit, then spares."""
        problems = self.curriculum.problems_for_step(step=step, count=count)
        return (problem for problem in problems if len(self.prompt_ids(problem)) <= self.room)

    def roll_out(self, problems: Sequence[Problem], *, stream: Stream, step: int, strict: bool = False) -> list[Group]:
        """Sample and score one group per problem; `strict` makes a failing reward an error instead of unscorable."""
        rollout = self.config.rollout
        requests = self.requests(problems, stream=stream, step=step, samples=rollout.group_size)
        groups: dict[int, Future[Group]] = {}

        def score(index: int, completions: tuple[Completion, ...]) -> None:
            texts = [self.policy.decode(c.token_ids) for c in completions]
            groups[index] = self.scorer.submit(Sampled(problems[index], completions, texts, step, strict))

        self.engine.generate(requests, max_new_tokens=rollout.budget, temperature=rollout.temperature, on_group=score)
        with self.profiler.part("rewards"):
            scored = [self._awaited(groups[index]) for index in range(len(problems))]
        return [unpaid_when_truncated(group) for group in scored] if self.config.rewards.zero_truncated else scored

    def _awaited(self, group: Future[Group]) -> Group:
        """Its result; raises Stopped where that is asked meanwhile."""
        while not group.done():
            wait([group], timeout=WAIT_SECONDS)
            self.stop.check()
        return group.result()


def prepare(config: Config, *, training: bool = False, kept: Plan | None = None, stop: Stop = NEVER) -> Setup[Config]:
    """Load model and task, drop prompts that do not fit the context (counted, never cut), and plan the memory.

    A run that is resumed has `kept` its plan. Raises SettingsError or DataError, one sentence each.
    """
    threads = settle_threads()
    policy, prompter, instruction = prepare_model(config)
    prompter.ids(chat_messages(instruction, USER_TURN["content"]))  # an instruction that is lost is no row's fault
    lengths: dict[str, int] = {}

    def encode(messages: Messages, gold: str) -> None:
        lengths[messages[-1]["content"]] = len(prompter.ids(messages))
        prompter.check(gold)

    task = load_task(config.task, instruction=instruction, seed=config.seed, encode=encode)

    def length(problem: Problem) -> int:
        known = lengths.get(problem.question)
        return len(encode_prompt(prompter, task, problem)) if known is None else known

    chosen = _chosen(config, policy, prompter, task, length)
    config = with_chosen(config, chosen.values)
    if policy.context <= config.rollout.budget:
        raise SettingsError(
            f"rollout.max_new_tokens={config.rollout.budget} fills the model's context of {policy.context} "
            "tokens; lower it"
        )
    room = policy.context - config.rollout.budget
    splits, left_out = _splits_that_fit(config, task, length, room)
    train, held_out, harder = splits
    longest = max(
        (n for problem in (*islice(train, LOOKED_AT), *held_out, *harder) if (n := length(problem)) <= room), default=1
    )
    rows = max(len(held_out), len(harder)) * config.evaluation.samples
    if isinstance(config, TrainConfig):
        rows = max(rows, config.rollout.problems * config.rollout.group_size)
    memory = plan_memory(policy, config, longest_prompt=longest, rows=rows, training=training, kept=kept)
    profiler = Profiler(policy.device) if isinstance(config, TrainConfig) and config.log.profile else OFF
    engine = RolloutEngine(
        policy, slots=memory.plan.slots, compiled=config.rollout.compile, profiler=profiler, stop=stop
    )
    notes = [threads, chosen.sentence, *policy.notes, *template_notes(policy, prompter, config), form_note(config)]
    notes += [rejected_note(task), *left_out, memory.sentence()]
    return Setup(
        config=config,
        policy=policy,
        task=replace(task, train=train),
        prompter=prompter,
        engine=engine,
        profiler=profiler,
        stop=stop,
        held_out=tuple(held_out),
        harder=tuple(harder),
        notes=tuple(note for note in notes if note),
        memory=memory,
        chosen=chosen.values,
    )


def _splits_that_fit(
    config: RootConfig, task: Task, length: Callable[[Problem], int], room: int
) -> tuple[list[Sequence[Problem]], list[str]]:
    """Training, held-out and harder problems whose prompts have at most `room` tokens, and a note on each that has others."""
    wanted = (
        ("train", task.train, len(task.train)),
        ("test", task.test, config.evaluation.problems),
        ("harder", task.harder, config.evaluation.harder_problems),
    )
    found = [_fitting(name, problems, count, lambda p: length(p) <= room) for name, problems, count in wanted]
    return [problems for problems, _ in found], [note for _, note in found]


def encode_prompt(prompter: Prompter, task: Task, problem: Problem) -> tuple[int, ...]:
    """Prompt ids of a problem; raises DataError, naming it, where its prompt cannot be encoded as it is."""
    try:
        return prompter.ids(task.messages(problem))
    except DataError as error:
        raise DataError(f"{problem.id}: {error}") from None


def _chosen(
    config: RootConfig, policy: Policy, prompter: Prompter, task: Task, length: Callable[[Problem], int]
) -> Chosen:
    """Numbers for settings that say `auto`, from the model and the task's problems; `length` is that of a prompt."""

    def longest_prompt() -> int:
        held_out = [*task.test[: config.evaluation.problems], *task.harder[: config.evaluation.harder_problems]]
        train = task.train if len(task.train) < ENDLESS else islice(task.train, LOOKED_AT)
        return max(length(problem) for problem in (*train, *held_out))

    def longest_solution() -> int:
        texts = [task.gold_text(problem) for problem in islice(task.train, LOOKED_AT) if problem.solution]
        lengths = sorted(len(ids) + 1 for ids in prompter.completion_ids(texts))
        return lengths[int(LONG * (len(lengths) - 1))] if lengths else 0

    return choose(
        config,
        parameters=policy.model.num_parameters(),
        context=policy.context,
        longest_prompt=longest_prompt,
        longest_solution=longest_solution,
    )


def prepare_model(config: RootConfig) -> tuple[Policy, Prompter, str]:
    """The policy, its prompter, and the system message to use with it."""
    policy = load_policy(config.model, seed=config.seed)
    task = config.task
    prompter = make_prompter(
        policy.tokenizer,
        task.template,
        arguments=task.template_arguments,
        now=datetime.now().replace(microsecond=0) if task.date == "auto" else datetime.fromisoformat(task.date),
        form=STYLES[task.style].render("", ""),
    )
    ends = {*policy.stop_ids, *(i for i in [prompter.turn_end] if i is not None and i < policy.head.vocabulary)}
    policy = replace(policy, form_ids=prompter.form_ids - ends, stop_ids=tuple(sorted(ends)))
    # what is stored later says how it was evaluated
    policy.model.generation_config = sampling_settings(policy, temperature=config.rollout.temperature)
    instruction = config.task.instruction
    if instruction == "auto":
        taught = taught_instruction(policy, config.task.style)
        instruction = STYLES[config.task.style].instruction if taught is None else taught
    return policy, prompter, instruction


def prepare_training(config: TrainConfig, kept: Plan | None = None, stop: Stop = NEVER) -> TrainSetup:
    """`prepare`, the rewards, and the gold self-check: a gold answer that cannot earn the maximum stops the run."""
    setup = prepare(config, training=True, kept=kept, stop=stop)
    config = setup.config
    count, wanted = len(setup.task.train), config.rollout.problems
    if count < wanted:
        if not count or wanted != RolloutConfig.model_fields["problems"].default:
            raise SettingsError(f"rollout.problems={wanted} exceeds the {count} training problems; lower it")
        # Nobody asked for the default, which a small file of one's own need not fill.
        config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"problems": count})})
        note = f"there are {count} training problems, so every step takes all of them instead of {wanted} (rollout.problems)"
        setup = replace(setup, notes=(*setup.notes, note))
    workers = worker_count(config.rewards)
    budget = config.rollout.budget
    try:
        config.rewards.check_buffer(budget)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    rewards = load_rewards(config.rewards, setup.task, max_new_tokens=budget, elsewhere=workers > 0)
    scorer = Scorer(setup.task, rewards, config.rewards, max_new_tokens=budget, workers=workers, show=_show)
    try:
        return _examined(setup, config, rewards, scorer)
    except BaseException:
        scorer.close()
        raise


def _examined(
    setup: Setup[TrainConfig], config: TrainConfig, rewards: tuple[Reward, ...], scorer: Scorer
) -> TrainSetup:
    """What `prepare_training` finds out before the first step."""
    every = setup.task.train if len(setup.task.train) < ENDLESS else islice(setup.task.train, GOLD_SAMPLE)
    problems = [*every, *setup.held_out, *setup.harder]
    gold = check_gold(setup.task, problems, rewards, scorer.submit, setup.read_back)
    notes = list(setup.notes)
    updates = config.steps * config.optimizer.minibatches * config.optimizer.epochs
    if config.optimizer.warmup_steps >= updates:
        notes.append(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} is not less than the run's {updates} updates, so the "
            "learning rate only rises"
        )
    if gold.failures:
        sentence = gold_sentence(gold)
        if config.rewards.gold_check == "refuse":
            way_out = _way_out(setup, problems, gold, rewards, scorer.submit)
            raise SettingsError(f"{sentence}; {way_out}, or set rewards.gold_check=report to go on")
        notes.append(sentence)
    curriculum = Curriculum(setup.task.train, config.curriculum, seed=config.seed, steps=config.steps)
    parts = {field.name: getattr(setup, field.name) for field in fields(setup)}
    return TrainSetup(
        **{**parts, "config": config, "notes": tuple(notes)},
        rewards=rewards,
        gold=gold,
        scorer=scorer,
        curriculum=curriculum,
    )


def _way_out(
    setup: Setup[TrainConfig], problems: Sequence[Problem], gold: GoldReport, rewards: Sequence[Reward], submit: Submit
) -> str:
    """What would let the gold answers be paid."""
    first = gold.failures[0]
    problem = next(p for p in problems if p.id == first.id)
    written = setup.task.gold_text(problem)
    if first.text != written and not check_gold(setup.task, [problem], rewards, submit).failures:
        return (
            f"the tokenizer decodes the gold text {written[-80:]!r} as {first.text[-80:]!r}; choose another task.style, or "
            "give the model a tokenizer that keeps this text"
        )
    if setup.config.task.checker == "numeric" and any(parse_number(f.answer) is None for f in gold.failures):
        return "set task.checker=symbolic for answers that are no numbers (letters, words, LaTeX), mend the data"
    return "mend the data"


def _show(text: str) -> None:
    """What a reward prints may be what a model wrote."""
    sys.stderr.write(visible(text))


def _fitting(
    split: str, problems: Sequence[Problem], wanted: int, fits: Callable[[Problem], bool]
) -> tuple[Sequence[Problem], str]:
    """The first `wanted` problems that fit, and a note on those that do not; an endless supply to train on is left
    whole, since `training_problems` passes over what does not fit.
    """
    if wanted >= ENDLESS:
        sample = list(islice(problems, 64))
        if not any(map(fits, sample)):
            raise SettingsError(_nothing_fits(split))
        return problems, ""
    kept: list[Problem] = []
    left_out = 0
    for problem in problems if len(problems) < ENDLESS else islice(problems, 10 * wanted):
        if len(kept) == wanted:
            break
        if fits(problem):
            kept.append(problem)
        else:
            left_out += 1
    if wanted and left_out and not kept:
        raise SettingsError(_nothing_fits(split))
    looked_at = len(kept) + left_out
    return (
        kept,
        f"{left_out} of {looked_at} {split} prompts do not fit the context and are left out" if left_out else "",
    )


def _nothing_fits(split: str) -> str:
    return f"no {split} prompt fits the model's context beside rollout.max_new_tokens; lower it"
