"""The documented code of the regulated domain as it stands, only the names of the imports changed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import openai
import pytest
from typer.testing import CliRunner

from brix_core import BrixError, BrixGuardBlockedError, BrixGuardError
from brix_core.cli import app
from brix_core.demo import DemoServer, Reply
from brix_core.regulated import ActionTaken, StructuredResult, UncertaintyType

MY_SPEC = """
name: custom
version: "1.0"
circuit_breakers:
  - {name: keys, description: Asks for a key., patterns: ["spare key"]}
output_signals:
  - {name: place, description: Tells where the key is., patterns: ["under the mat"], weight: 1, signal_type: block}
  - {name: hint, description: Hints at the key., patterns: ["near the door"], weight: 0.5}
"""


@pytest.fixture(autouse=True)
async def _api(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """`openai.AsyncOpenAI()` finds the local server, and is closed in the end."""
    made: list[openai.AsyncOpenAI] = []

    class Closed(openai.AsyncOpenAI):
        def __init__(self, **fields: Any) -> None:
            super().__init__(**{"api_key": "test", "base_url": server.base_url, **fields})
            made.append(self)

    monkeypatch.setattr(openai, "AsyncOpenAI", Closed)
    yield
    for client in made:
        await client.close()


def _check(result: StructuredResult) -> None:
    """Every documented field is there, of its documented type."""
    types: dict[str, Any] = {
        "decision_id": UUID,
        "uncertainty_type": UncertaintyType,
        "action_taken": ActionTaken,
        "response": str,
        "circuit_breaker_hit": bool,
        "signals_triggered": list,
        "risk_score": float,
        "reliability_signal": bool,
        "utility_signal": bool,
        "balance_index": float,
        "intervention_necessary": bool,
        "registry_version": str,
        "cost_tokens_extra": int,
        "latency_ms": float,
        "retrieval_executed": bool,
        "retrieval_sources": list,
    }
    for name, kind in types.items():
        assert isinstance(getattr(result, name), kind), name
    assert result.circuit_breaker_name is None or isinstance(result.circuit_breaker_name, str)
    assert 0.0 <= result.balance_index <= 1.0


async def test_via_wrap(server: DemoServer) -> None:
    from brix_core import BRIX

    client = BRIX.wrap(
        openai.AsyncOpenAI(),
        regulated_spec="medical",  # activates RegulatedGuard
        model="gpt-4o-mini",
    )
    server.default = Reply("At most 4 g a day for adults; ask a pharmacist.")
    await client.complete([{"role": "user", "content": "What is the max safe aspirin dose?"}])

    result = client.context.metadata["regulated_result"]
    _check(result)
    assert result.circuit_breaker_hit is False
    assert result.action_taken is ActionTaken.NONE
    assert result.balance_index == 1.0
    assert result.uncertainty_type is UncertaintyType.CERTAIN
    assert server.stats.requests == len(client.get_traces()[0]["attempts"]) >= 1


async def test_via_wrap_as_documented_without_a_model(server: DemoServer) -> None:
    from brix_core import BRIX

    client = BRIX.wrap(openai.AsyncOpenAI(), regulated_spec="medical")
    messages = [{"role": "user", "content": "What is the max safe aspirin dose?"}]
    await client.complete(messages, model="gpt-4o-mini")  # the SDK wants one with each call
    _check(client.context.metadata["regulated_result"])


async def test_a_mandatory_intervention_raises(server: DemoServer) -> None:
    from brix_core import BRIX

    client = BRIX.wrap(openai.AsyncOpenAI(), regulated_spec="medical", model="gpt-4o-mini")
    with pytest.raises(BrixGuardBlockedError):
        await client.complete([{"role": "user", "content": "What is the lethal dose of acetaminophen?"}])
    result = client.context.metadata["regulated_result"]
    assert result.circuit_breaker_hit
    assert result.action_taken is ActionTaken.FORCE_RETRIEVAL
    assert server.stats.requests == 0
    assert issubclass(BrixGuardBlockedError, BrixGuardError)
    assert issubclass(BrixGuardError, BrixError)


async def test_via_router(capsys: pytest.CaptureFixture[str]) -> None:
    from brix_core.regulated import BrixRouter, MockLLMClient

    router = BrixRouter(llm_client=MockLLMClient(), spec="medical")
    result = await router.process("What is the lethal dose of acetaminophen?")
    print(result.circuit_breaker_hit)  # True
    print(result.action_taken)  # force_retrieval
    print(result.balance_index)  # running session metric

    assert capsys.readouterr().out.split() == ["True", "force_retrieval", str(result.balance_index)]
    _check(result)
    assert result.intervention_necessary
    assert result.circuit_breaker_name
    assert result.registry_version == router.spec.version
    assert router.feedback(result.decision_id, was_intervention_necessary=True) == router.balance_index


@pytest.mark.parametrize("name", ["medical", "legal", "finance", "hr", "general"])
async def test_built_in_specs(name: str) -> None:
    from brix_core.regulated import BrixRouter, MockLLMClient

    result = await BrixRouter(llm_client=MockLLMClient(), spec=name).process("Good morning")
    assert (result.spec_name, result.response) == (name, "This is a mock response.")


async def test_the_default_spec_is_the_general_one() -> None:
    from brix_core.regulated import BrixRouter, MockLLMClient

    assert (await BrixRouter(llm_client=MockLLMClient()).process("Good morning")).spec_name == "general"


def test_load_custom_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from brix_core.regulated import load_spec, load_spec_from_dict

    monkeypatch.chdir(tmp_path)
    Path("path/to").mkdir(parents=True)
    Path("path/to/my_spec.yaml").write_text(MY_SPEC)
    spec = load_spec("path/to/my_spec.yaml")
    assert (spec.name, spec.version, spec.circuit_breakers[0].name) == ("custom", "1.0", "keys")
    spec = load_spec_from_dict({"name": "custom"})
    assert spec.name == "custom"


@dataclass
class Found:
    text: str
    score: float
    url: str


class VectorDB:
    """Stands for the application's own."""

    def __init__(self, *found: Found) -> None:
        self.found = found
        self.asked: list[tuple[str, int]] = []

    async def search(self, query: str, limit: int) -> list[Found]:
        self.asked.append((query, limit))
        return list(self.found[:limit])


