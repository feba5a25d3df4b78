"""Options from a YAML file, so that limits can be changed without touching code.

::

    # policy.yaml
    max_cost_usd: 1.00
    requests_per_minute: 60
    prices:
      my-model: [1.5e-7, 6e-7]     # USD per token, input and output

Use it as ``guard(model, **load_policy("policy.yaml"))``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, cast

import yaml

from brix_core.errors import BrixConfigurationError
from brix_core.options import GuardOptions, parse

_NOT_IN_FILES: Final = ("fallbacks", "cache", "retrieval_provider", "regulated_signals", "store", "clock", "redact")


def load_policy(path: str | Path) -> GuardOptions:
    """Read and check a policy file.

    Args:
        path: A YAML mapping of option names to values.

    Returns:
        The options, ready to be passed on with ``**``.

    Raises:
        BrixConfigurationError: The file cannot be read, is no mapping, names an option twice or one that does
            not exist, or holds a bad value. The message names the file, and the line where there is one.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "policy.yaml"
        >>> _ = file.write_text("max_cost_usd: 0.5")
        >>> load_policy(file)
        {'max_cost_usd': 0.5}
    """
    if not isinstance(path, str | Path):
        raise BrixConfigurationError(f"load_policy takes the path of a YAML file, got {path!r}")
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BrixConfigurationError(f"policy file {file} cannot be read: {error}") from error
    try:
        options = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # its constructors raise these, too
        raise BrixConfigurationError(f"policy file {file} is not valid YAML: {error}") from error
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise BrixConfigurationError(
            f"policy file {file} must map option names to values, got a {type(options).__name__}"
        )
    for name in _NOT_IN_FILES:
        if name in options:
            raise BrixConfigurationError(
                f"policy file {file}, line {_line(text, name)}: {name} is an object and cannot be given in a file; "
                "pass it in code"
            )
    try:
        parse(options)
    except BrixConfigurationError as error:
        raise BrixConfigurationError(f"policy file {file}, line {_line(text, str(error))}: {error}") from error
    return cast(GuardOptions, options)


def _line(text: str, message: str) -> int:
    """Line of the top-level key that a message mentions first; 1 when it mentions none."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        key = re.match(r"[\"']?(\w+)[\"']?\s*:", line)
        mention = key and re.search(rf"\b{re.escape(key[1])}\b", message)
        if mention:
            found.append((mention.start(), number))
    return min(found, default=(0, 1))[1]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (``1e-6`` is one), and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)

__all__ = ["load_policy"]
