"""Warm start: imitate a task's worked solutions, loss on the solution only.

Any model, any task with solutions. The built-in model was made with it (recipes/builtin/).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slimrl.algorithm.batch import microbatches
from slimrl.config.files import nearest, with_chosen
from slimrl.config.schema import SftRunConfig
from slimrl.display.run import Display
from slimrl.errors import DivergedError, SettingsError
from slimrl.evaluate import evaluate
from slimrl.learner.optimizer import MasterAdamW, learning_rate, make_optimizer
from slimrl.learner.recompute import checkpointed
from slimrl.machine.signals import Stop, Stopped, seconds_of
from slimrl.machine.threads import fix_threads
from slimrl.model.head import token_logprobs
from slimrl.model.loading import TAUGHT
from slimrl.model.packing import pack
from slimrl.model.policy import Policy
from slimrl.preflight.setup import Setup, prepare
from slimrl.randomness import generator
from slimrl.records import Problem
from slimrl.runs.checkpoints import Checkpoint
from slimrl.runs.directory import RunDirectory, versions
from slimrl.session.keeping import Keeper
from slimrl.session.resume import Interrupted, compare_identity, find_run, identity, known_evaluations
from slimrl.session.state import restore_policy, save_policy

SOLUTIONS_LOOKED_AT = 500
"""Training problems whose solutions are measured before the first update."""


@dataclass(frozen=True)
class SftSummary:
    """What `slimrl sft --json` prints."""

    run: str
    before: dict[str, float]
    after: dict[str, float]
    steps: int
    tokens_trained: int
    seconds: float


@dataclass(frozen=True)
class Example:
    """A prompt and a text to imitate."""

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    """The solution and the stop token."""


Demonstrate = Callable[[Problem, int], Example | None]


@dataclass(frozen=True)
class SftState:
    """After `step` updates; problems and demonstrators are functions of (seed, step), so this is all beside the weights."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def sft(
    config: SftRunConfig, display: Display, *, stop: Stop | None = None, resume: bool = False, force: bool = False
) -> SftSummary:
    """Imitate demonstrators; evaluates before and after, and is stopped and resumed, as training is."""
    stop = stop or Stop()
    stop.after(seconds_of(config.max_time))
    found = find_run(config, "sft", resume=resume)
    if found.summary is not None:
        display.say(f"{found.path} is finished; nothing is left to do")
        return SftSummary(**found.summary)
    if found.interrupted is None:
        return _sft(config, found.path, display, stop)
    try:
        fix_threads(int(found.interrupted.recorded["threads"]))  # other threads, other sums
        return _sft(found.interrupted.config, found.path, display, stop, found.interrupted, force=force)
    finally:
        found.interrupted.lock.release()


def _sft(
    config: SftRunConfig,
    path: Path,
    display: Display,
    stop: Stop,
    interrupted: Interrupted[SftRunConfig] | None = None,
    *,
    force: bool = False,
) -> SftSummary:
    """What is settled before the first update, and the run directory."""
    setup = prepare(config, training=True, kept=None if interrupted is None else interrupted.plan, stop=stop)
    config = with_chosen(config, setup.chosen)
    if len(setup.task.train) < config.sft.batch_size:
        raise SettingsError(
            f"sft.batch_size={config.sft.batch_size} exceeds the {len(setup.task.train)} training problems; lower it"
        )
    demonstrate = demonstrator(setup, config)
    known = identity(setup)
    notes = [*setup.notes, overlong_note(setup, demonstrate, config)]
    if interrupted is not None:
        notes += [*interrupted.notes, *compare_identity(interrupted, setup, known, force=force)]
    for note in filter(None, notes):
        display.note(note)
    if interrupted is None:
        memory = setup.memory.table()
        stop.defer()
        run = RunDirectory.create(
            path,
            config,
            setup.policy,
            verb="sft",
            memory=memory,
            rejected=setup.task.rejected,
            chosen=setup.chosen,
            **known,
        )
        with run.recording():
            return imitate_and_measure(setup, run, demonstrate, display, config, stop)
    measured = known_evaluations(interrupted)
    known |= versions(setup.policy)
    stop.defer()
    run = RunDirectory.reopen(path, interrupted.wanted, interrupted.lock, step=interrupted.step, **known)
    with run.recording():
        run.measured = measured
        display.say(f"going on after step {interrupted.step}")
        return imitate_and_measure(setup, run, demonstrate, display, config, stop, interrupted.checkpoint)


