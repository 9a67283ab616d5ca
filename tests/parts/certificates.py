"""Certificates for real servers on loopback: a certificate authority of our own, and the certificates that it signs.

Deliberately not secure: quick to create, valid for a day (or expired), keys unencrypted.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.parts.registry import TlsFiles

_DAY = datetime.timedelta(days=1)
_HOUR = datetime.timedelta(hours=1)


class Authority:
    """A certificate authority that lives in memory; `certificate_pem` is what clients trust.

    Without key identifiers, as private authorities often are.
    """

    def __init__(
        self,
        name: str = "test authority",
        *,
        issuer: "Authority | None" = None,
        critical: bool = True,
        may_sign: bool | None = None,
    ) -> None:
        """`issuer` None: self-signed. `may_sign`: the bit of keyUsage; None: without keyUsage."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = issuer or self
        builder = _builder(self._name, signer._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None if issuer is None else 0),
            critical=critical,
        )
        if may_sign is not None:
            builder = builder.add_extension(_usage(signs=may_sign), critical=True)
        certificate = builder.sign(signer._key, hashes.SHA256())
        self.certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        directory: Path,
        *,
        name: str = "server",
        addresses: Sequence[str] = ("127.0.0.1", "::1"),
        hosts: Sequence[str] = ("localhost",),
        ended: bool = False,
        age: datetime.timedelta = _HOUR,
    ) -> TlsFiles:
        """A server certificate as `NAME.pem`, `NAME.key` and `NAME-ca.pem` in `directory`.

        It is valid for 25 hours from `age` ago; with a negative `age` it is not valid yet.
        """
        directory.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, self._name, key.public_key(), age=26 * _HOUR if ended else age)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        files = TlsFiles(
            certificate=directory / f"{name}.pem",
            key=directory / f"{name}.key",
            authority=directory / f"{name}-ca.pem",
        )
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        files.authority.write_bytes(self.certificate_pem)
        return files


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    age: datetime.timedelta = _HOUR,
) -> x509.CertificateBuilder:
    # An hour back by default: containers' clocks differ.
    begin = datetime.datetime.now(datetime.UTC) - age
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _DAY + _HOUR)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
