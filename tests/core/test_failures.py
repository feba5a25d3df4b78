"""What a failure means, judged on the real exceptions of the SDKs."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import aiohttp
import anthropic
import httpx
import langchain_core.exceptions as langchain_errors
import openai
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_openai.chat_models import base as langchain_openai
from langgraph.errors import GraphInterrupt

import brix_core.errors as brix_errors
from brix_core import (
    BrixBudgetError,
    BrixCircuitOpenError,
    BrixError,
    BrixFailoverError,
    BrixRetryError,
    BrixTimeoutError,
)
from brix_core.failures import Failure, classify

NOW = 1_750_000_000.0
STATUSES = (400, 401, 402, 403, 404, 408, 409, 413, 418, 422, 429, 451, 500, 501, 502, 503, 504, 505, 529, 599)
RETRYABLE = {408, 409, 429, 500, 502, 503, 504, 529, 599}


def http_of(sdk: Any) -> Any:
    """The HTTP library whose responses this SDK's errors hold."""
    annotation = str(inspect.signature(sdk.APIStatusError.__init__).parameters["response"].annotation)
    return __import__(annotation.strip("'").partition(".")[0])


def sdk_error(sdk: Any, status: int, *, headers: Any = None, body: Any = None, message: str = "no") -> Exception:
    """What the SDK itself makes of an answer with this status."""
    http = http_of(sdk)
    response = http.Response(status, headers=headers, request=http.Request("POST", "https://a.example/v1"))
    error: Exception = client_of(sdk)._make_status_error(message, body=body, response=response)
    return error


@functools.cache
def client_of(sdk: Any) -> Any:
    return {openai: openai.OpenAI, anthropic: anthropic.Anthropic}[sdk](api_key="none")


def httpx_error(status: int, headers: Any = None) -> Exception:
    response = httpx.Response(status, headers=headers, request=httpx.Request("GET", "https://a.example"))
    with pytest.raises(httpx.HTTPStatusError) as caught:
        response.raise_for_status()
    return caught.value


def requests_error(status: int, headers: Any = None) -> Exception:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers or {})
    with pytest.raises(requests.HTTPError) as caught:
        response.raise_for_status()
    return caught.value


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("sdk", [openai, anthropic], ids=lambda sdk: sdk.__name__)
def test_a_status_decides(sdk: Any, status: int) -> None:
    failure = classify(sdk_error(sdk, status))
    assert (failure.kind, failure.status) == ("status", status)
    assert failure.retryable == (status in RETRYABLE)
    assert failure.rate_limited == (status == 429)
    assert failure.provider_down == (status >= 500)
    assert not failure.billable


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("make", [httpx_error, requests_error])
def test_a_status_decides_for_plain_http_as_well(make: Any, status: int) -> None:
    failure = classify(make(status, {"Retry-After": "3"}))
    assert (failure.status, failure.retryable, failure.retry_after) == (status, status in RETRYABLE, 3.0)


def test_a_status_of_aiohttp_is_found() -> None:
    info: Any = None
    error = aiohttp.ClientResponseError(info, (), status=503, headers={"Retry-After": "4"})  # type: ignore[arg-type]
    assert (classify(error).status, classify(error).retry_after) == (503, 4.0)


class ClientError(Exception):
    """As botocore raises it."""

    response = {"ResponseMetadata": {"HTTPStatusCode": 429}, "Error": {"Code": "ThrottlingException"}}  # noqa: RUF012


def test_a_status_of_botocore_is_found() -> None:
    assert classify(ClientError()).rate_limited


def _connection(sdk: Any, cause: BaseException | None = None) -> Exception:
    error: Exception = sdk.APIConnectionError(request=http_of(sdk).Request("POST", "https://a.example"))
    error.__cause__ = cause
    return error


def _timeout(sdk: Any, cause: BaseException | None = None) -> Exception:
    error: Exception = sdk.APITimeoutError(request=http_of(sdk).Request("POST", "https://a.example"))
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("sdk", [openai, anthropic], ids=lambda sdk: sdk.__name__)
def test_a_lost_connection_is_retryable_and_may_have_been_billed(sdk: Any) -> None:
    http = http_of(sdk)
    for cause in (None, http.ReadError("reset"), http.RemoteProtocolError("cut"), http.WriteError("pipe")):
        assert classify(_connection(sdk, cause)) == Failure(kind="connection", retryable=True, billable=True)
    assert classify(_timeout(sdk, http.ReadTimeout("slow"))) == Failure(kind="timeout", retryable=True, billable=True)


