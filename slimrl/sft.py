"""Warm start: imitate a task's worked solutions or episodes, with the loss on what the policy is to write.

Any model, any task with solutions. The built-in model was made with it (recipes/builtin/).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice

import numpy as np
from pydantic import TypeAdapter

from slimrl.config.mistakes import nearest
from slimrl.config.schema import SftRunConfig, seconds_of
from slimrl.config.sections import SftConfig
from slimrl.errors import SettingsError
from slimrl.learner.imitation import Example, imitating_optimizer, take_imitation_step
from slimrl.learner.optimizer import MasterAdamW
from slimrl.learner.schedule import learning_rate
from slimrl.machine.ranks import Ranks, ranks_here
from slimrl.machine.signals import Stop
from slimrl.model.taught import note_taught, taught_of
from slimrl.parallel.lead import begin, leading, share, whole_state
from slimrl.parallel.orders import Imitate
from slimrl.preflight.environment import episode_ids
from slimrl.preflight.setup import Setup, prepare
from slimrl.randomness import generator
from slimrl.records import Problem, Turns
from slimrl.results import SftSummary
from slimrl.session.listeners import Screen, Sink
from slimrl.session.resume import find_run, recorded_summary
from slimrl.session.session import Session, open_run
from slimrl.session.state import Progress, Write, read_run_state, restore_policy, save_policy
from slimrl.session.upload import uploaded
from slimrl.terms import ADAPTER, FINAL
from slimrl.text import time_taken
from slimrl.thinking import closed

SOLUTIONS_LOOKED_AT = 500
"""Training problems whose solutions are measured before the first update."""
DEFAULT_BATCH = SftConfig.model_fields["batch_size"].default
"""Nobody asked for it, so a small file need not fill it."""


Demonstrate = Callable[[Problem, int], Example | None]
PROGRESS = TypeAdapter(Progress)
"""Problems and demonstrators are functions of (seed, step), so a checkpoint needs no more than this and the weights."""


def sft(
    config: SftRunConfig,
    screen: Screen,
    *,
    sinks: Sequence[Sink] = (),
    stop: Stop | None = None,
    resume: bool = False,
    force: bool = False,
) -> SftSummary:
    """Imitate demonstrators: held-out accuracy, the updates, held-out accuracy again.

    Of several ranks this process is the leader. Is stopped and resumed as `train` is, with the same errors.
    """
    stop, ranks = stop or Stop(), ranks_here()
    stop.after(seconds_of(config.max_time))
    with ExitStack() as block:
        found = block.enter_context(find_run(config, "sft", resume=resume))
        block.enter_context(uploaded(found, screen, stop))
        block.enter_context(leading(ranks))
        if found.status == "finished":
            screen.say(f"{found.path} is finished; nothing is left to do")
            return recorded_summary(found, SftSummary)
        setup = prepare(found.config, training=True, kept=found.plan, stop=stop)
        block.callback(setup.close)
        setup = begin(setup, ranks)
        config, few = fitting_batch(setup, config)
        bare = without_solution(setup, config)
        behind = behind_stops(setup, config, bare.ids)
        left_out = bare.ids | behind.ids
        demonstrate = demonstrator(setup, config, left_out)
        overlong = overlong_note(setup, demonstrate, config, left_out)
        told = (few, bare.note, behind.note, overlong)
        setup = replace(setup, notes=(*setup.notes, *(note for note in told if note)))
        run = block.enter_context(open_run(found, setup, screen, stop, force=force))
        policy, optimizer = setup.policy, imitating_optimizer(setup.policy, setup.config, ranks)
        state = Progress()
        if found.checkpoint:
            restore_policy(found.checkpoint, policy, optimizer)
            state = read_run_state(found.checkpoint, PROGRESS.validate_python)
        share(setup, [optimizer], ranks)

        def save(state: Progress) -> Write:
            plain = {"run": asdict(state), "scale": optimizer.scale}
            with whole_state([optimizer], ranks) as (moments,):
                return save_policy(run, policy, state.step, {"optimizer": moments}, plain)

        session = Session(run, setup, screen, sinks, state, save)
        block.enter_context(session.running())
        for _ in session.steps():
            stop.check()
            take_update(session, optimizer, demonstrate, config, ranks)
        style, instruction = setup.task.style.name, setup.task.instruction
        note_taught(policy.model, replace(taught_of(policy.model), style=style, instruction=instruction))
        end, measured = session.state, run.measured.summaries
        before, after = measured[0]["test"], measured[end.step]["test"]
        summary = SftSummary(str(run.path), before, after, end.step, end.tokens, end.seconds)
        session.finish(summary, store_model=True)
        models = f"{FINAL}/ and {ADAPTER}/" if policy.lora else f"{FINAL}/"
        screen.say(f"{time_taken(end.step, end.seconds)}; the model is in {run.path}: {models}")
        return summary


def take_update(
    session: Session[Progress], optimizer: MasterAdamW, demonstrate: Demonstrate, config: SftRunConfig, ranks: Ranks
) -> None:
    """One update on `sft.batch_size` demonstrations."""
    setup, state, step = session.setup, session.state, session.state.step
    settings = setup.config.optimizer
    session.keeper.settle()
    started = time.perf_counter()
    problems = setup.training_problems(step=step, count=config.sft.batch_size)
    written = (demonstrate(problem, step) for problem in problems)
    examples = list(islice((example for example in written if example is not None), config.sft.batch_size))
    rate = learning_rate(
        step, peak=settings.peak_rate, schedule=settings.schedule, warmup=settings.warmup_steps, total=config.steps
    )
    ranks.tell(Imitate(tuple(examples), rate))
    updated = take_imitation_step(setup.policy, optimizer, examples, rate, setup.memory.plan, ranks)
    tokens = state.tokens + sum(example.imitated for example in examples)
    after = Progress(step + 1, tokens, state.seconds + time.perf_counter() - started)
    session.record(after, {"num_tokens": tokens, **updated})
    if after.step % config.sft.show_every == 0:
        session.screen.loss(after.step, config.steps, updated["loss"], after.seconds)


def fitting_batch(setup: Setup[SftRunConfig], config: SftRunConfig) -> tuple[SftRunConfig, str]:
    """The settings with a batch that the task can fill, and a note where that is smaller than the default.

    Raises SettingsError where a larger one was asked for.
    """
    count, wanted = len(setup.task.train), config.sft.batch_size
    if count >= wanted:
        return config, ""
    if wanted != DEFAULT_BATCH:
        raise SettingsError(f"sft.batch_size={wanted} exceeds the {count} training problems; lower it")
    smaller = config.model_copy(update={"sft": config.sft.model_copy(update={"batch_size": count})})
    return smaller, (
        f"there are {count} training problems, so every update takes all of them instead of {wanted} (sft.batch_size)"
    )


def demonstrator(
    setup: Setup[SftRunConfig], config: SftRunConfig, left_out: frozenset[str] = frozenset()
) -> Demonstrate:
    """A pure function of (problem, step) that picks a demonstrator by the mixture's shares and returns its text, or the episode
    where `solution` has several turns.

    What is to be imitated ends as completions do, with the token that completes a text of `rollout.stop`, else with a stop token.
    It returns None for a worked solution of a problem in `left_out`, and for one beyond the token budget: cut off, it would teach
    never to stop. The flawed texts of the built-in task are cut there, since the rambling ones are to show a text that does not
    stop.
    Raises SettingsError for a demonstrator that the task does not have, or a task without worked solutions.
    """
    known, rules = setup.task.demonstrators, setup.rules
    train = islice(setup.task.train, 100) if config.task.is_made else setup.task.train
    if not any(problem.solution or problem.episode for problem in train):
        raise SettingsError(
            f"task {setup.task.name} has no worked solutions to imitate; {_where_solutions_are(config)}"
        )
    for name in config.sft.mixture:
        if name not in known:
            raise SettingsError(
                f"sft.mixture.{name}: task {setup.task.name} has no such demonstrator; it has {', '.join(known)}"
                f"{nearest(name, known)}"
            )
    names = [name for name, share in config.sft.mixture.items() if share]
    shares = np.cumsum([config.sft.mixture[name] for name in names])
    # a chat template's own end of a turn, else the tokenizer's end of a text
    end = setup.policy.tokenizer.eos_token_id if setup.prompter.turn_end is None else setup.prompter.turn_end
    stop = int(end) if end in setup.policy.stop_ids else setup.policy.stop_ids[0]

    def write(turn: str, heard: tuple[int, ...] = ()) -> tuple[int, ...]:
        (ids,) = setup.completion_ids([turn], heard)
        length = setup.policy.stop_texts.length(ids)
        return ids[:length] if length else (*ids, stop)

    def demonstrate(problem: Problem, step: int) -> Example | None:
        draws = generator(config.seed, "imitate", step, problem.id)
        name = names[int(np.searchsorted(shares, draws.random() * shares[-1], side="right"))]
        if name == "solution" and problem.id in left_out:
            return None
        text = known[name](problem, int(draws.integers(2**31)))
        budget = setup.config.rollout.budget
        if name == "solution" and problem.episode and rules is not None:
            ids, given = episode_ids(rules, write, taught_turns(setup, problem, text))
            return Example(setup.prompt_ids(problem), ids, given) if len(ids) <= budget else None
        ids = write(text)
        if len(ids) <= budget:
            return Example(setup.prompt_ids(problem), ids)
        return None if name == "solution" else Example(setup.prompt_ids(problem), ids[:budget])

    return demonstrate


def taught_turns(setup: Setup[SftRunConfig], problem: Problem, text: str) -> Turns:
    """The turns behind the prompt of a worked solution. Its text is the last turn of an episode, unless that is in the form
    already.
    """
    if not problem.episode or setup.rules is None:
        return (("assistant", text),)
    *earlier, last = problem.episode
    return (*earlier, last if setup.task.style.well_formed(last[1]) else ("assistant", text))


def _where_solutions_are(config: SftRunConfig) -> str:
    if config.task.is_made or config.task.name != "jsonl":
        return "choose another task"
    return (
        "add a column solution to its rows, or, where what is read as the answer is a worked solution, set "
        "task.columns.answer=none and task.columns.solution to the name of that column"
    )


def without_solution(setup: Setup[SftRunConfig], config: SftRunConfig) -> LeftOut:
    """Problems of data of the user's that have no worked solution, of which a bare answer would be taught."""
    if config.task.is_made or not config.sft.mixture.get("solution"):
        return LeftOut()
    bare = frozenset(problem.id for problem in setup.task.train if not problem.solution and not problem.episode)
    if not bare:
        return LeftOut()
    return LeftOut(bare, f"{len(bare):,} of {len(setup.task.train):,} rows have no worked solution, and are left out")


