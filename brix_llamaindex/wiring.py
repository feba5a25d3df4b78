"""Finding the LLMs inside of engines and agents, and replacing them in a copy.

What is looked into: attributes of objects whose class LlamaIndex defines or is derived from one, and lists, tuples,
sets and dicts in them. Only what leads to an LLM is copied; stores, indexes, embeddings and callbacks never are, so a
copy sees the same documents and the same conversation. What a function holds or refers to cannot be replaced, nor what
an object of any other class has: such LLMs are found, and a warning names who uses them.
"""

from __future__ import annotations

import functools
import logging
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager
from llama_index.core.data_structs.data_structs import IndexStruct
from llama_index.core.graph_stores.types import PropertyGraphStore
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.schema import BaseNode
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.storage.index_store.types import BaseIndexStore
from llama_index.core.storage.kvstore.types import BaseKVStore
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.types import BasePydanticVectorStore

log = logging.getLogger(__name__)

_SEALED: Final = (
    BaseChatStore,
    BaseDocumentStore,
    BaseEmbedding,
    BaseIndex,
    BaseIndexStore,
    BaseKVStore,
    BaseNode,
    BasePydanticVectorStore,
    CallbackManager,
    ChatMessage,
    IndexStruct,
    PropertyGraphStore,
    StorageContext,
)
"""Where data and connections are; never looked into."""

_LIBRARY: Final = "llama_index."

_WITHOUT_LLM: Final = sys.stdlib_module_names | {
    "brix_core",
    "brix_llamaindex",
    "llama_index_instrumentation",
    "pydantic",
    "pydantic_core",
    "workflows",
}
"""Packages whose own objects hold no LLM of the application's, or one that is found elsewhere."""

MOST_ITEMS: Final = 1_000
"""Items of a list or dict of the application's that are looked at."""

_CONTAINERS: Final = (list, tuple, set, frozenset, dict)


class Wiring:
    """What an object consists of, as far as LLMs may be in it.

    Args:
        root: The object.
        seen: What has been looked at already for an LLM that cannot be replaced, by ``id``.

    Attributes:
        llms: The LLMs in it, each once, in the order in which they were found.
        hidden: What holds or refers to an LLM that cannot be replaced, by name: functions, and objects of other
            classes than LlamaIndex's.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from llama_index.core.selectors import LLMSingleSelector
        >>> selector, other = LLMSingleSelector.from_defaults(llm=MockLLM()), MockLLM()
        >>> wiring = Wiring(selector)
        >>> wiring.replaced({id(wiring.llms[0]): other})._llm is other, selector._llm is other
        (True, False)
    """

    def __init__(self, root: Any, seen: set[int] | None = None) -> None:
        self.llms: list[LLM] = []
        self.hidden: list[str] = []
        self._named: set[Any] = set()
        self._seen = seen
        self._root = root
        self._parts: dict[int, Any] = {id(root): root}
        self._holders: dict[int, list[int]] = {}
        self._read()

    def replaced(self, llms: Mapping[int, Any], cls: type[Any] | None = None) -> Any:
        """A copy of the object with other LLMs; what leads to none is shared with the original.

        Args:
            llms: What takes the place of each, by the ``id`` of the original.
            cls: The class of the copy; that of the original when left out.
        """
        leading = self._leading_to(llms)
        done: dict[int, Any] = dict(llms)

        def renewed(value: Any) -> Any:
            key = id(value)
            if key in done or key not in leading:
                return done.get(key, value)
            if isinstance(value, types.MethodType):
                return types.MethodType(value.__func__, renewed(value.__self__))
            if type(value) is dict:
                made = done[key] = {}
                made.update((name, renewed(item)) for name, item in value.items())
                return made
            if type(value) in _CONTAINERS:
                made = done[key] = type(value)(map(renewed, value))
                return made
            made = done[key] = twin(value, cls if value is self._root else None)
            for fields in _fields(made):
                for name, item in fields.items():
                    fields[name] = renewed(item)
            return made

        done.pop(id(self._root), None)
        return renewed(self._root) if id(self._root) in leading else twin(self._root, cls)

    def _read(self) -> None:
        waiting = deque([self._root])
        while waiting:
            holder = waiting.popleft()
            for part in _parts(holder):
                self._holders.setdefault(id(part), []).append(id(holder))
                if id(part) in self._parts:
                    continue
                self._parts[id(part)] = part
                if isinstance(part, LLM) and not isinstance(part, StructuredLLM):
                    self.llms.append(part)
                elif _is_opaque(part):
                    self._name(user_of_llm(part, seen=self._seen))
                else:
                    waiting.append(part)

    def _name(self, user: Any) -> None:
        if user is None:
            return
        key = (id(user.__self__), user.__func__) if isinstance(user, types.MethodType) else id(user)
        if key not in self._named:
            self._named.add(key)
            self.hidden.append(getattr(user, "__qualname__", None) or f"an object of class {type(user).__qualname__}")

    def _leading_to(self, ids: Iterable[int]) -> set[int]:
        leading: set[int] = set()
        waiting = list(ids)
        while waiting:
            for holder in self._holders.get(waiting.pop(), ()):
                if holder not in leading:
                    leading.add(holder)
                    waiting.append(holder)
        return leading


