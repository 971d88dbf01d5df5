"""Everything that is settled before the first step, and refused here when it cannot work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

from slimrl.config.defaults import Chosen, choose
from slimrl.config.files import with_chosen
from slimrl.config.schema import EvalConfig, RootConfig, TrainConfig
from slimrl.config.sections import CurriculumConfig, RolloutConfig
from slimrl.environments.episodes import Play, Rules
from slimrl.errors import DataError, SettingsError
from slimrl.machine.limits import settle_freed_blocks
from slimrl.machine.profiler import OFF, Profiler
from slimrl.machine.progress import Progress, silent
from slimrl.machine.signals import NEVER, Stop
from slimrl.machine.threads import settle_threads
from slimrl.model.policy import Policy
from slimrl.model.prompts import Prompter
from slimrl.model.templates import USER_TURN, Messages
from slimrl.preflight.environment import demand_rewards, in_environment, package_task, played, posed, try_episode
from slimrl.preflight.estimate import MemoryEstimate
from slimrl.preflight.fitting import fitting_problems, room_for_prompts
from slimrl.preflight.memory import Call, plan_memory, rows_of_a_call
from slimrl.preflight.notes import (
    form_note,
    gold_sentence,
    program_notes,
    rejected_note,
    teacher_note,
    template_notes,
    trial_note,
    unpaid_note,
    warmup_notes,
)
from slimrl.preflight.payment import checked_gold, make_scorer, measurable
from slimrl.preflight.price import judge_notes, measuring_notes
from slimrl.preflight.prompting import prepare_model, with_teacher
from slimrl.preflight.sampler import PROMPTS, demand_engine, make_engine
from slimrl.randomness import Stream, uniforms
from slimrl.records import Completion, Group, Plan, Problem, Turns, turns_of
from slimrl.rewards import Reward
from slimrl.rewards.builtin import needs_answers
from slimrl.rewards.gold import GoldReport
from slimrl.rewards.scoring import Sampled, unpaid_when_truncated
from slimrl.rewards.workers import Scorer
from slimrl.rollout import Request, Sampler
from slimrl.tasks import Checks, Task, chat_messages, load_task
from slimrl.tasks.curriculum import ENDLESS, Curriculum
from slimrl.terms import Answers
from slimrl.thinking import closed

Config = TypeVar("Config", bound=RootConfig)
Found = TypeVar("Found")

LOOKED_AT = 256
"""Training prompts whose length the memory plan reckons with, and worked solutions whose length a budget does."""
LONG = 0.95
"""Share of the worked solutions that a budget of `auto` holds at least; a few very long ones must not decide it."""
WAIT_SECONDS = 0.2
"""Time between two checks for a stop while rewards are computed."""


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
    held_out: Sequence[Problem]
    """The evaluation problems, the same ones every time."""
    harder: Sequence[Problem]
    """Those of the harder split; empty where there is none, or none is wanted."""
    curriculum: Curriculum
    """The order of the training problems, and what it has learned of them."""
    notes: tuple[str, ...]
    """Sentences that a user should know before the first step."""
    memory: MemoryEstimate
    """The memory that the run will take, with the plan of its sizes."""
    grading: Executor
    """The one thread that grades evaluations while others of their completions are sampled. It stays, since the process of a
    symbolic checker ends with the thread that began it."""
    teacher: Policy | None
    """The model that the KL penalty draws the policy to; None for the initial policy."""
    chosen: Mapping[str, int | float]
    """Numbers that model and task decided where settings say `auto`, by dotted key."""
    twins: Sequence[Problem] = ()
    """Twins of held-out problems."""
    rewards: tuple[Reward, ...] = ()
    """Those that an evaluation measures."""
    scorer: Scorer | None = None
    """It scores them; whoever made it closes it."""
    rules: Rules | None = None
    """Of episodes of several turns; None where a completion is one turn."""

    def close(self) -> None:
        """End the processes of environments."""
        if self.rules is not None:
            self.rules.close()

    @property
    def measured(self) -> list[Problem]:
        """All problems of an evaluation: held out, harder, twins."""
        return [*self.held_out, *self.harder, *self.twins]

    @property
    def shown(self) -> bool:
        """`Rules.shown`."""
        return self.rules is not None and self.rules.shown

    def training_problems(self, *, step: int, count: int) -> Iterator[Problem]:
        """This step's problems whose prompts fit, then spares."""
        room = self.policy.context - self.config.rollout.budget
        problems = self.curriculum.problems_for_step(step=step, count=count)
        return (problem for problem in problems if len(self.prompt_ids(problem)) <= room)

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Raises DataError, naming the problem, where its prompt cannot be encoded as it is."""
        return encode_prompt(self.prompter, self.task, problem)

    def awaited(self, found: Future[Found]) -> Found:
        """The result of a future; raises Stopped where a stop is asked for meanwhile."""
        while wait([found], timeout=WAIT_SECONDS).not_done:
            self.stop.check()
        return found.result()

    def read_back(self, texts: Sequence[str]) -> list[str]:
        """Texts as completions that hold them are decoded."""
        return [text for text, _ in self.completed(texts)]

    def completed(self, texts: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
        """The same, each with the ids of the completion."""
        return [(self.policy.read_back(ids), ids) for ids in self.completion_ids(texts)]

    def completion_ids(self, texts: Sequence[str], heard: Sequence[int] = ()) -> list[tuple[int, ...]]:
        """Ids with which the model would write each text, the stop token not included; where prompts begin thinking, or what was
        `heard` from an environment does, it ends first.
        """
        return self.prompter.completion_ids([closed(self.policy.begun(heard), text) for text in texts])

    def requests(
        self, problems: Sequence[Problem], *, stream: Stream, step: int, samples: int, greedy: int = 0
    ) -> list[Request]:
        """Prompts with the uniforms that decide their samples, and as many greedy completions of each."""
        draw = partial(uniforms, self.config.seed, stream, step, samples=samples, positions=self.config.rollout.budget)
        bound = self.config.environment.turn_tokens
        return [
            Request(self.prompt_ids(p), draw(p.id), greedy, None if self.rules is None else Play(self.rules, p), bound)
            for p in problems
        ]

    def text(self, completion: Completion) -> str:
        """The text of a completion; of an episode that of its last turn."""
        return self.policy.decode(completion.last_turn(), completion.heard())


@dataclass(frozen=True)
class TrainSetup:
    """A setup, and the rewards of what is sampled with it."""

    setup: Setup[TrainConfig]
    rewards: tuple[Reward, ...]
    gold: GoldReport
    scorer: Scorer
    progress: Progress = silent
    """Told of the completions that are done."""

    def close(self) -> None:
        """End the processes of rewards and environments, when the run is over."""
        self.scorer.close()
        self.setup.close()

    def roll_out(self, problems: Sequence[Problem], *, stream: Stream, step: int, strict: bool = False) -> list[Group]:
        """Sample and score one group per problem; `strict` makes a failing reward an error instead of unscorable."""
        setup, rollout = self.setup, self.setup.config.rollout
        requests = setup.requests(problems, stream=stream, step=step, samples=rollout.group_size)
        groups: dict[int, Future[Group]] = {}

        def score(index: int, completions: tuple[Completion, ...]) -> None:
            texts = [setup.text(completion) for completion in completions]
            sampled = Sampled(problems[index], completions, texts, step, strict, setup.config.steps, setup.config.seed)
            told, problem = played(requests[index], completions), posed(setup.rules, problems[index])
            groups[index] = self.scorer.submit(replace(sampled, problem=problem, played=told))

        draw = partial(setup.engine.generate, max_new_tokens=rollout.budget, temperature=rollout.temperature)
        draw(requests, on_group=score, progress=self.progress)
        with setup.profiler.part("rewards"):
            scored = [setup.awaited(groups[index]) for index in range(len(problems))]
        if strict:
            demand_rewards(setup.config, setup.rules, scored)
        if setup.config.rewards.zero_truncated:
            return [unpaid_when_truncated(group, self.rewards) for group in scored]
        return scored


def prepare(
    config: Config,
    *,
    training: bool = False,
    kept: Plan | None = None,
    stop: Stop = NEVER,
    model: Policy | None = None,
    measuring: bool = False,
) -> Setup[Config]:
    """Load task and model (unless it is given), drop prompts that do not fit the context (counted, never cut), plan the memory.

    A run that is resumed has `kept` its plan. With `measuring` no more than the held-out problems may be there.
    Raises SettingsError or DataError, one sentence each.
    """
    threads = settle_threads()
    policy, prompter, instruction = prepare_model(config, training=training, model=model)
    policy, teacher = with_teacher(config, policy) if training else (policy, None)
    prompter.ids(chat_messages(instruction, USER_TURN["content"]))  # an instruction that is lost is no row's fault
    rules, policy, prompter = in_environment(config, policy, prompter)
    task, lengths = _load_task(config, prompter, instruction, rules, training=not measuring)

    def length(problem: Problem) -> int:
        known = lengths.get(turns_of(task.messages(problem)))
        return len(encode_prompt(prompter, task, problem)) if known is None else known

    chosen = _chosen(config, policy, prompter, task, length)
    config = with_chosen(config, chosen.values)
    demand_engine(config, policy)
    room = room_for_prompts(config, policy)
    found = fitting_problems(task, config, lambda problem: length(problem) <= room)
    looked_at = (*islice(found.train, LOOKED_AT), *found.evaluated)
    longest = max((tokens for tokens in map(length, looked_at) if tokens <= room), default=1)
    call = Call(longest, rows_of_a_call(config, len(found.evaluated)))
    memory = plan_memory(policy, config, call, training=training, kept=kept, teacher=teacher)
    profiler = Profiler(policy.device) if isinstance(config, TrainConfig) and config.log.profile else OFF
    if policy.device.type == "cpu":
        settle_freed_blocks(given_back=memory.blocks_given_back)
    notes = [threads, chosen.sentence, *policy.notes, *template_notes(policy, prompter, config), form_note(config)]
    notes += [teacher_note(teacher, config), *task.notes, rejected_note(task), *found.notes, memory.sentence()]
    compared = [encode_prompt(prompter, task, p) for p in islice(found.held_out or found.train, PROMPTS)]
    engine, note = make_engine(config, policy, memory, profiler, stop, compared)
    return Setup(
        config=config,
        policy=policy,
        task=replace(task, train=found.train),
        prompter=prompter,
        engine=engine,
        profiler=profiler,
        stop=stop,
        held_out=found.held_out,
        harder=found.harder,
        curriculum=_curriculum(config, found.train, task),
        notes=tuple(told for told in (*notes, note) if told),
        memory=memory,
        grading=ThreadPoolExecutor(1),
        teacher=teacher,
        chosen=chosen.values,
        twins=found.twins,
        rules=rules,
    )


def _curriculum(config: RootConfig, train: Sequence[Problem], task: Task) -> Curriculum:
    order, steps = (config.curriculum, config.steps) if isinstance(config, TrainConfig) else (CurriculumConfig(), 0)
    return Curriculum(train, order, seed=config.seed, steps=steps, rates=task.rates)


def _load_task(
    config: RootConfig, prompter: Prompter, instruction: str, rules: Rules | None, *, training: bool
) -> tuple[Task, dict[Turns, int]]:
    """The task, and the tokens of the prompts of its rows of data, all of which the tokenizer can write."""
    lengths: dict[Turns, int] = {}
    if rules is not None and rules.package is not None:
        return replace(package_task(config.task, rules.package), opening=rules.opening), lengths

    def encode(messages: Messages, gold: str) -> None:
        if messages[0]["content"] != instruction:  # of the data; the instruction is the user's own
            prompter.check_system(messages)
        lengths[turns_of(messages)] = len(prompter.ids(messages))
        prompter.check(gold)

    answers: Answers = "all_or_none"  # accuracy is measured if it can be
    if isinstance(config, TrainConfig):
        answers = "needed" if needs_answers(config.rewards) else "unneeded"
    found = load_task(
        config.task,
        instruction=instruction,
        seed=config.seed,
        checks=Checks(encode, config.sandbox, None if rules is None else partial(try_episode, rules, prompter)),
        answers=answers,
        training=training,
    )
    return found if rules is None else replace(found, opening=rules.opening), lengths


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
        solved = [problem for problem in islice(task.train, LOOKED_AT) if problem.solution or problem.episode]
        texts = ["\n".join(text for _, text in p.episode) or task.gold_text(p) for p in solved]
        lengths = sorted(len(ids) + 1 for ids in prompter.completion_ids(texts))
        return lengths[int(LONG * (len(lengths) - 1))] if lengths else 0

    return choose(
        config,
        parameters=policy.parameters,
        adapter=policy.lora is not None,
        context=policy.context,
        longest_prompt=longest_prompt,
        longest_solution=longest_solution,
    )


def _silent(_text: str) -> None:
    """Tells nobody."""


def prepare_training(
    config: TrainConfig, kept: Plan | None = None, stop: Stop = NEVER, say: Callable[[str], object] = _silent
) -> TrainSetup:
    """`prepare`, the rewards, and the gold self-check: a gold answer that cannot earn the maximum stops the run.

    `say` gets the price of judges, one of the notes, before the first of them is asked.
    """
    setup = prepare(config, training=True, kept=kept, stop=stop)
    config, notes = setup.config, [*setup.notes]
    count, wanted, budget = len(setup.task.train), config.rollout.problems, config.rollout.budget
    if count < wanted:
        if not count or wanted != RolloutConfig.model_fields["problems"].default:
            raise SettingsError(f"rollout.problems={wanted} exceeds the {count} training problems; lower it")
        # Nobody asked for the default, which a small file of one's own need not fill.
        config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"problems": count})})
        notes.append(
            f"there are {count} training problems, so every step takes all of them instead of {wanted} (rollout.problems)"
        )
    try:
        config.rewards.check_buffer(budget)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    price = judge_notes(config, len(setup.measured))
    for note in price:
        say(note)
    rewards, scorer = make_scorer(setup.task, config.rewards, budget, Path(config.output), here=setup.shown)
    ends = {"stop": [*setup.policy.stop_texts.texts]}  # also where the setting is auto
    asked = config.model_copy(update={"rollout": config.rollout.model_copy(update=ends)})
    try:
        gold = checked_gold(setup.task, setup.measured, asked, rewards, scorer.submit, setup.completed)
    except BaseException:
        scorer.close()
        raise
    notes += [*warmup_notes(config), *([gold_sentence(gold)] if gold.failures else []), *map(trial_note, gold.trials)]
    notes += [
        *price,
        *program_notes(config, rewards),
        *unpaid_note(config, setup.rules is not None and setup.rules.scores),
    ]
    measured = tuple(reward for reward in rewards if reward.name != "correct")  # which is the accuracy
    setup = replace(setup, config=config, notes=tuple(notes), rewards=measured, scorer=scorer)
    return TrainSetup(setup, rewards, gold, scorer)


def prepare_measuring(config: EvalConfig, model: Policy | None = None, stop: Stop = NEVER) -> Setup[EvalConfig]:
    """`prepare`, and the rewards to measure with their scorer, which is to be closed; none where only accuracy is."""
    setup = prepare(config, model=model, measuring=True, stop=stop)
    wanted, notes = measurable(config.rewards)
    notes += measuring_notes(config.model_copy(update={"rewards": wanted}), len(setup.measured))
    setup = replace(setup, notes=(*setup.notes, *notes))
    if not wanted.measured:
        return setup
    rewards, scorer = make_scorer(
        setup.task, wanted, setup.config.rollout.budget, Path(config.output), here=setup.shown
    )
    return replace(setup, rewards=rewards, scorer=scorer)
