"""Judges against a server on this machine: slow, wrong, rate-limited, dead; every outcome counted and none paid by accident."""

from __future__ import annotations

import json
import socket
import sys
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from slimrl.config.files import load_config
from slimrl.config.judge import JudgeReward
from slimrl.config.rewards import RewardsConfig
from slimrl.config.schema import TrainConfig
from slimrl.errors import SettingsError
from slimrl.preflight.price import judge_notes
from slimrl.records import Completion, Group, Problem
from slimrl.rewards import JUDGED, Reward, judge, load_rewards
from slimrl.rewards.gold import check_gold
from slimrl.rewards.judge import Judge
from slimrl.rewards.judge_cache import JudgeCache
from slimrl.rewards.judge_endpoint import retry_after
from slimrl.rewards.outcomes import Outcome, Unscored
from slimrl.rewards.scoring import Sampled, score
from slimrl.rewards.workers import Scorer
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES
from tests.judges import Server, completion, serving

KEY = "sk-planted-judge-key-AaBbCc"
PROBLEM = Problem("p/1", "How many of 12, 13 and 18?", "18", "13 + 5 = 18", 1.0, {"tag": ["easy", 3], "note": None})
SECONDS = 60.0
"""So that what should not hang fails instead."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts are short, whatever a machine's proxy is."""
    monkeypatch.setattr(judge, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def config_of(endpoint: str, **more: Any) -> JudgeReward:
    given = {"model": "small", "prompt": "Q: {question} A: {completion}", "low": 0.0, "high": 10.0, "timeout": 30.0}
    return JudgeReward(**{"endpoint": endpoint, **given, **more})


def judge_of(endpoint: str, folder: Path, **more: Any) -> Judge:
    return Judge("quality", config_of(endpoint, **more), folder / "cache.jsonl")


def task() -> Task:
    return Task("test", (PROBLEM,), (), (), STYLES["hashes"], Grader("numeric"), "", {})


def sampled(texts: list[str], *, problem: Problem = PROBLEM, strict: bool = False) -> Sampled:
    done = [Completion((1,), (2, 3), (0.0, 0.0), "stop") for _ in texts]
    return Sampled(problem, done, texts, step=0, strict=strict)


def group_of(endpoint: str, folder: Path, texts: list[str], *, strict: bool = False, **more: Any) -> Group:
    made = judge_of(endpoint, folder, **more)
    reward = Reward("quality", made, 0.5, 0.0, 10.0)
    group = score(sampled(texts, strict=strict), [reward], task())
    made.close()
    return group


def only(group: Group) -> tuple[float, dict[str, float], str]:
    """Reward, scores and reason of a group's only completion."""
    (rollout,) = group.rollouts
    return rollout.reward, dict(rollout.scores), rollout.unscorable


def test_a_judge_is_asked_what_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda *_: "Thinking: score 1 is too low.\nScore: 7.5") as server:
        prompt = (
            "{prompt}|{question}|{answer}|{solution}|{completion}|{tag}|{note}|{difficulty}|{id}|{{word}}|{}|{0}|{ x }"
        )
        given = {"prompt": prompt, "temperature": 0.5, "max_tokens": 9, "api_key_env": "JUDGE_KEY"}
        group = group_of(server.endpoint, tmp_path, ["{answer} {completion} {0} {"], **given)
    assert only(group) == (3.75, {"quality": 7.5}, "")
    (request,) = server.asked
    asked = PROBLEM.question
    wanted = f'{asked}|{asked}|18|13 + 5 = 18|{{answer}} {{completion}} {{0}} {{|["easy", 3]||1.0|p/1|{{word}}|{{}}|{{0}}|{{ x }}'
    assert request == {
        "path": "/v1/chat/completions", "model": "small", "temperature": 0.5, "max_tokens": 9,
        "messages": [{"role": "user", "content": wanted}],
    }  # fmt: skip
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("http://h:1/v1", "http://h:1/v1/chat/completions"),
        ("http://h/v1/", "http://h/v1/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        ("https://h/x?api-version=2", "https://h/x/chat/completions?api-version=2"),
    ],
)
def test_addresses(endpoint: str, path: str, tmp_path: Path) -> None:
    assert judge_of(endpoint, tmp_path)._endpoint.address == path


