"""Malformed JSON answers, made from a seed: what models really do to JSON, and the value each was meant to be.

Every case starts from a true value and goes through one to three mutations. A case whose value is gone for good (cut
off, a number that is none, two values at once) says so: `recoverable` is False, and accepting another value than the
true one is an error.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SCHEMA: dict[str, Any] = {
    "title": "Order",
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "quantity": {"type": "integer"},
        "price": {"type": "number"},
        "paid": {"type": "boolean"},
        "note": {"type": ["string", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {"type": "object", "properties": {"city": {"type": "string"}, "zip": {"type": "string"}}},
        "lines": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["name", "quantity"],
}
"""What every value of the corpus fits. Most fields are optional, so that a wrongly shortened value fits as well."""

_NAMES = (
    "Ada",
    "Søren",
    "O'Neil",
    "李雷",
    'Bob "the" Hat',
    "a // b",
    "x, y",
    "{braces}",
    "True",
    "https://a.b/c#d",
    "",
)
_NOTES = (
    "urgent",
    "use ```json fences```",
    "see <think> tags",
    "two\nlines",
    "a: b, c",
    "[1, 2,]",
    "back\\slash",
    "it's",
    "# no comment",
    "NaN",
    "1,000",
    "“quoted”",
)


@dataclass(frozen=True)
class Malformed:
    """One answer.

    Attributes:
        text: What the model wrote.
        truth: The value it meant.
        recoverable: Whether the text still says so beyond doubt.
        kinds: The mutations, in order.
    """

    text: str
    truth: Any
    recoverable: bool
    kinds: tuple[str, ...]


@dataclass
class _Draft:
    truth: dict[str, Any]
    text: str
    recoverable: bool = True


def _value(rng: random.Random) -> dict[str, Any]:
    value: dict[str, Any] = {"name": rng.choice(_NAMES), "quantity": rng.randint(0, 5000)}
    optional: dict[str, Callable[[], Any]] = {
        "price": lambda: round(rng.uniform(0, 900), 2),
        "paid": lambda: rng.random() < 0.5,
        "note": lambda: rng.choice((*_NOTES, None)),
        "tags": lambda: [rng.choice(_NAMES) for _ in range(rng.randint(0, 3))],
        "address": lambda: {"city": rng.choice(_NAMES), "zip": str(rng.randint(10000, 99999))},
        "lines": lambda: [{"sku": rng.choice(_NAMES), "n": rng.randint(1, 9)} for _ in range(rng.randint(1, 3))],
    }
    for key, make in optional.items():
        if rng.random() < 0.6:
            value[key] = make()
    return value


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def _outside(text: str, change: Callable[[str], str]) -> str:
    """Change what stands between the strings."""
    parts, at = [], 0
    for match in _STRING.finditer(text):
        parts += [change(text[at : match.start()]), match.group()]
        at = match.end()
    return "".join([*parts, change(text[at:])])


def _dumps(value: Any, rng: random.Random) -> str:
    return json.dumps(value, ensure_ascii=rng.random() < 0.3, indent=rng.choice((None, 2)))


def _trailing_commas(draft: _Draft, rng: random.Random) -> None:
    draft.text = _outside(draft.text, lambda part: re.sub(r"(?<![\[{\s])(\s*[}\]])", r",\1", part))
    if not draft.text.rstrip().endswith(",}"):
        draft.text = re.sub(r",*(\s*})$", r",\1", draft.text)


def _python(draft: _Draft, rng: random.Random) -> None:
    draft.text = repr(draft.truth)


def _python_words(draft: _Draft, rng: random.Random) -> None:
    words = {"true": "True", "false": "False", "null": "None"}
    draft.text = _outside(draft.text, lambda part: re.sub("true|false|null", lambda m: words[m.group()], part))


def _comments(draft: _Draft, rng: random.Random) -> None:
    comment = rng.choice(("// the order\n", "/* the order */ ", "# the order\n"))
    draft.text = _outside(draft.text, lambda part: part.replace("{", "{ " + comment, 1) if "{" in part else part)


def _bare_keys(draft: _Draft, rng: random.Random) -> None:
    draft.text = re.sub(r'(?<=[{,\s])"(name|quantity|price|paid|note|tags|address|lines)":', r"\1:", draft.text)


def _missing_commas(draft: _Draft, rng: random.Random) -> None:
    draft.text = re.sub(r",\n(?=  \")", "\n", json.dumps(draft.truth, indent=2))


def _smart_quotes(draft: _Draft, rng: random.Random) -> None:
    def curl(value: Any) -> str:
        if isinstance(value, str):
            return "“" + json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"') + "”"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{curl(key)}: {curl(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(curl, value)) + "]"
        return json.dumps(value)

    draft.text = curl(draft.truth)
    if "”" in json.dumps(draft.truth, ensure_ascii=False):
        draft.recoverable = False


def _inner_quotes(draft: _Draft, rng: random.Random) -> None:
    draft.truth["note"] = 'he said "yes" to me'
    draft.text = _dumps(draft.truth, rng).replace('he said \\"yes\\" to me', 'he said "yes" to me')


def _line_ends(draft: _Draft, rng: random.Random) -> None:
    draft.truth["note"] = "first line\nsecond line"
    draft.text = _dumps(draft.truth, rng).replace("first line\\nsecond", "first line\nsecond")


def _last_brace(draft: _Draft, rng: random.Random) -> None:
    draft.truth = {
        **draft.truth,
        "price": 1.5,
        "paid": True,
        "note": None,
        "tags": ["x"],
        "lines": [{"n": 1}],
        "address": {"city": "Oslo", "zip": "1"},
    }
    draft.text = _dumps(draft.truth, rng).rstrip()[:-1].rstrip()


def _cut(draft: _Draft, rng: random.Random) -> None:
    draft.text = draft.text[: rng.randint(1, max(1, len(draft.text.rstrip()) - 2))]
    draft.recoverable = False


def _nan(draft: _Draft, rng: random.Random) -> None:
    draft.truth["price"] = 1.5
    draft.text = _dumps(draft.truth, rng).replace('"price": 1.5', '"price": ' + rng.choice(("NaN", "Infinity")))
    draft.recoverable = False


def _thousands(draft: _Draft, rng: random.Random) -> None:
    draft.truth["quantity"] = 12345
    draft.text = _dumps(draft.truth, rng).replace("12345", "12,345")
    draft.recoverable = False


def _ellipsis(draft: _Draft, rng: random.Random) -> None:
    draft.truth["tags"] = ["a", "b", "c"]
    draft.text = json.dumps(draft.truth).replace('"b", "c"]', rng.choice(("...]", "// ... more\n]")))
    draft.recoverable = False


def _two_values(draft: _Draft, rng: random.Random) -> None:
    other = {**draft.truth, "quantity": draft.truth["quantity"] + 1}
    draft.text = draft.text + rng.choice(("\n", ", ", "")) + json.dumps(other)
    draft.recoverable = False


def _extra_brace(draft: _Draft, rng: random.Random) -> None:
    draft.truth = {"name": "Ada", "quantity": 3, "address": {"city": "Oslo", "zip": "1"}, "note": "last"}
    draft.text = json.dumps(draft.truth).replace('"zip": "1"}', '"zip": "1"}}')
    draft.recoverable = False


def _fence(draft: _Draft, rng: random.Random) -> None:
    mark = rng.choice(("```json", "```", "~~~", "```JSON", "```python"))
    end = rng.choice((mark[:3], mark[:3], ""))
    draft.text = f"{mark}\n{draft.text}\n{end}"


def _nested_fence(draft: _Draft, rng: random.Random) -> None:
    draft.text = f"````markdown\nThe order:\n```json\n{draft.text}\n```\n````"


def _prose(draft: _Draft, rng: random.Random) -> None:
    before = rng.choice(("Here is the order you asked for:", "Sure! I used {name} and [1] for it.", "Answer:"))
    after = rng.choice(("Let me know if it helps.", "Sources: [1], [2]", "Note: {braces} are mine.", ""))
    draft.text = f"{before}\n{draft.text}\n\n{after}"


def _think(draft: _Draft, rng: random.Random) -> None:
    tag = rng.choice(("think", "thinking", "reasoning"))
    opening = rng.choice((f"<{tag}>", f"<{tag}>", ""))
    draft.text = f'{opening}Perhaps {{"name": "draft", "quantity": 0}}? No.</{tag}>\n{draft.text}'


def _drafts(draft: _Draft, rng: random.Random) -> None:
    first = {**draft.truth, "quantity": draft.truth["quantity"] + 7}
    wait = rng.choice(("Wait, the quantity is wrong. Corrected:", "Let me fix that:"))
    draft.text = f"{json.dumps(first)}\n\n{wait}\n\n{draft.text}"


# What writes the value anew, what changes its text, what makes it irrecoverable, what goes round it.
_WRITERS = (_python, _missing_commas, _smart_quotes, _inner_quotes, _line_ends, _last_brace)
_EDITS = (_trailing_commas, _python_words, _comments, _bare_keys)
_LOSSES = (_cut, _nan, _thousands, _ellipsis, _two_values, _extra_brace)
_WRAPPINGS = (_fence, _nested_fence, _prose, _think, _drafts)


def malformed_answers(count: int = 300, seed: int = 20250) -> list[Malformed]:
    """`count` answers; the same for the same seed."""
    rng = random.Random(seed)
    return [_one(rng) for _ in range(count)]


def _one(rng: random.Random) -> Malformed:
    truth = _value(rng)
    draft = _Draft(truth, _dumps(truth, rng))
    steps: list[Callable[[_Draft, random.Random], None]] = []
    kind = rng.random()
    if kind < 0.2:
        steps.append(rng.choice(_LOSSES))
    elif kind < 0.5:
        steps.append(rng.choice(_WRITERS))
    else:
        steps += rng.sample(_EDITS, rng.randint(0, 2))
    steps += rng.sample(_WRAPPINGS, rng.randint(0 if steps else 1, 2))
    for step in steps:
        step(draft, rng)
    return Malformed(draft.text, draft.truth, draft.recoverable, tuple(step.__name__.strip("_") for step in steps))


__all__ = ["SCHEMA", "Malformed", "malformed_answers"]
