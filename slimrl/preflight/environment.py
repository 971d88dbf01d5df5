"""Environments beside a policy: the rules of its episodes, the prompts that they open with, and the record of what was played."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import inf

from slimrl import thinking
from slimrl.config.environment import EnvironmentConfig, package_of
from slimrl.config.rewards import is_programs
from slimrl.config.schema import EvalConfig, RootConfig, TrainConfig
from slimrl.config.task import TaskConfig
from slimrl.environments import BOUNDED, BUILT_IN, Make, Messages, maker, opening, specified
from slimrl.environments.episodes import Play, Rules
from slimrl.environments.packages import Package, load_package, module_of
from slimrl.environments.processes import Processes
from slimrl.environments.questions import Question
from slimrl.environments.stage import Loading
from slimrl.environments.tools import MARKS, Call, Tool, read_calls, told, tools_of
from slimrl.errors import DataError, SettingsError
from slimrl.model.policy import Policy
from slimrl.model.prompts import Prompter
from slimrl.model.taught import taught_of
from slimrl.model.templates import USER_TURN
from slimrl.preflight.payment import show_printed
from slimrl.records import Completion, Group, Played, Problem, Turns, turns_of
from slimrl.rewards.custom import digest_of_code, files_digest, load_function, source_files
from slimrl.rollout import Request
from slimrl.tasks import Task, chat_messages, prompt_messages
from slimrl.tasks.packaged import packaged_task

LOAD = partial(load_function, setting="environment.name")
KEPT = 4096
"""Prompts of environments that are kept."""
ANY_ID = -1
"""Stands for the id that ends a turn."""


def package_task(config: TaskConfig, package: Package) -> Task:
    """The problems of a package, whose prompts and verdicts are those of its environment."""
    test = None if package.test is None else package.problems("test")
    return packaged_task(config, package.problems("train"), test)


def in_environment(config: RootConfig, policy: Policy, prompter: Prompter) -> tuple[Rules | None, Policy, Prompter]:
    """The rules of episodes, None where a completion is one turn, and policy and prompter with the tools of the environment.

    Raises SettingsError for an environment that cannot be made, or whose tools cannot be told.
    """
    environment = config.environment
    if not environment.name:
        return None, policy, prompter
    package = load_package(environment, partial(load_function, setting="task.name"))
    processes = None if package else _processes(config)
    if processes is None and environment.memory != EnvironmentConfig.model_fields["memory"].default:
        raise SettingsError("environment.memory acts on environment.workers, and there are none; remove it")
    make = package.make if package else processes.make if processes else maker(environment, LOAD)
    policy, prompter = _telling(environment, make, policy, prompter)
    rules = _rules(environment, make, policy, prompter)
    if processes:
        rules = replace(rules, ready=processes.ready, close=processes.close)
    return replace(rules, package=package), policy, prompter


def _processes(config: RootConfig) -> Processes | None:
    """The processes of environments; None where they run in this one."""
    environment = config.environment
    asked = environment.workers
    own = environment.name not in BUILT_IN and not is_programs(environment.name)
    count = int(own) if asked == "auto" else asked
    if not count:
        return None
    files = [path for path in source_files(specified(environment.name)) if path.is_file()]
    digest = partial(files_digest, files)
    processes = Processes(Loading(environment, LOAD, digest, digest()), count, show_printed)
    read = isinstance(config, TrainConfig | EvalConfig) and config.rewards.custom
    if asked == "auto" and read and processes.known.trl:
        processes.close()
        return None
    return processes


def _telling(config: EnvironmentConfig, make: Make, policy: Policy, prompter: Prompter) -> tuple[Policy, Prompter]:
    """The policy and the prompter with the tools of an environment: prompts describe them, and calls stay in texts.

    Raises SettingsError where the chat template is to describe them and does not.
    """
    tools = tools_of(make(), where=f"environment.name={config.name}")
    if not tools:
        if config.tool_prompt != "auto":
            raise SettingsError(
                f"environment.tool_prompt={config.tool_prompt} has no effect, since the environment has no tools; remove it"
            )
        return policy, prompter
    marks = prompter.control.spelled_by("".join(MARKS))
    policy = replace(policy, form_ids=policy.form_ids | (marks - {*policy.stop_ids}))
    prompter = replace(prompter, form_ids=prompter.form_ids | marks)
    known = taught_of(policy.model).tools
    if config.tool_prompt == "none" or (config.tool_prompt == "auto" and {tool.name for tool in tools} <= {*known}):
        return policy, prompter
    described = prompter.describing([tool.schema for tool in tools]) if config.tool_prompt != "text" else None
    if described is not None and not _is_read(described, tools):
        described = None
    if described is None and config.tool_prompt == "template":
        raise SettingsError(
            "environment.tool_prompt=template, but the tokenizer's chat template does not describe tools, or has another form of "
            "a call than those that are read; remove it, or set it to text"
        )
    if described is None:
        return policy, replace(prompter, tool_text=told(tools))
    before, after = (thinking.opening(one.text([USER_TURN])) for one in (prompter, described))
    return policy if before == after else replace(policy, opening=after), described


def _is_read(prompter: Prompter, tools: Sequence[Tool]) -> bool:
    """True where a call in the form of the chat template is read as that call."""
    arguments = dict.fromkeys(tools[0].parameters, "1")
    return read_calls(prompter.call(tools[0].name, arguments), tools) == [Call(tools[0].name, arguments)]


def _rules(config: EnvironmentConfig, make: Make, policy: Policy, prompter: Prompter) -> Rules:
    ends = {*policy.model_stop_ids, prompter.turn_end}

    def encode(messages: Messages, last: int) -> tuple[int, ...]:
        # a turn that ended by rollout.stop, with a text or a token, has not drawn the token that ends it
        end = () if last in ends or prompter.turn_end is None else (prompter.turn_end,)
        return (*end, *prompter.following_ids(messages))

    openings = _openings(make, config.deadline)
    deadline = inf if config.name in BOUNDED else config.deadline
    return Rules(make, openings, policy.decode, encode, config.turns, deadline)


def _openings(make: Make, seconds: float) -> Callable[[Problem], Turns]:
    """The environment's prompt of a problem as turns, which is kept; empty for the prompt of the task."""
    known: dict[str, Turns] = {}

    def turns(problem: Problem) -> Turns:
        if problem.id not in known:
            if len(known) >= KEPT:
                del known[next(iter(known))]
            known[problem.id] = turns_of(opening(make, problem, seconds) or ())
        return known[problem.id]

    return turns


