"""Which candidate this replica is: the elector over our Lease, or nobody's rival.

Not the election (`kube/leaderelection.py`). Invariant: an identity is used by one process only, so a restarted container never
takes its own earlier Lease for one that it holds.
"""

import secrets
import socket
from collections.abc import Callable

from autowasm.errors import UsageError
from autowasm.kube.client import KubeClient
from autowasm.kube.leaderelection import LeaderElector, Lease, LeaseTimings
from autowasm.kube.resources import ObjectKey
from autowasm.settings import Election


def candidate(
    client: KubeClient,
    election: Election,
    *,
    namespace: str,
    on_change: Callable[[bool], None],
) -> LeaderElector | None:
    """None: no election is wanted. Raises UsageError for timings that do not fit together."""
    if not election.enabled:
        return None
    if election.lease_duration != int(election.lease_duration):
        raise UsageError("--lease-duration: a Lease holds whole seconds")
    try:
        timings = LeaseTimings(
            lease_duration=int(election.lease_duration),
            renew_deadline=election.renew_deadline,
            retry_period=election.retry_period,
        )
    except ValueError as error:
        raise UsageError(f"--lease-duration, --renew-deadline, --retry-period: {error}") from error
    key = ObjectKey(namespace, election.lease_name)
    return LeaderElector(
        Lease(client, key),
        lease=key,
        identity=f"{socket.gethostname()}_{secrets.token_hex(4)}",
        timings=timings,
        on_change=on_change,
    )
