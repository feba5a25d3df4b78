"""LangChain's standard tests: a guarded ChatOpenAI passes and skips what a bare one does, and none gets past it.

The bare one runs beside it, so that both are held to the same lists of skips (see `STANDARD_SKIPS`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import SecretStr

from brix_core.demo import DemoServer
from brix_core.store import MemoryStore
from brix_langchain import GuardedChatModel, guard
from tests.langchain.support import OPTIONS, attempts
from tests.support.standard_chat import StandardChat, StandardChatUnit

STORE = MemoryStore()
_made: list[GuardedChatModel] = []
_seen = {"attempts": 0, "requests": 0}


class GuardedChatOpenAI(GuardedChatModel):
    """``guard(ChatOpenAI(...))`` in the shape of a class, as the standard tests want it."""

    def __new__(cls, **params: Any) -> Any:
        model = guard(ChatOpenAI(**params), **{**OPTIONS, "store": STORE, "session_id": "standard"})
        _made.append(model)
        return model


class TestBareIntegration(StandardChat, ChatModelIntegrationTests):
    pass


class TestBareUnit(StandardChatUnit, ChatModelUnitTests):
    pass


class TestGuardedIntegration(StandardChat, ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GuardedChatOpenAI

    @pytest.fixture(autouse=True)
    def _every_request_was_seen(self, server: DemoServer) -> Iterator[None]:
        _made.clear()
        yield
        assert server.wait_until_idle()
        guarded, arrived = attempts(*_made), server.stats.requests
        _seen["attempts"] += guarded
        _seen["requests"] += arrived
        assert guarded == arrived


class TestGuardedUnit(StandardChatUnit, ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GuardedChatOpenAI

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment, params, expected = super().init_from_env_params
        return environment, params, {"inner": _Having(expected)}


class _Having:
    """Equal to whatever has these attributes."""

    def __init__(self, expected: dict[str, Any]) -> None:
        self.expected = expected

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        for name, value in self.expected.items():
            actual = getattr(other, name)
            if (actual.get_secret_value() if isinstance(actual, SecretStr) else actual) != value:
                return False
        return True


def test_the_guard_saw_every_call_of_the_suite() -> None:
    if not _seen["requests"]:
        pytest.skip("the suite did not run in this process")
    balance = STORE.balance("budget:standard")
    assert _seen["attempts"] == _seen["requests"]
    assert balance.spent > 0
    assert balance.reserved == 0
