"""How many requests went out, by the host that they went to.

Not their outcome (`metrics.fetches`). Invariant: at most `NAMED` hosts are named, those asked first; hosts come from specs, so all
others are `other`. Counted where a request is sent, so redirects, token endpoints and repeated tries count too. Safe in any
thread.
"""

import threading
from typing import Final

from prometheus_client import CollectorRegistry, Counter

NAMED: Final = 50
"""Hosts: registries, their token and storage endpoints. Few clusters use more than ten."""
OTHER: Final = "other"


class RequestMetrics:
    """`sent` is given to whoever sends."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._named: set[str] = set()
        self._sent = Counter(
            "autowasm_source_requests_total",
            f"Requests sent to registries and object servers, by host (the first {NAMED}; then `{OTHER}`).",
            ["host"],
            registry=registry,
        )

    def sent(self, host: str) -> None:
        """One request to `HOST[:PORT]`."""
        with self._lock:
            if host not in self._named and len(self._named) < NAMED:
                self._named.add(host)
            label = host if host in self._named else OTHER
        self._sent.labels(label).inc()
