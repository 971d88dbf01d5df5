"""The memory of a run on GPUs that are not here: a row for the settings as they are, and for each that saves memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slimrl.preflight.estimate import GIB, MemoryEstimate
from slimrl.text import in_millions

if TYPE_CHECKING:
    from rich.console import Console

    from slimrl.preflight.elsewhere import FleetPlan

HEADER = f"{'GiB of each GPU':<23}{'peak':>5}{'model':>6}{'optimizer':>10}{'update':>7}{'rollout':>8}{'tokens':>9}"


def show_fleet(console: Console, plan: FleetPlan) -> None:
    """Print the plan in 80 columns."""
    room = next(iter(plan.estimates.values())).free
    trained = f", with an adapter of rank {plan.adapter}" if plan.adapter else ""
    console.print(
        f"{plan.model}, {in_millions(plan.parameters)} in {plan.dtype}{trained}, on {plan.devices} x {plan.gib:g} GiB, "
        f"of which a run takes {room / GIB:.1f} at most; {plan.rows} completions a step, prompts of {plan.prompt} and "
        f"completions of {plan.new_tokens} tokens"
    )
    console.print(HEADER, style="dim")
    for name, found in plan.estimates.items():
        console.print(f"{name:<23}{_row(found)}", soft_wrap=True)
    held = "weights, those of vLLM," if any(e.sampler for e in plan.estimates.values()) else "weights"
    console.print(
        f"model: {held} and reference; update: gradients, activations and logits of a micro-batch of so many tokens; "
        "recomputed: fits, with layers that are computed again (activation_checkpointing). Computed from config.json, not "
        "measured.",
        style="dim",
    )
    least = min(found.weights + found.sampler + found.cache + found.sampling for found in plan.estimates.values())
    if least > room:
        console.print(
            f"Each GPU needs {least / GIB:.1f} GiB for rollouts alone, which read whole weights, with parallel=fsdp too: take "
            "larger GPUs, or train an adapter on packed weights (model.quantize=4bit)."
        )


def _row(found: MemoryEstimate) -> str:
    parts = (
        (found.peak, 5),
        (found.weights + found.sampler + found.reference, 6),
        (found.masters + found.moments, 10),
        (found.gradients + found.activations + found.head, 7),
        (found.cache + found.sampling, 8),
    )
    verdict = "too large" if not found.fits else "recomputed" if found.plan.recompute else "fits"
    sizes = "".join(f"{size / GIB:>{width}.1f}" for size, width in parts)
    return f"{sizes}{found.plan.microbatch_tokens:>9,} {verdict}"
