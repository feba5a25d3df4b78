"""YAML to plain data, with the line of every key and item.

Only what ``yaml.safe_load`` would make is made. Refused besides: keys given twice, merge keys, tags, nesting deeper
than any spec, anchors that grow beyond measure or hold themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import yaml

from brix_core.regulated.format.consistency import Location

MAX_CHARACTERS: Final = 2_000_000
MAX_DEPTH: Final = 40
MAX_VALUES: Final = 200_000
"""Values in a document, aliases counted as often as they are used."""

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAPPING: Final = "tag:yaml.org,2002:map"
_SEQUENCE: Final = "tag:yaml.org,2002:seq"


class Refused(Exception):
    """The text as a whole cannot be read.

    Args:
        line: Where it went wrong, from 1; None where that is nowhere in particular.
        message: Why.
    """

    def __init__(self, line: int | None, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


class Tree:
    r"""A YAML document as plain data.

    Args:
        text: One document.

    Attributes:
        data: What it holds.
        problems: Lines with what is wrong in them, where the rest can still be read.

    Raises:
        Refused: The text is no YAML, or no YAML that a spec would need.

    Example:
        >>> tree = Tree("name: a\nrules:\n- b\n- b: 1\n  b: 2")
        >>> tree.data, tree.line(("rules", 0)), tree.problems
        ({'name': 'a', 'rules': ['b', {'b': 2}]}, 3, [(5, ('rules', 1), "key 'b' is given twice; its first line is 4")])
    """

    def __init__(self, text: str) -> None:
        self.problems: list[tuple[int, Location, str]] = []
        self._lines: dict[Location, int] = {}
        self._active: set[int] = set()
        self._left = MAX_VALUES
        root = _composed(text)
        self._scalars = yaml.SafeLoader("")
        self.data: Any = None if root is None else self._value(root, ())

    def line(self, at: Location) -> int:
        """The line of a key or item; that of what holds it where it is not there."""
        while at and at not in self._lines:
            at = at[:-1]
        return self._lines.get(at, 1)

    def _value(self, node: yaml.Node, at: Location) -> Any:
        self._left -= 1
        line = _line(node.start_mark)
        if self._left < 0:
            raise Refused(line, f"more than {MAX_VALUES:,} values, aliases counted as often as they are used")
        self._lines.setdefault(at, line)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, at)
        if id(node) in self._active:
            raise Refused(line, "an anchor holds an alias of itself")
        self._active.add(id(node))
        try:
            return self._mapping(node, at) if isinstance(node, yaml.MappingNode) else self._sequence(node, at)
        finally:
            self._active.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, at: Location) -> Any:
        try:
            return self._scalars.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, OverflowError, TypeError, KeyError, IndexError) as error:
            why = getattr(error, "problem", None) or error
            self.problems.append((_line(node.start_mark), at, f"{node.value[:60]!r} cannot be read: {why}"))
            return None

    def _sequence(self, node: Any, at: Location) -> list[Any]:
        self._check_tag(node, at, _SEQUENCE)
        return [self._value(item, (*at, number)) for number, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, at: Location) -> dict[Any, Any]:
        self._check_tag(node, at, _MAPPING)
        values: dict[Any, Any] = {}
        first: dict[Any, int] = {}
        for key_node, value_node in node.value:
            line = _line(key_node.start_mark)
            key = self._key(key_node, line, at)
            if key is None:
                continue
            if key in first:
                self.problems.append((line, at, f"key {key!r} is given twice; its first line is {first[key]}"))
            first.setdefault(key, line)
            self._lines[(*at, key)] = line
            values[key] = self._value(value_node, (*at, key))
        return values

    def _key(self, node: yaml.Node, line: int, at: Location) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self.problems.append((line, at, "keys must be words"))
        elif node.tag == "tag:yaml.org,2002:merge":
            self.problems.append((line, at, "merge keys (<<) are not read; write the fields out, or use defaults"))
        else:
            return str(node.value)  # as it is written: `on` and `1` are words here
        return None

    def _check_tag(self, node: yaml.Node, at: Location, plain: str) -> None:
        if node.tag != plain:
            self.problems.append((_line(node.start_mark), at, f"the tag {node.tag!r} is not read; remove it"))


def _composed(text: str) -> yaml.Node | None:
    """The document's nodes.

    The C parser is told of nothing before its events show that it may recurse.
    """
    if len(text) > MAX_CHARACTERS:
        raise Refused(None, f"{len(text):,} characters, more than the {MAX_CHARACTERS:,} a spec may have")
    try:
        for line, depth in _depths(text):
            if depth > MAX_DEPTH:
                raise Refused(line, f"nested more than {MAX_DEPTH} levels deep")
        node: yaml.Node | None = yaml.compose(text, _LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = ", ".join(part for part in (error.context, error.problem) if part)
        raise Refused(None if mark is None else _line(mark), f"this is not valid YAML: {why}") from None
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        raise Refused(_line_of_reader(text, error), f"this is not valid YAML: {error}") from None
    return node


def _depths(text: str) -> Iterator[tuple[int, int]]:
    depth = 0
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            yield _line(event.start_mark), depth
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _line_of_reader(text: str, error: Exception) -> int | None:
    position = getattr(error, "position", None)
    return text.count("\n", 0, position) + 1 if isinstance(position, int) else None


def _line(mark: Any) -> int:
    return int(mark.line) + 1


__all__ = ["MAX_CHARACTERS", "MAX_DEPTH", "MAX_VALUES", "Refused", "Tree"]
