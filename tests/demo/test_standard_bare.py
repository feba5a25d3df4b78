"""LangChain's standard tests on a bare ChatOpenAI: what the guarded one is measured against."""

from __future__ import annotations

from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from tests.support.standard_chat import StandardChat, StandardChatUnit


class TestBareIntegration(StandardChat, ChatModelIntegrationTests):
    pass


class TestBareUnit(StandardChatUnit, ChatModelUnitTests):
    pass
