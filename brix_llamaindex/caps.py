"""How the output of an LLM is capped for one call, by class.

Integrations differ: `OpenAI` lets its own ``max_tokens`` and ``additional_kwargs`` win over what is given
for a call, `Anthropic` the other way round, `Ollama` has its cap among its options, and about a class that
is not known here nothing can be said. In the SDKs of OpenAI and Anthropic, what ``extra_body`` holds wins over
all of it. The output of a class that is not known is what its ``metadata.num_output`` states, and where that is only
LlamaIndex's default, unknown. A cap that would not be kept is never assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.constants import DEFAULT_NUM_OUTPUTS
from llama_index.core.llms import LLM

from brix_core.endpoints.sdk import sent_body
from brix_core.model_limits import hides_reasoning
from brix_llamaindex.faces import face

Params = Mapping[str, Any]

_OPENAI_CAPS: Final = ("max_tokens", "max_completion_tokens")


class OutputCap(Protocol):
    """The output cap of one class of LLMs."""

    @property
    def settable(self) -> bool:
        """Whether the guards can set it for a call."""
        ...

    def asked(self, llm: LLM, params: Params, metadata: LLMMetadata) -> int | None:
        """The cap that will reach the provider without the guards."""
        ...

    def apply(self, llm: LLM, params: dict[str, Any], cap: int) -> tuple[LLM, dict[str, Any]]:
        """What to call, and with which parameters, so that `cap` is what reaches the provider."""
        ...


@dataclass(frozen=True, slots=True)
class FieldWins:
    """OpenAI's chat and text completions: ``additional_kwargs``, then the field, then the call's own."""

    settable: bool = True

    def asked(self, llm: Any, params: Params, metadata: LLMMetadata) -> int | None:
        """The smallest of ``max_tokens`` and ``max_completion_tokens`` as they will be sent."""
        sent = {**params, **llm.additional_kwargs}
        if window := inferred_cap(llm, params, metadata):
            sent = {"max_tokens": window, "extra_body": sent.get("extra_body")}
        elif llm.max_tokens is not None:
            sent = {**params, "max_tokens": llm.max_tokens, **llm.additional_kwargs}
        return _smallest(sent_body(sent), *_OPENAI_CAPS)

    def apply(self, llm: Any, params: dict[str, Any], cap: int) -> tuple[LLM, dict[str, Any]]:
        """A face of the LLM with the cap as its own, under the name the caller or the model wants."""
        extra, named = _bared(llm.additional_kwargs)
        params, named_for_call = _bared(params)
        prefers_newer = named | named_for_call == {"max_completion_tokens"}
        if prefers_newer or (_is_openai_itself(llm) and hides_reasoning(llm.model)):
            extra["max_completion_tokens"] = cap
            return face(llm, type(llm), max_tokens=None, additional_kwargs=extra), params
        return face(llm, type(llm), max_tokens=cap, additional_kwargs=extra), params


@dataclass(frozen=True, slots=True)
class CallWins:
    """Anthropic, OpenAI's Responses API: what is given for the call wins.

    Attributes:
        name: The field's and the parameter's name.
    """

    name: str
    settable: bool = True

    def asked(self, llm: Any, params: Params, metadata: LLMMetadata) -> int | None:
        """The call's own, else that of ``additional_kwargs``, else the field."""
        own = getattr(llm, self.name, None)
        return _smallest(sent_body({self.name: own, **llm.additional_kwargs, **params}), self.name)

    def apply(self, llm: Any, params: dict[str, Any], cap: int) -> tuple[LLM, dict[str, Any]]:
        """The cap as a parameter of the call."""
        capped = {**params, self.name: cap}
        extra = {**llm.additional_kwargs, **params}.get("extra_body")
        if isinstance(extra, Mapping) and self.name in extra:
            capped["extra_body"] = {**extra, self.name: cap}
        return llm, capped


