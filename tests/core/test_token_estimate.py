"""The fallback estimator is an upper bound, and the fallback works with neither ranks nor network."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brix_core import token_estimate
from brix_core.token_estimate import estimate_tokens
from brix_core.token_ranks import _SPECS, EncodingName, _read, load_encoding

_BYTES = random.Random(7).randbytes(1_500)
SAMPLES = {
    "English": (
        "The committee met on Tuesday to discuss the proposal. After a long and at times heated debate, the "
        "members agreed that the budget should be revised before the end of the quarter, and that nobody's "
        'department would be spared. "It isn\'t what we hoped for," said the chairwoman, "but it\'s fair." '
    )
    * 4,
    "Python": Path(token_estimate.__file__).with_name("errors.py").read_text(encoding="utf-8"),
    "JSON": json.dumps([{"id": i, "name": f"item {i}", "price": i * 1.37, "tags": ["new", "sale"]} for i in range(50)]),
    "base64": base64.b64encode(_BYTES).decode(),
    "hex": _BYTES.hex(),
    "Chinese": "人工智能正在改变我们的生活和工作方式。请用中文回答以下问题，并说明理由。" * 8,  # noqa: RUF001
    "Japanese": "明日の会議は午後三時からです。資料を準備しておいてください。" * 8,
    "Russian": "Каждая несчастливая семья несчастлива по-своему, и никто не знает почему. " * 8,
    "Arabic": "الذكاء الاصطناعي يغير طريقة عملنا وحياتنا كل يوم. " * 8,
    "Thai": "ปัญญาประดิษฐ์กำลังเปลี่ยนแปลงชีวิตประจำวันของเรา " * 8,
    "Hindi": "कृत्रिम बुद्धिमत्ता हमारे जीवन को बदल रही है। " * 8,
    "emoji": "😀🎉👩‍👩‍👧‍👦🇩🇪🏳️‍🌈✨🚀❤️🤖" * 8,
}
NAMES: tuple[EncodingName, ...] = ("o200k_base", "cl100k_base")

# Characters that stress the cuts: contractions, slashes after newlines, digits of several scripts, cases.
_TRICKY = st.text(alphabet="'sSdLlVe aAbZ019٣\n\r\t/-(._é字🙂ก\u00a0\u200d\ud800", max_size=40)


def _true_count(text: str) -> int:
    counters = [load_encoding(name) for name in NAMES]
    return max(counter(text) for counter in counters if counter is not None)


@pytest.fixture(scope="module")
def ranks() -> list[set[bytes]]:
    files = [_read(_SPECS[name]) for name in NAMES]
    return [{base64.b64decode(line.split()[0]) for line in data.splitlines()} for data in files if data]


@pytest.mark.parametrize("kind", SAMPLES)
def test_estimate_is_a_bound_on_samples(kind: str) -> None:
    text = SAMPLES[kind]
    true = _true_count(text)

    assert true <= estimate_tokens(text) <= len(text.encode()) + 1
    assert estimate_tokens(text) <= 4.5 * true


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(), _TRICKY, st.text(alphabet=st.characters(max_codepoint=126))))
def test_estimate_is_a_bound_on_any_text(text: str) -> None:
    assert estimate_tokens(text) >= _true_count(text)


def test_estimate_is_a_bound_on_words_in_odd_company() -> None:
    draw = random.Random(11)
    parts = [*token_estimate._whole_words(), "é", "'", "s", " ", "(", "12", "字", "\n", "/", "A"]
    for _ in range(3_000):
        text = "".join(draw.choices(parts, k=draw.randint(1, 8)))
        assert estimate_tokens(text) >= _true_count(text), text


def test_estimate_is_a_bound_on_every_character() -> None:
    counters = [counter for counter in map(load_encoding, NAMES) if counter is not None]
    for code_point in [*range(0x3000), *range(0x3000, 0x20000, 7)]:
        char = chr(code_point)
        assert estimate_tokens(char) >= max(counter(char) for counter in counters), hex(code_point)


def test_table_of_pairs_holds_only_tokens_of_both_vocabularies(ranks: list[set[bytes]]) -> None:
    both = ranks[0] & ranks[1]
    printable = [bytes([code]) for code in range(32, 127)]
    assert token_estimate._ascii_pairs() == {
        (one + two).decode() for one, two in product(printable, printable) if one + two in both
    }
    _, lead, cont = token_estimate._pair_bits()
    rows = ((lead, range(0xC2, 0xF5)), (cont, range(0x80, 0xC0)))
    for bits, firsts in rows:
        pairs = [bytes(pair) for pair in product(firsts, range(0x80, 0xC0))]
        assert [bool(bits >> index & 1) for index in range(len(pairs))] == [pair in both for pair in pairs]


def test_premises_of_the_bound_hold_in_both_vocabularies(ranks: list[set[bytes]]) -> None:
    for vocabulary in ranks:
        assert all(
            "".join(digits).encode() in vocabulary for k in (1, 2, 3) for digits in product("0123456789", repeat=k)
        )
        assert all(b" " * width in vocabulary for width in range(1, 80))
        assert all(word.encode() in vocabulary for word in token_estimate._whole_words())
        joining = {bytes(pair) for pair in product(range(0x80, 0xC0), range(0xC2, 0xF5)) if bytes(pair) in vocabulary}
        assert joining <= set(token_estimate._JOINING_PAIRS)


_WITHOUT_RANKS = """
import importlib.util, json, os, socket, sys, warnings

def refuse(*args, **kwargs):
    raise AssertionError("network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
if sys.argv[1] == "no tiktoken":
    sys.modules["tiktoken"] = None
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "llama_index" else find_spec(name, *rest)

from brix_core.tokens import TokenEstimateWarning, tokenizer_for

texts = json.loads(sys.stdin.read())
environment = dict(os.environ)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = {}
    for model in ("gpt-4o", "gpt-4", "claude-sonnet-4-5"):
        tokenizer = tokenizer_for(model)
        result[model] = [tokenizer.exact, tokenizer.encoding, [tokenizer.count(text) for text in texts]]
assert os.environ == environment
print(json.dumps([result, [issubclass(item.category, TokenEstimateWarning) for item in caught]]))
"""


@pytest.mark.parametrize("missing", ["no ranks", "no tiktoken"])
def test_without_ranks_counts_are_bounds_and_one_warning_is_given(missing: str, tmp_path: Path) -> None:
    texts = list(SAMPLES.values())
    (tmp_path / _SPECS["o200k_base"].file).write_bytes(b"a corrupted download")
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_RANKS, missing],
        input=json.dumps(texts),
        env={
            **os.environ,
            "TIKTOKEN_CACHE_DIR": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "DATA_GYM_CACHE_DIR": "",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result, warned = json.loads(done.stdout)

    assert warned == [True]
    assert (tmp_path / _SPECS["o200k_base"].file).exists(), "a user's file is never deleted"
    for exact, encoding, counts in result.values():
        assert (exact, encoding) == (False, None)
        assert all(count >= _true_count(text) for count, text in zip(counts, texts, strict=True))
