"""The model card of a run: what the model is, what it learned from, how, and what was measured."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from slimrl.config.schema import TrainConfig
from slimrl.export.run import FinishedRun, declared_license, model_name, place_name
from slimrl.export.vocabulary import GGUF_STOPS, stop_ids_of
from slimrl.model.prompts import fold_system, plain_text
from slimrl.runs.reader import read_json
from slimrl.terms import ADAPTER, BUILT_IN_MODELS
from slimrl.text import counted

Library = Literal["transformers", "peft", "gguf", "ollama"]
QUESTION = "Ann has 4 cups and buys 5 more. How many cups does Ann have now?"
PLAIN = plain_text([{"role": "user", "content": "{question}"}])
VERSIONS = ("slimrl", "torch", "transformers", "numpy", "python")


def model_card(run: FinishedRun, library: Library = "transformers") -> str:
    """README.md with the front matter that the Hub reads; `library` loads the files beside it."""
    parts = [
        _front_matter(run, library),
        f"# {run.name}",
        _opening(run),
        _measures(run),
        _method(run),
        _use(run, library),
        _versions(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(run: FinishedRun, library: Library) -> str:
    base, task = run.settings.model.path, run.settings.task
    loads = "gguf" if library == "ollama" else library  # which runs a GGUF by a Modelfile
    table: dict[str, Any] = {"library_name": loads, "pipeline_tag": "text-generation"}
    if found := declared_license(run):
        table["license"] = found
    if place_name(base) == base and "/" in base:
        table["base_model"] = base
    if "/" in task.path and place_name(task.path) == task.path:
        table["datasets"] = [task.path]
    table["tags"] = ["slimrl", "reinforcement-learning" if isinstance(run.settings, TrainConfig) else "sft"]
    return f"---\n{yaml.safe_dump(table, sort_keys=False, allow_unicode=True)}---"


def _opening(run: FinishedRun) -> str:
    base, steps = model_name(run.settings.model.path), run.summary.get("steps", run.settings.steps)
    what = "trained by reinforcement learning with verifiable rewards"
    if not isinstance(run.settings, TrainConfig):
        what = "taught to imitate worked solutions"
    start = "SlimRL's built-in model" if base in BUILT_IN_MODELS else f"`{base}`"
    licence = declared_license(run)
    known = f"The licence of the model that it began from is {licence}." if licence else (
        "The licence of the model that it began from is not known to SlimRL; look it up before you pass this model on."
    )  # fmt: skip
    return f"{start}, {what} for {counted(steps, 'step')} with SlimRL on {_data(run)}. {known}"


def _data(run: FinishedRun) -> str:
    task = run.settings.task
    if task.path:
        return run.given_rows(task.path) or f"`{place_name(task.path)}`"
    return f"the built-in {task.name} problems" if task.is_made else f"the task {task.name}"


def _measures(run: FinishedRun) -> str:
    """The table of strict held-out accuracy."""
    summary = run.summary
    if not summary:
        return ""
    before, after, change = summary["before"], summary["after"], summary.get("difference", {})
    harder = summary.get("harder") or {}
    ends = {"test": (before, after), **({"harder": (harder["before"], harder["after"])} if harder else {})}
    lines = ["| split | decoding | problems | before | after | change |", "|---|---|---|---|---|---|"]
    for split, (first, last) in ends.items():
        for mode, key, low, high in (
            ("sampled", "accuracy", "low", "high"),
            ("greedy", "greedy", "greedy_low", "greedy_high"),
        ):
            if key in last:
                cells = [_interval(end[key], end[low], end[high]) for end in (first, last)]
                found = change.get(split, {}).get(mode)
                moved = _interval(found["change"], found["low"], found["high"], sign="+") if found else ""
                lines.append(f"| {split} | {mode} | {last['n']:.0f} | {cells[0]} | {cells[1]} | {moved} |")
    temperature = run.settings.rollout.temperature
    return (
        "## Held-out accuracy\n\nStrict accuracy in %, with 95 % intervals over problems; sampled at temperature "
        f"{temperature:g} from the whole distribution. The change is paired over the same problems.\n\n"
        + "\n".join(lines)
    )


def _interval(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def _method(run: FinishedRun) -> str:
    """The settings that differ from the defaults, what `auto` chose, and the command, where there is one."""
    changed, chosen = run.changed(), run.record.get("chosen", {})
    rows = [
        f"| `{key}` | `{_cell(value)}` |"
        for key, value in {**changed, **{k: str(v) for k, v in chosen.items()}}.items()
    ]
    table = "\n".join(["| setting | value |", "|---|---|", *rows])
    tokens = run.summary.get("tokens_generated", run.summary.get("tokens_trained", 0))
    cost = (
        f"{tokens:,} tokens in {run.summary['seconds'] / 60:.1f} minutes on {run.record.get('device')}. "
        if run.summary
        else ""
    )
    return (
        f"## Method\n\n{cost}Settings that differ from SlimRL's defaults, and the numbers that `auto` chose:\n\n{table}\n\n"
        f"{_command(run, changed)}"
    )


def _command(run: FinishedRun, changed: Mapping[str, str]) -> str:
    """The command of the run; of one with functions or rows of a Python program these are named instead."""
    rewards = run.settings.rewards.of_the_program if isinstance(run.settings, TrainConfig) else ()
    if rewards:
        names = ", ".join(f"`{spec.rpartition(':')[2]}`" for spec in rewards)
        what, are = ("reward", "is a function") if len(rewards) == 1 else ("rewards", "are functions")
        return (
            f"The {what} {names} {are} of the Python program that trained the model with `slimrl.train`; without that program "
            "the run cannot be repeated."
        )
    if any(map(run.given_rows, (run.settings.task.path, run.settings.task.test_path))):
        return (
            f"The rows were given by the Python program that trained the model with `slimrl.{run.verb}`; without them the run "
            "cannot be repeated."
        )
    command = shlex.join(["slimrl", run.verb, *(f"{key}={value}" for key, value in changed.items())])
    return f"```\n{command}\n```"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")


def _use(run: FinishedRun, library: Library) -> str:
    told = "this text before every question" if run.plain else "this system message"
    system = f"It was measured with {told}:\n\n{_quoted(run.instruction)}" if run.instruction else (
        f"It was measured without a{' text before the question' if run.plain else ' system message'}."
    )  # fmt: skip
    files = {
        "transformers": "`generation_config.json` has the sampling of the measurement and every stop id. "
        f"`slimrl chat` talks to the model, and `slimrl eval` measures it again.{_rounded(run)}",
        "peft": f"These are the factors of an adapter (LoRA) for {_adapted(run)}. {_generate_peft(run)}",
        "gguf": f"The GGUF holds {'' if run.plain else 'the chat template, '}the stop ids and the sampling of the measurement.",
        "ollama": "The `Modelfile` holds the instruction, the stop texts and the sampling of the measurement.",
    }
    parts = [
        system,
        _prompt_form(run),
        _template_arguments(run, library),
        _ends(run),
        files[library],
        _by_hand(run, library),
    ]
    return "## Use\n\n" + "\n\n".join(part for part in parts if part)


def _prompt_form(run: FinishedRun) -> str:
    """The form of plain prompts; empty for those of a chat template, which the tokenizer knows."""
    if not run.plain:
        return ""
    behind = ", behind that text and an empty line" if run.instruction else ""
    unused = " The tokenizer's chat template was not used." if run.tokenizer.chat_template else ""
    return f"A prompt is plain text, {_code(PLAIN)}{behind}; the completion begins with a space.{unused}"


def _template_arguments(run: FinishedRun, library: Library) -> str:
    """The arguments with which the chat template makes the prompts of the measurement, besides the messages."""
    if not run.template_arguments:
        return ""
    given = json.dumps(dict(run.template_arguments), ensure_ascii=False)
    ways = {
        "gguf": "give them to llama.cpp with `--chat-template-kwargs`",
        "ollama": "Ollama passes none, so write what they do into the template",
    }
    way = ways.get(library, "give them to `apply_chat_template` as keywords")
    return f"Its chat template had the further arguments `{given}`; {way}."


def _ends(run: FinishedRun) -> str:
    if not run.stop_texts:
        return ""
    return f"A completion ends in front of {' or '.join(map(_code, run.stop_texts))}, where no stop id ends it before."


def _code(text: str) -> str:
    """A text as a string of JSON, in marks of code that are longer than those in it."""
    marks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}{json.dumps(text, ensure_ascii=False)}{marks}"


def _by_hand(run: FinishedRun, library: Library) -> str:
    """The part of plain prompts and stop texts that a library does not do by itself with the files."""
    if library == "gguf":
        return _outside_gguf(run)
    if library != "transformers" or not (run.plain or run.stop_texts):
        return ""
    if run.settings.environment.name:  # whose conversations no single call has
        return f"Give `generate` {_stop_arguments(run)}." if run.stop_texts else ""
    return _example(run)


def _outside_gguf(run: FinishedRun) -> str:
    """The part that a GGUF cannot hold, and the way to give it."""
    what = [*(["the form of a plain prompt"] if run.plain else []), *(["stop texts"] if run.stop_texts else [])]
    raw = " Give llama.cpp the whole prompt (`/completion` of its server)." if run.plain else ""
    stop = " Name the stop texts with each request (`stop`), or with `--reverse-prompt`." if run.stop_texts else ""
    parts = [f"A GGUF cannot hold {' or '.join(what)}.{raw}{stop}"] if what else []
    if beyond := stop_ids_of(run.model, run.tokenizer)[GGUF_STOPS:]:
        names = ", ".join(_code(run.tokenizer.decode([number])) for number in beyond)
        parts.append(f"It holds at most {GGUF_STOPS} stop ids, so completions do not end at {names} there.")
    return " ".join(parts)


def _stop_arguments(run: FinishedRun) -> str:
    """The arguments of `generate` for stop texts."""
    return f"`stop_strings={run.stop_texts!r}` and `tokenizer=tokenizer`"


def _rounded(run: FinishedRun) -> str:
    dtype = run.record.get("dtype", "float32")
    if dtype == "float32" or not (run.folder / ADAPTER).is_dir():
        return ""
    return f" The weights have the adapter in them, rounded to {dtype}; it was measured beside them."


def _adapted(run: FinishedRun) -> str:
    base = model_name(str(read_json(run.folder / ADAPTER / "adapter_config.json").get("base_model_name_or_path") or ""))
    return f"`{base}`" if base else "the model that it began from"


def _generate_peft(run: FinishedRun) -> str:
    stops, tokenizer = f", stop_strings={run.stop_texts!r}", " and `tokenizer=tokenizer`"
    if not run.stop_texts:
        stops = tokenizer = ""
    return (
        f"Give `generate` `generation_config=GenerationConfig.from_pretrained(FOLDER{stops})`{tokenizer}; it reads the base "
        "model's own sampling and stop ids otherwise."
    )


def _example(run: FinishedRun) -> str:
    """A program that asks the model one question with transformers, in the folder of its files."""
    messages = [{"role": "system", "content": run.instruction}] if run.instruction else []
    messages.append({"role": "user", "content": QUESTION})
    if not run.prompter.system_role:
        messages = fold_system(messages)
    if run.plain:
        asked = f"inputs = tokenizer({plain_text(messages)!r}, return_tensors='pt')"
    else:
        arguments = "".join(f", {key}={value!r}" for key, value in run.template_arguments.items())
        how = f"add_generation_prompt=True, return_dict=True, return_tensors='pt'{arguments}"
        asked = f"inputs = tokenizer.apply_chat_template({messages!r}, {how})"
    stops = f"stop_strings={run.stop_texts!r}, tokenizer=tokenizer, " if run.stop_texts else ""
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        "folder = '.'  # of this file, or the name of the model on the Hub",
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)",
        asked,
        f"output = model.generate(**inputs, {stops}max_new_tokens={run.settings.rollout.budget})",
        "completion = tokenizer.decode(output[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True)",
    ]
    if run.stop_texts:
        lines += [f"for stop in {run.stop_texts!r}:", "    completion = completion.split(stop)[0]"]
    lines.append("print(completion)")
    needs = "; `generate` needs the tokenizer for stop texts" if run.stop_texts else ""
    fence = "`" * (1 + max([2, *map(len, re.findall("`{3,}", asked))]))
    return f"With transformers{needs}:\n\n{fence}python\n" + "\n".join(lines) + f"\n{fence}"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _versions(run: FinishedRun) -> str:
    record: Mapping[str, Any] = run.record
    found = ", ".join(f"{name} {record[name]}" for name in VERSIONS if name in record)
    return f"## Versions\n\n{found}; {record.get('dtype', 'float32')}, seed {run.settings.seed}."
