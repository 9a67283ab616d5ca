"""Advice: how the reader of an error changes what is wrong, in the words of the program that reports it.

Not the errors. Invariant: an advice names a flag, a field or a command that exists in that program.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Advice:
    """Phrases for the end of a sentence: `name its authority with {ca_file}`."""

    ca_file: str
    insecure: str
    plain_http: str
    no_plain_http: str
    """How plain http is taken back, for a host that has TLS."""
    login: str
    """A sentence without a capital letter; `{host}` stands for the registry."""

    def log_in(self, host: str) -> str:
        """How a login for `host` is given."""
        return self.login.replace("{host}", host)


WASMER: Final = Advice(
    ca_file="wasmer --registry-ca-file",
    insecure="wasmer --insecure-registry",
    plain_http="wasmer --plain-http-registry",
    no_plain_http="take the host out of wasmer --plain-http-registry",
    login="name a pull secret for {host} in spec.secret",
)

WASMC: Final = Advice(
    ca_file="--ca-file",
    insecure="--insecure",
    plain_http="--plain-http",
    no_plain_http="leave --plain-http out",
    login="log in with `docker login {host}`, or give --username and --password-stdin",
)
