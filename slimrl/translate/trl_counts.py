"""TRL's completions, slices and optimizer updates as problems of a rollout batch, updates of a step, and steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from slimrl.translate.translation import Setting
from slimrl.translate.trl_inputs import known_rows
from slimrl.translate.values import Keyed, Values

BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size")
"""Names that decide together how many completions are generated at once, and how many updates are made of them."""


@dataclass(frozen=True)
class Counts:
    """A rollout batch of SlimRL, and what TRL makes of the same completions."""

    problems: int
    completions: int
    minibatches: int
    """Updates of one pass over the batch here."""
    epochs: int
    """Passes over the batch here."""
    updates_there: int
    """Optimizer updates that TRL makes of the batch, over all passes."""
    microbatch: int
    """Completions of a micro-batch on one device."""
    microbatches: int
    """Of an update, over all devices."""
    devices: int

    @property
    def updates(self) -> int:
        """Optimizer updates of a step here."""
        return self.minibatches * self.epochs


def counted(trl: Values, devices: int) -> Counts:
    """The sizes in a file; what has no equal here is listed.

    TRL generates `steps_per_generation` slices at once, takes all of them `num_iterations` times, one after the other, and
    updates after every `gradient_accumulation_steps` of them.
    """
    size, accumulated, group, passes = map(
        trl.whole, ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "num_iterations")
    )
    if "generation_batch_size" in trl.given:
        completions = trl.whole("generation_batch_size")
        slices = max(1, completions // (size * devices))
    else:
        slices = trl.whole("steps_per_generation") if "steps_per_generation" in trl.given else accumulated
        completions = size * devices * slices
    if slices >= accumulated:
        updates, epochs, uneven = slices // accumulated, passes, slices % accumulated > 0
    else:
        generations = max(1, accumulated // (slices * passes))
        completions = size * devices * slices * generations
        updates, epochs = 1, max(1, slices * passes // accumulated)
        uneven = accumulated * epochs != slices * passes * generations
        if passes > epochs:
            reason = (
                f"{passes // epochs} passes over a slice fall into one update there, whose gradient is that of one; "
                f"optimizer.epochs={epochs} is meant here"
            )
            trl.leave("num_iterations", passes, reason)
    if uneven:
        what = f"{slices} slices taken {passes} times" if passes > 1 else f"{slices} slices"
        trl.leave("steps_per_generation", slices, f"{what} are no whole number of updates of {accumulated}")
    problems = max(1, round(completions / group))
    if completions % group:
        reason = f"no whole groups of {group}, which TRL refuses; give the devices that it ran on: --devices N"
        trl.leave("completions per generation", completions, reason)
    if updates > problems:
        reason = f"{updates} updates per generation would split groups, which stay together; {problems} are written"
        trl.leave("steps_per_generation", slices, reason)
    minibatches = min(updates, problems)
    return Counts(problems, completions, minibatches, epochs, updates * epochs, size, accumulated * devices, devices)


def batch_settings(trl: Values, counts: Counts) -> Iterator[Keyed]:
    """The rollout batch and the passes over it."""
    group = trl.whole("num_generations")
    yield trl.set("rollout.group_size", group, "num_generations")
    devices = f"{counts.devices} device{'s' if counts.devices > 1 else ''}"
    why = f"{counts.completions} completions on {devices} / {group}"
    yield trl.set("rollout.problems", counts.problems, *BATCH, why=why)
    yield trl.set("optimizer.minibatches", counts.minibatches, *BATCH[1:])
    yield trl.set("optimizer.epochs", counts.epochs, "num_iterations")
    name = "max_completion_length"
    if trl.values[name] is None:
        trl.values[name] = trl.defaults[name]
        reason = f"null is the model's own limit there; a number is needed here, and {trl.values[name]} is written"
        trl.leave(name, None, reason)
    yield trl.set("rollout.max_new_tokens", trl.whole(name), name)
    yield trl.set("rollout.temperature", trl.number("temperature"), "temperature")


def run_length(trl: Values, counts: Counts, rows: int) -> Iterator[Keyed]:
    """Steps, warm-up, and what is counted in updates there and in steps here; `rows`: training problems, 0: not known."""
    steps = _steps(trl, counts, rows)
    yield "steps", steps
    yield _warmup(trl, counts, int(steps.value))
    trl.read |= {"warmup_steps", "warmup_ratio", "max_steps", "num_train_epochs"}
    every = {"save_steps": ("checkpoint.every", "save_strategy"), "eval_steps": ("evaluation.every", "eval_strategy")}
    for name, (key, strategy) in every.items():
        trl.read |= {name, strategy}
        kind = trl.given.get(strategy, "steps" if name == "save_steps" else "no")
        if kind == "epoch":
            trl.leave(strategy, "epoch", f"{key} counts steps, not passes over the data; 0 is off")
        elif kind == "no" and strategy in trl.given:
            yield trl.set(key, 0, strategy)
        elif kind == "steps" and name in trl.given:
            count = trl.number(name)
            exact = count * int(steps.value) if count < 1 else count / counts.updates_there
            yield trl.set(key, max(1, round(exact)), name)


def _steps(trl: Values, counts: Counts, rows: int) -> Setting:
    """Rollout batches of the whole run."""
    most, epochs = trl.number("max_steps"), trl.number("num_train_epochs")
    trl.depends("steps", *BATCH, "num_generations", "num_iterations")
    if most > 0:
        trl.depends("steps", "max_steps")
        per = f" / {counts.updates_there} updates a step" if counts.updates_there > 1 else ""
        return Setting(max(1, math.ceil(most / counts.updates_there)), trl.because("max_steps") + per)
    trl.depends("steps", "max_steps", "num_train_epochs")
    rows = rows or known_rows(trl)
    reason = trl.because("num_train_epochs")
    if rows:
        steps = max(1, math.ceil(epochs * max(1, rows // counts.problems)))
        return Setting(steps, f"{reason}, {rows} problems / {counts.problems} a step")
    unknown = f"passes over the data, {counts.problems} of its problems a step; --rows N, the number of all, makes steps of them"
    trl.leave("num_train_epochs", f"{epochs:g}", unknown)
    return Setting(100, f"{reason}: set what {epochs:g} x the problems / {counts.problems} is")


def _warmup(trl: Values, counts: Counts, steps: int) -> Keyed:
    """Updates of warm-up: a share of all, or a number of TRL's updates."""
    total = steps * counts.updates
    share = "warmup_ratio" if trl.given.get("warmup_ratio") else "warmup_steps"
    warmup = trl.number(share)
    if 0 < warmup < 1:
        updates, why = math.ceil(warmup * total), f"of {total} updates"
        trl.depends("optimizer.warmup_steps", "max_steps", "num_train_epochs", *BATCH, "num_iterations")
    else:
        updates, why = round(warmup * counts.updates / counts.updates_there), ""
    if updates and str(trl.values["lr_scheduler_type"]).rpartition(".")[2].lower() == "constant":
        trl.leave(share, trl.values[share], "lr_scheduler_type=constant has no warm-up there; 0 is written")
        updates = 0
    return trl.set("optimizer.warmup_steps", updates, share, why=why)
