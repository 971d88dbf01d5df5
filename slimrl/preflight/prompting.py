"""The model of a run with its prompts: the chat template and its date, the ends of completions, the instruction."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Literal

from slimrl.config.schema import RootConfig, TrainConfig
from slimrl.errors import SettingsError
from slimrl.model.loading import check_trainable, load_policy, lora_note, resolve, sampling_settings
from slimrl.model.policy import Policy
from slimrl.model.prompts import PLAIN_STOP, Prompter, make_prompter
from slimrl.model.stops import StopTexts, make_stop_texts, special_tokens
from slimrl.model.taught import Taught, note_taught, taught_of
from slimrl.model.teacher import load_teacher
from slimrl.model.templates import USER_TURN
from slimrl.tasks import chat_messages
from slimrl.tasks.styles import STYLES
from slimrl.terms import Checker
from slimrl.thinking import is_mark, opening


def demand_model(path: str) -> None:
    """Raises SettingsError for what is no model's folder, no run with one and no name that may be on the Hub; loads nothing."""
    resolve(path)


def prepare_model(
    config: RootConfig, *, training: bool = False, model: Policy | None = None
) -> tuple[Policy, Prompter, str]:
    """The policy (`model` where it is loaded already), its prompter, and the system message to use with it."""
    policy = load_policy(config.model, seed=config.seed) if model is None else model
    if training:
        check_trainable(policy, config.model)
        told = [] if policy.lora is None else [lora_note(policy, policy.lora)]
        policy = replace(policy, notes=(*told, *policy.notes))
    task, taught = config.task, taught_of(policy.model)
    chat = bool(policy.tokenizer.chat_template)
    template, arguments = taught.prompts_for(task.template, task.template_arguments, chat=chat)
    prompter = make_prompter(
        policy.tokenizer,
        template,
        arguments=arguments,
        now=datetime.now().replace(microsecond=0) if task.date == "auto" else datetime.fromisoformat(task.date),
        form=STYLES[task.style].render("", ""),
    )
    marks = {number for number, token in prompter.control.ids.items() if is_mark(token)}
    prompter = replace(prompter, form_ids=prompter.form_ids | marks)
    policy = _with_stops(config.rollout.stop, policy, prompter)
    # what is stored later says how it was trained and evaluated
    if training:
        asked = _asked(taught, policy, prompter, config.rollout.stop)
        note_taught(policy.model, replace(asked, arguments=dict(arguments)))
    policy.model.generation_config = sampling_settings(policy, temperature=config.rollout.temperature)
    instruction = config.task.instruction
    if instruction == "auto":
        instruction = instruction_for(policy, config.task.style, config.task.checker)
    begun = opening(prompter.text(chat_messages(instruction, USER_TURN["content"])))
    return replace(policy, opening=begun), prompter, instruction


def _with_stops(wanted: list[str] | Literal["auto"], policy: Policy, prompter: Prompter) -> Policy:
    """The policy whose completions end with the template's end of a turn and with `rollout.stop` too."""
    ends: set[int | None] = {*policy.model_stop_ids, prompter.turn_end}
    taught, plain = taught_of(policy.model), prompter.chat is None
    if wanted == "auto" and taught.stop is not None and taught.plain == plain:
        wanted = [*taught.stop]
    if wanted != "auto":  # a text that is one special token is that token, since no text of a completion has it
        special = {token: i for token, i in special_tokens(policy.tokenizer).items() if i < policy.head.vocabulary}
        ends |= {special[text] for text in wanted if text in special}
        wanted = [text for text in wanted if text not in special]
    ids = {i for i in ends if i is not None and i < policy.head.vocabulary}
    policy = replace(policy, form_ids=prompter.form_ids - ids, stop_ids=tuple(sorted(ids)))
    return replace(policy, stop_texts=_stop_texts(wanted, policy, plain=plain))


def _asked(taught: Taught, policy: Policy, prompter: Prompter, wanted: list[str] | Literal["auto"]) -> Taught:
    """The note on a model with the form of this run's prompts, and the texts that end its completions."""
    plain, texts = prompter.chat is None, policy.stop_texts.texts
    return replace(taught, plain=plain, stop=texts if plain or texts or wanted != "auto" else None)


def _stop_texts(wanted: list[str] | Literal["auto"], policy: Policy, *, plain: bool) -> StopTexts:
    """The texts of `rollout.stop`; under `auto` none where the tokenizer does not allow them."""
    texts = ([PLAIN_STOP] if plain else []) if wanted == "auto" else wanted
    form_ids, vocabulary = policy.form_ids, policy.head.vocabulary
    try:
        return make_stop_texts(texts, policy.tokenizer, vocabulary=vocabulary, form_ids=form_ids, device=policy.device)
    except SettingsError:
        if wanted == "auto":
            return StopTexts()
        raise


def instruction_for(policy: Policy, style: str, checker: Checker) -> str:
    """The system message that taught the model a form of answers, else the form's own."""
    taught = taught_of(policy.model).instruction_for(style)
    return STYLES[style].instruction_for(checker) if taught is None else taught


def with_teacher(config: RootConfig, policy: Policy) -> tuple[Policy, Policy | None]:
    """The teacher of `algorithm.reference`, where the settings have one, and the policy within its context."""
    if not isinstance(config, TrainConfig) or not config.algorithm.reference:
        return policy, None
    teacher = load_teacher(config.algorithm.reference, policy, name=config.model.path)
    return replace(policy, context=min(policy.context, teacher.context)), teacher
