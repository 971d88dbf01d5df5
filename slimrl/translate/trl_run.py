"""TRL's optimizer, and where a run is logged and kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from slimrl.translate.translation import Setting
from slimrl.translate.trl_loss import UNBOUNDED
from slimrl.translate.values import Keyed, Values

SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine",
    "cosine_with_min_lr": "cosine", "cosine_warmup_with_min_lr": "cosine", "cosine_with_restarts": "cosine",
    "polynomial": "linear",
}  # fmt: skip
"""The nearest by `lr_scheduler_type`."""


def optimizer_settings(trl: Values) -> Iterator[Keyed]:
    """Rate and schedule, AdamW's numbers and the bound of the gradient."""
    # learning_rate is written always: `auto` depends on the model here
    trl.depends("optimizer.learning_rate", "learning_rate")
    yield "optimizer.learning_rate", Setting(trl.number("learning_rate"), trl.because("learning_rate"))
    named = str(trl.values["lr_scheduler_type"]).rpartition(".")[2].lower()
    schedule = SCHEDULES.get(named)
    if schedule is None:
        trl.leave("lr_scheduler_type", named, "there is no such schedule; optimizer.schedule=constant acts instead")
    elif named not in ("constant", "constant_with_warmup", "linear", "cosine"):
        trl.leave("lr_scheduler_type", named, f"{schedule} is written, whose rate ends at 0 after one fall")
    yield trl.set("optimizer.schedule", schedule or "constant", "lr_scheduler_type")
    for key in ("beta1", "beta2", "epsilon"):
        yield trl.set(f"optimizer.{key}", trl.number(f"adam_{key}"), f"adam_{key}")
    yield trl.set("optimizer.weight_decay", trl.number("weight_decay"), "weight_decay")
    norm = trl.number("max_grad_norm")
    if norm > 0:
        yield trl.set("optimizer.max_grad_norm", norm, "max_grad_norm")
    else:
        yield trl.set("optimizer.max_grad_norm", UNBOUNDED, "max_grad_norm", why="no bound there")


def place_settings(trl: Values) -> Iterator[Keyed]:
    """The name of the run, and the folder that holds it."""
    place = Path(str(trl.given.get("output_dir", "")))
    name = str(trl.given.get("run_name") or place.name)
    slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:64]
    trl.read |= {"run_name", "output_dir"}
    if slug:
        yield trl.set("name", slug, "run_name" if trl.given.get("run_name") else "output_dir")
    if len(place.parts) > 1:
        yield trl.set("output", str(place.parent), "output_dir")