def twin(value: Any, cls: type[Any] | None = None) -> Any:
    """A shallow copy, or an object of another class with the same attributes; nothing of it is run.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> llm = MockLLM(max_tokens=3)
        >>> twin(llm) == llm, twin(llm) is llm
        (True, False)
    """
    made = object.__new__(type(value) if cls is None else cls)
    object.__setattr__(made, "__dict__", dict(value.__dict__))
    if hasattr(type(value), "__pydantic_fields_set__"):
        private = value.__pydantic_private__
        object.__setattr__(made, "__pydantic_fields_set__", set(value.__pydantic_fields_set__))
        object.__setattr__(made, "__pydantic_extra__", value.__pydantic_extra__)
        object.__setattr__(made, "__pydantic_private__", None if private is None else dict(private))
    return made


def user_of_llm(value: Any, depth: int = 3, seen: set[int] | None = None) -> Any:
    """The function or object that uses an LLM which is not guarded, or an engine with one; None when there is none.

    Args:
        value: A function, a method, a partial function, or an object of any class.
        depth: How many functions within functions, and objects within objects, are looked into.
        seen: What has been looked at already, by ``id``.

    Returns:
        The application's own: of a wrapper of LlamaIndex's, what is wrapped.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> llm = MockLLM()
        >>> def ask(text):
        ...     return llm.complete(text)
        >>> user_of_llm(ask) is ask, user_of_llm(lambda text: text) is None
        (True, True)
    """
    seen = set() if seen is None else seen
    for held in _held(value):
        if isinstance(held, types.MethodType) and _is_component(held.__self__):
            held = held.__self__
        if id(held) in seen:
            continue
        seen.add(id(held))
        if isinstance(held, LLM):
            if not hasattr(held, "brix"):
                return value
        elif _is_opaque(held):
            within = user_of_llm(held, depth - 1, seen) if depth > 0 else None
            if within is not None:
                return within if _is_wrapper(value) else value
        elif _is_component(held) and not hasattr(held, "brix"):
            wiring = Wiring(held, seen)
            if wiring.hidden or any(not hasattr(llm, "brix") for llm in wiring.llms):
                return value
    return None


def _is_opaque(value: Any) -> bool:
    """Whether nothing in it can be replaced: functions, and objects of other classes than LlamaIndex's."""
    if isinstance(value, types.MethodType):
        return not _is_component(value.__self__)
    if isinstance(value, types.FunctionType | functools.partial):
        return True
    if type(value).__module__.partition(".")[0] in _WITHOUT_LLM or isinstance(value, (type, *_SEALED)):
        return False
    return type(getattr(value, "__dict__", None)) is dict and not _is_component(value)


def _is_wrapper(value: Any) -> bool:
    return isinstance(value, functools.partial) or str(getattr(value, "__module__", "")).startswith(_LIBRARY)


def _held(value: Any) -> Iterator[Any]:
    """What a function or an object has at hand; lists and dicts in it by their items."""
    for held in _at_hand(value):
        if type(held) in _CONTAINERS:
            yield from islice(held.values() if type(held) is dict else held, MOST_ITEMS)
        else:
            yield held


def _at_hand(function: Any) -> Iterator[Any]:
    if isinstance(function, functools.partial):
        yield from (function.func, *function.args, *function.keywords.values())
        return
    if isinstance(function, types.MethodType):
        yield from (function.__self__, function.__func__)
        return
    if not isinstance(function, types.FunctionType):
        yield from list(vars(function).values())
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # empty so far
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    if not str(function.__module__).startswith(_LIBRARY):  # whose own functions name `Settings`
        module = function.__globals__
        yield from (module[name] for name in function.__code__.co_names if name in module)


def _parts(holder: Any) -> Iterator[Any]:
    """What may be, or hold, an LLM."""
    if isinstance(holder, types.MethodType):
        held: Iterable[Any] = (holder.__self__,)
    elif type(holder) is dict:
        held = holder.values()
    elif type(holder) in _CONTAINERS:
        held = holder
    else:
        held = [item for fields in _fields(holder) for item in fields.values()]
    yield from filter(_may_hold_llm, held)


def _may_hold_llm(item: Any) -> bool:
    return type(item) in _CONTAINERS or isinstance(item, types.MethodType) or _is_component(item) or _is_opaque(item)


def _fields(value: Any) -> list[dict[str, Any]]:
    """The dicts that hold an object's attributes."""
    private = getattr(value, "__pydantic_private__", None)
    return [fields for fields in (getattr(value, "__dict__", None), private) if type(fields) is dict]


def _is_component(value: Any) -> bool:
    if isinstance(value, (type, types.ModuleType, *_SEALED)):
        return False
    return any(cls.__module__.startswith(_LIBRARY) for cls in type(value).__mro__)


__all__ = ["Wiring", "twin", "user_of_llm"]
