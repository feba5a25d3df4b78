"""Tokens of whole prompts: messages, images, files, tool calls and tool schemas in OpenAI's format.

Text follows OpenAI's cookbook ("How to count tokens with tiktoken"): 3 tokens a message, the role, the
contents, 1 more with a name, and 3 that prime the reply. What has no published formula is counted at
its upper bound, because budgets and context limits rely on these figures: never too few.

Nothing raises here: an odd value (bytes, a cyclic dict, an object) is counted as the text it would
become. Import these names from `brix_core.tokens`.

Example:
    >>> from brix_core.tokens import tokenizer_for
    >>> tokenizer = tokenizer_for("gpt-4o")
    >>> count_messages([{"role": "user", "content": "hello world"}], tokenizer)
    9
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from brix_core.tokens import Tokenizer

TOKENS_PER_MESSAGE = 3
TOKENS_PER_NAME = 1
REPLY_PRIMING = 3
"""Every reply is primed with ``<|start|>assistant<|message|>``."""

TOKENS_PER_TOOL_CALL = 12
"""Framing of one tool call; its identifier is added at one token a character (their true bound)."""
TOKENS_PER_TOOL = 12
"""Framing of one tool schema: the cookbook's figures are 7 + 12 less what the JSON braces already cost."""
TOKENS_FOR_TOOLS = 16
"""Framing of the whole tool list, or of a response schema."""
TOOL_SYSTEM_PROMPT = 850
"""Anthropic adds a hidden system prompt when tools are given: up to 530 tokens with Claude 3, 346 with
Claude 4 (its tool-use page, as remembered). Its token-counting page shows 403 for one small tool and a
short question with Opus 5. 850 is 530 x 1.46 (the newer tokenizer) with room to spare."""

FILE_TOKENS = 50_000
"""A file given by reference (id or address). Anthropic: 1,500 to 3,000 tokens a page of text, plus the
page as an image; this is about ten dense pages. Inline files cost one token a decoded byte, at least
`MIN_FILE_TOKENS`: an assumption, a PDF's text compresses to about a fourth."""
MIN_FILE_TOKENS = 6_000
AUDIO_TOKENS = 19_200
"""Audio given by reference: ten minutes at Gemini's 32 tokens a second (OpenAI: 10). Inline audio and
video: 32 tokens per 1,000 decoded bytes, as if recorded at 8 kbit/s."""
VIDEO_TOKENS = 180_000
"""A video given by reference: ten minutes at 300 tokens a second (Gemini, default resolution)."""


class ImageTokens(NamedTuple):
    """Upper bounds for one image.

    Attributes:
        pattern: Regular expression matched at the start of, or searched in, the bare model name.
        low: With ``detail: low``.
        high: With ``detail: high``.
        most: With any other detail, or none.
        reason: The published rule.
    """

    pattern: str
    low: int
    high: int
    most: int
    reason: str


