"""A text that ends a completion is found at the token that completes it, however the completion is split into tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from slimrl.config.files import load_config
from slimrl.config.schema import EvalConfig, TrainConfig
from slimrl.display.run import Display
from slimrl.errors import SettingsError
from slimrl.model.stops import StopTexts, make_stop_texts, token_bytes
from slimrl.preflight.prompting import PLAIN_STOP, _stop_texts, prepare_model
from slimrl.preflight.setup import prepare
from slimrl.rollout import Request
from slimrl.runs.reader import read_metrics
from slimrl.train import train
from tests.conftest import ROOT, SHARED
from tests.tiny import tiny_policy

CPU = torch.device("cpu")
REAL = [SHARED / "tokenizers" / name for name in ("qwen2.5-0.5b-instruct", "smollm2-135m-instruct")]


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2 and Gemma have them: spaces are a character of their own, and unknown characters are bytes."""
    words = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"Question:ab.S,y125-3!",
        "Qu",
        "est",
        "\u2581a",
        "ion:",
    ]
    words = list(dict.fromkeys(words))
    vocabulary = {word: i for i, word in enumerate(words)}
    merges = [("Q", "u"), ("\u2581", "a")]
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def tokenizers() -> Iterator[Any]:
    yield pytest.param(lambda: AutoTokenizer.from_pretrained(ROOT / "slimrl" / "builtin"), id="built-in")
    yield pytest.param(sentencepiece, id="sentencepiece")
    for path in REAL:
        missing = pytest.mark.skipif(not path.is_dir(), reason="needs real tokenizers beside the project (shared/data)")
        yield pytest.param(lambda path=path: AutoTokenizer.from_pretrained(path), id=path.name, marks=missing)


def first_hit(stops: StopTexts, ids: list[int]) -> int:
    """Tokens up to the one at which the automaton has found a text; 0 for none."""
    state = 0
    for count, token in enumerate(ids, 1):
        state = int(stops.moves[state, token])
        if state == stops.found:
            return count
    return 0


@pytest.mark.parametrize("make", list(tokenizers()))
def test_it_is_found_at_the_first_token_with_which_it_is_in_the_text(make: Any) -> None:
    """In rows of tokens that spell parts of it in every way, against a search in the decoded text after every token."""
    tokenizer, texts = make(), ("\nQuestion:", "aab", "..", " b")
    stops = make_stop_texts(texts, tokenizer, vocabulary=len(tokenizer) + 3, form_ids=frozenset(), device=CPU)
    spelled = token_bytes(tokenizer)
    parts = [i for i, one in enumerate(spelled) if one and any(one in t.encode() for t in texts)]
    parts += [i for i, one in enumerate(spelled) if any(t.encode() in one for t in texts)][:20]
    draws, hits = np.random.default_rng(0), 0
    for _ in range(400):
        ids = draws.choice(parts, size=12).tolist()
        found = first_hit(stops, ids)
        read = [
            "a" + tokenizer.decode([*tokenizer.encode("a", add_special_tokens=False), *ids[:n]])[1:] for n in range(13)
        ]
        wanted = next((n for n, text in enumerate(read) if any(t in text[1:] for t in texts)), 0)
        assert found == wanted, ids
        hits += bool(found)
    assert 40 < hits < 400
    assert torch.equal(stops.moves[:, len(tokenizer) :], torch.arange(len(stops.moves))[:, None].expand(-1, 3))


