"""The core's pipeline as LangChain needs it: errors that are final there, and the cap of the runs around a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from brix_core.call import CallRequest
from brix_core.errors import BrixError, BrixGuardError
from brix_core.flow import Flow
from brix_core.pipeline import Pipeline
from brix_langchain.inside import on_their_bills, runs_around, surrounding_cap
from brix_langchain.refusals import as_model_error, final_in_graph


class RunPipeline(Pipeline):
    """For whole runs."""

    def _flow(self, request: CallRequest) -> Flow:
        try:
            return (yield from super()._flow(request))
        except BrixError as error:
            final_in_graph(error)
            raise


class ModelPipeline(Pipeline):
    """For models. In a guarded run whose money is in the same store, a call is under the run's cap as well."""

    def request(self, endpoint: Any, messages: Iterable[Any], params: Mapping[str, Any], **how: Any) -> CallRequest:
        """See `Pipeline.request`."""
        request = super().request(endpoint, messages, params, **how)
        if "budget" in self.names:
            handlers = getattr(params.get("run_manager"), "handlers", ())
            request.call.cap_usd = surrounding_cap(self.store, handlers)
        return request

    def _flow(self, request: CallRequest) -> Flow:
        around = runs_around(getattr(request.params.get("run_manager"), "handlers", ()))
        try:
            if not around:
                return (yield from super()._flow(request))
            store = self.store if "budget" in self.names else None
            with on_their_bills(request.call, around, store):
                return (yield from super()._flow(request))
        except BrixError as error:
            if isinstance(error, BrixGuardError):
                as_model_error(error)
            final_in_graph(error)
            raise


__all__ = ["ModelPipeline", "RunPipeline"]