@dataclass(frozen=True)
class LeftOut:
    """Worked solutions that are not imitated."""

    ids: frozenset[str] = frozenset()
    note: str = ""


def behind_stops(setup: Setup[SftRunConfig], config: SftRunConfig, left_out: frozenset[str] = frozenset()) -> LeftOut:
    """Worked solutions that go on behind a text of `rollout.stop`; those of problems in `left_out` do not count. Raises
    SettingsError where they are the rule, or all that the built-in tasks make.
    """
    stops, train = setup.policy.stop_texts.texts, setup.task.train
    if not stops or not config.sft.mixture.get("solution"):
        return LeftOut()
    looked_at = [
        p for p in (islice(train, SOLUTIONS_LOOKED_AT) if config.task.is_made else train) if p.id not in left_out
    ]
    lost = {problem.id: found for problem in looked_at if (found := _lost_behind(setup, problem, stops))}
    if not lost:
        return LeftOut()
    first, (stop, part) = next(iter(lost.items()))
    said = (
        f"{len(lost):,} of {len(looked_at):,} worked solutions go on behind a text of rollout.stop, where a completion ends (the "
        f"first: {first}, behind {stop!r})"
    )
    if config.task.is_made or len(lost) > len(looked_at) / 2:
        instead = "set rollout.stop=[]" if config.rollout.stop == "auto" else f"take {stop!r} out of rollout.stop"
        raise SettingsError(f"{said}, and would be taught without {part}; {instead}, or reword the solutions")
    return LeftOut(frozenset(lost), f"{said}, and are left out")


