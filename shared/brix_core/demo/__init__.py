"""A model provider on loopback, for tests and for ``make demo``.

It speaks the HTTP APIs of OpenAI, Anthropic, Gemini and Ollama.

Needs the extra ``demo`` (``pip install "brix-guards[demo]"``).
"""

from brix_core.demo.faults import (
    BadRequest,
    Behaviour,
    CutStream,
    Echo,
    EndlessRepetition,
    JsonReply,
    MalformedJson,
    Overloaded,
    QuotaExceeded,
    RateLimited,
    Reply,
    ServerError,
    SlowFirstToken,
    StalledStream,
    ToolCalls,
)
from brix_core.demo.ledger import Outcome, RequestRecord, ServerStats
from brix_core.demo.server import DemoServer

__all__ = [
    "BadRequest",
    "Behaviour",
    "CutStream",
    "DemoServer",
    "Echo",
    "EndlessRepetition",
    "JsonReply",
    "MalformedJson",
    "Outcome",
    "Overloaded",
    "QuotaExceeded",
    "RateLimited",
    "Reply",
    "RequestRecord",
    "ServerError",
    "ServerStats",
    "SlowFirstToken",
    "StalledStream",
    "ToolCalls",
]
