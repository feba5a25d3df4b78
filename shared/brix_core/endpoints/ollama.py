"""Models served by Ollama, through its own REST API: ``POST /api/chat``.

Nothing has a price here: what a machine of one's own costs is for its owner to say, and Ollama's cloud bills by plan.
So a budget treats these models by its policy for unknown prices, unless ``prices={"llama3.2": (0, 0)}`` says that they
are free (docs/decisions/0017).

A prompt that is longer than the model's context (``num_ctx``) is cut by Ollama without a word: set
``max_context_tokens``, or ``num_ctx``, where prompts may be long.

Sources: docs.ollama.com/api/chat, /api/errors, /api/streaming, /api/authentication.

Example:
    >>> endpoint = OllamaEndpoint("llama3.2")
    >>> endpoint
    OllamaEndpoint('ollama:127.0.0.1:11434/llama3.2')
    >>> endpoint.requested_cap({"max_tokens": 100})
    100
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from brix_core.call import CallRequest, CallResponse
from brix_core.endpoints.http import HTTPEndpoint
from brix_core.endpoints.http_client import DEFAULT_TIMEOUT, HTTPClient, JsonObject, checked_key
from brix_core.endpoints.http_streams import JsonLines
from brix_core.endpoints.ollama_messages import (
    API,
    BESIDE,
    KNOWN,
    finishes,
    merged,
    messages,
    options,
    own_format,
    read,
    read_event,
    schema_format,
    told,
    tools,
)
from brix_core.endpoints.sdk import StreamPiece, is_given

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

BASE_URL: Final = "http://127.0.0.1:11434"
"""Where Ollama listens by default."""


class OllamaEndpoint(HTTPEndpoint):
    """A model served by Ollama.

    Args:
        model: The model asked for when a call names none.
        base_url: The server.
        api_key: A key, for Ollama's cloud or a proxy; sent as a bearer token.
        timeout: Longest wait for the next bytes, seconds. The first request loads the model.
        client: An ``httpx.Client`` or ``httpx.AsyncClient`` to use, with its own time limits; own ones by default.
        options: Further arguments of httpx's clients.

    Raises:
        BrixConfigurationError: An argument cannot be used, or httpx is not installed.
    """

    provider = "ollama"
    api = API
    known = KNOWN
    framing = JsonLines

    def __init__(
        self,
        model: str | None = None,
        *,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        client: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        key = "" if api_key is None else checked_key("api_key", api_key)
        http = HTTPClient(
            base_url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            secret=key,
            explain=_explained,
            timeout=timeout,
            client=client,
            options=options,
        )
        super().__init__(http, model)

    def choices(self, params: Mapping[str, Any]) -> int:
        """Always 1."""
        return 1

    def schemas(self, params: Mapping[str, Any]) -> list[Any]:
        """Tools, and a format that the caller gives."""
        found = tools(params)
        found += (params.get("extra_body") or {}).get("tools") or ()
        wanted = own_format(params)
        return found if wanted is None else [*found, wanted]

    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """Whether the schema is sent as ``format``.

        It is on a machine of one's own (Ollama's cloud takes none), unless the caller gives a format or tools, or the
        schema leaves values open.
        """
        return (
            own_format(params) is None
            and not tools(params)
            and not self._is_in_cloud(params)
            and schema_format(schema) is not None
        )

    def piece(self, event: JsonObject) -> StreamPiece:
        """Read a line of a stream."""
        billed, text = read_event(event)
        return StreamPiece(billed, text, event, self)

    def _is_in_cloud(self, params: Mapping[str, Any]) -> bool:
        host = urlsplit(f"//{self._http.address}").hostname or ""
        return host == "ollama.com" or host.endswith(".ollama.com") or self.model(params).endswith(("-cloud", ":cloud"))

    @property
    def _answered(self) -> frozenset[str]:
        return frozenset({"message"})

    @property
    def _own_way(self) -> Mapping[str, str]:
        return _OWN_WAY

    def _sent_cap(self, params: Mapping[str, Any]) -> Any:
        return options(params).get("num_predict")  # -1 and -2 are no caps

    def _path(self, request: CallRequest, stream: bool) -> str:
        return "/api/chat"

    def _body(self, request: CallRequest, stream: bool) -> JsonObject:
        params = request.params
        body: JsonObject = {
            "model": self.model(params),
            "messages": messages(request.conversation.messages),
            "stream": stream,
        }
        if offered := tools(params):
            body["tools"] = offered
        wanted = own_format(params)
        if wanted is None and request.schema is not None and self.structured(request.schema, params):
            wanted = schema_format(request.schema)
        if wanted is not None:
            body["format"] = wanted
        body |= {name: params[name] for name in BESIDE if is_given(params.get(name))}
        extra = params.get("extra_body") or {}
        body |= {name: value for name, value in extra.items() if name not in ("options", "format")}
        own = options(params)
        if request.output_cap is not None:
            own["num_predict"] = request.output_cap
        if own:
            body["options"] = own
        return body

    def _read(self, data: JsonObject, request: CallRequest) -> CallResponse:
        return read(data, self.model(request.params))

    def _finishes(self, event: JsonObject) -> bool:
        return finishes(event)

    def _merged(self, events: Sequence[JsonObject]) -> JsonObject:
        return merged(events)

    def _told(self, response: CallResponse) -> JsonObject:
        return told(response)


_OWN_WAY: Final = {
    "messages": "messages are the first argument of the call",
    "model": "the model must be given as model=, or it would be priced as another",
    "stream": "ask for a stream by the method that gives one",
}


def _explained(status: int | None, body: Any) -> tuple[str, Mapping[str, str]]:
    said = body.get("error") if isinstance(body, Mapping) else None
    return (said if isinstance(said, str) else str(body)), {}


__all__ = ["BASE_URL", "OllamaEndpoint"]
