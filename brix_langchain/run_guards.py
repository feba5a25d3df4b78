"""The guards of a whole run, whatever runs: which options hold around it, and which inside, by callbacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import uuid4

from langchain_core.runnables import Runnable, RunnableConfig

from brix_core.call import CallRequest
from brix_core.errors import BrixConfigurationError
from brix_core.guards import BudgetConfig, CacheConfig, ContextConfig, LoopConfig, SchemaConfig
from brix_core.guards.recording import RecordingConfig
from brix_core.guards.regulated import RegulatedConfig
from brix_core.guards.replay import ReplayConfig
from brix_core.options import parse
from brix_core.session import Session, current_session_id
from brix_langchain.inside import Inside
from brix_langchain.opaque import written
from brix_langchain.own_retries import chain_without_own_retries
from brix_langchain.pipelines import RunPipeline
from brix_langchain.runnable_endpoint import RUN, Run, RunnableEndpoint
from brix_langchain.sessions import session_of


def _options_of(*configs: type[Any]) -> frozenset[str]:
    return frozenset(field.name for config in configs for field in dataclasses.fields(config))


_OF_MODELS: Final = _options_of(
    CacheConfig, ContextConfig, RecordingConfig, RegulatedConfig, ReplayConfig, SchemaConfig
) | {"tokens_per_minute"}
"""Options that are about one prompt or one answer of one model."""

_EDITS: Final = ("diversity_attempts", "loop_diversity_prompt", "budget_clamp_output")
"""Options of guards that change what is asked."""

_LOOP: Final = _options_of(LoopConfig)
_INSIDE: Final = _options_of(BudgetConfig) | {"per_step_timeout", "tool_loop_detection"}
"""Options that hold inside the run, by callbacks."""

_LOOPS_AROUND: Final = ("exact_loop_detection", "semantic_loop_detection")


class RunGuards:
    """Guards around and inside the runs of one runnable.

    Args:
        inner: What is run: a copy in which no model retries by itself, as far as models can be reached.
        options: Options of `guard`.
        endpoint: Makes an endpoint of a runnable.
        loops_inside: Look for all loops inside, none around: the output of a graph is its whole state.

    Raises:
        BrixConfigurationError: An option that a run cannot be guarded with, or a bad value.
    """

    def __init__(
        self,
        inner: Runnable[Any, Any],
        options: Mapping[str, Any],
        endpoint: Callable[[Runnable[Any, Any]], RunnableEndpoint] = RunnableEndpoint,
        *,
        loops_inside: bool = False,
    ) -> None:
        given = {name: value for name, value in options.items() if value is not None}
        _refuse(given)
        around, inside = _divided(given, loops_inside=loops_inside)
        parsed = parse(around)
        first, *others = (endpoint(chain_without_own_retries(one)) for one in (inner, *parsed.fallbacks))
        self.endpoint = first
        self.pipeline = RunPipeline(parsed, others)
        self.reads_input = "loop" in parsed.configs
        self.inside: Inside | None = None
        if inside:
            shared = {name: given[name] for name in ("clock", "trace_buffer_size") if name in given}
            default = self.pipeline.sessions.default_id
            self.inside = Inside(**inside, **shared, store=self.pipeline.store, session_id=default)

    def begin(
        self,
        input: Any,
        config: RunnableConfig | None,
        kwargs: Mapping[str, Any],
        *,
        stream: bool = False,
        chunks: Any = None,
        target: Runnable[Any, Any] | None = None,
        session_id: str | None = None,
    ) -> CallRequest:
        """Begin a guarded run.

        Args:
            input: Its input.
            config: LangChain's configuration.
            kwargs: Further arguments.
            stream: Whether chunks are wanted.
            chunks: The input where it comes in chunks, not read yet: nothing is known of it then.
            target: What is run, when it is not the runnable itself.
            session_id: Whose run it is, when that was found out before.
        """
        handlers = () if self.inside is None else (self.inside,)
        text = written(input) if chunks is None else f"(an input that is still coming: {uuid4()})"
        repeats = not {"retry", "failover"}.isdisjoint(self.pipeline.names)
        run = Run(target, input, config, kwargs, chunks, handlers, repeats)
        named = session_id or session_of(config)
        return self.pipeline.request(self.endpoint, [text], {RUN: run}, stream=stream, session_id=named)

    def get_traces(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Trace entries of runs, newest first."""
        return self.pipeline.traces.get_traces(session_id)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the active guards, those inside last."""
        inside = () if self.inside is None else self.inside.guards
        return tuple(dict.fromkeys((*self.pipeline.names, *inside)))

    def session(self, config: RunnableConfig | None = None) -> Session:
        """The session a run would belong to; its cost is known inside."""
        pipeline = self.pipeline if self.inside is None else self.inside._pipeline
        return pipeline.session(session_of(config))


def session_now(config: RunnableConfig | None) -> str | None:
    """The session at this moment, for a stream that may be read elsewhere."""
    return session_of(config) or current_session_id()


def _refuse(given: Mapping[str, Any]) -> None:
    if of_models := sorted(_OF_MODELS & given.keys()):
        raise BrixConfigurationError(
            f"{', '.join(of_models)} cannot be kept around a whole run, in which any number of models may be called; "
            f"guard the model inside: guard(model, {of_models[0]}=...)"
        )
    edits = [name for name in _EDITS if given.get(name)]
    if given.get("on_loop") == "inject_diversity":
        edits.append("on_loop='inject_diversity'")
    if edits:
        raise BrixConfigurationError(
            f"{', '.join(edits)} would change what a model is asked, which cannot be done around a whole run; guard "
            "the model inside with it, or leave it out"
        )
    if given.get("on_timeout") == "return_partial":
        raise BrixConfigurationError(
            "on_timeout='return_partial' has no meaning for a whole run, whose output is no text; guard the model "
            "inside with it, or read the run as a stream"
        )


def _divided(given: Mapping[str, Any], *, loops_inside: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options around the run, and inside."""
    around = {name: value for name, value in given.items() if name not in _INSIDE | _LOOP}
    inside = {name: value for name, value in given.items() if name in _INSIDE - _LOOP}
    loops = {name: value for name, value in given.items() if name in _LOOP}
    if not loops:
        return around, inside
    looks_around = any(loops.get(name) for name in _LOOPS_AROUND) and not loops_inside
    looks_inside = loops.get("tool_loop_detection") or (loops_inside and any(map(loops.get, _LOOPS_AROUND)))
    if looks_around or not looks_inside:  # or none is active, which the check of the options tells
        around |= {**loops, "on_loop": "raise"} if looks_around else loops
    if looks_inside:
        semantic = ("semantic_loop_detection", "semantic_loop_threshold", "embedder")
        left_out = () if loops_inside else (*_LOOPS_AROUND, *semantic)
        inside |= {name: value for name, value in loops.items() if name not in left_out}
    return around, inside


__all__ = ["RunGuards", "session_now"]
