"""Google's Gemini models, through the REST API of ai.google.dev.

``POST /v1beta/models/{model}:generateContent``, and ``:streamGenerateContent?alt=sse`` for streams; the key travels in
the header ``x-goog-api-key``, never in the URL. Messages come in OpenAI's chat format; see
`brix_core.endpoints.gemini_request`.

Source: ai.google.dev/api ("Authentication", "Content generation"), ai.google.dev/api/generate-content.

Example:
    >>> endpoint = GeminiEndpoint("gemini-2.5-flash", api_key="secret")
    >>> endpoint
    GeminiEndpoint('google:generativelanguage.googleapis.com/gemini-2.5-flash')
    >>> endpoint.requested_cap({"max_tokens": 100}), endpoint.longest_output({})
    (100, 65536)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from brix_core.call import CallRequest, CallResponse
from brix_core.endpoints.gemini_request import (
    API,
    BESIDE,
    KNOWN,
    contents,
    generation_config,
    has_native_schema,
    response_json_schema,
    tools,
)
from brix_core.endpoints.gemini_response import finishes, merged, read, read_event, told
from brix_core.endpoints.http import HTTPEndpoint
from brix_core.endpoints.http_client import DEFAULT_TIMEOUT, HTTPClient, JsonObject, checked_key
from brix_core.endpoints.http_streams import ServerSentEvents
from brix_core.endpoints.sdk import StreamPiece, is_cap, is_given

if TYPE_CHECKING:
    from brix_core.structured.response_schema import ResponseSchema

BASE_URL: Final = "https://generativelanguage.googleapis.com/v1beta"
"""Google's own address."""

_SECONDS: Final = re.compile(r"(\d+(?:\.\d+)?)s\Z")


class GeminiEndpoint(HTTPEndpoint):
    """A Gemini model.

    Args:
        model: The model asked for when a call names none.
        api_key: The key.
        base_url: Another address of the API; ``/v1beta`` is added where it has no path.
        timeout: Longest wait for the next bytes, seconds.
        client: An ``httpx.Client`` or ``httpx.AsyncClient`` to use, with its own time limits; own ones by default.
        options: Further arguments of httpx's clients.

    Raises:
        BrixConfigurationError: An argument cannot be used, or httpx is not installed.
    """

    provider = "google"
    api = API
    known = KNOWN
    framing = ServerSentEvents

    def __init__(
        self,
        model: str | None = None,
        *,
        api_key: str,
        base_url: str = BASE_URL,
        timeout: float = DEFAULT_TIMEOUT,
        client: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        key = checked_key("api_key", api_key)
        url = base_url if urlsplit(base_url).path.strip("/") else f"{base_url.rstrip('/')}/v1beta"
        http = HTTPClient(
            url,
            headers={"x-goog-api-key": key},
            secret=key,
            explain=_explained,
            timeout=timeout,
            client=client,
            options=options,
        )
        super().__init__(http, model)

    def choices(self, params: Mapping[str, Any]) -> int:
        """``candidateCount``, or 1."""
        count = generation_config(params).get("candidateCount")
        return count if is_cap(count) else 1

    def schemas(self, params: Mapping[str, Any]) -> list[Any]:
        """Tools, and a schema that the caller gives."""
        found: list[Any] = []
        if is_given(params.get("tools")):
            found += params["tools"]
        extra = params.get("extra_body") or {}
        found += extra.get("tools") or ()
        if is_given(params.get("response_format")):
            return [*found, params["response_format"]]
        config = generation_config(params)
        return found + [config[name] for name in ("responseSchema", "responseJsonSchema") if config.get(name)]

    def structured(self, schema: ResponseSchema, params: Mapping[str, Any]) -> bool:
        """Whether the schema is sent as ``responseJsonSchema``.

        It is where the model takes one, unless the caller gives a format, or Gemini cannot express the schema.
        """
        config = generation_config(params)
        return (
            not config.keys() & {"responseMimeType", "responseSchema", "responseJsonSchema"}
            and has_native_schema(self.model(params), params)
            and response_json_schema(schema) is not None
        )

    def piece(self, event: JsonObject) -> StreamPiece:
        """Read an event of a stream."""
        billed, text = read_event(event)
        return StreamPiece(billed, text, event, self)

    @property
    def _answered(self) -> frozenset[str]:
        return frozenset({"candidates", "promptFeedback"})

    @property
    def _own_way(self) -> Mapping[str, str]:
        return _OWN_WAY

    def _sent_cap(self, params: Mapping[str, Any]) -> Any:
        return generation_config(params).get("maxOutputTokens")

    def _path(self, request: CallRequest, stream: bool) -> str:
        name = self.model(request.params).removeprefix("models/")
        kind, name = ("tunedModels", name[12:]) if name.startswith("tunedModels/") else ("models", name)
        resource = f"{kind}/{quote(name, safe='')}"
        return f"/{resource}:" + ("streamGenerateContent?alt=sse" if stream else "generateContent")

    def _body(self, request: CallRequest, stream: bool) -> JsonObject:
        params = request.params
        talk, system = contents(request.conversation.messages)
        config = generation_config(params)
        if request.output_cap is not None:
            config["maxOutputTokens"] = request.output_cap
        if request.schema is not None and self.structured(request.schema, params):
            config["responseMimeType"] = "application/json"
            config["responseJsonSchema"] = response_json_schema(request.schema)
        body: JsonObject = {"contents": talk}
        if system is not None:
            body["systemInstruction"] = system
        body |= tools(params)
        body |= {own: params[name] for name, own in BESIDE.items() if is_given(params.get(name))}
        body |= {name: value for name, value in (params.get("extra_body") or {}).items() if name != "generationConfig"}
        if config:
            body["generationConfig"] = config
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
    "contents": "messages are the first argument of the call",
    "systemInstruction": "give a system message",
    "model": "the model must be given as model=, or it would be priced as another",
}


def _explained(status: int | None, body: Any) -> tuple[str, Mapping[str, str]]:
    """What an error says, and how long to wait: Google says so in the body (google.rpc.RetryInfo)."""
    error = body[0] if isinstance(body, list) and body else body
    error = error.get("error") if isinstance(error, Mapping) else None
    if not isinstance(error, Mapping):
        return str(body), {}
    said = " ".join(str(part) for part in (error.get("status"), error.get("message")) if part)
    for detail in error.get("details") or ():
        found = _SECONDS.match(str(detail.get("retryDelay") or "")) if isinstance(detail, Mapping) else None
        if found:
            return said, {"retry-after": found[1]}
    return said, {}


__all__ = ["BASE_URL", "GeminiEndpoint"]
