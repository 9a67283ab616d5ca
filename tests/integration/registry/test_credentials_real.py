"""Credentials against distribution's registry: passwords, a token service of our own, certificates for each host, a proxy."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from autowasm.errors import AutoWasmError, SourceDenied, SourceUnavailable
from autowasm.limits import Limits
from autowasm.net.addresspolicy import AddressPolicy
from autowasm.net.pools import Pools
from autowasm.reference import ImageReference
from autowasm.registry.client import RegistryClient
from autowasm.registry.credentials import Credential
from autowasm.settings import Outgoing
from tests.fakes.forwardproxy import ForwardProxy
from tests.integration.registry.test_real_registry import first_layer, package_of
from tests.parts import registry
from tests.parts.certificates import Authority
from tests.parts.tokens import TokenService

ALICE = Credential("alice", "s3cret")
MODULE = b"\0asm module"
PLAIN = Outgoing(plain_http=frozenset({"127.0.0.1"}))
LIMITS = Limits(attempt_backoff=0.05)


@contextlib.asynccontextmanager
async def client(outgoing: Outgoing = PLAIN) -> AsyncIterator[RegistryClient]:
    policy = AddressPolicy(allow=["127.0.0.0/8"])
    with Pools(transfers=8) as pools:
        made = RegistryClient(outgoing=outgoing, limits=LIMITS, pools=pools, policy=policy)
        try:
            yield made
        finally:
            await made.close()


async def fails(
    made: RegistryClient, reference: ImageReference, credential: Credential | None
) -> AutoWasmError:
    with pytest.raises(AutoWasmError) as caught:
        await made.resolve(reference, credential=credential)
    assert "s3cret" not in str(caught.value)
    return caught.value


async def test_wrong_passwords_reach_a_registry_with_htpasswd_twice(tmp_path: Path) -> None:
    async with registry.distribution(tmp_path, users={"alice": "s3cret"}) as server:
        reference = ImageReference.parse(f"{server.host}/team/filter:v1")
        async with client() as made:
            await made.push(reference, package_of(MODULE), credential=ALICE)
            wrong = Credential("alice", "wrong-s3cret")
            errors = await asyncio.gather(*(fails(made, reference, wrong) for _ in range(20)))
            assert {type(error) for error in errors} == {SourceDenied}
            assert (await made.resolve(reference, credential=ALICE)).manifest.layers
        log = (tmp_path / "registry.log").read_text()
    assert log.count("user failed to authenticate") == LIMITS.login_refusals


async def test_a_token_service_password_refresh_token_and_grants(tmp_path: Path) -> None:
    service = TokenService(
        tmp_path / "tokens",
        users={"alice": "s3cret", "bob": "s3cret-b"},
        refresh_tokens={"refresh-s3cret"},
        grants={"bob": {"team/public"}, "anonymous": {"team/public"}},
    )
    async with service, registry.distribution(tmp_path, auth=service.configuration) as server:
        private = ImageReference.parse(f"{server.host}/team/private:v1")
        public = ImageReference.parse(f"{server.host}/team/public:v1")
        refresh = Credential("", "", identity_token="refresh-s3cret")
        async with client() as made:
            for reference in (private, public):
                await made.push(reference, package_of(MODULE), credential=ALICE)
            for credential in (ALICE, refresh):
                resolved = await made.resolve(private, credential=credential)
                target = tmp_path / "layer"
                layer = first_layer(resolved)
                await made.download(private, layer, target, credential=credential)
                assert await asyncio.to_thread(target.read_bytes) == MODULE
            bob = Credential("bob", "s3cret-b")
            for either in (bob, None):
                assert (await made.resolve(public, credential=either)).manifest.layers
                assert isinstance(await fails(made, private, either), SourceDenied)
            assert service.refused == 0
            stale = Credential("", "", identity_token="stale-s3cret")
            for _ in range(6):
                assert isinstance(await fails(made, private, stale), SourceDenied)
            assert service.refused == LIMITS.login_refusals
            token = service._token(
                "alice", service._access("alice", "repository:team/private:pull")
            )
            given = service.given
            ready = Credential("", "", registry_token=token)
            assert (await made.resolve(private, credential=ready)).manifest.layers
            assert service.given == given, "a registry token is nobody else's business"


async def test_tokens_that_expire_between_two_requests_are_renewed(tmp_path: Path) -> None:
    # distribution grants 60 s of leeway: a token that ended before that is refused at once.
    service = TokenService(tmp_path / "tokens", users={"alice": "s3cret"})
    async with service, registry.distribution(tmp_path, auth=service.configuration) as server:
        reference = ImageReference.parse(f"{server.host}/team/filter:v1")
        async with client() as made:
            await made.push(reference, package_of(MODULE), credential=ALICE)
            service.lifetime = -120.0
            await fails(made, ImageReference.parse(f"{server.host}/other/x:v1"), ALICE)
            given = service.given
            await fails(made, ImageReference.parse(f"{server.host}/other/x:v1"), ALICE)
            assert service.given == given + 1, (
                "one new token for a request, not one after the other"
            )
            service.lifetime = 60.0
            assert (await made.resolve(reference, credential=ALICE)).manifest.layers


async def test_an_authority_for_one_host_is_trusted_for_that_host_only(tmp_path: Path) -> None:
    ours, theirs = Authority("ours"), Authority("theirs")
    files = await asyncio.to_thread(ours.issue, tmp_path / "tls")
    auth = await asyncio.to_thread(theirs.issue, tmp_path / "auth-tls")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(auth.certificate, auth.key)
    service = TokenService(tmp_path / "tokens", users={"alice": "s3cret"}, tls=context)
    async with (
        service,
        registry.distribution(tmp_path, tls=files, auth=service.configuration) as server,
    ):
        reference = ImageReference.parse(f"{server.host}/team/filter:v1")
        both = ((server.host, files.authority), (service.server.host, auth.authority))
        async with client(Outgoing(ca_files=both)) as made:
            await made.push(reference, package_of(MODULE), credential=ALICE)
            assert (await made.resolve(reference, credential=ALICE)).manifest.layers
        swapped = ((server.host, auth.authority), (service.server.host, files.authority))
        async with client(Outgoing(ca_files=swapped)) as made:
            error = await fails(made, reference, ALICE)
            assert (type(error), error.reason) == (SourceUnavailable, "CertificateInvalid")
        # The registry is named insecure; its token service, which gets the password, is not.
        async with client(Outgoing(insecure=frozenset({server.host}))) as made:
            given = service.given
            assert (await fails(made, reference, ALICE)).reason == "CertificateInvalid"
            assert service.given == given


async def test_an_authority_that_is_renewed_is_read_again(tmp_path: Path) -> None:
    files = await asyncio.to_thread(Authority().issue, tmp_path / "tls")
    bundle = tmp_path / "bundle.pem"
    await asyncio.to_thread(bundle.write_bytes, Authority("an old one").certificate_pem)
    async with registry.distribution(tmp_path, tls=files) as server:
        reference = ImageReference.parse(f"{server.host}/team/filter:v1")
        async with client(Outgoing(ca_file=bundle)) as made:
            assert (await fails(made, reference, None)).reason == "CertificateInvalid"
            pem = await asyncio.to_thread(files.authority.read_bytes)
            await asyncio.to_thread(bundle.write_bytes, pem)
            await made.push(reference, package_of(MODULE), credential=None)


@pytest.mark.parametrize("with_tls", [True, False])
async def test_push_and_pull_through_a_proxy(with_tls: bool, tmp_path: Path) -> None:
    """Under a name that only the proxy can resolve."""
    authority = Authority()
    files = await asyncio.to_thread(
        authority.issue, tmp_path / "tls", hosts=("registry.example", "localhost")
    )
    async with (
        registry.distribution(tmp_path, tls=files if with_tls else None) as server,
        ForwardProxy(server.host) as proxy,
    ):
        outgoing = Outgoing(
            proxy=f"http://{proxy.host}",
            ca_file=files.authority,
            plain_http=frozenset() if with_tls else frozenset({"registry.example"}),
        )
        port = "" if with_tls else ":80"
        reference = ImageReference.parse(f"registry.example{port}/team/filter:v1")
        async with client(outgoing) as made:
            pushed = await made.push(reference, package_of(MODULE), credential=None)
            resolved = await made.resolve(reference, credential=None)
            assert resolved.digest == pushed
            target = tmp_path / "layer"
            await made.download(reference, first_layer(resolved), target, credential=None)
            assert await asyncio.to_thread(target.read_bytes) == MODULE
        assert proxy.asked
        tunnelled = all(line.startswith("CONNECT registry.example:443") for line in proxy.asked)
        assert tunnelled is with_tls
