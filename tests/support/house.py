"""A spec and a model for the tests of the regulated guard, and the ways to ask it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache
from typing import Any

import anthropic
import openai
import pytest

from brix_core import BRIX, MemoryStore
from brix_core.client import BrixClient
from brix_core.demo import DemoServer, RequestRecord
from brix_core.regulated import StructuredResult


def breaker(name: str, *patterns: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": f"Asks for {name}.", "patterns": list(patterns), **more}


def signal(name: str, weight: float, *patterns: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": f"Is about {name}.", "patterns": list(patterns), "weight": weight, **more}


LECTURE = "toxicology"

HOUSE: dict[str, Any] = {
    "metadata": {
        "name": "house",
        "version": "1.2.0",
        "model_compatibility": [{"model_family": "gpt-4o", "status": "verified"}],
    },
    "circuit_breakers": [
        breaker("lethal_dose", "lethal dose", message="Amounts that kill are not told.", exclude_context=[LECTURE]),
        breaker("grudge", "my neighbour must die", scope="conversation"),
        breaker("injection", "ignore all rules", applies_to=["retrieved"]),
        breaker("transfer", "offshore account", applies_to=["tool_arguments"]),
    ],
    "risk_signals": [
        signal("dosage", 0.5, "dosage", "how much"),
        signal("interaction", 0.8, "together with"),
        signal("hurry", 0.5, "right now", category="universal"),
    ],
    "output_signals": [
        signal("recipe", 1.0, "mix the acid", signal_type="block", message="No recipes."),
        signal("promise", 0.4, "guaranteed cure"),
    ],
}
LOW, MEDIUM, HIGH, STOPPED = "Good morning.", "What dosage?", "May I take it together with wine?", "The lethal dose?"

PACKAGES = {"OpenAI": openai, "AsyncOpenAI": openai, "Anthropic": anthropic, "AsyncAnthropic": anthropic}


@dataclass(frozen=True)
class Way:
    """One way to ask: blocking or on an event loop, whole or streamed."""

    sync: bool
    streamed: bool = False

    def __str__(self) -> str:
        return f"{'sync' if self.sync else 'async'}-{'streamed' if self.streamed else 'plain'}"

    def ask(self, client: BrixClient[Any], messages: Any = LOW, **more: Any) -> Any:
        """The answer, or its text where it was streamed."""
        if self.sync:
            return self.block(client, messages, **more)
        return asyncio.run(self.wait(client, messages, **more))

    def block(self, client: BrixClient[Any], messages: Any = LOW, **more: Any) -> Any:
        if not self.streamed:
            return client.complete_sync(messages, **more)
        return "".join(map(str, client.stream(messages, **more)))

    async def wait(self, client: BrixClient[Any], messages: Any = LOW, **more: Any) -> Any:
        if not self.streamed:
            return await client.complete(messages, **more)
        return "".join([str(piece) async for piece in client.stream(messages, **more)])


WAYS = [Way(True), Way(True, True), Way(False), Way(False, True)]
every_way = pytest.mark.parametrize("way", WAYS, ids=str)
plain_ways = pytest.mark.parametrize("way", [WAYS[0], WAYS[2]], ids=str)
streamed_ways = pytest.mark.parametrize("way", [WAYS[1], WAYS[3]], ids=str)


@cache
def _client(kind: str, url: str) -> Any:
    """Making one costs more than most tests."""
    return getattr(PACKAGES[kind], kind)(api_key="test", base_url=url)


def wrapped(server: DemoServer, kind: str = "OpenAI", **options: Any) -> BrixClient[Any]:
    """A guarded client of the demo server, its store and session its own."""
    package = PACKAGES[kind]
    url = server.base_url if package is openai else server.anthropic_base_url
    model = "gpt-4o-mini" if package is openai else "claude-haiku-4-5"
    given = {"regulated_spec": HOUSE, "regulated_embedder": "lexical", "store": MemoryStore(), "session_id": "s"}
    return BRIX.wrap(_client(kind, url), model=model, **{**given, **options})


def result_of(client: BrixClient[Any]) -> StructuredResult:
    found: StructuredResult = client.context.metadata["regulated_result"]
    return found


def decisions_of(client: BrixClient[Any]) -> list[dict[str, Any]]:
    """What the regulated guard decided about the latest call."""
    return [one for one in client.get_traces()[0]["decisions"] if one["guard"] == "regulated"]


def prompt_of(record: RequestRecord) -> str:
    """All that a request says."""
    return "\n".join(str(message["content"]) for message in record.body["messages"])


def assert_counts_agree(client: BrixClient[Any], server: DemoServer) -> None:
    """The guard has seen every request that the server has."""
    counted = sum(len(entry["attempts"]) for entry in client.get_traces())
    assert counted == len(server.requests) == server.stats.requests


__all__ = [
    "HIGH",
    "HOUSE",
    "LOW",
    "MEDIUM",
    "STOPPED",
    "WAYS",
    "Way",
    "assert_counts_agree",
    "breaker",
    "decisions_of",
    "every_way",
    "plain_ways",
    "prompt_of",
    "result_of",
    "signal",
    "streamed_ways",
    "wrapped",
]
