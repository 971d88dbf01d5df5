"""The answers to a training run in trouble: memory that runs out, rewards that fail, numbers that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from slimrl.config.schema import TrainConfig
from slimrl.errors import DivergedError, SettingsError
from slimrl.learner.learner import Learner
from slimrl.machine.limits import is_out_of_memory
from slimrl.machine.tensors import are_finite
from slimrl.preflight.setup import Setup
from slimrl.runs.checkpoints import newest
from slimrl.runs.reader import way_to_resume
from slimrl.session.session import Session
from slimrl.session.state import RunState, restore
from slimrl.text import counted

FAULTS = 3
"""Steps in a row with a number that is not finite, after which a run goes back, once."""
WINDOW = 20
"""Steps over which rewards.unscorable_limit is counted."""


@contextmanager
def watch_memory(session: Session[RunState], learner: Learner) -> Iterator[None]:
    """Report the sizes that shrank in a step because memory ran out; raises SettingsError where the smallest do not fit."""
    before = session.setup.engine.slots, learner.plan.microbatch_tokens
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise SettingsError(
            "memory ran out outside sampling and gradients, for example when the optimizer made its moments; lower "
            "rollout.slots and optimizer.microbatch_tokens, or set model.dtype=bfloat16"
        ) from None
    slots, tokens = session.setup.engine.slots, learner.plan.microbatch_tokens
    if (slots, tokens) != before:
        session.run.note(session.state.step + 1, "memory ran out", slots=slots, microbatch_tokens=tokens)
        session.screen.say(f"memory ran out; from now on {slots} slots, {tokens:,} tokens at once", "yellow")


def refuse_unscorable(session: Session[RunState], limit: float) -> None:
    """Raises SettingsError, with a checkpoint written, where too many completions of the last steps could not be scored."""
    run = session.run
    rows = [row for row in run.history[-WINDOW:] if row["step"] > run.rewards_since]
    share = sum(row.get("unscorable", 0.0) for row in rows) / WINDOW
    if len(rows) < WINDOW or share <= limit:
        return
    session.keeper.keep(session.state.step)
    raise SettingsError(
        f"{share:.1%} of the completions of the last {WINDOW} steps were unscorable, more than "
        f"rewards.unscorable_limit={limit:g}; fix the reward (rollouts/ has the reasons) and resume with "
        f"{way_to_resume(run.path, force=True)}, or raise the limit"
    )


def roll_back(session: Session[RunState], setup: Setup[TrainConfig], learner: Learner) -> None:
    """Go back to the last checkpoint before the faults, past their problems, once; raises DivergedError the second time.

    Without a checkpoint the weights stay, which no dropped update has touched.
    """
    run, state = session.run, session.state
    count = sum(bool(row.get("update/nonfinite")) for row in run.history[-FAULTS:])
    steps = f"{count} steps in a row, up to step {state.step}," if count > 1 else f"step {state.step}"
    what = f"{steps} had a number that was not finite"
    if state.rolled_back:
        raise DivergedError(
            f"{what}, after one roll-back already; nonfinite/ in {run.path} holds their batches, events.jsonl says which number. "
            "Lower optimizer.learning_rate, or set model.dtype=float32"
        )
    excluded = tuple(dict.fromkeys((*state.excluded, *state.suspects)))
    target, damaged = newest(run.checkpoints, before=state.step - count)
    for sentence in damaged:
        session.screen.say(f"warning: {sentence}", "yellow")
    critic = {} if learner.critic is None else learner.critic.critic.state_dict()
    if target is None and not are_finite((*setup.policy.model.parameters(), *critic.values())):
        raise DivergedError(
            f"the weights were not finite after step {state.step}, and no checkpoint is there to go back to; lower "
            "optimizer.learning_rate"
        )
    before = restore(target, setup, learner) if target else state
    run.rewind(before.step)
    run.note(before.step, "rolled back", why=what, excluded=list(excluded))
    session.screen.say(
        f"{what}; back to step {before.step}, without their {counted(len(state.suspects), 'problem')}", "yellow"
    )
    carried = tuple(group for group in before.carried if group.problem.id not in excluded)
    session.state = replace(before, carried=carried, faults=0, suspects=(), rolled_back=True, excluded=excluded)
    session.keeper.start_over()
