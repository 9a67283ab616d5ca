"""How many requests went out, by the host that they went to.

Not their outcome (`metrics.fetches`), nor how a host is called (`net.namedhosts`). Invariant: the caller gives a bounded set of
names. Counted where a request is sent, so redirects, token endpoints and repeated tries count too. Safe in any thread.
"""

from prometheus_client import CollectorRegistry, Counter


class RequestMetrics:
    """`sent` goes to every client that sends requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._sent = Counter(
            "autowasm_source_requests_total",
            "Requests sent to registries and object servers, by host as the operator's flags or policy file name it, or a "
            "well-known public registry; any other host is `other`.",
            ["host"],
            registry=registry,
        )

    def sent(self, name: str) -> None:
        """One request."""
        self._sent.labels(name).inc()
