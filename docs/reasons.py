"""Writes docs/reference/conditions.md: `make reference`. A test holds the table against every reason in the code."""

_INTRODUCTION = """\
# Phases, conditions and reasons

`kubectl get aw` shows the phase; `kubectl describe aw NAME` the conditions. Reasons are stable: alerts may use them. The message says what is
wrong, where, and what to do. This page is made by `make reference`.

| Phase | Means |
|---|---|
| `Pending` | not looked at yet |
| `Fetching` | a fetch is under way; what was there before runs on |
| `Synced` | fetched, checked, stored, and Envoy is told. Not: Envoy runs it ([proof](../explanation/proof.md)) |
| `Degraded` | the last attempt failed; the previous module is in place |
| `Failed` | the last attempt failed, and nothing is published |

| Condition | True when |
|---|---|
| `Fetched` | the module that the spec names is fetched, checked and stored |
| `Published` | the EnvoyFilter is in place |
| `Ready` | both, for this generation; wait for this one: `kubectl wait --for=condition=Ready aw/NAME` |
| `Loaded` | every matched Pod's sidecar downloaded it; Unknown where it cannot be known |
"""

REASONS: dict[str, dict[str, str]] = {
    "It goes well, or is on its way": {
        "Synced": "all is done",
        "Published": "the EnvoyFilter is in place",
        "NotPublished": "no EnvoyFilter has been written yet",
        "Fetching": "a fetch is under way",
        "Fetched": "the module is here; of `Loaded`: with all Pods",
        "NoPods": "of `Loaded`: the selector matches no Pod",
    },
    "The object: change it": {
        "InvalidSpec": "a field is wrong; the message begins with its path",
        "PolicyDenied": "the operator's rules forbid this source in this namespace",
        "MeshWideNotAllowed": "empty labels in the root namespace, without `--allow-mesh-wide`",
        "AddressNotAllowed": "the host has a private, loopback or link-local address, and the operator has not opened it (`--allow-private-host`)",
        "UrlNotAllowed": "a URL or redirect that is not followed",
        "DuplicateObject": "standalone, `wasmc plan`: an object is defined more than once; the message names the files",
        "FileInvalid": "standalone: the file that defines it cannot be read now; the message has the file, the line and what is wrong; what runs stays",
    },
    "The source is not there": {
        "ImageNotFound": "the registry has no such repository, tag or digest",
        "ObjectNotFound": "the server has no such object",
        "SourceNotFound": "there is no such thing at the source",
        "PublishedModuleLost": "no replica has the published module any more, and its source has it no more",
    },
    "The login": {
        "Unauthorized": "refused: no login, a wrong one, or one without the right",
        "SecretNotFound": "no such Secret in the AutoWasm's namespace",
        "SecretInvalid": "the Secret is of another type, or cannot be read",
        "SecretForbidden": "wasmer has no right to read it",
        "SecretUnavailable": "the API server did not give it; tried again",
        "ServiceAccountForbidden": "wasmer has no right to read the ServiceAccount",
        "CredentialHelper": "`wasmc`: docker's credential helper failed",
    },
    "The way to the source: tried again by itself": {
        "RegistryUnavailable": "no answer, or an error of the registry",
        "ObjectUnavailable": "no answer, or an error of the server",
        "SourceUnavailable": "the source did not answer",
        "Timeout": "no end within the deadline",
        "TooSlow": "fewer bytes a second than are waited for",
        "TlsFailed": "no TLS with this server",
        "CertificateInvalid": "its certificate is not trusted",
        "ProxyRefused": "the proxy does not let it through",
        "TooManyRedirects": "redirected without end",
        "UnexpectedAnswer": "an answer that means nothing here",
        "BackingOff": "it failed before, and is left alone for a while",
        "TooManyFetches": "so many fetches wait already",
    },
    "The module: push another": {
        "NotWasm": "no WebAssembly",
        "WasmComponent": "a component; Envoy runs core modules",
        "WasmInvalid": "its code is not valid",
        "Truncated": "it ends too early",
        "AbiMissing": "no Proxy-Wasm module",
        "AbiUnsupported": "a version of Proxy-Wasm that Envoy does not speak",
        "ImportUnknown": "it wants a function that Envoy does not offer (`--envoy-version` or `--allow-import`, if yours does)",
        "EnvoyCrash": "it may call one of Envoy's functions by reference, and the whole Envoy would crash; the message has the build flags to change",
        "StartFails": "its start is sure to fail in Envoy: a program instead of a library, or a call that Envoy forbids then",
        "ImportMismatch": "it wants a function with other parameters than Envoy's, or a memory or table that Envoy cannot create",
        "ExportMissing": "it lacks a function or memory that Envoy needs",
        "ExportMismatch": "a function has other parameters than Envoy expects, or what is exported has a type over which Envoy crashes",
        "TooLarge": "larger than a limit, mostly Envoy's 32 MiB",
        "ContentRejected": "refused",
        "DigestMismatch": "other bytes than the digest names",
        "SizeMismatch": "another size than was announced",
        "ManifestInvalid": "the manifest is wrong",
        "UnsupportedLayout": "no module in it that wasmer knows how to find ([layouts](../layouts.md))",
        "AmbiguousModule": "several modules, and nothing says which",
        "ModuleNotFoundInArchive": "no module in the image or archive",
        "ArchiveInvalid": "the archive is broken",
        "ArchiveTooLarge": "more bytes or entries than the limits allow",
    },
    "The EnvoyFilter": {
        "EnvoyFilterConflict": "one of this name is somebody else's ([adopt](../how-to/adopt.md))",
        "EnvoyFilterTerminating": "it is being deleted, and a finalizer holds it",
        "EnvoyFilterRefused": "the API server refuses it: an admission webhook or policy, a quota, missing rights, too large for etcd; it is tried again",
        "ServiceNotFound": "the Service that EnvoyFilters name does not exist; nothing new is published, what is in place stays",
        "ServicePortMissing": "it has no port that EnvoyFilters name; the same",
        "Mutated": "somebody rewrote or deleted it each time that it was put back",
    },
    "wasmer itself": {
        "StorageFull": "no room in the cache",
        "StorageUnavailable": "the disk cannot be read or written",
        "NamespaceShareExceeded": "the namespace publishes as much as it may",
        "CacheDirectoryInUse": "another wasmer uses the folder",
        "InternalError": "a fault of ours: please report it",
        "Usage": "a flag or file that wasmer was given is wrong",
    },
}


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for room, rows in REASONS.items():
        parts.append(f"## {room}\n\n| reason | means |\n|---|---|")
        parts.extend(f"| `{reason}` | {meaning} |" for reason, meaning in rows.items())
        parts.append("")
    parts.append(
        "Those of Pods (`status.pods.missing`, and `Loaded`) are in [proof](../explanation/proof.md)."
    )
    return "\n".join(parts) + "\n"
