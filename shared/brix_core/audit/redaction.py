"""Secrets stay out of logs.

What looks like a provider's key, a token or a private key is blotted out of every text that is written, always. A
hook of the application's own may take out more: names, numbers, whole fields.

Example:
    >>> scrubbed("Incorrect API key provided: sk-proj-abcdefghijklmnop1234")
    'Incorrect API key provided: [secret]'
    >>> scrubbed({"error_message": "Bearer abcdefghijklmnopqrstuv"})
    {'error_message': 'Bearer [secret]'}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Final

Redact = Callable[[dict[str, Any]], dict[str, Any]]
"""Gets an entry before it is written, and gives what may be written."""

BLOT: Final = "[secret]"

_SECRETS: Final = re.compile(
    r"""
    (?: sk-[A-Za-z0-9_-]{12,}                       # OpenAI, Anthropic, OpenRouter, DeepSeek, LangSmith's old ones
      | (?:lsv2|pk-lf|sk-lf|r8|hf|gsk|xai|nvapi|pplx|fw|tgp|co|csk|jina)[_-][A-Za-z0-9_-]{16,}
      | AIza[A-Za-z0-9_-]{30,}                      # Google
      | AKIA[A-Z0-9]{16} | ASIA[A-Z0-9]{16}         # Amazon, key ids
      | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_[A-Za-z0-9_]{20,}
      | xox[abeoprs]-[A-Za-z0-9-]{10,}              # Slack
      | eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}   # JSON web tokens
      | -----BEGIN[ A-Z]*PRIVATE\ KEY-----[^"]{0,8192}?(?:-----END[ A-Z]*PRIVATE\ KEY-----|(?="|$))
    )
    """,
    re.VERBOSE | re.DOTALL,
)
_NAMED: Final = re.compile(
    r"(?i)(?<![a-z0-9])(bearer\s+|(?:api[-_]?key|x-api-key|x-goog-api-key|authorization|access[-_]?token|secret[-_]?(?:access[-_]?)?key|password)"
    r"\\?[\"']?\s*[:=]\s*\\?[\"']?(?:bearer\s+)?)([A-Za-z0-9_\-./+~=]{8,})"
)
"""A word that says that a secret follows, and the secret."""

_IN_ADDRESS: Final = re.compile(r"(://[^/\s:@\"]+:)[^@\s/\"]+(?=@)")
"""A password in an address."""


def scrubbed(value: Any) -> Any:
    """The value with secrets blotted out of its texts; the very object where there are none."""
    if isinstance(value, str):
        return _scrubbed_text(value)
    if isinstance(value, dict):
        changed = {key: scrubbed(item) for key, item in value.items()}
        return changed if any(changed[key] is not value[key] for key in value) else value
    if isinstance(value, list):
        items = [scrubbed(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def masked(name: str) -> str:
    """A name that may be a secret itself; different ones stay different.

    Example:
        >>> masked("user-42"), masked("sk-proj-abcdefghijklmnop1234")
        ('user-42', '[secret]-5e865263')
    """
    shown = _scrubbed_text(name)
    if shown == name:
        return name
    return f"{shown}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def scrubbed_line(line: bytes) -> bytes:
    """A line of JSON with secrets blotted out of its texts; still JSON.

    Example:
        >>> scrubbed_line(b'{"text":"my key is sk-proj-abcdefghijklmnop1234"}')
        b'{"text":"my key is [secret]"}'
    """
    text = line.decode(errors="surrogateescape")
    found = _scrubbed_text(text)
    return line if found is text else found.encode(errors="surrogateescape")


def _scrubbed_text(text: str) -> str:
    if len(text) < 8:
        return text
    found = _SECRETS.sub(BLOT, text)
    found = _NAMED.sub(lambda match: match[1] + BLOT, found)
    found = _IN_ADDRESS.sub(lambda match: match[1] + BLOT, found)
    return text if found == text else found


__all__ = ["BLOT", "Redact", "masked", "scrubbed", "scrubbed_line"]
