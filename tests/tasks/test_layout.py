"""Rows as people have them: which column holds what is found, said, and can be set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from slimrl.config.files import build, load_config
from slimrl.config.schema import RootConfig
from slimrl.config.task import TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.records import Problem, right_answers
from slimrl.tasks import Task, load_task
from slimrl.terms import Answers

INSTRUCTION = "End with #### and the answer."


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, object]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, object]:
    return {"role": "system", "content": text}


def task_of(folder: Path, rows: list[dict[str, Any]], *, answers: Answers = "needed", **settings: object) -> Task:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held_out = {**rows[0], "id": "held out"}
    for field, value in rows[0].items():
        text = json.dumps(value)
        held_out[field] = json.loads(text.replace("q1", "held out")) if "q1" in text else value
    (folder / "test.jsonl").write_text(json.dumps(held_out))
    paths = {"path": f"{folder}/rows.jsonl", "test_path": f"{folder}/test.jsonl"}
    return load_task(TaskConfig.model_validate(paths | settings), instruction=INSTRUCTION, seed=0, answers=answers)


def first(folder: Path, row: dict[str, Any], **settings: object) -> tuple[Problem, str]:
    """The problem of a row, and the note on its columns."""
    task = task_of(folder, [row], **settings)
    return task.train[0], task.notes[0].removesuffix(" (task.columns names other columns)") if task.notes else ""


SHAPES: dict[str, tuple[dict[str, Any], tuple[str, str, str], str]] = {
    "ours": ({"question": "q1", "answer": "7", "solution": "s"}, ("q1", "7", "s"), ""),
    "prompt": ({"prompt": "q1", "answer": "7"}, ("q1", "7", ""), "question from prompt, answer from answer"),
    "problem": ({"problem": "q1", "ground_truth": 7}, ("q1", "7", ""), "question from problem, answer from ground_truth"),
    "capitals": ({"Question": "q1", "Answer": "7"}, ("q1", "7", ""), "question from Question, answer from Answer"),
    "alpaca": ({"instruction": "q1", "input": "", "output": "7"}, ("q1", "7", ""), "question from instruction and input, answer from output"),
    "alpaca with input": ({"instruction": "q1", "input": "x = 7", "output": "7"}, ("q1\n\nx = 7", "7", ""), "question from instruction and input, answer from output"),
    "dolly": ({"instruction": "q1", "context": "c", "response": "7"}, ("q1\n\nc", "7", ""), "question from instruction and context, answer from response"),
    "messages": ({"messages": [user("q1"), assistant("7")]}, ("q1", "7", ""), "question from messages, answer from the assistant's last message"),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "7"}]}, ("q1", "7", ""),
        "question from conversations, answer from the assistant's last message",
    ),
    "messages with an answer": ({"messages": [user("q1"), assistant("s")], "answer": "7"}, ("q1", "7", "s"), "question from messages, answer from answer"),
    "trl": ({"prompt": [user("q1")], "solution": "7"}, ("q1", "7", ""), "question from prompt, answer from solution"),
    "trl completion": ({"prompt": [user("q1")], "completion": [assistant("7")]}, ("q1", "7", ""), "question from prompt, answer from completion"),
    "verl": (
        {"data_source": "x", "prompt": [user("q1")], "reward_model": {"style": "rule", "ground_truth": "7"}}, ("q1", "7", ""),
        "question from prompt, answer from reward_model.ground_truth",
    ),
    "numina": ({"problem": "q1", "solution": "so \\boxed{7}."}, ("q1", "7", "so \\boxed{7}."), "question from problem, answer from solution in its last box"),
    "gsm8k": ({"question": "q1", "answer": "3+4=<<3+4=7>>7\n#### 7"}, ("q1", "7", "3+4=7"), "question from question, answer from answer behind its last ####"),
    "deepscaler": ({"problem": "q1", "answer": "7", "solution": "s"}, ("q1", "7", "s"), "question from problem, answer from answer, solution from solution"),
    "parts": ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "q1"}]}], "answer": "7"}, ("q1", "7", ""), "question from prompt, answer from answer"),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_common_shapes_are_found_and_said(tmp_path: Path, shape: str) -> None:
    row, (question, answer, solution), note = SHAPES[shape]
    problem, said = first(tmp_path, row)
    assert (problem.question, problem.answer, problem.solution, problem.turns) == (question, answer, solution, ())
    assert said == (f"task.path: {note}" if note else "")


def test_rewards_get_every_column_that_has_not_our_name(tmp_path: Path) -> None:
    """A function that was written for the data finds its columns under their own names."""
    row = {"prompt": [user("q1")], "solution": "7", "id": "x", "difficulty": 2, "topic": {"n": 1}}
    problem, _ = first(tmp_path, row)
    assert (problem.id, problem.difficulty) == ("x", 2.0)
    assert problem.columns == {"prompt": [user("q1")], "solution": "7", "topic": {"n": 1}}


def test_names_can_be_set_and_reach_into_rows(tmp_path: Path) -> None:
    row = {
        "question": "no",
        "x": {"ask": ["q1"], "key": [7, "seven"], "level": 3.5},
        "cot": "because",
        "answer": "no",
        "uid": 5,
    }
    columns = {"question": "x.ask.0", "answer": "x.key", "solution": "cot", "id": "uid", "difficulty": "x.level"}
    problem, said = first(tmp_path, row, columns=columns)
    assert (problem.id, problem.question, problem.solution, problem.difficulty) == ("5", "q1", "because", 3.5)
    assert right_answers(problem.answer) == ("7", "seven")
    assert problem.columns["answer"] == "no"
    assert said == "task.path: question from x.ask.0, answer from x.key, solution from cot"


def test_none_leaves_a_column_alone(tmp_path: Path) -> None:
    row = {"question": "q1", "answer": "7", "solution": [1], "id": {}, "difficulty": "hard"}
    problem, _ = first(tmp_path, row, columns=dict.fromkeys(("solution", "id", "difficulty"), "none"))
    assert (problem.id, problem.solution, problem.difficulty) == ("jsonl/train/00000", "", 0.0)
    assert problem.columns == {"solution": [1], "id": {}, "difficulty": "hard"}


def test_a_name_that_no_row_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError,
        match=r"task\.columns\.solution=cto is in none of the rows \(the first has: answer, cot, question\)",
    ):
        first(tmp_path, {"question": "q1", "answer": "7", "cot": "s"}, columns={"solution": "cto"})
    with pytest.raises(SettingsError, match=r"task\.columns has no effect with task\.name=gsm8k"):
        build(RootConfig, {"task": {"name": "gsm8k", "columns": {"answer": "x"}}})
    with pytest.raises(SettingsError, match=r"task\.columns\.choices has no effect without task\.checker=choice"):
        build(RootConfig, {"task": {"path": "a.csv", "columns": {"choices": "x"}}})


def test_columns_are_set_on_the_command_line() -> None:
    config = load_config(RootConfig, [], ["task.path=a.csv", "task.columns.question=extra_info.question"])
    assert (config.task.name, config.task.columns.question) == ("jsonl", "extra_info.question")
    config = load_config(RootConfig, [], ["task.path=a.csv", "task.columns={question: q, answer: a}"])
    assert (config.task.columns.question, config.task.columns.answer) == ("q", "a")


def test_rows_are_read_by_one_layout(tmp_path: Path) -> None:
    """A row that lacks the column of the others is bad, though another name of it is there."""
    rows = [{"prompt": "q1", "answer": "7"}, {"question": "q2", "answer": "8"}, {"prompt": "q3", "ground_truth": "8"}]
    task = task_of(tmp_path, [*rows[::2], {"problem": "q4", "answer": "1"}], on_bad_row="skip")
    assert [problem.question for problem in task.train] == ["q1"]
    assert [bad.reason for bad in task.rejected] == [
        "the row has no field 'answer' (it has: ground_truth, prompt); add it, or rename the field that holds it",
        "the row has no field 'prompt', in which the others have the question; add it or remove the row",
    ]


def test_rows_of_no_known_shape_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"rows\.jsonl:1: the row has no field 'question' \(it has: text, x\); .*task\.columns\.question",
    ):
        first(tmp_path, {"text": "q1", "x": "7"})


def test_a_worked_solution_without_its_answer_is_a_bad_row(tmp_path: Path) -> None:
    for good, bad, what in [
        ({"problem": "q1", "solution": "\\boxed{7}"}, {"problem": "q2", "solution": "see above"}, "'solution' must"),
        ({"question": "q1", "answer": "s\n#### 7"}, {"question": "q2", "answer": "#### "}, "'answer' has no last line"),
    ]:
        task = task_of(
            tmp_path,
            [good] * 1 + [dict(good, **{next(iter(good)): f"q{i}"}) for i in range(3, 140)] + [bad],
            on_bad_row="skip",
        )
        (rejected,) = task.rejected
        assert rejected.where.endswith(":139")
        assert what in rejected.reason or "has no \\boxed{...}, which the others have" in rejected.reason


@pytest.mark.parametrize(
    ("good", "bad", "what"),
    [
        ({"answer": "s\n#### 7"}, {"answer": "s"}, "has no last line '#### number'"),
        ({"solution": "\\boxed{7}"}, {"solution": "s"}, "has no \\boxed{...}, which the others have"),
    ],
)
def test_a_row_that_differs_changes_no_other(
    tmp_path: Path, good: dict[str, str], bad: dict[str, str], what: str
) -> None:
    rows = [{"question": f"q1 {i}", **good} for i in range(150)]
    rows[4] |= bad
    task = task_of(tmp_path, rows, on_bad_row="skip")
    assert {problem.answer for problem in task.train} == {"7"}
    (rejected,) = task.rejected
    assert rejected.where.endswith("rows.jsonl:5")
    assert what in rejected.reason


# --- chat messages -----------------------------------------------------------------------------------------------------


def test_few_shot_prompts_keep_their_turns(tmp_path: Path) -> None:
    turns = [user("1+1?"), assistant("#### 2"), user("q1")]
    problem, _ = first(tmp_path, {"prompt": turns, "answer": "7"})
    assert problem.question == "q1"
    assert problem.turns == (("user", "1+1?"), ("assistant", "#### 2"), ("user", "q1"))
    task = task_of(tmp_path, [{"prompt": turns, "answer": "7"}])
    assert task.messages(task.train[0]) == [system(INSTRUCTION), *turns]


def test_a_system_message_of_the_data_stands_in_the_place_of_ours(tmp_path: Path) -> None:
    turns = [system("Be brief."), user("q1")]
    task = task_of(tmp_path, [{"prompt": turns, "answer": "7"}])
    assert task.messages(task.train[0]) == turns
    plain = task_of(tmp_path, [{"prompt": turns[1:], "answer": "7"}])
    assert plain.messages(plain.train[0]) == [system(INSTRUCTION), user("q1")]


def test_the_same_last_question_in_two_conversations_is_no_repeat(tmp_path: Path) -> None:
    rows = [{"prompt": [user(f"q{i}"), assistant("and?"), user("Go on.")], "answer": "7"} for i in (1, 2)]
    assert len(task_of(tmp_path, rows).train) == 2
    with pytest.raises(DataError, match="the question is also that of"):
        task_of(tmp_path, [rows[0], rows[0]])


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ([{"role": "tool", "content": "q1"}], "field 'prompt.0' has the role 'tool'; the roles are system, user and assistant"),
        ([user("q1"), system("s"), user("q")], "has a system message behind another message; put it first"),
        ([user("")], "the content of field 'prompt.0' must be text, but is empty"),
        ([user("q1"), {"role": "user", "content": None}], "field 'prompt.1' must be text, but is null"),
        ([user("q1"), {"role": "user", "content": [{"type": "image"}]}], "field 'prompt.1' must be text, but is a list"),
        ([system("q1")], "field 'prompt' has no question"),
        ([assistant("q1")], "field 'prompt' has no question"),
        (["q1"], "field 'prompt' must be a string, but is a list; write it as one text"),
    ],
)  # fmt: skip
def test_messages_that_are_no_prompt(tmp_path: Path, prompt: list[object], what: str) -> None:
    with pytest.raises(DataError) as caught:
        task_of(tmp_path, [{"prompt": prompt, "answer": "7"}])
    assert what in str(caught.value)


# --- answers -----------------------------------------------------------------------------------------------------------


def test_any_of_several_answers_is_right(tmp_path: Path) -> None:
    task = task_of(tmp_path, [{"question": "q1", "answers": ["seven", 7, "7"]}], checker="exact")
    (problem,) = task.train
    assert problem.answer == "seven"
    assert right_answers(problem.answer) == ("seven", "7")
    assert task.grade(task.gold_text(problem), problem.answer).strict
    assert task.grade("#### 7", problem.answer).strict
    assert not task.grade("#### 8", problem.answer).strict
    assert not task.grade("#### 7", "seven").strict


def test_a_boolean_is_yes_or_no(tmp_path: Path) -> None:
    task = task_of(tmp_path, [{"question": "q1", "answer": True}, {"question": "q2", "answer": False}], checker="exact")
    right, wrong = task.train
    assert (right.answer, wrong.answer) == ("yes", "no")
    for text, verdicts in {
        "Yes.": (True, False),
        "true": (True, False),
        "No": (False, True),
        "1": (False, False),
    }.items():
        assert tuple(task.grade(f"#### {text}", problem.answer).strict for problem in (right, wrong)) == verdicts


def test_rows_without_answers_load_where_none_is_needed(tmp_path: Path) -> None:
    row = {"prompt": "q1"}
    with pytest.raises(DataError, match="the row has no field 'answer'"):
        task_of(tmp_path, [row])
    for task in (
        task_of(tmp_path, [row], answers="all_or_none"),
        task_of(tmp_path, [row], answers="unneeded"),
        task_of(tmp_path, [row], checker="none"),
    ):
        (problem,) = task.train
        assert (problem.answer, task.earns(problem)) == ("", False)
        assert task.notes == (
            "task.path: question from prompt, no answers (task.columns names other columns)",
            "no held-out answer is checked, so accuracy is 0 whatever a model writes",
        )
        assert task.style.well_formed(task.gold_text(problem)), "other rewards look at its form"
        assert not task.grade("#### 1", problem.answer).strict
        assert not task.grade("#### ", problem.answer).lenient


def test_without_a_checker_rows_may_lack_the_answer_of_others(tmp_path: Path) -> None:
    rows = [{"question": "q1", "answer": "7"}, {"question": "q2"}, {"question": "q3", "answer": None}]
    task = task_of(tmp_path, rows, checker="none")
    assert [problem.answer for problem in task.train] == ["7", "", ""]
    assert not task.grade(task.gold_text(task.train[0]), "7").strict
    for answers in get_args(Answers)[:2]:
        with pytest.raises(DataError, match="no field 'answer'"):
            task_of(tmp_path, rows, answers=answers)


@pytest.mark.parametrize("checker", ["numeric", "choice"])
def test_rows_may_lack_the_answer_where_no_reward_needs_it(tmp_path: Path, checker: str) -> None:
    more = {"choices": ["red", "green"]} if checker == "choice" else {}
    for given in ("7", None) if not more else ("B", None):
        rows = [{"question": "q1", "answer": given}, {"question": "q2"}, {"question": "q3", "answer": None}]
        task = task_of(tmp_path, [row | more for row in rows], answers="unneeded", checker=checker)
        assert [problem.answer for problem in task.train] == [given or "", "", ""]


def test_a_pattern_that_is_none_is_a_bad_row(tmp_path: Path) -> None:
    rows = [
        {"question": "q1", "answer": "7|seven"},
        {"question": "q2", "answer": "(7"},
        {"question": "q3", "answer": ["7", ".*"]},
    ]
    task = task_of(tmp_path, rows, checker="regex", on_bad_row="skip")
    assert [problem.answer for problem in task.train] == ["7|seven"]
    first, second = (bad.reason for bad in task.rejected)
    assert "answer '(7' is no regular expression" in first
    assert "answer '.*' is a pattern that fits an empty answer too" in second


# --- options -----------------------------------------------------------------------------------------------------------

WRITTEN = "q1\nA. red\nB. green\nC. blue"
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a letter": ({"choices": ["red", "green", "blue"], "answer": "B"}, "B"),
    "an index": ({"choices": ["red", "green", "blue"], "answer": 1}, "B"),
    "the text": ({"options": ["red", "green", "blue"], "answer": "blue"}, "C"),
    "lettered texts": ({"options": ["A) red", "B) green", "C) blue"], "answer": "C"}, "C"),
    "lists": ({"choices": {"text": ["red", "green", "blue"], "label": ["1", "2", "3"]}, "answerKey": "1"}, "A"),
    "objects": ({"choices": [{"label": x, "text": t} for x, t in zip("abc", ("red", "green", "blue"), strict=True)], "answer": "b"}, "B"),
    "by letter": ({"options": {"A": "red", "B": "green", "C": "blue"}, "answer": "(C)"}, "C"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_written_below_the_question(tmp_path: Path, name: str) -> None:
    row, answer = OPTIONS[name]
    problem, said = first(tmp_path, {"question": "q1", **row}, checker="choice")
    assert (problem.question, problem.answer) == (WRITTEN, answer)
    assert "options from" in said


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (["2", "1", "0"], "2", "A"),
        (["1", "2", "3", "4"], "2", "B"),
        ([1, 2, 3, 4], 2, "B"),
        ([1, 2, 3, 4], "2", "B"),
        ([21, 22, 23], 22, "B"),
        (["21", "22", "23"], 22, "B"),
        (["21", "22", "23"], 2, "C"),
        (["2", "1", "0"], 1, "B"),
        ({"text": [1, 2, 3], "label": ["A", "B", "C"]}, 2, "B"),
        ({"text": ["2", "3", "1"], "label": ["1", "2", "3"]}, 2, "B"),
    ],
)
def test_numbers_among_options(tmp_path: Path, choices: object, answer: object, letter: str) -> None:
    row = {"question": "q1", "choices": choices, "answer": answer}
    assert first(tmp_path, row, checker="choice")[0].answer == letter


def test_a_number_that_is_an_option_and_the_index_of_another_is_refused(tmp_path: Path) -> None:
    row = {"question": "q1", "choices": ["1", "2", "3", "4"], "answer": 2}
    with pytest.raises(DataError, match="the answer 2 is an option and also the index of another; write"):
        first(tmp_path, row, checker="choice")


@pytest.mark.parametrize(
    ("answer", "letters"),
    [(["A", "C"], ("A", "C")), (["blue", "A"], ("C", "A")), ([0, 2], ("A", "C")), (["B", "green"], ("B",))],
)
def test_several_options_may_be_right(tmp_path: Path, answer: list[object], letters: tuple[str, ...]) -> None:
    row = {"question": "q1", "choices": ["red", "green", "blue"], "answer": answer}
    assert right_answers(first(tmp_path, row, checker="choice")[0].answer) == letters
    with pytest.raises(DataError, match="the answer 'D' is none of the 3 options"):
        first(tmp_path, row | {"answer": [*answer, "D"]}, checker="choice")


@pytest.mark.parametrize("choices", [["True", "False"], ["yes", "no"], ["maybe", "TRUE"]])
def test_a_boolean_finds_its_option(tmp_path: Path, choices: list[str]) -> None:
    row = {"question": "q1", "choices": choices, "answer": True}
    assert first(tmp_path, row, checker="choice")[0].answer == ("B" if "maybe" in choices else "A")
    with pytest.raises(DataError, match="is none of the 2 options"):
        first(tmp_path, row | {"choices": ["a", "b"]}, checker="choice")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"choices": ["red"], "answer": "A"}, "'choices' must be a list of 2 to 26 options"),
        ({"choices": "red, green", "answer": "A"}, "'choices' must be a list of 2 to 26 options"),
        ({"choices": ["red", ""], "answer": "A"}, "'choices' has an option that is no text"),
        ({"choices": ["red", "green"], "answer": "C"}, "the answer 'C' is none of the 2 options"),
        ({"choices": ["red", "green"], "answer": 2}, "the answer '2' is none of the 2 options"),
    ],
)
def test_options_that_are_none(tmp_path: Path, row: dict[str, object], what: str) -> None:
    with pytest.raises(DataError, match=what):
        first(tmp_path, {"question": "q1", **row}, checker="choice")


def test_equal_questions_with_other_options_are_two(tmp_path: Path) -> None:
    rows = [{"question": "q1: which is true?", "choices": [f"{i}", "x"], "answer": "A"} for i in range(3)]
    assert len(task_of(tmp_path, rows, checker="choice").train) == 3


def test_options_are_columns_like_others_for_other_checkers(tmp_path: Path) -> None:
    problem, said = first(tmp_path, {"question": "q1", "choices": ["6", "7"], "answer": "7"})
    assert (problem.question, problem.columns, said) == ("q1", {"choices": ["6", "7"]}, "")


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"question": "q1", "context": "A text to read.", "answer": "7"}, "context"),
        ({"question": "q1", "Passage": "A text to read.", "answer": True}, "Passage"),
        ({"prompt": "q1", "story": "A text to read.", "label": "7"}, "story"),
        ({"question": "q1", "context": "algebra", "answer": "7"}, ""),
        ({"question": "q1", "context": {"title": ["a b"]}, "answer": "7"}, ""),
        ({"input": "q1 is it", "answer": "7"}, ""),
        ({"instruction": "q1", "input": "x = 7 and more", "output": "7"}, ""),
    ],
)
def test_a_text_to_read_that_no_prompt_holds_is_named(row: dict[str, Any], unread: str, tmp_path: Path) -> None:
    names = {"columns": {"question": "input"}} if "input" in row and "instruction" not in row else {}
    said = "".join(task_of(tmp_path, [row], checker="exact", **names).notes)
    assert (f"; no prompt holds {unread}: write it into the question where it belongs there" in said) == bool(unread)
    assert ("no prompt holds" in said) == bool(unread)


def test_a_text_to_read_goes_before_the_question(tmp_path: Path) -> None:
    rows = [{"question": f"is q1{i} even", "passage": f"Of {i}.", "answer": i % 2 == 0} for i in range(3)]
    task = task_of(tmp_path, rows, checker="choice", columns={"context": "passage"})
    assert task.train[0].question == "Of 0.\n\nis q10 even\nA. yes\nB. no"
    assert "question from question and passage" in task.notes[0]
    assert "no prompt holds" not in task.notes[0]
    unread = task_of(tmp_path, rows, checker="choice", columns={"context": "none"})
    assert unread.train[0].question == "is q10 even\nA. yes\nB. no"
    assert "no prompt holds" not in unread.notes[0], "it is not wanted"
    alpaca = [{"instruction": f"Is q1{i} even?", "input": f"Of {i}.", "output": "yes"} for i in range(3)]
    assert task_of(tmp_path, alpaca, checker="exact").train[0].question == "Is q10 even?\n\nOf 0."
