"""A model on one or several tasks, as `slimrl eval` and `slimrl compare` measure it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from slimrl.cli.output import stopping

if TYPE_CHECKING:
    from slimrl.config.schema import EvalConfig
    from slimrl.display.run import Display
    from slimrl.results import Evaluation


def evaluations(
    model_or_run: str, configs: Mapping[str, EvalConfig], display: Display
) -> Iterator[tuple[str, Evaluation]]:
    """The evaluation of each task, by its label, as soon as it is done; the model is loaded once."""
    from slimrl.evaluate import evaluate
    from slimrl.preflight.setup import prepare_measuring
    from slimrl.runs.directory import steps_taken

    policy, known = None, None
    for label, config in configs.items():
        setup = prepare_measuring(config, model=policy if config.model == known else None)
        policy, known = setup.policy, config.model
        for note in setup.notes:
            display.note(note)
        with setup.scorer or nullcontext(), stopping(display):
            found = evaluate(setup, step=steps_taken(Path(model_or_run)) or 0, progress=display.evaluating)
        setup.grading.shutdown()
        setup.task.grader.close()
        del setup  # its buffers make room for those of the next task
        yield label, found
