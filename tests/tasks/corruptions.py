"""What happens to data files: each function takes the lines of a good one and returns the bytes of a broken one."""

from __future__ import annotations

import random
from collections.abc import Callable

HELD_OUT = "Which one is held out?"
Corruption = Callable[[random.Random, list[bytes]], bytes]
KINDS: dict[str, tuple[str, Corruption]] = {}
"""name -> (whether it leaves bad rows: some, none, or any number; what it does to the lines of a good file)"""


def kind(outcome: str) -> Callable[[Corruption], Corruption]:
    def add(function: Corruption) -> Corruption:
        KINDS[function.__name__] = (outcome, function)
        return function

    return add


def whole(lines: list[bytes]) -> bytes:
    return b"\n".join(lines) + b"\n"


def array(lines: list[bytes]) -> bytes:
    return b"[\n" + b",\n".join(lines) + b"\n]\n"


def put(rng: random.Random, lines: list[bytes], *more: bytes) -> list[bytes]:
    place = rng.randrange(len(lines) + 1)
    return [*lines[:place], *more, *lines[place:]]


def flipped(rng: random.Random, data: bytes, bits: int) -> bytes:
    changed = bytearray(data)
    for _ in range(bits):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def spoil(rng: random.Random) -> bytes:
    """A row that is JSON, of objects and arrays that end, and still no row."""
    number = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "9" * 5000, "9" * 400 + ".0"])
    other = rng.choice(["null", "true", "[]", "{}", '[["7"]]', '"  "', '""'])
    return rng.choice(
        [
            f'{{"question": "n?", "answer": {number}}}',
            f'{{"question": "n?", "answer": "1", "tag": [{{"deep": {number}}}]}}',
            f'{{"question": {rng.choice([other, "5"])}, "answer": "1"}}',
            f'{{"question": "n?", "answer": {other}}}',
            '{"question": "n?", "answer": "1", "difficulty": "hard"}',
            f'{{"question": "n?", "answer": "1", "difficulty": {"9" * 400}}}',
            '{"question": "n?", "answer": "1", "solution": 5}',
            '{"question": "n?", "answer": "1", "completions": []}',
            '{"question": "n?", "answer": "1", "answer": "2"}',
            '{"question": "n?", "answer": "1", "tag": {"a": 1, "\\u0061": 2}}',
            '{"question": "n?", "answer": "\\ud83d"}',
            rng.choice(['{"question": "n?"}', '{"answer": "1"}', "{}", '{"q\\n\\u001b[2J": "n?"}']),
            rng.choice(['["question", "answer"]', '"question"', "3", "null", "true"]),
            f'{{"question": "{HELD_OUT.upper()}", "answer": "1"}}',
        ]
    ).encode()


@kind("any")
def cut_short(rng: random.Random, lines: list[bytes]) -> bytes:
    return whole(lines)[: rng.randrange(len(whole(lines)))]


@kind("any")
def array_cut_short(rng: random.Random, lines: list[bytes]) -> bytes:
    return array(lines)[: rng.randrange(len(array(lines)))]


@kind("any")
def bits(rng: random.Random, lines: list[bytes]) -> bytes:
    return flipped(rng, whole(lines), rng.choice([1, 1, 2, 30]))


@kind("any")
def bytes_lost_and_gained(rng: random.Random, lines: list[bytes]) -> bytes:
    data = whole(lines)
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.randrange(4)) + data[place + rng.randrange(40) :]


@kind("none")
def byte_order_mark_crlf_and_blank_lines(rng: random.Random, lines: list[bytes]) -> bytes:
    blank = rng.choice([b"", b" \t", "\u2028".encode(), b"\r"])
    return b"\xef\xbb\xbf" + b"\r\n".join(put(rng, lines, blank, blank))


@kind("some")
def byte_order_mark_in_the_middle(rng: random.Random, lines: list[bytes]) -> bytes:
    return whole([lines[0], *put(rng, lines[1:], b"\xef\xbb\xbf" + spoil(rng))])


@kind("some")
def nul_bytes(rng: random.Random, lines: list[bytes]) -> bytes:
    broken = bytearray(rng.choice(lines).replace(b"Wie", b"Wer"))
    place = rng.randrange(1, len(broken))
    broken[place:] = bytes(rng.randrange(1, 2000))
    return whole([lines[0], *put(rng, lines[1:], bytes(broken))])