@pytest.mark.parametrize("sdk", [openai, anthropic], ids=lambda sdk: sdk.__name__)
def test_a_connection_that_was_never_made_cost_nothing(sdk: Any) -> None:
    http = http_of(sdk)
    assert not classify(_connection(sdk, http.ConnectError("refused"))).billable
    assert not classify(_timeout(sdk, http.ConnectTimeout("nobody"))).billable
    assert not classify(_timeout(sdk, http.PoolTimeout("full"))).billable


@pytest.mark.parametrize(
    ("error", "kind", "billable"),
    [
        (httpx.ConnectError("refused"), "connection", False),
        (httpx.ConnectTimeout("nobody"), "timeout", False),
        (httpx.ReadTimeout("slow"), "timeout", True),
        (httpx.ReadError("reset"), "connection", True),
        (httpx.RemoteProtocolError("cut"), "connection", True),
        (requests.ConnectionError("reset"), "connection", True),
        (requests.ReadTimeout("slow"), "timeout", True),
        (requests.exceptions.ChunkedEncodingError("cut"), "connection", True),
        (aiohttp.ServerDisconnectedError(), "connection", True),
        (aiohttp.ServerTimeoutError(), "timeout", True),
        (TimeoutError(), "timeout", True),
        (ConnectionResetError(), "connection", True),
        (BrokenPipeError(), "connection", True),
        (ConnectionRefusedError(), "connection", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_network_failures_are_retryable(error: Exception, kind: str, billable: bool) -> None:
    failure = classify(error)
    assert (failure.kind, failure.retryable, failure.billable) == (kind, True, billable)
    assert failure.provider_down


class ConnectionErrorOfMine(Exception):
    pass


class APITimeoutError(Exception):
    """Named like the SDK's, but not from it."""


@pytest.mark.parametrize(
    "error",
    [
        Exception(),
        ValueError("HTTP 500"),
        RuntimeError("503 Service Unavailable: rate limit 429 timed out"),
        KeyError("timeout"),
        OSError("disk full"),
        FileNotFoundError(500),
        ConnectionErrorOfMine(),
        APITimeoutError(),
        GraphInterrupt(),
        openai.LengthFinishReasonError.__new__(openai.LengthFinishReasonError),
        httpx.InvalidURL("x"),
        httpx.DecodingError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_unknown_is_not_retryable_but_may_have_cost(error: Exception) -> None:
    failure = classify(error)
    assert (failure.kind, failure.retryable, failure.billable, failure.status) == ("unknown", False, True, None)
    assert not failure.provider_down


@settings(deadline=None, max_examples=100)
@given(number=st.integers(100, 2_000), words=st.text(max_size=20))
def test_digits_in_a_message_never_matter(number: int, words: str) -> None:
    message = f"{words} {number} {words} status code {number}"
    assert not classify(ValueError(message)).retryable
    assert classify(ValueError(message)).status is None
    assert not classify(sdk_error(openai, 400, message=message)).retryable
    assert classify(sdk_error(openai, 500, message="used 400 of 401 tokens")).retryable


# LangChain's family


def langchain_family() -> list[type[Exception]]:
    return [
        value
        for value in vars(langchain_errors).values()
        if isinstance(value, type) and issubclass(value, langchain_errors.ModelError)
    ]


@pytest.mark.parametrize("cls", langchain_family(), ids=lambda cls: cls.__name__)
def test_langchains_own_word_is_taken(cls: Any) -> None:
    assert classify(cls("HTTP 500")).retryable is cls.is_retryable


def test_langchains_family_has_both_kinds() -> None:
    assert {cls.is_retryable for cls in langchain_family()} == {True, False}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "status"), [("OpenAIRateLimitError", 429), ("OpenAIContextOverflowError", 400)])
def test_langchains_versions_of_sdk_errors_keep_their_status(name: str, status: int) -> None:
    cls = getattr(langchain_openai, name)
    response = httpx.Response(status, headers={"retry-after": "9"}, request=httpx.Request("POST", "https://a.example"))
    failure = classify(cls("no", response=response, body=None))
    assert (failure.status, failure.retry_after, failure.retryable) == (status, 9.0, status == 429)


def test_a_non_retryable_declaration_outweighs_the_kind() -> None:
    class Final(ConnectionError):
        is_retryable = False

    assert not classify(Final()).retryable
    assert classify(Final()).provider_down


def test_an_error_event_in_a_stream_means_what_its_status_would() -> None:
    request = httpx.Request("POST", "https://a.example")
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    overloaded = anthropic.APIStatusError.__new__(anthropic.APIStatusError)
    overloaded.body, overloaded.status_code = body, 200  # as the SDK raises it when a stream has begun with 200
    failure = classify(overloaded)
    assert (failure.status, failure.retryable, failure.provider_down) == (529, True, True)
    assert classify(openai.APIError("no", request, body={"type": "server_error"})).status == 500
    assert classify(openai.APIError("no", request, body={"type": "something_new"})).status is None
    assert classify(ValueError("overloaded_error")).status is None


# Our own errors


def test_decisions_of_our_own_are_final_but_a_provider_that_kept_us_waiting_is_retryable() -> None:
    for kind in ("call", "first_token", "idle"):
        failure = classify(BrixTimeoutError(kind=kind))  # type: ignore[arg-type]
        assert (failure.kind, failure.retryable, failure.billable) == ("timeout", True, True)
    finals: list[BrixError] = [
        BrixTimeoutError(kind="step"),
        BrixBudgetError(),
        BrixRetryError(),
        BrixCircuitOpenError(),
        BrixFailoverError(),
    ]
    for error in finals:
        assert classify(error) == Failure(kind="guard", retryable=False, billable=False)
    # The session's time ran out while the provider was at work: final, and to be paid for.
    assert classify(BrixTimeoutError(kind="total")) == Failure(kind="guard", retryable=False, billable=True)
    classes = [value for value in vars(brix_errors).values() if isinstance(value, type)]
    assert len(classes) > 10
    assert all(not kind.is_retryable for kind in classes if issubclass(kind, BrixError))


# What the provider adds


@pytest.mark.parametrize(
    "body",
    [
        {"code": "insufficient_quota"},
        {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}},
        {"error": {"code": "billing_hard_limit_reached"}},
    ],
)
def test_a_429_that_waiting_cannot_help_is_fatal(body: Any) -> None:
    failure = classify(sdk_error(openai, 429, body=body))
    assert (failure.retryable, failure.rate_limited) == (False, True)
    assert classify(sdk_error(openai, 429, body={"code": "rate_limit_exceeded"})).retryable


@pytest.mark.parametrize("body", [None, "text", [], {"error": None}, {"error": "text"}, {"code": 7}])
def test_bodies_of_any_shape_are_borne(body: Any) -> None:
    assert classify(sdk_error(openai, 429, body=body)).retryable


@pytest.mark.parametrize("sdk", [openai, anthropic], ids=lambda sdk: sdk.__name__)
def test_the_providers_own_advice_is_taken(sdk: Any) -> None:
    assert classify(sdk_error(sdk, 400, headers={"x-should-retry": "true"})).retryable
    assert not classify(sdk_error(sdk, 503, headers={"X-Should-Retry": "false"})).retryable
    assert classify(sdk_error(sdk, 503, headers={"x-should-retry": "perhaps"})).retryable


def test_further_statuses_can_be_named() -> None:
    assert classify(sdk_error(openai, 404), also_retry={404}).retryable
    assert not classify(sdk_error(openai, 404), also_retry={418}).retryable


def http_date(seconds: float) -> str:
    return formatdate(NOW + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"Retry-After": "7.25"}, 7.25),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "30"}, 1.5),
        ({"retry-after-ms": "garbage", "retry-after": "30"}, 30.0),
        ({"retry-after-ms": "-1"}, 0.0),
        ({"retry-after": http_date(90)}, 90.0),
        ({"retry-after": http_date(-90)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "Sun, 99 Foo 2025 08:49:37 GMT"}, None),
        ({"retry-after": "Sun, 06 Nov 99999 08:49:37 GMT"}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    found = classify(sdk_error(openai, 429, headers=headers), now=NOW).retry_after
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
@pytest.mark.parametrize("layout", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"])
def test_the_three_date_layouts_of_http_are_greenwich_time(layout: str) -> None:
    # RFC 9110, 5.6.7: the second and third are obsolete, but recipients must read them.
    date = time.strftime(layout, time.gmtime(NOW + 90))
    assert classify(sdk_error(openai, 503, headers={"retry-after": date}), now=NOW).retry_after == 90.0


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_no_header_can_make_it_fail(text: str) -> None:
    seconds = classify(sdk_error(openai, 429, headers={"retry-after": text, "retry-after-ms": text})).retry_after
    assert seconds is None or 0.0 <= seconds < float("inf")


@pytest.mark.parametrize("status", [True, "500", 200, 399, 600, None, 5e2])
def test_what_is_no_error_status_is_none(status: Any) -> None:
    error = RuntimeError()
    error.status_code = status  # type: ignore[attr-defined]
    assert classify(error).status is None
