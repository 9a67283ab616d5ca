"""Rare garbage collection for the Go programs that tests start: they run for minutes, and memory costs less than processor time.

With Go's defaults kube-apiserver spends a quarter of the processor time of its start on garbage collection. Invariant: a
long-running program has a memory limit, above which it collects as usual.
"""

from collections.abc import Mapping

BRIEF: Mapping[str, str] = {"GOGC": "off", "GOMEMLIMIT": "1GiB"}
"""For a command that ends within seconds, such as kubectl or helm."""

SMALL: Mapping[str, str] = {"GOGC": "400"}
"""For a server that uses some tens of megabytes, such as etcd or a registry."""

LARGE: Mapping[str, str] = {"GOGC": "400", "GOMEMLIMIT": "1400MiB"}
"""For kube-apiserver, which uses about 150 MB, and 300 MB with Istio's resources. Without GOGC, and with a limit near that, it collects all the
time. With thousands of objects it also does so near this limit: such measurements use DEFAULT."""

DEFAULT: Mapping[str, str] = {"GOGC": "100"}
"""As in a cluster, for measurements."""
