"""Thresholds written into the YAML of a spec, with every comment and every line break where they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import yaml

from brix_core.errors import BrixConfigurationError
from brix_core.regulated.format.spec import RULE_GROUPS

# The reader of specs, where there is one: libyaml takes a few texts that PyYAML's own reader refuses.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Edit(NamedTuple):
    start: int
    end: int
    text: str
    rule: str
    value: float


def with_thresholds(text: str, thresholds: Mapping[str, float]) -> str:
    r"""The YAML of a spec with other thresholds; nothing else in it changes.

    Args:
        text: The YAML of a valid spec.
        thresholds: A threshold in [0, 1] for the names of rules with examples.

    Raises:
        BrixConfigurationError: A rule is not there or has no examples, or two rules share examples by an alias and
            should get different thresholds.

    Example:
        >>> text = "circuit_breakers:\n- name: keys  # spare ones too\n  examples: {positive: [door key]}\n"
        >>> print(with_thresholds(text, {"keys": 0.3}), end="")
        circuit_breakers:
        - name: keys  # spare ones too
          examples: {threshold: 0.3, positive: [door key]}
    """
    edits: dict[int, _Edit] = {}
    wanted = dict(thresholds)
    for rule, examples in _examples(yaml.compose(text, Loader=_LOADER)):
        if rule not in wanted:
            continue
        edit = _edit(examples, rule, wanted.pop(rule))
        known = edits.setdefault(edit.start, edit)
        if known.value != edit.value:
            raise BrixConfigurationError(
                f"rules {known.rule!r} and {rule!r} share their examples by an alias, so they cannot have thresholds "
                f"of their own ({known.value:g} and {edit.value:g}); write the examples out"
            )
    if wanted:
        raise BrixConfigurationError(f"rule {next(iter(wanted))!r} has no examples in this text")
    for edit in sorted(edits.values(), reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _examples(root: yaml.Node | None) -> Iterator[tuple[str, yaml.MappingNode]]:
    """Name and examples of every rule that has some."""
    for group, rules in _pairs(root):
        if group in RULE_GROUPS and isinstance(rules, yaml.SequenceNode):
            for rule in rules.value:
                fields = dict(_pairs(rule))
                name, examples = fields.get("name"), fields.get("examples")
                if isinstance(name, yaml.ScalarNode) and isinstance(examples, yaml.MappingNode):
                    yield name.value, examples


def _pairs(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), value


def _edit(examples: yaml.MappingNode, rule: str, value: float) -> _Edit:
    for key, node in _pairs(examples):
        if key == "threshold":
            return _Edit(node.start_mark.index, node.end_mark.index, f"{value:g}", rule, value)
    first = examples.value[0][0].start_mark
    separator = ", " if examples.flow_style else "\n" + " " * first.column
    return _Edit(first.index, first.index, f"threshold: {value:g}{separator}", rule, value)


__all__ = ["with_thresholds"]