def posed(rules: Rules | None, problem: Problem) -> Problem:
    """The problem with the prompt of its environment, as rewards see it."""
    own = () if rules is None else rules.opening(problem)
    return replace(problem, turns=own) if own else problem


def asked(rules: Rules | None, instruction: str, question: str) -> tuple[Messages, Play | None]:
    """The prompt of a question that is of no task, as that of a problem is made, and its episodes.

    Raises SettingsError where the environment takes only problems of its task.
    """
    if rules is None:
        return chat_messages(instruction, question), None
    problem = Question(question)
    try:
        own = rules.opening(problem)
    except (SettingsError, DataError) as error:
        raise SettingsError(
            f"the environment does not take a question by itself, without a problem of its task ({error}); environment.name= "
            "asks the model without it"
        ) from error
    return prompt_messages(instruction, Problem("question", question, "", turns=own)), Play(rules, problem)


def played(request: Request, completions: Sequence[Completion]) -> tuple[Played, ...]:
    """The records of a request's episodes; none where a completion is one turn."""
    return request.on_turn.played(completions) if isinstance(request.on_turn, Play) else ()


def episode_ids(
    rules: Rules, write: Callable[[str, tuple[int, ...]], tuple[int, ...]], turns: Turns
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Ids of an episode, and `Completion.given` of them, as if the policy had drawn its turns and the environment had answered
    with the messages between. `write` gives the ids of a turn, with the one that ends it, behind those of the messages before it.

    Raises DataError for a message that cannot be written.
    """
    ids: tuple[int, ...] = ()
    heard: tuple[int, ...] = ()
    given: tuple[bool, ...] = ()
    for by_policy, part in groupby(turns, lambda turn: turn[0] == "assistant"):
        said = [{"role": role, "content": content} for role, content in part]
        more = write(said[0]["content"], heard) if by_policy else rules.encode(said, ids[-1])
        heard = () if by_policy else more
        ids, given = ids + more, given + (not by_policy,) * len(more)
    return ids, given


def try_episode(rules: Rules, prompter: Prompter, turns: Turns) -> None:
    """Raises DataError for an episode of the data that cannot be written."""
    episode_ids(rules, lambda text, _: (*prompter.completion_ids([text])[0], ANY_ID), turns)


@dataclass(frozen=True)
class Dealt:
    """A request as another process gets it, which plays the episodes with its own environments."""

    request: Request
    """Without the environment."""
    problem: Problem | None = None
    """Of the episodes; None where a completion is one turn."""
    opening: Turns = ()
    """The environment's prompt, with which that of the other process must agree."""

    def received(self, rules: Rules | None) -> Request:
        """The request with environments of this process."""
        if rules is None or self.problem is None:
            return self.request
        return replace(self.request, on_turn=Play(replace(rules, opening=lambda _: self.opening), self.problem))


def dealt(request: Request) -> Dealt:
    """The request without what cannot leave this process."""
    play = request.on_turn
    if not isinstance(play, Play):
        return Dealt(request)
    return Dealt(replace(request, on_turn=None), play.problem, play.rules.opening(play.problem))


def portable(records: Sequence[Played]) -> tuple[Played, ...]:
    """Records of episodes as they are wherever they were played: of texts and numbers, without the environments themselves."""
    return tuple(
        replace(one, turns=tuple((str.__str__(role), str.__str__(text)) for role, text in one.turns), environment=None)
        for one in records
    )


def heard(request: Request, records: tuple[Played, ...]) -> None:
    """Make the records of another process those that `played` finds for this request."""
    if isinstance(request.on_turn, Play):
        request.on_turn.hear(records)


def demand_rewards(config: TrainConfig, rules: Rules | None, groups: Iterable[Group]) -> None:
    """Raises SettingsError where `rewards.environment` has nothing to pay: the class has no `score`, and its `step` returned no
    reward for any turn of these episodes.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    read = sum(rollout.completion.finish == "stop" for rollout in rollouts)
    unpaid = read and not any(rollout.turn_rewards for rollout in rollouts)
    if rules is None or "environment" not in config.rewards.built_in or not unpaid or rules.scores:
        return
    raise SettingsError(
        f"rewards.environment pays what {config.environment.name!r} returns, which has no score(), and whose step returned no "
        f"reward in any of {read} episodes; return the reward of each turn, 0 where it earns nothing, or write score()"
    )


def environment_digest(config: EnvironmentConfig) -> str:
    """SHA-256 of the files of the environment; empty where there is none."""
    place = package_of(config.name)
    spec = f"{module_of(place)}:load_environment" if place else specified(config.name)
    if is_programs(spec):
        return digest_of_code(LOAD(spec))
    return files_digest(source_files(spec)) if spec else ""
