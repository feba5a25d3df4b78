"""The package where the extra ``langchain`` is not installed: each in a process that cannot import it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import brix_langchain

WITHOUT = """
import json, sys

EXTRA = ("langchain", "langchain_classic", "langgraph")


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRA:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())
"""
TELLS = """
def told(run):
    try:
        run()
    except Exception as error:
        return [[kind.__name__ for kind in type(error).__mro__], str(error), getattr(error, "name", None)]


def from_import():
    from brix_langchain import GuardedLLM, BrixMiddleware


def classic():
    from brix_langchain import guard_agent_executor


def misspelt():
    from brix_langchain import BrixMidleware


import brix_langchain

print(json.dumps([told(run) for run in (
    from_import, classic, misspelt, lambda: brix_langchain.BrixMiddleware, lambda: brix_langchain.BrixMidleware
)]))
"""
LOOKS = """
import inspect, pydoc
import brix_langchain

everything = {}
exec("from brix_langchain import *", everything)
print(json.dumps([
    [name for name in EXTRA if name in sys.modules],
    hasattr(brix_langchain, "BrixMiddleware"),
    sorted(name for name in everything if name[0] != "_"),
    sorted({name for name, _ in inspect.getmembers(brix_langchain)} & set(MISSING)),
    "GuardedChatModel" in pydoc.render_doc(brix_langchain),
    sorted(set(dir(brix_langchain)) & set(MISSING)),
]))
"""
WORKS = """
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from brix_langchain import guard

model = guard(FakeListChatModel(responses=["Paris"]), max_retries=1)
print(json.dumps((model | (lambda message: message.content)).invoke("Capital of France?")))
"""
OF_ANOTHER_RELEASE = """
import types

for name in ("langchain", "langchain.agents"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
sys.meta_path.insert(0, type("Old", (), {"find_spec": lambda self, name, path=None, target=None: None})())
sys.meta_path[1].find_spec = lambda name, path=None, target=None: None
"""
MISSING = ["BrixMiddleware", "guard_agent_executor"]


def printed(*code: str) -> Any:
    """What a program says, in a process of its own."""
    program = "\n".join([WITHOUT, f"MISSING = {MISSING}", *code])
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not found.returncode, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def test_who_asks_for_what_is_missing_is_told_what_to_install() -> None:
    imported, classic, misspelt, asked, unknown = printed(TELLS)
    for (kinds, message, package), needed in ((imported, "langchain"), (classic, "langchain_classic")):
        name = "BrixMiddleware" if needed == "langchain" else "guard_agent_executor"
        assert {"BrixConfigurationError", "ImportError"} <= set(kinds)
        assert message == (f'{name} needs {needed}, which is not installed: pip install "brix-guards[langchain]"')
        assert package == needed
    assert {"BrixConfigurationError", "AttributeError"} <= set(asked[0])
    assert asked[1] == imported[1]
    assert misspelt[0][0] == "ImportError"  # as of any package
    assert unknown[0][0] == "AttributeError"


def test_whoever_goes_through_the_package_does_without() -> None:
    loaded, has, imported, members, rendered, listed = printed(LOOKS)
    assert loaded == []
    assert (has, members, listed) == (False, [], [])
    assert imported == sorted(set(brix_langchain.__all__) - set(MISSING))
    assert rendered


def test_all_else_works() -> None:
    assert printed(WORKS) == "Paris"


def test_an_older_release_is_not_said_to_be_missing() -> None:
    imported, *_ = printed(OF_ANOTHER_RELEASE, TELLS)
    assert "ImportError" in imported[0]
    assert "of which langchain.agents.middleware cannot be found: a newer release is needed" in imported[1]


@pytest.mark.parametrize("name", MISSING)
def test_with_the_extra_the_names_are_there(name: str) -> None:
    assert name in brix_langchain.__all__
    assert name in dir(brix_langchain)
    assert getattr(brix_langchain, name).__module__.startswith("brix_langchain.")
    assert not hasattr(brix_langchain, "nothing")
