"""Names of the package that need the extra ``langchain``, loaded when they are asked for.

Where the extra is missing, they are missing from the package as well: ``dir``, ``hasattr``, ``import *`` and whatever
goes through a package by itself do without them. Who asks for one by its name is told what to install.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from typing import Any, Final

from brix_core.errors import BrixConfigurationError

_NAMES: Final = {
    "BrixMiddleware": ("middleware", "langchain"),
    "guard_agent_executor": ("agent_executor", "langchain_classic"),
}
"""Where each name is, and the package it needs."""


class MissingExtraError(BrixConfigurationError, ImportError):
    """Something was imported that needs an extra: ``except ImportError`` catches it."""


class MissingExtraAttributeError(BrixConfigurationError, AttributeError):
    """As `MissingExtraError`, for ``brix_langchain.BrixMiddleware``: to `hasattr` the name is not there.

    Python allows no error to be an `ImportError` and an `AttributeError`.
    """


def absent() -> frozenset[str]:
    """The names whose packages are not installed; nothing is imported to find out."""
    return frozenset(name for name, (_, package) in _NAMES.items() if not _is_installed(package))


def load(name: str) -> Any:
    """The value of a name.

    Raises:
        MissingExtraError: Its package is not installed, and this is called for ``from brix_langchain import ...``.
        MissingExtraAttributeError: As before, called for anything else.
        AttributeError: There is no such name.
    """
    if name not in _NAMES:
        raise AttributeError(f"module 'brix_langchain' has no attribute {name!r}")
    module, package = _NAMES[name]
    try:
        return getattr(importlib.import_module(f"brix_langchain.{module}"), name)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "brix_langchain":
            raise
        what = f"{name} needs {package}"
        if _is_installed(package):
            what += f", of which {error.name} cannot be found: a newer release is needed, or another one"
        else:
            what += ", which is not installed"
        kind = MissingExtraError if _is_from_import() else MissingExtraAttributeError
        missing = kind(f'{what}: pip install "brix-guards[langchain]"')
        missing.name = package if kind is MissingExtraError else name  # as Python has it for such errors
        raise missing from error


def _is_from_import() -> bool:
    """Whether the import system asks: it answers an AttributeError by looking for a submodule, and drops its text.

    On the stack are this function, `load`, the package's ``__getattr__``, and whoever looks at the package.
    """
    asking = sys._getframe(3)
    return asking.f_code.co_name == "_handle_fromlist"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
    except ValueError:  # it is imported, in a way of its own
        return True


__all__ = ["MissingExtraAttributeError", "MissingExtraError", "absent", "load"]
