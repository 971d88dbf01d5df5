"""Conversations: streamed text is the whole text, turns are kept and forgotten."""

from __future__ import annotations

import pytest

from slimrl.config.files import load_config
from slimrl.config.schema import RootConfig
from slimrl.errors import SettingsError
from slimrl.preflight.prompting import prepare_model
from slimrl.rollout.dialogue import Dialogue

QUESTION = "Ann has 4 cups and buys 5 more. How many cups does Ann have now?"


def dialogue(*settings: str, budget: int = 48, temperature: float = 0.0) -> Dialogue:
    policy, prompter, instruction = prepare_model(load_config(RootConfig, [], [*settings]))
    return Dialogue(policy, prompter, instruction, lambda _: budget, temperature)


def ask(talk: Dialogue, question: str) -> tuple[list[str], str]:
    pieces: list[str] = []
    remark = talk.ask(question, pieces.append)
    return pieces, remark


def test_a_reply_is_shown_piece_by_piece_and_kept() -> None:
    talk = dialogue()
    pieces, remark = ask(talk, QUESTION)
    assert ("".join(pieces), remark) == ("4+5=9\n#### 9", "")
    assert len(pieces) > 3
    assert talk.turns == [(QUESTION, "4+5=9\n#### 9")]
    first = talk._prompt("And now?")[0]
    assert len(first) > len(dialogue()._prompt("And now?")[0])
    talk.reset()
    assert talk._prompt("And now?")[0] == dialogue()._prompt("And now?")[0]


def test_a_stop_text_is_never_shown_not_even_its_beginning() -> None:
    talk = dialogue('rollout.stop=["\\n####"]')
    pieces, _ = ask(talk, QUESTION)
    assert "".join(pieces) == "4+5=9"


def test_a_reply_that_is_cut_off_says_so() -> None:
    pieces, remark = ask(dialogue(budget=3), QUESTION)
    assert remark == "cut off after 3 tokens"
    assert "".join(pieces)


def test_an_empty_reply_says_so() -> None:
    assert ask(dialogue('rollout.stop=["4"]'), QUESTION) == ([], "an empty reply")


def test_the_first_turns_go_where_the_context_ends_and_a_long_question_is_refused() -> None:
    talk = dialogue()
    talk.turns = [("x " * 60, "y"), ("x " * 60, "y"), ("x " * 60, "y"), ("x " * 60, "y")]
    _, remark = ask(talk, QUESTION)
    assert "turns no longer fit the context" in remark
    assert talk.turns[-1][0] == QUESTION
    kept = [*talk.turns]
    with pytest.raises(SettingsError, match="exceed the model's context of 512; shorten the question"):
        ask(talk, "x " * 600)
    assert talk.turns == kept


def test_draws_depend_on_the_turn_and_repeat() -> None:
    first, second = dialogue(temperature=3.0), dialogue(temperature=3.0)
    answers = ["".join(ask(talk, QUESTION)[0]) for talk in (first, second)]
    assert answers[0] == answers[1]
    first.reset()
    assert "".join(ask(first, QUESTION)[0]) != answers[0]