_TILES = "OpenAI, images and vision: base + tiles of 512 px after scaling to 2048 x 768, so at most 8 tiles"
_PATCHES = "OpenAI, images and vision: at most 1,536 patches of 32 px x multiplier; `low` had no effect"
IMAGE_TOKENS: tuple[ImageTokens, ...] = (
    ImageTokens(r"^gpt-4o-mini", 2_833, 48_169, 48_169, f"{_TILES}: 2833 + 8 x 5667"),
    ImageTokens(r"^gpt-4\.1-mini|^gpt-5(?:\.\d+)?-mini", 2_489, 2_489, 2_489, f"{_PATCHES}: 1.62"),
    ImageTokens(r"^gpt-4\.1-nano|^gpt-5(?:\.\d+)?-nano", 3_779, 3_779, 3_779, f"{_PATCHES}: 2.46"),
    ImageTokens(r"^o4-mini|^codex-mini", 2_642, 2_642, 2_642, f"{_PATCHES}: 1.72"),
    ImageTokens(r"^gpt-4|^chatgpt-4o", 85, 1_445, 1_445, f"{_TILES}: 85 + 8 x 170"),
    ImageTokens(r"^o\d", 75, 1_275, 1_275, f"{_TILES}: 75 + 8 x 150"),
    ImageTokens(r"^computer-use", 65, 1_097, 1_097, f"{_TILES}: 65 + 8 x 129"),
    ImageTokens(r"^gpt-5(?:\.1)?(?![.\d])", 70, 1_190, 1_190, f"{_TILES}: 70 + 8 x 140"),
    ImageTokens(r"^gpt-5\.[23]", 1_844, 1_844, 1_844, f"{_PATCHES}: 1.2"),
    ImageTokens(
        r"^gpt-(?:5\.[4-9]|[6-9]|\d\d)",
        3_000,
        3_000,
        16_000,
        "2,500 patches x 1.2 at `high`; 10,000 x 1.2 at `original`; 14,364 measured at `auto`, 12 megapixels",
    ),
    ImageTokens(
        r"claude-(?:[a-z]+-(?:4[-.](?:[7-9]|\d\d)(?!\d)|[5-9](?!\d))|fable|mythos|[5-9](?!\d))",
        4_784,
        4_784,
        4_784,
        "Anthropic, vision: 28 px patches, 2576 px long edge, at most 4,784 tokens (Opus 4.7 and later)",
    ),
    ImageTokens(r"claude", 1_640, 1_640, 1_640, "Anthropic, vision: 1568 px long edge, about 1,600 tokens"),
    ImageTokens(r"gemini-[3-9]", 2_240, 2_240, 2_240, "Google: 1,120 by default, 2,240 at most"),
    ImageTokens(r"gemini|gemma", 4_128, 4_128, 4_128, "Google: 258 a tile of 768 px, at most 16 tiles"),
    ImageTokens(r"qwen|qvq", 16_384, 16_384, 16_384, "Qwen2-VL model card: 4 to 16,384 tokens an image"),
    ImageTokens(r"", 6_500, 6_500, 6_500, "unknown: as Llama 3.2 Vision, 4 tiles of 1,601"),
)
"""Figures per image, first match wins; read from the providers' pages in late 2026."""

_IMAGE_TYPES = frozenset({"image_url", "image", "input_image", "image_file"})
_FILE_TYPES = frozenset({"file", "input_file", "document", "container_upload"})
_AUDIO_TYPES = frozenset({"input_audio", "audio", "audio_url", "media"})
_VIDEO_TYPES = frozenset({"video", "video_url", "input_video"})
_MEDIA_TYPES = _IMAGE_TYPES | _FILE_TYPES | _AUDIO_TYPES | _VIDEO_TYPES
# Fields that carry no billed text of their own.
_SILENT = frozenset({"type", "cache_control", "index", "mime_type", "media_type", "annotations", "signature"})


@lru_cache(maxsize=512)
def image_tokens(model: str, detail: str = "auto") -> int:
    """Upper bound for one image sent to `model`.

    Example:
        >>> image_tokens("gpt-4o"), image_tokens("gpt-4o", "low"), image_tokens("claude-sonnet-4-5")
        (1445, 85, 1640)
    """
    from brix_core.tokens import bare_model_name  # brix_core.tokens re-exports this module

    name = bare_model_name(model)
    row = next(row for row in IMAGE_TOKENS if re.search(row.pattern, name))
    return row.low if detail == "low" else row.high if detail == "high" else row.most


def count_messages(messages: Iterable[Any], tokenizer: Tokenizer, model: str = "") -> int:
    """Tokens of a prompt: `count_message` of each, plus `REPLY_PRIMING`.

    Args:
        messages: Messages in OpenAI's format.
        tokenizer: From `tokenizer_for`.
        model: The model's name, for the price of images.

    Example:
        >>> from brix_core.tokens import tokenizer_for
        >>> count_messages([], tokenizer_for("gpt-4o"))
        3
    """
    return sum(count_message(message, tokenizer, model=model) for message in messages) + REPLY_PRIMING