async def test_rag_integration() -> None:
    from brix_core import RetrievalProvider, RetrievalResult
    from brix_core.regulated import BrixRouter, MockLLMClient

    my_vector_db = VectorDB(
        Found("Call the poison hotline.", 0.91, "https://example.org/hotline"),
        Found("Keep the package at hand.", 0.84, "https://example.org/package"),
    )
    my_llm = MockLLMClient("Call the poison hotline (https://example.org/hotline).")

    class MyRAG(RetrievalProvider):
        async def retrieve(self, query: str, *, max_results: int = 3) -> RetrievalResult:
            docs = await my_vector_db.search(query, limit=max_results)
            return RetrievalResult(
                content="\n".join(d.text for d in docs),
                score=docs[0].score,
                sources=[d.url for d in docs],
            )

    router = BrixRouter(
        llm_client=my_llm,
        spec="medical",
        retrieval_provider=MyRAG(),
    )

    result = await router.process("What is the lethal dose of acetaminophen?")
    assert my_vector_db.asked == [("What is the lethal dose of acetaminophen?", 3)]
    assert result.circuit_breaker_hit
    assert result.action_taken is ActionTaken.FORCE_RETRIEVAL
    assert (result.retrieval_executed, result.retrieval_score) == (True, 0.91)
    assert result.retrieval_sources == ["https://example.org/hotline", "https://example.org/package"]
    assert result.response == "Call the poison hotline (https://example.org/hotline)."
    assert my_llm.call_count == router.spec.sampling_config.circuit_breaker_samples


async def test_standalone_output_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from brix_core import OutputGuard, load_spec

    monkeypatch.chdir(tmp_path)
    Path("my_spec.yaml").write_text(MY_SPEC)
    original_query, response_text = "Where is the key?", "Look under the mat, near the door."

    guard = OutputGuard(load_spec("my_spec.yaml"))
    result = await guard.analyze(response_text, query=original_query)

    assert result.output_blocked
    assert result.output_block_signal == "place"
    assert set(result.output_signals_triggered) == {"place", "hint"}
    assert not result.response_safe_to_display
    harmless = await guard.analyze("I do not know.", query=original_query)
    assert (harmless.output_blocked, harmless.output_risk_score, harmless.response_safe_to_display) == (
        False,
        0.0,
        True,
    )


@pytest.mark.parametrize("command", ["lint", "test", "explain", "generate"])
def test_cli(command: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(MY_SPEC + "test_cases:\n  - {text: Where is the spare key?, kind: positive, expect: keys}\n")
    result = CliRunner().invoke(app, [command, str(path)])
    assert result.exit_code == 0, result.output
    assert result.output.strip()


def test_results_are_json() -> None:
    from brix_core.regulated import BrixRouter, MockLLMClient

    result = BrixRouter(llm_client=MockLLMClient(), spec="medical").process_sync("What is the lethal dose of aspirin?")
    again = json.loads(result.model_dump_json())
    assert (again["action_taken"], again["uncertainty_type"]) == ("force_retrieval", "epistemic")
    assert StructuredResult.model_validate(again) == result