@pytest.mark.parametrize("make", list(tokenizers()))
def test_the_bytes_of_tokens_are_those_of_the_text(make: Any) -> None:
    tokenizer = make()
    spelled = token_bytes(tokenizer)
    for text in ("Say: 12.5!", "\u00fcber 3\u00d74 = 12", "a  b\n\n c", "\U0001f600 \u4f60\u597d"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if tokenizer.unk_token_id not in ids or tokenizer.unk_token_id is None:
            assert b"".join(spelled[i] for i in ids).decode() == tokenizer.decode(ids)


def test_special_tokens_are_no_text_unless_they_belong_to_the_form() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "slimrl" / "builtin")
    special = next(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    text = tokenizer.added_tokens_decoder[special].content
    assert token_bytes(tokenizer)[special] == b""
    assert token_bytes(tokenizer, frozenset({special}))[special] == text.encode()


def test_the_text_is_cut_at_the_first() -> None:
    stops = StopTexts(("b", "cd"))
    assert [stops.cut(text) for text in ("acdb", "ab cd", "ac d", "", "b")] == ["a", "a", "ac d", "", ""]
    assert StopTexts().cut("abc") == "abc"


def test_tokens_that_are_no_bytes_are_refused() -> None:
    inner = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    words = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    with pytest.raises(SettingsError, match=r"rollout.stop needs a tokenizer whose tokens are strings of bytes"):
        make_stop_texts(["a"], words, vocabulary=3, form_ids=frozenset(), device=CPU)
    inner.decoder = decoders.Sequence([decoders.Metaspace(), decoders.Replace("b", "c")])
    with pytest.raises(SettingsError, match=r"decodes 'b' otherwise than token by token"):
        make_stop_texts(
            ["b"],
            PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"),
            vocabulary=3,
            form_ids=frozenset(),
            device=CPU,
        )


@pytest.mark.parametrize("slots", [3, 64])
def test_completions_end_at_the_text_and_do_not_have_it(slots: int) -> None:
    """With the draws that they would have had, whatever rows they are sampled with, and the finishing token trained on."""
    settings = [
        "rollout.max_new_tokens=40",
        f"rollout.slots={slots}",
        "evaluation.problems=4",
        "evaluation.harder_problems=0",
    ]
    free = prepare(load_config(TrainConfig, [], settings))
    bound = prepare(load_config(TrainConfig, [], [*settings, 'rollout.stop=["\\n####", "="]']))
    problems = free.held_out
    requests = free.requests(problems, stream="probe", step=0, samples=6, greedy=1)
    whole = [c for group in free.engine.generate(requests, max_new_tokens=40) for c in group]
    ended = [c for group in bound.engine.generate(requests, max_new_tokens=40) for c in group]
    stopped = 0
    for long, short in zip(whole, ended, strict=True):
        assert short.token_ids == long.token_ids[: len(short.token_ids)]
        text, cut = free.policy.decode(long.token_ids), bound.policy.decode(short.token_ids)
        assert cut == text.split("=")[0].split("\n####")[0]
        if cut != text:
            assert short.finish == "stop"
            assert any(stop in free.policy.decode(short.token_ids) for stop in ("\n####", "="))
            assert not any(stop in free.policy.decode(short.token_ids[:-1]) for stop in ("\n####", "="))
            stopped += 1
    assert stopped > len(ended) / 2


def test_a_plain_prompt_ends_where_the_next_question_begins(tmp_path: Path) -> None:
    plain = prepare(load_config(TrainConfig, [], ["task.template=plain"]))
    assert plain.policy.stop_texts.texts == (PLAIN_STOP,)
    assert prepare(load_config(TrainConfig, [], [])).policy.stop_texts.texts == ()
    assert (
        prepare(load_config(TrainConfig, [], ["task.template=plain", "rollout.stop=[]"])).policy.stop_texts.texts == ()
    )
    small = [
        f"output={tmp_path}",
        "steps=2",
        "evaluation.problems=4",
        "evaluation.harder_problems=0",
        "log.model=false",
    ]
    stop = ["name=a", "rollout.problems=4", 'rollout.stop=["\\n#### 1", "\\n#### 2"]', "rewards.gold_check=report"]
    train(load_config(TrainConfig, [], [*small, *stop]), Display(quiet=True))
    rows = read_metrics(tmp_path / "a")
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-4 for row in rows)
    assert all(row["completions/clipped_ratio"] < 0.5 for row in rows)