def count_message(message: Mapping[str, Any], tokenizer: Tokenizer, *, model: str = "") -> int:
    """Tokens of one message, with its images, files and tool calls.

    Args:
        message: A message in OpenAI's format (content parts of Anthropic's and LangChain's too).
        tokenizer: From `tokenizer_for`.
        model: The model's name, for the price of images.

    Returns:
        Tokens, never too few; any odd value is counted as the text it would become.

    Example:
        >>> from brix_core.tokens import tokenizer_for
        >>> picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,A", "detail": "low"}}
        >>> message = {"role": "user", "content": [{"type": "text", "text": "what is this?"}, picture]}
        >>> count_message(message, tokenizer_for("gpt-4o"), model="gpt-4o")
        93
    """
    total = TOKENS_PER_MESSAGE
    if not _is_mapping(message):
        return total + _value_tokens(message, tokenizer)
    for key, value in message.items():
        if type(value) is str and key in ("role", "content"):
            total += tokenizer.count(value)
        elif value is None or value == "":
            continue
        elif key == "content":
            total += _content_tokens(value, tokenizer, model)
        elif key == "name":
            total += TOKENS_PER_NAME + _value_tokens(value, tokenizer)
        elif key in ("tool_calls", "function_call"):
            calls = value if isinstance(value, (list, tuple)) else [value]
            total += sum(_tool_call_tokens(call, tokenizer) for call in calls)
        elif key in ("tool_call_id", "id"):
            total += _identifier_tokens(value, tokenizer)
        else:
            total += _value_tokens(value, tokenizer)
    return total


def count_tools(tools: Any, tokenizer: Tokenizer, *, model: str = "") -> int:
    """Tokens of tool schemas, functions or a response format.

    OpenAI bills a rendering of the schemas that is shorter than their JSON. This counts the compact
    JSON and a constant for each, so it is meant never to be below the bill.

    Args:
        tools: A list of schemas, or one schema; None and empty cost nothing.
        tokenizer: From `tokenizer_for`.
        model: The model's name. Anthropic's hidden tool prompt (`TOOL_SYSTEM_PROMPT`) is added for
            Claude, and without a name for every tokenizer that is not OpenAI's.

    Example:
        >>> from brix_core.tokens import tokenizer_for
        >>> count_tools(None, tokenizer_for("gpt-4o"))
        0
        >>> count_tools([{"type": "function", "function": {"name": "now"}}], tokenizer_for("gpt-4o"))
        39
    """
    if not tools:
        return 0
    items: list[Any] = list(tools) if isinstance(tools, (list, tuple)) else [tools]
    total = TOKENS_FOR_TOOLS + sum(TOKENS_PER_TOOL + _value_tokens(item, tokenizer) for item in items)
    if "claude" in model.lower() or (not model and tokenizer.headroom > 1):
        total += TOOL_SYSTEM_PROMPT
    return total


def _is_mapping(value: object) -> bool:
    """Without narrowing: callers do pass what the signature rules out."""
    return isinstance(value, Mapping)


def _content_tokens(content: Any, tokenizer: Tokenizer, model: str) -> int:
    parts = content if isinstance(content, (list, tuple)) else [content]
    return sum(_part_tokens(part, tokenizer, model) for part in parts)


def _part_tokens(part: Any, tokenizer: Tokenizer, model: str) -> int:
    if isinstance(part, str):
        return tokenizer.count(part)
    if not isinstance(part, Mapping):
        return _value_tokens(part, tokenizer)
    kind = part.get("type")
    if not isinstance(kind, str):
        return _value_tokens(part, tokenizer)
    source = part.get("source")
    if kind in _FILE_TYPES and isinstance(source, Mapping) and source.get("type") in ("text", "content"):
        return _value_tokens(part, tokenizer)
    if kind in _MEDIA_TYPES:
        return _media_tokens(kind, part, model)
    if kind in ("tool_use", "tool_call"):
        return _tool_call_tokens(part, tokenizer)
    total = 0
    for key, value in part.items():
        if key == "content":
            total += _content_tokens(value, tokenizer, model)  # a tool result, with images perhaps
        elif key in ("id", "tool_use_id", "tool_call_id"):
            total += _identifier_tokens(value, tokenizer)
        elif key not in _SILENT:
            total += _value_tokens(value, tokenizer)
    return total


