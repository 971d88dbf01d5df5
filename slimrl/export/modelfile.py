"""From a run to the Modelfile of its model: tokenizer, template and stops are those of the measurement."""

from __future__ import annotations

from datetime import datetime

from transformers import AutoConfig, AutoTokenizer

from slimrl.export.ollama import Modelfile, find_turns
from slimrl.export.run import FinishedRun
from slimrl.export.vocabulary import adds_bos, stop_ids_of
from slimrl.model.architecture import context_of
from slimrl.model.prompts import make_prompter
from slimrl.tasks.styles import STYLES


def modelfile_of(run: FinishedRun, weights: str) -> Modelfile:
    """The Modelfile for weights in a file of this name beside it."""
    task, rollout = run.settings.task, run.settings.rollout
    tokenizer = AutoTokenizer.from_pretrained(str(run.model))
    date = str(run.record.get("date") or task.date)
    prompter = make_prompter(
        tokenizer,
        task.template,
        arguments=task.template_arguments,
        now=datetime.now() if date == "auto" else datetime.fromisoformat(date),
        form=STYLES[task.style].render("", ""),
    )
    ends = [tokenizer.decode([number]) for number in stop_ids_of(run.model, tokenizer)]
    bos, turns = tokenizer.bos_token if adds_bos(tokenizer) else "", find_turns(prompter.text)
    return Modelfile(
        weights=weights,
        turns=turns.without_bos(bos) if turns and bos else turns,  # Ollama puts it before every prompt by itself
        instruction=run.instruction,
        stops=[*ends, *run.stop_texts],
        temperature=rollout.temperature,
        budget=rollout.budget,
        context=context_of(AutoConfig.from_pretrained(str(run.model)).get_text_config())[0],
    )
