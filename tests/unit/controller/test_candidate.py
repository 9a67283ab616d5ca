"""Timings of an election, set by operators."""

from typing import cast

import pytest

from autowasm.errors import UsageError
from autowasm.kube.client import KubeClient
from autowasm.runtime.apiserver import candidate
from autowasm.settings import Election


def make(election: Election) -> object:
    return candidate(
        cast(KubeClient, object()), election, namespace="default", on_change=lambda _: None
    )


def test_no_election_is_made_where_none_is_wanted() -> None:
    assert make(Election(enabled=False, lease_duration=0.5)) is None


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"lease_duration": 15.5}, "--lease-duration: must be a whole number of seconds"),
        ({"lease_duration": 10.0, "renew_deadline": 10.0}, "--renew-deadline"),
        ({"renew_deadline": 2.0, "retry_period": 2.0}, "--retry-period"),
    ],
)
def test_timings_that_do_not_fit_together_are_refused(fields: dict[str, float], flag: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(Election(enabled=True, **fields))
    assert flag in str(caught.value)
