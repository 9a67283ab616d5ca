import pytest

from autowasm.api.v1alpha1 import ObjectSource, RegistrySource, Source
from autowasm.controller.fetchjobs import retry_delay
from autowasm.errors import (
    AddressBlocked,
    AutoWasmError,
    ContentRejected,
    SecretAccessForbidden,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    SpecError,
    StorageError,
)
from autowasm.limits import FetchLimits

TAG = Source(registry=RegistrySource("r.example/f:v1"))
PINNED = Source(registry=RegistrySource("r.example/f@sha256:" + "1" * 64))
OBJECT = Source(object=ObjectSource("https://o.example/f"))


@pytest.mark.parametrize(
    ("error", "failures", "source", "seconds"),
    [
        (SourceUnavailable("x"), 1, TAG, 1),
        (SourceUnavailable("x"), 4, TAG, 8),
        (SourceUnavailable("x"), 99, TAG, 300),
        (SourceUnavailable("x", retry_after=42), 1, TAG, 42),
        (SourceUnavailable("x", retry_after=0.1), 4, TAG, 8),
        (StorageError("x"), 3, TAG, 4),
        (AutoWasmError("x"), 2, TAG, 2),
        (SourceNotFound("x"), 1, TAG, 15),
        (SourceNotFound("x"), 2, TAG, 30),
        (SourceNotFound("x"), 99, TAG, 300),
        (SourceDenied("x"), 1, TAG, 300),
        (SecretAccessForbidden("x"), 1, TAG, 1),
        (SecretAccessForbidden("x"), 99, TAG, 300),
        (SpecError("spec.secret", "x"), 1, TAG, 300),
        (ContentRejected("x"), 1, TAG, 300),
        (ContentRejected("x"), 1, OBJECT, 300),
        (ContentRejected("x", reason="DigestMismatch"), 1, PINNED, 1),
        (ContentRejected("x", reason="SizeMismatch"), 99, TAG, 300),
    ],
)
def test_delay_follows_the_error(
    error: AutoWasmError, failures: int, source: Source, seconds: float
) -> None:
    delay = retry_delay(error, failures=failures, source=source, limits=FetchLimits())
    assert delay is not None
    assert seconds <= delay <= seconds * 1.1


@pytest.mark.parametrize(
    ("error", "source"), [(ContentRejected("x"), PINNED), (AddressBlocked("x"), TAG)]
)
def test_error_that_needs_a_change_is_not_retried(error: AutoWasmError, source: Source) -> None:
    assert retry_delay(error, failures=1, source=source, limits=FetchLimits()) is None
