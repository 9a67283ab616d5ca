"""A token service for a real registry: signed tokens with the permissions of users on repositories.

Not an identity provider: the test sets passwords and refresh tokens. Distribution specification, "token
authentication"; the tokens are JWTs (RFC 7519) with the certificate in them (`x5c`), which distribution checks.
"""

import base64
import json
import secrets
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from tests.fakes.scriptedserver import Exchange, ScriptedServer
from tests.parts.certificates import Authority

SERVICE, ISSUER = "registry.test", "issuer.test"


@dataclass(slots=True)
class TokenService:
    """An async context manager on a free loopback port."""

    directory: Path
    users: dict[str, str]
    refresh_tokens: set[str] = field(default_factory=set)
    grants: dict[str, set[str]] = field(default_factory=dict)
    """Repositories by user; a user without an entry may do everything. `refresh` is the user of the refresh token."""
    lifetime: float = 60.0
    tls: ssl.SSLContext | None = None
    given: int = 0
    refused: int = 0
    server: ScriptedServer = field(init=False)
    _key: ec.EllipticCurvePrivateKey = field(init=False)
    _chain: list[str] = field(init=False)

    async def __aenter__(self) -> Self:
        files = Authority("token authority").issue(self.directory, name="tokens")
        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        der = certificate.public_bytes(serialization.Encoding.DER)
        self._chain = [base64.b64encode(der).decode()]
        self.server = await ScriptedServer(self._answer, tls=self.tls).__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.__aexit__()

    @property
    def configuration(self) -> dict[str, object]:
        """`auth` of distribution's configuration."""
        return {
            "token": {
                "realm": f"{self.server.url}/token",
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self.directory / "tokens-ca.pem"),
            }
        }

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        fields = parse_qs(
            request.body.decode() if request.method == "POST" else urlsplit(request.target).query
        )
        user = self._user(request.headers.get("authorization", ""), fields)
        if user is None:
            self.refused += 1
            await exchange.send(401)
            return
        self.given += 1
        access = [entry for scope in fields.get("scope", []) for entry in self._access(user, scope)]
        name = "access_token" if request.method == "POST" else "token"
        await exchange.send(body=json.dumps({name: self._token(user, access)}).encode())

    def _user(self, authorization: str, fields: dict[str, list[str]]) -> str | None:
        if "refresh_token" in fields:
            return "refresh" if fields["refresh_token"][0] in self.refresh_tokens else None
        if not authorization:
            return "anonymous"
        name, _, password = base64.b64decode(authorization[6:]).decode().partition(":")
        return name if self.users.get(name) == password else None

    def _access(self, user: str, scope: str) -> list[dict[str, object]]:
        kind, name, actions = scope.split(":")
        allowed = self.grants.get(user)
        if (user == "anonymous" and allowed is None) or (
            allowed is not None and name not in allowed
        ):
            return []
        return [{"type": kind, "name": name, "actions": actions.split(",")}]

    def _token(self, user: str, access: list[dict[str, object]]) -> str:
        now = time.time()
        header = {"typ": "JWT", "alg": "ES256", "x5c": self._chain}
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "iat": int(now - 10),
            "nbf": int(now - 10),
            "exp": int(now + self.lifetime),
            "jti": secrets.token_hex(8),
            "access": access,
        }
        text = f"{_part(json.dumps(header).encode())}.{_part(json.dumps(claims).encode())}"
        der = self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = utils.decode_dss_signature(der)
        return f"{text}.{_part(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
