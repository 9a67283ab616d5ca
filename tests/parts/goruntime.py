"""How often the Go programs that tests start collect garbage: seldom. They run for minutes, and memory costs less than processor time.

kube-apiserver spends a quarter of the processor time of its start on collecting garbage with Go's defaults. Invariant: a
program that lives long has a limit of memory, above which it collects as usual.
"""

from collections.abc import Mapping

BRIEF: Mapping[str, str] = {"GOGC": "off", "GOMEMLIMIT": "1GiB"}
"""For a command that ends within seconds, such as kubectl or helm."""

SMALL: Mapping[str, str] = {"GOGC": "400"}
"""For a server that keeps some ten megabytes, such as etcd or a registry."""

LARGE: Mapping[str, str] = {"GOGC": "off", "GOMEMLIMIT": "700MiB"}
"""For kube-apiserver, which keeps about 150 MB."""