def _media_tokens(kind: str, part: Mapping[str, Any], model: str) -> int:
    """An image, a file, audio or video: by rule or by size, its data never counted as text."""
    if kind in _IMAGE_TYPES:
        image = part.get(kind)
        detail = (image if isinstance(image, Mapping) else part).get("detail", part.get("detail"))
        return image_tokens(model, detail if isinstance(detail, str) else "auto")
    size = _inline_bytes(part)
    if kind in _FILE_TYPES:
        return max(MIN_FILE_TOKENS, size) if size else FILE_TOKENS
    if size:
        return 1 + size * 32 // 1000
    return AUDIO_TOKENS if kind in _AUDIO_TYPES else VIDEO_TOKENS


def _tool_call_tokens(call: Any, tokenizer: Tokenizer) -> int:
    """Name, arguments (a string or a dict) and identifier of a tool call in any of the formats."""
    if not isinstance(call, Mapping):
        return TOKENS_PER_TOOL_CALL + _value_tokens(call, tokenizer)
    total = TOKENS_PER_TOOL_CALL + _identifier_tokens(call.get("id"), tokenizer)
    inner = call.get("function")
    for key, value in chain(call.items(), inner.items() if isinstance(inner, Mapping) else ()):
        if key in ("id", "type") or (key == "function" and isinstance(value, Mapping)):
            continue
        total += _value_tokens(value, tokenizer)
    return total


def _identifier_tokens(value: Any, tokenizer: Tokenizer) -> int:
    # Random and unique: counting them would only fill the cache.
    if isinstance(value, str) and value.isascii():
        return len(value)
    return _value_tokens(value, tokenizer)


def _inline_bytes(part: Mapping[str, Any]) -> int:
    """Decoded size of the data inside a media part, wherever its format puts it; 0 for a reference."""
    longest = 0
    nested = [value for value in part.values() if isinstance(value, Mapping)]
    for holder in (part, *nested):
        for key in ("data", "base64", "file_data", "url"):
            value = holder.get(key)
            if isinstance(value, (bytes, bytearray)):
                longest = max(longest, len(value))
            elif isinstance(value, str) and (key != "url" or value.startswith("data:")):
                longest = max(longest, len(value) * 3 // 4)
    return longest


def _value_tokens(value: Any, tokenizer: Tokenizer) -> int:
    """Tokens of any value, as the text or the compact JSON it becomes on the wire."""
    if value is None:
        return 0
    if isinstance(value, str):
        return tokenizer.count(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return len(value)
    try:
        return tokenizer.count(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str))
    except Exception:  # cyclic, too deep, keys that are no JSON, a __str__ that fails
        return _walk_tokens(value, tokenizer)


def _walk_tokens(root: Any, tokenizer: Tokenizer) -> int:
    """Like `_value_tokens` for what JSON refuses: every leaf once, 4 tokens of framing each."""
    total, seen, stack = 0, set[int](), [root]
    while stack:
        value = stack.pop()
        total += 4
        if isinstance(value, (Mapping, list, tuple, set, frozenset)):
            if id(value) in seen:
                continue
            seen.add(id(value))
            stack.extend(chain.from_iterable(value.items()) if isinstance(value, Mapping) else value)
        elif isinstance(value, (bytes, bytearray)):
            total += len(value)
        elif isinstance(value, int):
            total += value.bit_length() // 3 + 1  # a decimal digit holds more than 3 bits
        else:
            try:
                total += tokenizer.count(str(value))
            except Exception:
                total += 100
    return total


__all__ = [
    "AUDIO_TOKENS",
    "FILE_TOKENS",
    "IMAGE_TOKENS",
    "MIN_FILE_TOKENS",
    "REPLY_PRIMING",
    "TOKENS_FOR_TOOLS",
    "TOKENS_PER_MESSAGE",
    "TOKENS_PER_NAME",
    "TOKENS_PER_TOOL",
    "TOKENS_PER_TOOL_CALL",
    "TOOL_SYSTEM_PROMPT",
    "VIDEO_TOKENS",
    "ImageTokens",
    "count_message",
    "count_messages",
    "count_tools",
    "image_tokens",
]
