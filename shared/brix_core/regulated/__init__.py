"""The regulated domain: specs, what they find in a text, and what is done about it.

Names are imported when they are first used: the parts need pydantic, and a text automaton.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from brix_core.guards.regulated import RegulatedGuard
    from brix_core.regulated.format.loading import load_spec, load_spec_from_dict
    from brix_core.regulated.format.problems import SpecValidationError
    from brix_core.regulated.format.spec import SpecModel
    from brix_core.regulated.judging.mock import MockLLMClient
    from brix_core.regulated.judging.result import ActionTaken, StructuredResult, UncertaintyType
    from brix_core.regulated.judging.router import BrixRouter
    from brix_core.regulated.output.output_guard import OutputGuard
    from brix_core.regulated.output.output_result import OutputResult
    from brix_core.regulated.text.evasion import variants
    from brix_core.regulated.text.folding import Folded, fold
    from brix_core.regulated.text.patterns import PatternError, PatternSet
    from brix_core.regulated.text.scanning import Match, StreamScan
    from brix_core.retrieval.results import RetrievalProvider, RetrievalResult

_WHERE: Final = {
    "ActionTaken": "brix_core.regulated.judging.result",
    "BrixRouter": "brix_core.regulated.judging.router",
    "Folded": "brix_core.regulated.text.folding",
    "Match": "brix_core.regulated.text.scanning",
    "MockLLMClient": "brix_core.regulated.judging.mock",
    "OutputGuard": "brix_core.regulated.output.output_guard",
    "OutputResult": "brix_core.regulated.output.output_result",
    "PatternError": "brix_core.regulated.text.patterns",
    "PatternSet": "brix_core.regulated.text.patterns",
    "RegulatedGuard": "brix_core.guards.regulated",
    "RetrievalProvider": "brix_core.retrieval.results",
    "RetrievalResult": "brix_core.retrieval.results",
    "SpecModel": "brix_core.regulated.format.spec",
    "SpecValidationError": "brix_core.regulated.format.problems",
    "StreamScan": "brix_core.regulated.text.scanning",
    "StructuredResult": "brix_core.regulated.judging.result",
    "UncertaintyType": "brix_core.regulated.judging.result",
    "fold": "brix_core.regulated.text.folding",
    "load_spec": "brix_core.regulated.format.loading",
    "load_spec_from_dict": "brix_core.regulated.format.loading",
    "variants": "brix_core.regulated.text.evasion",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


__all__ = [
    "ActionTaken",
    "BrixRouter",
    "Folded",
    "Match",
    "MockLLMClient",
    "OutputGuard",
    "OutputResult",
    "PatternError",
    "PatternSet",
    "RegulatedGuard",
    "RetrievalProvider",
    "RetrievalResult",
    "SpecModel",
    "SpecValidationError",
    "StreamScan",
    "StructuredResult",
    "UncertaintyType",
    "fold",
    "load_spec",
    "load_spec_from_dict",
    "variants",
]
