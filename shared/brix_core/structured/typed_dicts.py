"""TypedDicts of the standard library as those that Pydantic reads.

Below Python 3.12, Pydantic reads those of ``typing_extensions`` only: the others do not say rightly which keys are
required, where annotations are strings. Resolved, the annotations say so themselves.

Example:
    >>> from typing import NotRequired, TypedDict
    >>> class City(TypedDict):
    ...     name: str
    ...     area: NotRequired[float]
    >>> sorted(readable(City).__required_keys__)
    ['name']
"""

from __future__ import annotations

import operator
from functools import reduce
from types import GenericAlias, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NotRequired,
    Required,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from typing_extensions import ReadOnly, TypedDict, is_typeddict

_QUALIFIERS: Final[tuple[Any, ...]] = (Required, NotRequired, ReadOnly)


def readable(schema: type) -> type:
    """A TypedDict of the same keys, those in its fields converted as well.

    Generic ones with arguments, and those in fields of dataclasses and models, are left as they are.

    Args:
        schema: A TypedDict.

    Raises:
        NameError: An annotation names something that is not in its module.
    """
    return cast(type, _converted(schema, {}))


def _converted(schema: Any, known: dict[Any, Any]) -> Any:
    if schema in known:  # it may hold itself
        return known[schema]
    twin: Any = TypedDict(schema.__name__, {})  # type: ignore[misc]
    known[schema] = twin
    for name in ("__doc__", "__module__", "__qualname__", "__pydantic_config__"):
        if hasattr(schema, name):
            setattr(twin, name, getattr(schema, name))
    hints = get_type_hints(schema, include_extras=True)
    required = {key for key, hint in hints.items() if _is_required(hint, key in schema.__required_keys__)}
    twin.__annotations__ = {key: _inside(_unqualified(hint), known) for key, hint in hints.items()}
    twin.__required_keys__ = frozenset(required)
    twin.__optional_keys__ = frozenset(hints.keys() - required)
    return twin


def _is_required(hint: Any, otherwise: bool) -> bool:
    origin = get_origin(hint)
    if origin is Annotated or origin is ReadOnly:
        return _is_required(get_args(hint)[0], otherwise)
    return origin is Required or (origin is not NotRequired and otherwise)


def _unqualified(hint: Any) -> Any:
    """The annotation without what says whether its key is required."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_unqualified(arguments[0]), *arguments[1:])]
    return _unqualified(arguments[0]) if origin in _QUALIFIERS else hint


def _inside(hint: Any, known: dict[Any, Any]) -> Any:
    """The annotation, with other TypedDicts in it."""
    if is_typeddict(hint):
        return _converted(hint, known)
    origin, arguments = get_origin(hint), get_args(hint)
    if not arguments or origin is Literal or is_typeddict(origin):
        return hint
    if origin is Annotated:
        return Annotated[(_inside(arguments[0], known), *arguments[1:])]
    inner = tuple(_inside(argument, known) for argument in arguments)
    if inner == arguments:
        return hint
    if origin in (Union, UnionType):
        return reduce(operator.or_, inner)
    return GenericAlias(origin, inner) if isinstance(hint, GenericAlias) else cast(Any, hint).copy_with(inner)


__all__ = ["readable"]