SPECIAL = "<|user|>"
FLAT = ("rollout.max_new_tokens=40", "rollout.temperature=50", "evaluation.problems=4", "evaluation.harder_problems=0")
"""Of all tokens each is drawn now and then."""


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_special_token_ends_completions_as_a_stop_token_does(template: str) -> None:
    """It is in no text of a completion, so it is found by its id."""
    settings = [*FLAT, f"task.template={template}"]
    free = prepare(load_config(TrainConfig, [], settings))
    bound = prepare(load_config(TrainConfig, [], [*settings, f'rollout.stop=["{SPECIAL}", "="]']))
    end = free.policy.tokenizer.convert_tokens_to_ids(SPECIAL)
    assert end not in free.policy.stop_ids
    assert end in bound.policy.stop_ids
    assert bound.policy.stop_texts.texts == ("=",)
    assert end in bound.policy.model.generation_config.eos_token_id
    requests = free.requests(free.held_out, stream="probe", step=0, samples=40, greedy=0)
    given = {"max_new_tokens": 40, "temperature": 50.0}
    whole = [c for group in free.engine.generate(requests, **given) for c in group]
    ended = [c for group in bound.engine.generate(requests, **given) for c in group]
    stopped = 0
    for long, short in zip(whole, ended, strict=True):
        assert short.token_ids == long.token_ids[: len(short.token_ids)]
        assert end not in short.token_ids[:-1]
        if short.token_ids[-1] == end:
            assert short.finish == "stop"
            assert bound.policy.decode(short.token_ids) == free.policy.decode(short.token_ids[:-1])
            assert bound.policy.read_back(long.token_ids) == bound.policy.decode(short.token_ids)
            stopped += 1
    assert stopped > 4


def test_a_special_token_that_ends_completions_is_trained(tmp_path: Path) -> None:
    settings = [f"output={tmp_path}", "name=a", "steps=2", "rollout.problems=4", f"rollout.stop=[{SPECIAL}]", *FLAT]
    train(load_config(TrainConfig, [], settings), Display(quiet=True))
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-4 for row in read_metrics(tmp_path / "a"))
    final = prepare(load_config(EvalConfig, [], [f"model.path={tmp_path}/a/final", *FLAT]))
    assert final.policy.tokenizer.convert_tokens_to_ids(SPECIAL) in final.policy.stop_ids


def test_settings_of_one_task_do_not_end_the_completions_of_the_next() -> None:
    """An evaluation loads the model once for all its tasks."""
    named, plain = (load_config(EvalConfig, [], more) for more in ([f"rollout.stop=[{SPECIAL}]"], []))
    policy, _, _ = prepare_model(named)
    assert prepare_model(plain, model=policy)[0].stop_ids == prepare_model(plain)[0].stop_ids


@pytest.mark.parametrize("text", [f"{SPECIAL}\n", f"so{SPECIAL}"])
def test_a_special_token_within_a_text_is_refused(text: str) -> None:
    with pytest.raises(
        SettingsError, match=r"rollout.stop: .* holds the special token '<\|user\|>', .*give the token alone"
    ):
        prepare_model(load_config(TrainConfig, [], [f"rollout.stop=[{json.dumps(text)}]"]))


def test_a_tokenizer_that_takes_no_stop_texts_has_none_unless_they_are_asked_for() -> None:
    inner = Tokenizer(models.WordLevel({"a": 0, "b": 5, "<unk>": 2}, unk_token="<unk>"))  # ids with gaps
    words = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    policy = replace(tiny_policy(), tokenizer=words)
    assert _stop_texts("auto", policy, plain=True).texts == ()
    with pytest.raises(SettingsError, match=r"rollout.stop needs a tokenizer"):
        _stop_texts(["a"], policy, plain=True)
    inner.decoder = decoders.Metaspace(prepend_scheme="never")
    assert len(token_bytes(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"))) == 6


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"rollout.stop holds an empty text"):
        load_config(TrainConfig, [], ['rollout.stop=["", "a"]'])


def test_requests_with_one_token_may_end_at_once() -> None:
    setup = prepare(
        load_config(
            TrainConfig, [], ["rollout.max_new_tokens=1", 'rollout.stop=["1", "2", "3", "4", "5", "6", "7", "8", "9"]']
        )
    )
    (group,) = setup.engine.generate(
        [Request(setup.prompt_ids(setup.held_out[0]), np.full((3, 1), 0.5))], max_new_tokens=1
    )
    assert {c.finish for c in group} == {"stop" if setup.policy.decode(group[0].token_ids) == "" else "length"}
