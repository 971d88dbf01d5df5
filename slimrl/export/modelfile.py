"""From a run to the Modelfile of its model: tokenizer, template and stops are those of the measurement."""

from __future__ import annotations

from transformers import AutoConfig

from slimrl.export.ollama import Modelfile, find_turns
from slimrl.export.run import FinishedRun
from slimrl.export.vocabulary import adds_bos, stop_ids_of
from slimrl.model.architecture import context_of


def modelfile_of(run: FinishedRun, weights: str) -> Modelfile:
    """The Modelfile for weights in a file of this name beside it."""
    tokenizer, rollout = run.tokenizer, run.settings.rollout
    ends = [tokenizer.decode([number]) for number in stop_ids_of(run.model, tokenizer)]
    bos, turns = tokenizer.bos_token if adds_bos(tokenizer) else "", find_turns(run.prompter.text)
    return Modelfile(
        weights=weights,
        turns=turns.without_bos(bos) if turns and bos else turns,  # Ollama puts it before every prompt by itself
        instruction=run.instruction,
        stops=[*ends, *run.stop_texts],
        temperature=rollout.temperature,
        budget=rollout.budget,
        context=context_of(AutoConfig.from_pretrained(str(run.model)).get_text_config())[0],
    )