@dataclass(frozen=True, slots=True)
class Option:
    """Ollama: one of the options in ``additional_kwargs``.

    Attributes:
        name: The option's name.
    """

    name: str
    settable: bool = True

    def asked(self, llm: Any, params: Params, metadata: LLMMetadata) -> int | None:
        """The option."""
        return _smallest(llm.additional_kwargs, self.name)

    def apply(self, llm: Any, params: dict[str, Any], cap: int) -> tuple[LLM, dict[str, Any]]:
        """A face of the LLM with the option set."""
        return face(llm, type(llm), additional_kwargs={**llm.additional_kwargs, self.name: cap}), params


@dataclass(frozen=True, slots=True)
class Stated:
    """Any other class: its output is what it says of itself, and cannot be changed for a call."""

    settable: bool = False

    def asked(self, llm: LLM, params: Params, metadata: LLMMetadata) -> int | None:
        """``metadata.num_output``, unless that is just LlamaIndex's default."""
        stated = metadata.num_output
        if stated <= 0:
            return None
        chosen = any(
            getattr(llm, name, None) == stated for name in ("max_tokens", "max_new_tokens", "max_output_tokens")
        )
        return stated if chosen or stated != DEFAULT_NUM_OUTPUTS else None

    def apply(self, llm: LLM, params: dict[str, Any], cap: int) -> tuple[LLM, dict[str, Any]]:
        """Nothing can be done."""
        return llm, params


OPENAI = "llama_index.llms.openai.base.OpenAI"

_BY_CLASS: dict[str, OutputCap] = {
    OPENAI: FieldWins(),
    "llama_index.llms.openai.responses.OpenAIResponses": CallWins("max_output_tokens"),
    "llama_index.llms.anthropic.base.Anthropic": CallWins("max_tokens"),
    "llama_index.llms.ollama.base.Ollama": Option("num_predict"),
}


def output_cap_of(llm: LLM) -> OutputCap:
    """How this LLM's output is capped.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> short, long = MockLLM(max_tokens=7), MockLLM()
        >>> cap = output_cap_of(short)
        >>> cap.settable, cap.asked(short, {}, short.metadata), cap.asked(long, {}, long.metadata)
        (False, 7, None)
    """
    return next((_BY_CLASS[name] for name in class_names(llm) if name in _BY_CLASS), Stated())


def class_names(llm: LLM) -> list[str]:
    """Full names of its class and all bases. By name, so that no integration has to be installed."""
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in type(llm).__mro__]


def inferred_cap(llm: Any, params: Params, metadata: LLMMetadata) -> int | None:
    """The context window, where OpenAI's text completions fill ``max_tokens`` up to it whatever was given."""
    chat = params.get("use_chat_completions", metadata.is_chat_model)
    if chat or llm.max_tokens is not None or llm._tokenizer is None:
        return None
    return metadata.context_window


def _is_openai_itself(llm: LLM) -> bool:
    return type(llm).__name__ in ("OpenAI", "AzureOpenAI")


def _bared(params: Params) -> tuple[dict[str, Any], set[str]]:
    """A copy without OpenAI's output caps, those in ``extra_body`` included, and the names of those there were."""
    named = {name for name in _OPENAI_CAPS if sent_body(params).get(name)}
    bare = {name: value for name, value in params.items() if name not in _OPENAI_CAPS}
    extra = bare.get("extra_body")
    if isinstance(extra, Mapping):
        bare["extra_body"] = {name: value for name, value in extra.items() if name not in _OPENAI_CAPS}
    return bare, named


def _smallest(params: Params, *names: str) -> int | None:
    found = [value for name in names if isinstance(value := params.get(name), int) and value > 0]
    return min(found, default=None)


__all__ = [
    "OPENAI",
    "CallWins",
    "FieldWins",
    "Option",
    "OutputCap",
    "Stated",
    "class_names",
    "inferred_cap",
    "output_cap_of",
]