def imitate_and_measure(
    setup: Setup[SftRunConfig],
    run: RunDirectory,
    demonstrate: Demonstrate,
    display: Display,
    config: SftRunConfig,
    stop: Stop,
    checkpoint: Checkpoint | None = None,
) -> SftSummary:
    """Held-out accuracy, the updates, held-out accuracy again; what is interrupted leaves a checkpoint."""
    policy = setup.policy
    optimizer = make_optimizer(policy.trainable, setup.config.optimizer)
    state = SftState(**restore_policy(checkpoint, policy, optimizer)["run"]) if checkpoint else SftState()
    keeper = Keeper(run, config, display, safe=checkpoint.step if checkpoint else -1)

    def write() -> Checkpoint:
        return save_policy(run, policy, optimizer, state.step, {}, {"run": asdict(state)})

    try:
        while True:
            keeper.offer(state.step, write)
            if state.step in (0, config.steps) and state.step not in run.measured.summaries:
                setup.engine.weights_changed()
                found = evaluate(setup, step=state.step)
                run.log_evaluation(found)
                display.evaluation(found)
            if state.step == config.steps:
                break
            stop.check()
            state = take_update(setup, run, optimizer, demonstrate, display, config, state)
    except Stopped as reason:
        keeper.keep(state.step, write)
        where = f" after step {state.step}; slimrl sft --resume {run.path} goes on"
        raise Stopped(reason.cause, reason.exit_code, where) from None
    before, after = run.measured.first, run.measured.last
    taught = {"style": setup.task.style.name, "instruction": setup.task.instruction}
    summary = SftSummary(
        str(run.path), before.test.summary(), after.test.summary(), config.steps, state.tokens, state.seconds
    )
    with keeper.ending(state.step, write):
        setattr(policy.model.config, TAUGHT, taught)
        run.save_final(policy)
        run.finish(summary)
    keeper.finish(state.step)
    display.say(f"the model lies in {run.path}/final")
    return summary


def take_update(
    setup: Setup[SftRunConfig],
    run: RunDirectory,
    optimizer: MasterAdamW,
    demonstrate: Demonstrate,
    display: Display,
    config: SftRunConfig,
    state: SftState,
) -> SftState:
    """One update: the state after it."""
    policy, settings, step = setup.policy, setup.config.optimizer, state.step
    started = time.perf_counter()
    problems = setup.training_problems(step=step, count=config.sft.batch_size)
    written = (demonstrate(problem, step) for problem in problems)
    examples = list(islice((example for example in written if example is not None), config.sft.batch_size))
    with checkpointed(policy.model, setup.memory.plan.recompute):
        loss = imitate(policy, examples, optimizer.backward, max_tokens=setup.memory.plan.microbatch_tokens)
    rate = learning_rate(
        step,
        peak=settings.peak_rate,
        schedule=settings.schedule,
        warmup=settings.warmup_steps,
        total=config.steps,
    )
    updated = optimizer.step(rate, optimizer.clip())
    tokens = state.tokens + sum(len(example.target_ids) for example in examples)
    run.log_step(step, {"loss": loss, "num_tokens": tokens, **updated})
    after = SftState(step + 1, tokens, state.seconds + time.perf_counter() - started)
    if after.step % config.sft.show_every == 0:
        display.loss(after.step, config.steps, loss, after.seconds)
    return after


