"""Trust: which authorities count, and the error for a CA file that cannot be read."""

from pathlib import Path

import pytest

from autowasm.errors import UsageError
from autowasm.net.tls import Trust, client_context
from autowasm.settings import Outgoing
from tests.parts.certificates import Authority


def test_a_machine_without_authorities_gets_those_of_certifi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    assert client_context().cert_store_stats()["x509_ca"] > 50


def test_a_ca_file_that_holds_no_certificate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("not a certificate")
    with pytest.raises(UsageError, match="not a readable PEM file") as caught:
        client_context(path)
    assert str(path) in str(caught.value)


def test_a_ca_file_that_is_removed_is_missed_and_read_again_when_it_is_back(tmp_path: Path) -> None:
    path = Authority().issue(tmp_path).authority
    trust = Trust(Outgoing(ca_file=path))
    first = trust.context("r.example")
    assert trust.context("other.example") is first
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UsageError, match="No such file"):
        trust.context("r.example")
    path.write_bytes(content)
    assert trust.context("r.example").cert_store_stats() == first.cert_store_stats()