@kind("some")
def not_utf8(rng: random.Random, lines: list[bytes]) -> bytes:
    foreign = rng.choice([b"\xe9", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xe2\x82", b"\xf4\x90\x80\x80"])
    return whole(put(rng, lines, b'{"question": "caf' + foreign + b'", "answer": "1"}'))


@kind("some")
def another_encoding(rng: random.Random, lines: list[bytes]) -> bytes:
    return whole(lines).decode().encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1"]), "replace")


@kind("some")
def spoilt_rows(rng: random.Random, lines: list[bytes]) -> bytes:
    return whole([lines[0], *put(rng, lines[1:], *(spoil(rng) for _ in range(rng.randrange(1, 9))))])


@kind("some")
def spoilt_elements(rng: random.Random, lines: list[bytes]) -> bytes:
    return array(put(rng, lines, *(spoil(rng) for _ in range(rng.randrange(1, 9)))))


@kind("none")
def sound_array(rng: random.Random, lines: list[bytes]) -> bytes:
    rng.shuffle(lines)
    return rng.choice([b"", b"\xef\xbb\xbf", b"\n \n"]) + array(lines)


@kind("any")
def array_out_of_shape(rng: random.Random, lines: list[bytes]) -> bytes:
    data = array(lines)
    place = rng.choice([i for i in range(len(data)) if data[i : i + 1] in b"[]{},:\n"])
    return data[:place] + rng.choice([b"", b"[", b"]", b",", b"}", b"\xff", b"\0"]) + data[place + 1 :]


@kind("some")
def array_with_more_behind(rng: random.Random, lines: list[bytes]) -> bytes:
    return array(lines[1:]) + rng.choice([b"]", b",", b"[]", b"x", lines[0]])


@kind("some")
def array_without_utf8(rng: random.Random, lines: list[bytes]) -> bytes:
    return array(put(rng, lines, b'{"question": "\xff", "answer": "1"}'))


@kind("none")
def lines_swapped(rng: random.Random, lines: list[bytes]) -> bytes:
    rng.shuffle(lines)
    return whole(lines)


@kind("some")
def question_again(rng: random.Random, lines: list[bytes]) -> bytes:
    again = rng.choice(lines)
    for change in rng.sample([(b"Wie", b"WIE"), (b"? ", b"?  \\n")], rng.randrange(3)):
        again = again.replace(*change)
    return whole(put(rng, lines, again))


@kind("some")
def id_again(rng: random.Random, lines: list[bytes]) -> bytes:
    twins = [
        f'{{"question": "{q}", "answer": "1", "id": {i}}}'.encode() for q, i in (("a", '"7"'), ("b", "7"), ("c", "8"))
    ]
    return whole([*put(rng, lines, *twins), b'{"question": "d", "answer": "1", "id": "jsonl/train/00000"}'])


@kind("some")
def lines_joined(rng: random.Random, lines: list[bytes]) -> bytes:
    place = rng.randrange(1, len(lines))
    glue = rng.choice([b"", b" ", b"\t", b",", "\u2028".encode()])
    return whole([*lines[: place - 1], lines[place - 1] + glue + lines[place], *lines[place + 1 :]])


@kind("some")
def line_split(rng: random.Random, lines: list[bytes]) -> bytes:
    place, at = rng.randrange(len(lines)), rng.randrange(1, 40)
    return whole([*lines[:place], lines[place][:at], lines[place][at:], *lines[place + 1 :]])


@kind("some")
def too_deep(rng: random.Random, lines: list[bytes]) -> bytes:
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    deep = rng.choice([2_000, 100_000])
    tail = rng.choice([b"", b"1" + closing * deep + b"}"])
    return whole(put(rng, lines, b'{"question": "n?", "answer": "1", "tag": ' + opening * deep + tail))


def many(rng: random.Random) -> str:
    """Fields of more than a megabyte."""
    filler = rng.choice(["x" * 6, "\\u0000", "é" * 3, "\u2028" * 2, "«\\\\»"]) * 200_000
    return ", ".join([f'"k": "{filler}"', *(f'"k{i}": {i}' for i in range(5000))])


@kind("none")
def megabyte(rng: random.Random, lines: list[bytes]) -> bytes:
    return whole(put(rng, lines, f'{{"question": "n?", "answer": "{"7" * 4000}", {many(rng)}}}'.encode()))


@kind("some")
def broken_megabyte(rng: random.Random, lines: list[bytes]) -> bytes:
    end = rng.choice([", ", "", ', "k4999": 1}', "} {}", ', "question": ""}', f', "{"k" * 300_000}": NaN}}', "\0}"])
    return whole(put(rng, lines, f'{{"question": "n?", {many(rng)}{end}'.encode()))


@kind("none")
def long_integers(rng: random.Random, lines: list[bytes]) -> bytes:
    digits = "-" * rng.randrange(2) + "9" * rng.choice([19, 20, 309, 310, 4300])
    return whole(put(rng, lines, f'{{"question": "n?", "answer": {digits}, "tag": [{digits}]}}'.encode()))


@kind("some")
def nothing_but_bad_rows(rng: random.Random, lines: list[bytes]) -> bytes:
    first = b'{"question": "n?"}'
    return whole([first, *(spoil(rng) for _ in range(len(lines)))])
