"""The examples in the docstrings, and the package without its extra."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

from brix_core import demo

MODULES = [f"{demo.__name__}.{module.name}" for module in pkgutil.iter_modules(demo.__path__)]

# In a fresh interpreter, because this one has the packages loaded.
WITHOUT_EXTRA = """
import sys

sys.modules["uvicorn"] = None
try:
    from brix_core.demo import DemoServer
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_in_docstrings_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0


def test_without_the_extra_the_import_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRA], capture_output=True, text=True, check=True)

    assert 'pip install "brix-guards[demo]"' in done.stdout
