"""Finds OpenAI's tiktoken ranks on this machine; never downloads them.

tiktoken's own loader fetches a missing file, deletes one with a wrong checksum, and takes its directory
from a process-wide environment variable. So the file is read here: from the directories tiktoken would
look in (``TIKTOKEN_CACHE_DIR``, ``DATA_GYM_CACHE_DIR``, its temporary directory), then from the copy that
llama-index-core carries, located without importing it. The environment is only read.

Example:
    >>> count = load_encoding("o200k_base")
    >>> count("hello world") if count else 2
    2
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

logger = logging.getLogger(__name__)

EncodingName = Literal["o200k_base", "cl100k_base"]
"""The encodings whose ranks llama-index-core carries."""


class _Spec(NamedTuple):
    """Name of the cached file, its checksum, and the pre-tokenizer's expression, as tiktoken has it."""

    file: str
    sha256: str
    pattern: str


_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
_SPECS: dict[EncodingName, _Spec] = {
    "o200k_base": _Spec(
        # tiktoken names a cached file by the SHA-1 of the address it came from.
        hashlib.sha1(_URL.format("o200k_base").encode(), usedforsecurity=False).hexdigest(),
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        "|".join(
            [
                r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
                r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
                r"""\p{N}{1,3}""",
                r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
                r"""\s*[\r\n]+""",
                r"""\s+(?!\S)""",
                r"""\s+""",
            ]
        ),
    ),
    "cl100k_base": _Spec(
        hashlib.sha1(_URL.format("cl100k_base").encode(), usedforsecurity=False).hexdigest(),
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"""
        r"""| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    ),
}

# tiktoken's expression engine overflows its stack on some 1,000,000 spaces in a row and panics with an
# exception that is no Exception. Longer texts are counted in pieces, cut where a word starts.
_PIECE = 200_000

_loaded: dict[EncodingName, Callable[[str], int] | None] = {}
_lock = Lock()


def load_encoding(name: EncodingName) -> Callable[[str], int] | None:
    """A counting function for `name`, loaded once a process; None when tiktoken or the ranks are missing.

    Example:
        >>> load_encoding("o200k_base") is load_encoding("o200k_base")
        True
    """
    with _lock:
        if name not in _loaded:
            _loaded[name] = _load(name)
        return _loaded[name]


def _load(name: EncodingName) -> Callable[[str], int] | None:
    try:
        import tiktoken
        from tiktoken import registry
    except ImportError:
        logger.debug("tiktoken is not installed: pip install tiktoken")
        return None
    # 64 MB: share the application's copy when it has loaded one.
    encoding: Any = getattr(registry, "ENCODINGS", {}).get(name)
    if encoding is None:
        data = _read(_SPECS[name])
        if data is None:
            return None
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, data.splitlines())}
        encoding = tiktoken.Encoding(name, pat_str=_SPECS[name].pattern, mergeable_ranks=ranks, special_tokens={})
    return _counter(encoding)


def _counter(encoding: Any) -> Callable[[str], int]:
    encode = encoding.encode_ordinary

    def count(text: str) -> int:
        if len(text) <= _PIECE:
            return len(encode(text))
        return sum(len(encode(piece)) for piece in _pieces(text))

    return count


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text before a space that follows a letter, where both expressions cut anyway."""
    start = 0
    while len(text) - start > _PIECE:
        end = start + _PIECE
        cut = text.rfind(" ", start + _PIECE // 2, end)
        while cut > 0 and not text[cut - 1].isalnum():
            cut = text.rfind(" ", start + _PIECE // 2, cut)
        end = cut if cut > 0 else end
        yield text[start:end]
        start = end
    yield text[start:]


def _read(spec: _Spec) -> bytes | None:
    for directory in _directories():
        try:
            data = (directory / spec.file).read_bytes()
        except OSError:
            continue
        if hashlib.sha256(data).hexdigest() == spec.sha256:
            return data
        logger.warning("%s does not hold the ranks tiktoken published; ignored", directory / spec.file)
    return None


def _directories() -> Iterator[Path]:
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if directory := os.environ.get(variable):
            yield Path(directory)
    yield Path(tempfile.gettempdir(), "data-gym-cache")
    # The spec of the top-level package is found without importing anything; that of llama_index.core
    # would import its parent.
    try:
        spec = importlib.util.find_spec("llama_index")
    except (ImportError, ValueError):
        return
    for location in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(location, "core", "_static", "tiktoken_cache")


__all__ = ["EncodingName", "load_encoding"]
