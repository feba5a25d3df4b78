"""Specs from a name, a file, a text or a dict, with everything that is wrong told at once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from brix_core.regulated.format.consistency import Location, inconsistencies
from brix_core.regulated.format.problems import SpecProblem, SpecValidationError
from brix_core.regulated.format.spec import RULE_GROUPS, SpecModel, with_metadata
from brix_core.regulated.format.telling import shown, told
from brix_core.regulated.format.yaml_tree import MAX_CHARACTERS, Refused, Tree

BUILT_IN: Final = ("finance", "general", "hr", "legal", "medical")
"""Names of the specs that come with the toolkit."""

SPECS: Final = Path(__file__).parent.parent / "specs"


def load_spec(source: str | os.PathLike[str]) -> SpecModel:
    """Read and check a spec.

    Args:
        source: The name of a built-in spec (``"medical"``, ``"legal"``, ``"finance"``, ``"hr"``, ``"general"``), the
            path of a YAML file, or YAML text (a str of several lines, or one with ``": "`` in it). A file called like a
            built-in spec is given as ``"./medical"`` or as a `Path`.

    Returns:
        The spec. Built-in specs are read once.

    Raises:
        SpecValidationError: It cannot be read or is no valid spec; ``problems`` names file, line and rule of each.

    Example:
        >>> load_spec('''
        ... name: house
        ... circuit_breakers:
        ... - {name: keys, description: Asks for keys., patterns: [door key], wieght: 1}
        ... ''')
        Traceback (most recent call last):
        ...
        brix_core.regulated.format.problems.SpecValidationError: <text>:4: rule 'keys': circuit_breakers[0] has no field
        'wieght'; it has name, description, patterns, examples, exclude_context, exclude_from, scope, applies_to,
        message
    """
    if isinstance(source, str):
        if source in BUILT_IN:
            return _built_in(source)
        if "\n" in source or ": " in source or source.lstrip()[:1] in ("{", "["):
            return spec_from_text(source)
        if not source.strip():
            raise _refused("<text>", None, f"an empty str is no spec; {_what_is_taken()}")
    if isinstance(source, str | os.PathLike):
        return spec_from_text(*read_source(source))
    raise _refused("<object>", None, f"{shown(source)} is no spec; {_what_is_taken()}")


def load_spec_from_dict(data: Mapping[str, Any]) -> SpecModel:
    """Check a spec that is already plain data.

    Args:
        data: What the YAML of a spec would hold.

    Raises:
        SpecValidationError: It is no valid spec; ``problems`` names the rule of each, there are no lines.

    Example:
        >>> spec = load_spec_from_dict({"name": "custom", "version": "2.1"})
        >>> spec.name, spec.version
        ('custom', '2.1')
    """
    if not isinstance(data, Mapping):
        raise _refused("<dict>", None, f"load_spec_from_dict takes a dict, got {shown(data)}")
    return _checked(dict(data), "<dict>", None)


def as_spec(value: object) -> SpecModel:
    """The spec that an option names: a `SpecModel`, a dict, or what `load_spec` takes.

    Raises:
        SpecValidationError: It stands for no valid spec.

    Example:
        >>> as_spec({"name": "custom"}).label
        'custom 0.0.0'
    """
    if isinstance(value, SpecModel):
        return value
    if isinstance(value, Mapping):
        return load_spec_from_dict(value)
    return load_spec(value)  # type: ignore[arg-type]  # told by load_spec


def spec_from_text(text: str, file: str = "<text>") -> SpecModel:
    """Read and check the YAML of a spec.

    Args:
        text: The YAML.
        file: What problems call it.

    Raises:
        SpecValidationError: See `load_spec`.
    """
    tree = tree_of(text, file)
    return _checked(tree.data, file, tree)


def tree_of(text: str, file: str, *, kind: str = "spec") -> Tree:
    """The YAML as plain data with lines; what cannot be read at all is an error."""
    try:
        tree = Tree(text)
    except Refused as refused:
        raise _refused(file, refused.line, refused.message) from None
    if tree.data is None and not tree.problems:
        raise _refused(file, 1, f"it is empty; a {kind} needs " + ("metadata and rules" if kind == "spec" else "cases"))
    return tree


def read_source(source: str | os.PathLike[str]) -> tuple[str, str]:
    """The text behind a built-in name or a path, and what problems call it.

    Raises:
        SpecValidationError: There is none that can be read.
    """
    if isinstance(source, str) and source in BUILT_IN:
        return read_text(SPECS / f"{source}.yaml", f"{source}.yaml")
    name = os.fspath(source)
    return read_text(Path(source), name if len(name) <= 200 else f"{name[:197]}...")


def read_text(path: Path, file: str, *, kind: str = "spec") -> tuple[str, str]:
    """The text of a file, and `file`, what problems call it.

    Raises:
        SpecValidationError: There is none that can be read.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(4 * MAX_CHARACTERS + 1)
        return raw.decode("utf-8-sig"), file
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _refused(
            file, line, f"byte {raw[error.start]:#04x} is no UTF-8; save the file with that encoding"
        ) from None
    except FileNotFoundError:
        hint = f"{_suggestion(file)}{_what_is_taken()}" if kind == "spec" else f"give the path of a {kind} file"
        raise _refused(file, None, f"there is no such file; {hint}") from None
    except IsADirectoryError:
        raise _refused(file, None, "is a directory; give a file in it") from None
    except (OSError, ValueError) as error:
        raise _refused(file, None, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


@cache
def _built_in(name: str) -> SpecModel:
    return spec_from_text(*read_source(name))


def _checked(data: Any, file: str, tree: Tree | None) -> SpecModel:
    short = isinstance(data, Mapping) and "metadata" not in data
    found: list[tuple[Location, str, str]] = [
        (finding.at, finding.rule, finding.message) for finding in inconsistencies(with_metadata(data))
    ]
    spec = None
    try:
        spec = SpecModel.model_validate(data, context={"checked": True})
    except ValidationError as error:
        for item in error.errors(include_url=False):
            at = tuple(item["loc"])
            found.append((at, _rule_at(data, at), told(item)))
    problems = [
        SpecProblem(file, None if tree is None else tree.line(_as_written(at, short)), rule, text)
        for at, rule, text in found
    ]
    if tree is not None:
        problems += [SpecProblem(file, line, _rule_at(data, at), text) for line, at, text in tree.problems]
    if spec is None or problems:
        raise SpecValidationError(problems=sorted(problems, key=lambda problem: problem.line or 0))
    return spec


def _as_written(at: Location, short: bool) -> Location:
    """Where it stands in the file: metadata's fields stand at the top in the short form."""
    return at[1:] if short and at[:1] == ("metadata",) else at


def _rule_at(data: Any, at: Location) -> str:
    if len(at) < 2 or at[0] not in RULE_GROUPS or not isinstance(at[1], int):
        return ""
    try:
        name = data[at[0]][at[1]]["name"]
    except (KeyError, IndexError, TypeError):
        return ""
    return name if isinstance(name, str) else ""


def _refused(file: str, line: int | None, message: str) -> SpecValidationError:
    return SpecValidationError(problems=[SpecProblem(file, line, "", message)])


def _what_is_taken() -> str:
    return f"give a built-in name ({', '.join(BUILT_IN)}), the path of a YAML file, or YAML text"


def _suggestion(file: str) -> str:
    close = difflib.get_close_matches(file, BUILT_IN, n=1)
    return f"did you mean the built-in {close[0]!r}? " if close else ""


__all__ = [
    "BUILT_IN",
    "SPECS",
    "as_spec",
    "load_spec",
    "load_spec_from_dict",
    "read_source",
    "read_text",
    "spec_from_text",
    "tree_of",
]
