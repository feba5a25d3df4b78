"""The tree of exceptions: its shape, its fields, and that they survive being copied and sent."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest

import brix_core
from brix_core import errors
from brix_core.errors import (
    BrixBudgetError,
    BrixCircuitOpenError,
    BrixConfigurationError,
    BrixContextError,
    BrixError,
    BrixFailoverError,
    BrixGuardBlockedError,
    BrixGuardError,
    BrixInternalError,
    BrixLoopError,
    BrixRateLimitError,
    BrixRegulatedError,
    BrixReplayError,
    BrixRetrievalError,
    BrixRetryError,
    BrixRunLimitError,
    BrixSchemaError,
    BrixTimeoutError,
    BrixUnknownPriceError,
    SchemaAttempt,
)

PARENTS: dict[type[BaseException], tuple[type[BaseException], ...]] = {
    BrixError: (Exception,),
    BrixConfigurationError: (BrixError,),
    BrixReplayError: (BrixError,),
    BrixInternalError: (BrixError,),
    BrixGuardError: (BrixError,),
    BrixGuardBlockedError: (BrixGuardError,),
    BrixBudgetError: (BrixGuardBlockedError,),
    BrixUnknownPriceError: (BrixBudgetError,),
    BrixRateLimitError: (BrixGuardBlockedError,),
    BrixTimeoutError: (BrixGuardBlockedError, TimeoutError),
    BrixCircuitOpenError: (BrixGuardBlockedError,),
    BrixRetryError: (BrixGuardBlockedError,),
    BrixFailoverError: (BrixGuardBlockedError,),
    BrixContextError: (BrixGuardBlockedError,),
    BrixLoopError: (BrixGuardBlockedError,),
    BrixRetrievalError: (BrixGuardBlockedError,),
    BrixRegulatedError: (BrixGuardBlockedError,),
    BrixRunLimitError: (BrixGuardBlockedError,),
    BrixSchemaError: (BrixGuardBlockedError,),
}
GUARDS = {
    BrixBudgetError: "budget",
    BrixUnknownPriceError: "budget",
    BrixRateLimitError: "rate_limit",
    BrixTimeoutError: "timeout",
    BrixCircuitOpenError: "circuit_breaker",
    BrixRetryError: "retry",
    BrixFailoverError: "failover",
    BrixContextError: "context",
    BrixLoopError: "loop",
    BrixRetrievalError: "retrieval",
    BrixRegulatedError: "regulated",
    BrixRunLimitError: "run_limit",
    BrixSchemaError: "schema",
}
EXAMPLES: list[BrixError] = [
    BrixError("message"),
    BrixConfigurationError("message"),
    BrixReplayError("message"),
    BrixInternalError("message"),
    BrixGuardError("message", guard="mine"),
    BrixGuardBlockedError("message", guard="mine"),
    BrixBudgetError(
        "message", limit_usd=1.0, spent_usd=0.5, reserved_usd=0.25, needed_usd=0.75, partial="what had arrived"
    ),
    BrixUnknownPriceError("message", model="nobody-knows-it"),
    BrixRateLimitError("message", needed=200.0, limit=100.0),
    BrixTimeoutError("message", kind="idle", limit=2.0, elapsed=2.5, partial="what had arrived"),
    BrixCircuitOpenError("message", endpoint="openai:gpt-4o", retry_after=12.5),
    BrixRetryError("message", attempts=3, reason="retry_after", last_error=ValueError("the last")),
    BrixFailoverError("message", errors=[("one", ValueError("first")), ("two", KeyError("second"))]),
    BrixContextError("message", tokens=1_200, limit=1_000),
    BrixLoopError("message", kind="cycle", repeats=3, cycle_length=2, what="A, B", partial="what had arrived"),
    BrixRetrievalError("message", score=0.25, threshold=0.5, sources=["handbook.md"]),
    BrixRegulatedError(
        "message", rule="lethal_dose", spec="medical 1.0.0", decision_id="d-1", matched=["lethal dose"], partial="part"
    ),
    BrixRunLimitError("message", limit=3),
    BrixSchemaError(
        "message",
        attempts=[SchemaAttempt("{}", (("$.name", "Field required"),)), SchemaAttempt("", how="refused")],
        schema_name="City",
        partial="what had arrived",
    ),
]


def fields(error: BaseException) -> dict[str, str]:
    return {name: repr(value) for name, value in vars(error).items() if not name.startswith("__")}


def test_the_tree_is_the_documented_one() -> None:
    found = {cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, BrixError)}
    assert found == set(PARENTS)
    for cls, parents in PARENTS.items():
        assert cls.__bases__ == parents
        assert cls.__name__ in str(errors.__doc__)
        assert getattr(brix_core, cls.__name__) is cls
    beside = ["LoopKind", "SchemaAttempt", "TimeoutKind"]
    assert sorted(errors.__all__) == sorted([*beside, *(cls.__name__ for cls in PARENTS)])


def test_each_error_has_an_example_here() -> None:
    assert [type(error) for error in EXAMPLES] == list(PARENTS)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("travel", [copy.copy, copy.deepcopy, *range(2, pickle.HIGHEST_PROTOCOL + 1)])
def test_every_field_survives_copies_and_pickles(error: BrixError, travel: Any) -> None:
    again = pickle.loads(pickle.dumps(error, travel)) if isinstance(travel, int) else travel(error)
    assert type(again) is type(error)
    assert again is not error
    assert fields(again) == fields(error)
    assert str(again) == str(error) == "message"
    assert again.args == error.args
    assert repr(again) == repr(error)


def test_notes_and_later_fields_survive_as_well() -> None:
    error = BrixBudgetError("message", limit_usd=1.0)
    error.add_note("seen in production")
    error.request_id = "r-1"  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(error))
    assert again.__notes__ == ["seen in production"]
    assert again.request_id == "r-1"


@pytest.mark.parametrize("cls", PARENTS, ids=lambda cls: cls.__name__)
def test_every_error_can_be_made_without_arguments_and_is_no_invitation_to_retry(cls: Any) -> None:
    error = cls()
    assert str(error) == error.message == ""
    assert error.is_retryable is False
    assert cls("message").message == "message"


@pytest.mark.parametrize(("cls", "guard"), GUARDS.items(), ids=lambda value: getattr(value, "__name__", value))
def test_an_error_names_its_guard(cls: Any, guard: str) -> None:
    assert cls().guard == guard


def test_blocked_errors_hold_what_a_cut_stream_had_delivered() -> None:
    blocked = [cls for cls in PARENTS if issubclass(cls, BrixGuardBlockedError)]
    assert all(cls().partial == "" for cls in blocked)
    assert BrixTimeoutError(partial="so far").partial == "so far"


def test_a_timeout_is_caught_as_the_built_in_one() -> None:
    with pytest.raises(TimeoutError):
        raise BrixTimeoutError("too late")
    assert BrixTimeoutError("too late").errno is None


def test_errors_of_a_failover_cannot_be_changed_afterwards() -> None:
    given = [("one", ValueError())]
    error = BrixFailoverError(errors=given)
    given.clear()
    assert len(error.errors) == 1