def demonstrator(setup: Setup[SftRunConfig], config: SftRunConfig) -> Demonstrate:
    """A pure function of (problem, step) that picks a demonstrator by the mixture's shares and lets it write.

    A worked solution beyond the token budget gives None: cut off, it would teach never to stop. The flawed texts of
    the built-in task are cut there, since not stopping is what the rambling ones show.
    Raises SettingsError for a demonstrator that the task does not have, or a task without worked solutions.
    """
    known = setup.task.demonstrators
    for name in config.sft.mixture:
        if name not in known:
            raise SettingsError(
                f"sft.mixture.{name}: task {setup.task.name} has no such demonstrator; it has {', '.join(known)}"
                f"{nearest(name, known)}"
            )
    if not any(problem.solution for problem in islice(setup.task.train, 100)):
        raise SettingsError(
            f"task {setup.task.name} has no worked solutions to imitate; add a solution field to its rows"
        )
    names = [name for name, share in config.sft.mixture.items() if share]
    shares = np.cumsum([config.sft.mixture[name] for name in names])
    stop = _stop_id(setup)

    def demonstrate(problem: Problem, step: int) -> Example | None:
        draws = generator(config.seed, "imitate", step, problem.id)
        name = names[int(np.searchsorted(shares, draws.random() * shares[-1], side="right"))]
        text = known[name](problem, int(draws.integers(2**31)))
        (ids,) = setup.prompter.completion_ids([text])
        room = setup.config.rollout.budget
        if len(ids) < room:
            return Example(setup.prompt_ids(problem), (*ids, stop))
        return None if name == "solution" else Example(setup.prompt_ids(problem), ids[:room])

    return demonstrate


def overlong_note(setup: Setup[SftRunConfig], demonstrate: Demonstrate, config: SftRunConfig) -> str:
    """What is said of worked solutions beyond the token budget; raises SettingsError where they are the rule."""
    looked_at = list(islice(setup.task.train, SOLUTIONS_LOOKED_AT))
    kept = sum(demonstrate(problem, 0) is not None for problem in looked_at)
    share = 1 - kept / len(looked_at)
    if share > 0.5 or (len(looked_at) == len(setup.task.train) and kept < config.sft.batch_size):
        raise SettingsError(
            f"{share:.0%} of the worked solutions exceed rollout.max_new_tokens={setup.config.rollout.budget} and could "
            "not be imitated whole; raise it"
        )
    return f"{share:.1%} of the worked solutions exceed rollout.max_new_tokens and are left out" if share else ""


def imitate(
    policy: Policy, examples: Sequence[Example], backward: Callable[[Tensor], None], *, max_tokens: int
) -> float:
    """Mean negative log-likelihood per target token, in nats; `backward` gets each micro-batch's share.

    Raises DivergedError for a loss that is not finite.
    """
    lengths = torch.tensor([len(e.prompt_ids) + len(e.target_ids) - 1 for e in examples])
    total = sum(len(e.target_ids) for e in examples)
    loss_sum = 0.0
    alone = torch.arange(len(examples))
    for rows in microbatches(lengths, lengths, alone, max_tokens=max_tokens):
        width = int(lengths[rows].max())
        ids = torch.full((len(rows), width + 1), policy.pad_id)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, row in enumerate(rows.tolist()):
            example = examples[row]
            ids[i, : lengths[row] + 1] = torch.tensor([*example.prompt_ids, *example.target_ids])
            mask[i, len(example.prompt_ids) - 1 : lengths[row]] = True
        packed = pack(ids[:, :-1], lengths[rows], lengths[rows], rows, device=policy.device)
        hidden = policy.packed_hidden(packed).index_select(0, packed.places[mask.to(policy.device)])
        logprobs, _ = token_logprobs(policy.head, hidden, ids[:, 1:][mask].to(policy.device), temperature=1.0)
        loss = -logprobs.sum() / total
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss.item()}; this update was not applied. Lower optimizer.learning_rate"
            )
        backward(loss)
        loss_sum += float(loss.detach())
    return loss_sum


def _stop_id(setup: Setup[SftRunConfig]) -> int:
    """The stop id that a demonstration ends with: the chat template's where it is used, else the tokenizer's own."""
    policy, end = setup.policy, setup.prompter.turn_end
    eos = policy.tokenizer.eos_token_id if end is None else end
    return int(eos) if eos in policy.stop_ids else policy.stop_ids[0]