WRONG: dict[str, tuple[Any, str, bool]] = {
    "no score": ("I like it.", "found no score in its judge's reply", True),
    "nothing": (completion(None), "got an empty reply from its judge", True),
    "cut off": (
        completion("The score is 10. Score: 1", "length"),
        "got a reply that its judge did not finish (length)",
        True,
    ),
    "above": ("Score: 11", "was given a score outside of 0 to 10 by its judge", True),
    "below": ("Score: -1", "was given a score outside of 0 to 10 by its judge", True),
    "too large": (f"Score: {'9' * 400}", "was given a score outside of 0 to 10 by its judge", True),
    "not JSON": (b"<html>Bad gateway</html>", "got no chat completion from its judge", True),
    "not UTF-8": (b"\xff\xfe", "got no chat completion from its judge", True),
    "other JSON": (b'{"choices": []}', "got no chat completion from its judge", True),
    "a list": (b"[1]", "got no chat completion from its judge", True),
    "deep": (b"[" * 100_000, "got no chat completion from its judge", True),
    "content of parts": (completion([{"text": "Score: 5"}]), "got no chat completion from its judge", True),
    "400": ((400, {}, b'{"error": "too long"}'), "was answered 400 Bad Request by its judge", True),
    "401": ((401, {}, f"no such key {KEY}".encode()), "was answered 401 Unauthorized by its judge", False),
    "404": ((404, {}, b""), "was answered 404 Not Found by its judge", False),
    "500": ((500, {}, b""), "was answered 500 Internal Server Error by its judge", True),
    "599": ((599, {}, b""), "was answered 599 by its judge", True),
    "redirect": ((302, {"Location": "http://127.0.0.1:9/steal"}, b""), "was answered 302 Found by its judge", False),
    "429": ((429, {"Retry-After": "0"}, b""), "was rate-limited by its judge (429)", True),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_judge_pays_nothing(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    reply, reason, excused = WRONG[what]
    with serving(lambda *_: reply) as server:
        given = {"retries": 2, "api_key_env": "JUDGE_KEY"}
        assert only(group_of(server.endpoint, tmp_path, ["a"], **given)) == (0.0, {}, f"reward quality {reason}")
        attempts = 3 if what in ("500", "599", "429", "nothing") or reason.startswith("got no chat") else 1
        assert len(server.asked) == attempts
        if excused:
            assert only(group_of(server.endpoint, tmp_path, ["a"], strict=True, **given))[2]
        else:
            with pytest.raises(SettingsError) as caught:
                group_of(server.endpoint, tmp_path, ["a"], strict=True, **given)
            assert str(caught.value).startswith(f"reward quality {reason}")
            assert KEY not in str(caught.value)


def test_what_passes_is_asked_again(tmp_path: Path) -> None:
    """A rate limit with and without a time, an error, a reply that is cut off."""
    bad: list[Any] = [(429, {}, b""), (429, {"Retry-After": "1"}, b""), (503, {"Retry-After": "soon"}, b""), b"{"]
    with serving(lambda _, before: bad[before] if before < len(bad) else "Score: 4") as server:
        assert only(group_of(server.endpoint, tmp_path, ["a"])) == (2.0, {"quality": 4.0}, "")
    assert len(server.asked) == 5


def test_a_wait_beyond_the_time_is_not_waited_for(tmp_path: Path) -> None:
    """Nor is it by other completions, none of which is asked for meanwhile."""
    with serving(lambda *_: (429, {"Retry-After": "3600"}, b"")) as server:
        group = group_of(server.endpoint, tmp_path, ["a", "b", "c"], timeout=5.0, concurrency=1)
    assert {r.unscorable for r in group.rollouts} == {"reward quality was rate-limited by its judge (429)"}
    assert len(server.asked) == 1


def test_dates_of_retry_after_are_read() -> None:
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0.0
    assert retry_after("Fri, 31 Dec 2199 23:59:59 GMT") > 1e9
    assert [retry_after(text) for text in ("7", "", "soon", "-3", "nan")] == [7.0, 0.0, 0.0, 0.0, 0.0]


def test_a_slow_judge_costs_its_own_completions(tmp_path: Path) -> None:
    def reply(text: str, _: int) -> str:
        if text.endswith("slow"):
            server.closing.wait(SECONDS)
        return "Score: 6"

    with serving(reply) as server:
        group = group_of(server.endpoint, tmp_path, ["a", "slow", "b"], timeout=1.0)
    late = "reward quality had no reply from its judge within rewards.judge.quality.timeout=1 s"
    assert [r.unscorable for r in group.rollouts] == ["", late, ""]
    assert [r.reward for r in group.rollouts] == [3.0, 0.0, 3.0]


def test_a_body_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    """A byte now and then keeps a socket's own time-out away."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        made = judge_of(endpoint, tmp_path, timeout=1.0)
        (future,) = made.ask({"completions": ["a"], "question": ["q"]})
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            for _ in range(int(SECONDS / 0.1)):
                if wait([future], 0.1).done:
                    break
                connection.sendall(b" ")
    found = future.result(SECONDS)
    assert isinstance(found, Unscored)
    assert found.reason.startswith("had no reply from its judge within")


def dead() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def test_a_dead_judge_is_refused_at_the_door_and_counted_later(tmp_path: Path) -> None:
    endpoint = dead()
    reason = f"reward quality cannot reach its judge at {endpoint}/chat/completions ("
    reward, scores, why = only(group_of(endpoint, tmp_path, ["#### 18"], retries=1))
    assert (reward, scores) == (0.0, {})
    assert why.startswith(reason)
    with pytest.raises(SettingsError) as caught:
        group_of(endpoint, tmp_path, ["a"], strict=True, retries=0)
    assert str(caught.value).startswith(reason)
    assert str(caught.value).endswith("; start the server, or correct rewards.judge.quality.endpoint")


def test_after_a_judge_died_others_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = judge_of(dead(), tmp_path, concurrency=1, retries=3)
    tried: list[bytes] = []
    attempt = made._endpoint.ask

    def counted(body: bytes, end: float) -> str:
        tried.append(body)
        return attempt(body, end)

    monkeypatch.setattr(made._endpoint, "ask", counted)
    assert all(isinstance(x, Unscored) for x in made(["a", "b", "c"], question=["q"] * 3))
    assert len(tried) == 4 + 1 + 1


def test_a_connection_that_breaks_is_tried_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = judge_of(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", tmp_path, retries=1)
        (future,) = made.ask({"completions": ["a"], "question": ["q"]})
        for _ in range(2):
            listening.accept()[0].close()
        found = future.result(SECONDS)
    assert isinstance(found, Unscored)
    assert found.excused


def test_no_question_is_asked_twice(tmp_path: Path) -> None:
    """Not within a group, not by another run, not after a crash in the middle of a line; and the file can be read."""
    texts = ["a", "a", "b", "a\u2211\ud800"[:2]]
    with serving(lambda text, _: f"Score: {len(text) % 10}") as server:
        first = group_of(server.endpoint, tmp_path, texts)
        assert len(server.asked) == 3
        rows = [json.loads(line) for line in (tmp_path / "cache.jsonl").read_text().splitlines()]
        assert {row["request"]["messages"][0]["content"] for row in rows} == {*server.texts()}
        assert {row["endpoint"] for row in rows} == {f"{server.endpoint}/chat/completions"}
        with (tmp_path / "cache.jsonl").open("ab") as file:
            file.write(b'{"key": "half a li')
        assert group_of(server.endpoint, tmp_path, texts) == first
        assert len(server.asked) == 3
        group_of(server.endpoint, tmp_path, ["new"])
        assert group_of(server.endpoint, tmp_path, ["new", *texts]).rollouts[1:] == first.rollouts
        assert len(server.asked) == 4
        group_of(server.endpoint, tmp_path, ["a"], temperature=1.0)
        group_of(server.endpoint, tmp_path, ["a"], model="other")
        assert len(server.asked) == 6, "another request is another question"
        assert only(group_of(server.endpoint, tmp_path, ["a"], pattern=r"(\d)\b(?=.*)"))[1] == first.rollouts[0].scores
        assert len(server.asked) == 6, "another pattern reads what is there"


def test_what_failed_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    with serving(lambda _, before: "Score: 3" if before else (400, {}, b"")) as server:
        assert only(group_of(server.endpoint, tmp_path, ["a"]))[2]
        assert only(group_of(server.endpoint, tmp_path, ["a"])) == (1.5, {"quality": 3.0}, "")


def test_a_cache_that_cannot_be_written_costs_calls_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "cache.jsonl").mkdir()
    with serving(lambda *_: "Score: 3") as server:
        for _ in range(2):
            assert only(group_of(server.endpoint, tmp_path, ["a"]))[0] == 1.5
    assert len(server.asked) == 2


def test_a_cache_that_disappears_costs_a_call_and_no_score(tmp_path: Path) -> None:
    with serving(lambda *_: "Score: 3") as server:
        made = judge_of(server.endpoint, tmp_path)
        assert made(["a"], question=["q"]) == made(["a"], question=["q"]) == [3.0]
        assert len(server.asked) == 1
        (tmp_path / "cache.jsonl").unlink()
        assert made(["a"], question=["q"]) == made(["a"], question=["q"]) == [3.0]
    assert len(server.asked) == 2, "the new reply is kept"


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    one, other = (JudgeCache(tmp_path / "cache.jsonl") for _ in range(2))
    one.keep("a", "http://h", {}, "first")
    assert other.find("a") == "first"
    one.keep("b", "http://h", {}, "second")
    other.keep("c", "http://h", {}, "third")
    assert (other.find("c"), one.find("b"), one.find("a")) == ("third", "second", "first")
    assert [JudgeCache(tmp_path / "cache.jsonl").find(key) for key in "abcd"] == ["first", "second", "third", None]


def test_the_key_is_needed_and_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(SettingsError, match=r"api_key_env=JUDGE_KEY: there is no such environment variable; export it"):
        judge_of("http://h", tmp_path, api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "two\nlines")
    with pytest.raises(SettingsError, match="has characters that no key has"):
        judge_of("http://h", tmp_path, api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda *_: (403, {}, f"{KEY} may not".encode())) as server:
        made = judge_of(server.endpoint, tmp_path, api_key_env="JUDGE_KEY")
        (found,) = made(["a"], question=["q"])
    assert isinstance(found, Unscored)
    assert (found.where, KEY in repr(made)) == ("*** may not", False)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"endpoint": "localhost:8000"}, "is no address; write it like http://localhost:8000/v1"),
        ({"endpoint": "file:///etc/passwd"}, "is no address"),
        ({"endpoint": "http://me:secret@h/v1"}, "put the key into the variable"),
        ({"prompt": ""}, "needs either prompt or prompt_file"),
        ({"prompt_file": "x.txt"}, "needs either prompt or prompt_file"),
        ({"low": 1.0, "high": 1.0}, "must be below high"),
        ({"pattern": "("}, "is no regular expression"),
        ({"pattern": r"\d+"}, "has 0 groups"),
    ],
)
def test_settings_that_make_no_judge(settings: dict[str, Any], what: str) -> None:
    given = {"endpoint": "http://h", "model": "m", "prompt": "{completion}", "low": 0.0, "high": 1.0, **settings}
    with pytest.raises(SettingsError, match=what) as caught:
        load_config(TrainConfig, [], [f"rewards.judge.q={json.dumps(given)}"])
    assert "secret" not in str(caught.value)


def test_doubled_braces_are_no_completion(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"the prompt does not hold \{completion\}"):
        judge_of("http://h", tmp_path, prompt="Rate {{completion}}")


def test_a_file_put_in_the_place_of_the_cache_answers_no_other_request(tmp_path: Path) -> None:
    file = tmp_path / "cache.jsonl"
    mine, other = JudgeCache(file), JudgeCache(file)
    mine.keep("k1", "a", {}, "Score: 1")
    file.unlink()
    other.keep("k2", "a", {}, "Score: 9")
    assert mine.find("k1") is None


def test_prompts_come_from_files_and_hold_the_completion(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    for text, what in (
        (None, "No such file"),
        (b"\xff", "it is not UTF-8 text"),
        (b"Rate it.", r"does not hold \{completion\}"),
    ):
        if text is not None:
            file.write_bytes(text)
        with pytest.raises(SettingsError, match=what):
            judge_of("http://h", tmp_path, prompt="", prompt_file=str(file))
    file.write_text("{completion} for {tgt}")
    with pytest.raises(SettingsError, match=r"has a prompt with \{tgt\}, and the row has answer, completion, .*"):
        group_of("http://h", tmp_path, ["a"], strict=True, prompt="", prompt_file=str(file))


CODE = """
def length(completions, **_):
    return [float(len(text)) for text in completions]
"""


def rewards_of(server: Server, folder: Path, **more: Any) -> RewardsConfig:
    (folder / "mine.py").write_text(CODE)
    judges = {"quality": config_of(server.endpoint, cache=str(folder / "cache.jsonl"))}
    return RewardsConfig.model_validate({"custom": {f"{folder}/mine.py:length": 1}, "judge": judges, **more})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_scorer_gives_the_groups_of_score(workers: int, tmp_path: Path) -> None:
    def reply(text: str, _: int) -> str:
        return "Score: 8" if "18" in text.partition("A:")[2] else "no idea"

    problems = [replace(PROBLEM, id=f"p/{i}", question=f"{i}?") for i in range(6)]
    with serving(reply) as server:
        config = rewards_of(server, tmp_path)
        rewards = load_rewards(config, task(), max_new_tokens=8)
        wanted = [score(sampled(["#### 18", "17", "18"], problem=p), rewards, task()) for p in problems]
        (tmp_path / "cache.jsonl").unlink()
        again = load_rewards(config, task(), max_new_tokens=8, elsewhere=workers > 0)
        with Scorer(task(), again, config, max_new_tokens=8, workers=workers) as scorer:
            futures = [scorer.submit(sampled(["#### 18", "17", "18"], problem=p)) for p in problems]
            assert [future.result(SECONDS) for future in futures] == wanted
    assert [r.scores for r in wanted[0].rollouts] == [
        {"correct": 1.0, "length": 7.0, "quality": 8.0}, {"correct": 0.0, "length": 2.0}, {"correct": 0.0, "length": 2.0, "quality": 8.0},
    ]  # fmt: skip
    assert wanted[0].rollouts[1].unscorable == "reward quality found no score in its judge's reply"


def test_judges_of_many_groups_are_asked_at_once(tmp_path: Path) -> None:
    """None is answered before all are there: one group after the other would never end."""
    groups = 5

    def reply(*_: object) -> str:
        for _ in range(int(SECONDS / 0.01)):
            if len(server.asked) == groups or server.closing.wait(0.01):
                return "Score: 5"
        raise AssertionError

    with serving(reply) as server:
        config = rewards_of(server, tmp_path, custom={})
        rewards = load_rewards(config, task(), max_new_tokens=8)
        with Scorer(task(), rewards, config, max_new_tokens=8) as scorer:
            futures = [scorer.submit(sampled([f"{i}"])) for i in range(groups)]
            assert [only(future.result(SECONDS))[1]["quality"] for future in futures] == [5.0] * groups


@pytest.mark.parametrize("workers", [0, 1])
def test_closing_does_not_wait_for_a_judge(workers: int, tmp_path: Path) -> None:
    with serving(lambda *_: str(server.closing.wait(SECONDS))) as server:
        config = rewards_of(server, tmp_path)
        rewards = load_rewards(config, task(), max_new_tokens=8, elsewhere=workers > 0)
        scorer = Scorer(task(), rewards, config, max_new_tokens=8, workers=workers)
        future = scorer.submit(sampled(["a"]))
        scorer.close()
        assert not server.closing.is_set()
        del future


def test_workers_hear_nothing_of_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is not asked for there, and the prompt's file need not be there."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda *_: "Score: 2") as server:
        config = rewards_of(server, tmp_path)
        judges = {"quality": config.judge["quality"].model_copy(update={"api_key_env": "JUDGE_KEY"})}
        config = config.model_copy(update={"judge": judges})
        rewards = load_rewards(config, task(), max_new_tokens=8, elsewhere=True)
        monkeypatch.delenv("JUDGE_KEY")
        with Scorer(task(), rewards, config, max_new_tokens=8, workers=1, show=sys.stderr.write) as scorer:
            assert only(scorer.submit(sampled(["#### 18"])).result(SECONDS))[1] == {
                "correct": 1.0,
                "length": 7.0,
                "quality": 2.0,
            }


def test_gold_answers_are_shown_to_a_judge_on_a_few_rows(tmp_path: Path) -> None:
    problems = [replace(PROBLEM, id=f"p/{i}", question=f"{i}?") for i in range(3 * JUDGED)]
    with serving(lambda text, _: "Score: 4" if text.startswith("Q: 0?") else "no idea") as server:
        config = rewards_of(server, tmp_path, custom={})
        rewards = load_rewards(config, task(), max_new_tokens=8)
        report = check_gold(task(), problems, rewards)
        assert len(server.asked) == JUDGED
        (trial,) = report.trials
        assert (trial.reward, trial.rows, trial.scores, report.failures, report.maximum) == (
            "quality",
            JUDGED,
            (4.0,),
            (),
            1.0,
        )
        with pytest.raises(
            SettingsError, match="quality found no score in its judge's reply, and so on all of 8 gold answers"
        ):
            check_gold(task(), problems[1:], rewards)


WAYS_OUT = {
    "no score": "; it wrote 'I like it.', ask for a last line like Score: 7 in rewards.judge.quality.prompt, or set its pattern",
    "cut off": "; raise rewards.judge.quality.max_tokens",
    "above": "; it wrote 'Score: 11', ask for this scale in rewards.judge.quality.prompt, or set its low and high",
    "not JSON": "; it sent '<html>Bad gateway</html>', correct rewards.judge.quality.endpoint, the base address of an "
    "OpenAI-compatible API (it often ends with /v1)",
    "404": "; correct endpoint, model or api_key_env of rewards.judge.quality",
    "429": "; lower rewards.judge.quality.concurrency, or raise its retries and timeout",
}


@pytest.mark.parametrize("what", WAYS_OUT)
def test_a_judge_that_scores_no_gold_answer_is_told_what_to_change(what: str, tmp_path: Path) -> None:
    problems = [replace(PROBLEM, id=f"p/{i}", question=f"{i}?") for i in range(2)]
    with serving(lambda *_: WRONG[what][0]) as server:
        config = rewards_of(server, tmp_path, custom={})
        with pytest.raises(SettingsError) as caught:
            check_gold(task(), problems, load_rewards(config, task(), max_new_tokens=8))
    assert str(caught.value).endswith(WAYS_OUT[what])


def test_the_name_of_a_built_in_reward_is_refused(tmp_path: Path) -> None:
    judges = {"correct": config_of("http://h", cache=str(tmp_path / "c"))}
    with pytest.raises(
        ValidationError, match=r"rewards\.judge\.correct has the name of the built-in reward correct; rename it"
    ):
        RewardsConfig(correct=0.0, judge=judges)


def test_the_price_is_said_in_calls() -> None:
    given = ["rewards.judge.q={endpoint: 'http://h', model: m, prompt: '{completion}', low: 0, high: 1}", "steps=10"]
    given += [
        "rollout.problems=4",
        "rollout.group_size=3",
        "evaluation.samples=2",
        "evaluation.greedy=true",
        "evaluation.every=4",
    ]
    (note,) = judge_notes(load_config(TrainConfig, [], given), 5)
    # evaluations after 0, 4, 8 and 10 steps of 5 problems, 3 completions each; 8 gold answers and 16 groups of 3
    assert note == (
        "judge q: at most 236 calls without retries, 10 steps of 12 completions, 60 held out and 56 before the first step; what the cache holds "
        "is not asked again"
    )
    refill = [*given, "algorithm.dynamic_sampling=refill", "algorithm.refill_budget=2.5"]
    assert "10 steps of 30 completions" in judge_notes(load_config(TrainConfig, [], refill), 5)[0]
    assert judge_notes(load_config(TrainConfig, [], []), 5) == []


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("Score: 7", 7.0),
        ("**Score:** 7/10", 7.0),
        ('{"score": 7.5}', 7.5),
        ("score = [[7]].", 7.0),
        ("Score: 3\nNo, wait.\nSCORE: **4**", 4.0),
        ("Score: -3", -3.0),
        ("Score (0-10): 7", None),
        ("The score is 7", None),
        ("Score: 1,000", None),
        ("Score: 8.5.1", None),
        ("Score: 8th", None),
        ("Scores: 7", None),
        ("Underscore: 7", None),
        ("7", None),
        ("Score: seven", None),
        ("Score: 3\nMaximum score: 10", None),
        ('{"score": 2, "maximum score": 10}', None),
        ('{"score": 2, "max_score": 10}', 2.0),
        ('Score: 2. The pupil himself claims "Score: 10".', None),
        ("Score: 10% of the steps are right", None),
        ("Score: 10 %", None),
        ("Score: 7/100", None),
        ("Score: 7 out of 100", None),
        ("Score: 3 or 9", None),
        ("Score: 0 to 10", None),
        ("Score: 3-9", None),
        ("Score: 3 \u2013 9", None),
        ("Score: 3, 9", None),
        ("Score: 3 Score: 9", None),
        ("Score: 7/10", 7.0),
        ("Score: 7/10.", 7.0),
        ("Score: 7 out of 10 points", 7.0),
        ("**Score:** 7", 7.0),
        ("Final score: 7", 7.0),
        ("Score: 7 - the working is clear", 7.0),
        ("Score: 7, since it is clear. In short, score: 7.0", 7.0),
        ("The maximum score: 10. A first thought: Score: 9%.\n\nScore: 7", 7.0),
        ('Score: 3 or 9, I first thought.\n```json\n{"score": 4}\n```', 4.0),
    ],
)
def test_the_default_pattern_reads_a_score_or_nothing(reply: str, found: float | None, tmp_path: Path) -> None:
    with serving(lambda *_: reply) as server:
        (outcome,) = judge_of(server.endpoint, tmp_path, low=-10.0)(["a"], question=["q"])
    assert (None if isinstance(outcome, Unscored) else outcome) == found


def outcomes(found: list[Outcome]) -> list[str]:
    return [x.reason if isinstance(x, Unscored) else str(x) for x in found]


def test_a_judge_that_ended_asks_nothing(tmp_path: Path) -> None:
    made = judge_of(dead(), tmp_path)
    made.close()
    assert outcomes(made(["a"], question=["q"])) == ["was not asked, since the run ended"]
