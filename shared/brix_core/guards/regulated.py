"""RegulatedGuard: what a regulated domain forbids is not asked, and what is risky is asked with care.

Two tracks (`brix_core.regulated.judging.tracks`): circuit breakers, which are deterministic and stop a call before
anything is sent, and a risk score, which decides how many answers are asked for and compared. It sits in the
conversation ring, so each of these answers is paid for, paced, retried and timed, and it decides once for each call of
the application, whatever is asked again further in.

What was decided is in the trace, and in full in ``metadata["regulated_result"]`` of the session (`StructuredResult`).

Nothing of the regulated domain is imported before the guard is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from brix_core import checks
from brix_core.call import CallRequest
from brix_core.clock import Clock
from brix_core.errors import BrixConfigurationError
from brix_core.flow import Flow, Proceed

if TYPE_CHECKING:
    from brix_core.regulated.format.spec import SpecModel
    from brix_core.retrieval.results import RetrievalProvider
    from brix_core.session import Session


@dataclass(frozen=True, kw_only=True, repr=False)
class RegulatedConfig:
    """Options of the regulated guard.

    Attributes:
        regulated_spec: The spec: the name of a built-in one (medical, legal, finance, hr, general), a path, YAML, a
            dict or a `SpecModel`. Read once, and kept as a `SpecModel`. Activates the guard.
        retrieval_provider: Finds documents that an answer can rest on, where a rule would refuse it; see
            `RetrievalProvider`.
        regulated_embedder: Compares samples, and texts with the examples of rules; see
            `brix_core.embedding.as_embedder`.
        enable_output_guard: Look at answers, too, and stop those that meet an output signal which blocks.
        regulated_signals: Further risk signals: callables from the user's last message to a number in [0, 1] or a
            bool, in a list or by name.
    """

    regulated_spec: SpecModel | Mapping[str, Any] | str | PathLike[str]
    retrieval_provider: RetrievalProvider | None = None
    regulated_embedder: Any = None
    enable_output_guard: bool = False
    regulated_signals: Sequence[Any] | Mapping[str, Any] = ()

    def __post_init__(self) -> None:
        from brix_core.regulated.rules.compiled import CompiledSpec  # pydantic and a text automaton: for who needs them

        checks.flag("enable_output_guard", self.enable_output_guard)
        provider = self.retrieval_provider
        if provider is not None and (isinstance(provider, type) or not callable(getattr(provider, "retrieve", None))):
            raise BrixConfigurationError(
                f"retrieval_provider must be an object with retrieve(query, *, max_results=3), got {provider!r:.200}"
            )
        compiled = CompiledSpec.of(self.regulated_spec, self.regulated_embedder, self.regulated_signals)
        object.__setattr__(self, "regulated_spec", compiled.spec)  # read once: files change
        if self.enable_output_guard and not compiled.spec.output_signals:
            raise BrixConfigurationError(
                f"enable_output_guard has no effect: the spec {compiled.spec.label} has no output_signals; add some"
            )

    def __repr__(self) -> str:
        """What decides about calls, by value: a file whose rules have changed is another spec."""
        spec, signals = cast("SpecModel", self.regulated_spec), self.regulated_signals
        names = list(signals) if isinstance(signals, Mapping) else [_named(one) for one in signals]
        parts = {
            "spec": spec.label,
            "sha256": sha256(spec.model_dump_json().encode()).hexdigest(),
            "retrieval_provider": _named(self.retrieval_provider),
            "regulated_embedder": _named(self.regulated_embedder),
            "enable_output_guard": self.enable_output_guard,
            "regulated_signals": names,
        }
        return f"RegulatedConfig({', '.join(f'{name}={value!r}' for name, value in parts.items())})"


def _named(value: Any) -> str:
    """The same in every process."""
    if value is None or isinstance(value, str):
        return str(value)
    return str(getattr(value, "__qualname__", None) or type(value).__qualname__)


class RegulatedGuard:
    """Keeps calls to a spec. See the module's docstring.

    Args:
        config: Its options.
        clock: The time.
        patience: How many seconds a call may wait for a retrieval; None without a limit.

    Example:
        >>> from brix_core import BRIX
        >>> class Model:
        ...     def complete(self, prompt, **options):
        ...         return "Ask a pharmacist."
        >>> house = {"name": "house", "version": "1.0", "circuit_breakers": [
        ...     {"name": "lethal_dose", "description": "Asks for a lethal dose.", "patterns": ["lethal dose"]}]}
        >>> client = BRIX.wrap(Model(), regulated_spec=house)
        >>> client.complete_sync("May I take two tablets?")
        'Ask a pharmacist.'
        >>> client.complete_sync("What is the lethal dose?")
        Traceback (most recent call last):
        ...
        brix_core.errors.BrixRegulatedError: rule 'lethal_dose' of the spec house 1.0 is met by 'lethal dose' ...
        >>> client.context.metadata["regulated_result"].circuit_breaker_name
        'lethal_dose'
    """

    name = "regulated"

    def __init__(
        self, config: RegulatedConfig, clock: Clock, patience: Callable[[CallRequest], float | None] | None = None
    ) -> None:
        from brix_core.regulated.judging.tracks import Tracks
        from brix_core.regulated.output.output_guard import OutputGuard
        from brix_core.regulated.rules.compiled import CompiledSpec

        self.config = config
        compiled = CompiledSpec.of(config.regulated_spec, config.regulated_embedder, config.regulated_signals)
        self._tracks = Tracks(
            compiled,
            clock,
            provider=config.retrieval_provider,
            embedder=config.regulated_embedder,
            output=OutputGuard.of(compiled) if config.enable_output_guard else None,
            patience=patience or (lambda request: None),
        )

    @property
    def spec(self) -> SpecModel:
        """The spec."""
        return self._tracks.spec

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one call."""
        return self._tracks.flow(request, proceed)

    def balance_index(self, session: Session) -> float:
        """How well the session's interventions hit, in [0, 1]; see `brix_core.regulated.judging.balance`."""
        return self._tracks.scores.of(session).index

    def feedback(self, decision_id: UUID | str, was_intervention_necessary: bool) -> float:
        """Say whether intervening was necessary. Returns the session's balance index with it.

        Raises:
            BrixConfigurationError: The decision is not known, or no longer.
        """
        return self._tracks.scores.feedback(decision_id, was_intervention_necessary)


__all__ = ["RegulatedConfig", "RegulatedGuard"]