def _lost_behind(setup: Setup[SftRunConfig], problem: Problem, stops: Sequence[str]) -> tuple[str, str] | None:
    """The stop text behind which a worked solution goes on, and what it loses there; None where it loses nothing."""
    text = setup.task.demonstrators["solution"](problem, 0)
    turns = [said for role, said in taught_turns(setup, problem, text) if role == "assistant"]
    for number, turn in enumerate(turns, 1):
        written = f" {closed(setup.policy.opening, turn)}"  # behind a plain prompt an answer begins with a space
        found, last = [stop for stop in stops if stop in written], number == len(turns)
        if found and _is_lost(setup, problem, turn, last=last):
            return min(found, key=written.index), "their answers" if last else "the rest of a turn"
    return None


def _is_lost(setup: Setup[SftRunConfig], problem: Problem, turn: str, *, last: bool) -> bool:
    """True where a completion that ends at its first stop text is not right, though the whole turn is; in an earlier turn of an
    episode, where it lacks more than white space.
    """
    (read,) = setup.read_back([turn])
    if not last:
        return read.strip() != f"{setup.policy.opening}{closed(setup.policy.opening, turn)}".strip()
    return setup.task.grade(turn, problem.answer).strict and not setup.task.grade(read, problem.answer).strict


def overlong_note(
    setup: Setup[SftRunConfig], demonstrate: Demonstrate, config: SftRunConfig, left_out: frozenset[str] = frozenset()
) -> str:
    """A note on worked solutions beyond the token budget, empty without any; those of problems in `left_out` do not count.

    Raises SettingsError where they are the rule.
    """
    looked_at = [*islice((p for p in setup.task.train if p.id not in left_out), SOLUTIONS_LOOKED_AT)]
    kept = sum(demonstrate(problem, 0) is not None for problem in looked_at)
    share = 1 - kept / len(looked_at)
    asked_for = setup.config.sft.batch_size != DEFAULT_BATCH
    if share > 0.5 or (
        asked_for and len(looked_at) == len(setup.task.train) - len(left_out) and kept < config.sft.batch_size
    ):
        if not share:
            raise SettingsError(
                f"{kept:,} worked solutions are left, fewer than sft.batch_size={config.sft.batch_size}; set it to {kept:,} or "
                "less"
            )
        raise SettingsError(
            f"{share:.0%} of the worked solutions exceed rollout.max_new_tokens={setup.config.rollout.budget} and could "
            "not be imitated whole; raise it"
        )
    return f"{share:.1%} of the worked solutions exceed rollout.max_new_tokens and are left out" if share else ""
