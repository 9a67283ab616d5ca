"""docs/reference/conditions.md: every reason of the code, which a test compares, and its meaning."""

from tools.generate import markdown

_INTRODUCTION = """\
# Phases, conditions and reasons

`kubectl get aw` shows the phase; `kubectl describe aw NAME` the conditions. Reasons are stable: alerts may use them. The message says what is
wrong, where, and what to do. `make reference` generates this page.

| Phase | Means |
|---|---|
| `Pending` | not processed yet |
| `Fetching` | a fetch is in progress; the previous module, if any, stays in place |
| `Synced` | the module is fetched, checked and stored, and the EnvoyFilter is in place. It does not mean that Envoy runs it ([proof](../explanation/proof.md)) |
| `Degraded` | the last attempt failed; the previous module is in place |
| `Failed` | the last attempt failed, and nothing is published |

| Condition | True when |
|---|---|
| `Fetched` | the module that the spec names is fetched, checked and stored |
| `Published` | the EnvoyFilter is in place |
| `Ready` | both are True for this generation; to wait for it: `kubectl wait --for=condition=Ready aw/NAME` |
| `Loaded` | the sidecar of every matched Pod downloaded the module; Unknown if wasmer cannot determine it |
"""

REASONS: dict[str, dict[str, str]] = {
    "Success or in progress": {
        "Synced": "the module is fetched and the EnvoyFilter is in place",
        "Published": "the EnvoyFilter is in place",
        "NotPublished": "no EnvoyFilter has been written yet",
        "Fetching": "a fetch is in progress",
        "Fetched": "the module is stored; for `Loaded`: all matched Pods have it",
        "NoPods": "for `Loaded`: the selector matches no Pod",
    },
    "The AutoWasm: change it": {
        "InvalidSpec": "a field is invalid; the message begins with its path",
        "PolicyDenied": "the operator's policy forbids this source in this namespace",
        "MeshWideNotAllowed": "empty `matchLabels` in the root namespace, without `--allow-mesh-wide`",
        "AddressNotAllowed": "the host has a private, loopback or link-local address, and the operator has not allowed it (`--allow-private-host`)",
        "UrlNotAllowed": "the URL or a redirect is not allowed",
        "DuplicateObject": "standalone, `wasmc plan`: an object is defined more than once; the message names the files",
        "FileInvalid": "standalone: the file that defines it cannot be read now; the message has the file, the line and the problem; published filters stay in place",
    },
    "The source does not exist": {
        "ImageNotFound": "the registry has no such repository, tag or digest",
        "ObjectNotFound": "the server has no such object",
        "SourceNotFound": "the source has no such module",
        "PublishedModuleLost": "no replica stores the published module any more, and its source no longer has it",
    },
    "Authentication": {
        "Unauthorized": "the registry or server refused access: no login, a wrong login, or a login without permission",
        "SecretNotFound": "the Secret does not exist in the AutoWasm's namespace",
        "SecretInvalid": "the Secret has another type, or its content is invalid",
        "SecretForbidden": "wasmer has no permission to read the Secret",
        "SecretUnavailable": "the API server did not return the Secret; wasmer retries",
        "ServiceAccountForbidden": "wasmer has no permission to read the ServiceAccount",
        "CredentialHelper": "`wasmc`: docker's credential helper failed",
    },
    "Connection to the source: wasmer retries": {
        "RegistryUnavailable": "the registry did not answer, or answered with an error",
        "ObjectUnavailable": "the server did not answer, or answered with an error",
        "SourceUnavailable": "the source did not answer",
        "Timeout": "the fetch did not finish before the deadline",
        "TooSlow": "the transfer was slower than the minimum rate",
        "TlsFailed": "the TLS handshake failed",
        "CertificateInvalid": "the certificate is not trusted",
        "ProxyRefused": "the proxy refused the request",
        "TooManyRedirects": "more redirects than the limit",
        "UnexpectedAnswer": "the answer is not valid for this protocol",
        "BackingOff": "the source failed repeatedly; the circuit breaker pauses requests to it",
        "TooManyFetches": "too many fetches are waiting already",
    },
    "The module: push another one": {
        "NotWasm": "the file is not WebAssembly",
        "WasmComponent": "the file is a WebAssembly component; Envoy runs core modules",
        "WasmInvalid": "the code is not valid",
        "Truncated": "the file is incomplete",
        "AbiMissing": "the module has no Proxy-Wasm ABI",
        "AbiUnsupported": "Envoy does not support this version of the Proxy-Wasm ABI",
        "ImportUnknown": "the module imports a function that Envoy does not provide (`--envoy-version` or `--allow-import`, if your Envoy does)",
        "EnvoyCrash": "the module may call one of Envoy's functions by reference, which crashes the whole Envoy; the message has the build flags to change",
        "StartFails": "the module cannot start in Envoy: it is a program instead of a library, or makes a call that Envoy forbids during the start",
        "ImportMismatch": "the module imports a function with other parameters than Envoy's, or a memory or table that Envoy cannot create",
        "ExportMissing": "the module lacks a function or memory that Envoy needs",
        "ExportMismatch": "an exported function has other parameters than Envoy expects, or an export has a type that crashes Envoy",
        "TooLarge": "the module is larger than a limit, usually Envoy's 32 MiB",
        "ContentRejected": "the content was rejected",
        "DigestMismatch": "the bytes do not match the digest",
        "SizeMismatch": "the size differs from the announced size",
        "ManifestInvalid": "the manifest is invalid",
        "UnsupportedLayout": "the image has no layout that wasmer supports ([layouts](../layouts.md))",
        "AmbiguousModule": "several modules, and no rule selects one of them",
        "ModuleNotFoundInArchive": "the image or archive contains no module",
        "ArchiveInvalid": "the archive is broken",
        "ArchiveTooLarge": "the archive has more bytes or entries than the limits allow",
    },
    "The EnvoyFilter": {
        "EnvoyFilterConflict": "an EnvoyFilter of this name exists that wasmer does not manage ([adopt](../how-to/adopt.md))",
        "EnvoyFilterTerminating": "the EnvoyFilter is being deleted and waits for a finalizer",
        "EnvoyFilterRefused": "the API server refuses the EnvoyFilter: an admission webhook or policy, a quota, missing permissions, too large for etcd; wasmer retries",
        "ServiceNotFound": "the Service that EnvoyFilters refer to does not exist; new modules are not published, published ones stay in place",
        "ServicePortMissing": "the Service lacks the port that EnvoyFilters refer to; the consequences are the same",
        "Mutated": "another client changed or deleted the EnvoyFilter after each revert; wasmer stopped reverting it",
    },
    "wasmer itself": {
        "StorageFull": "the cache has no free space",
        "StorageUnavailable": "the disk cannot be read or written",
        "NamespaceShareExceeded": "the namespace has used its disk quota",
        "CacheDirectoryInUse": "another wasmer process uses the cache directory",
        "InternalError": "a bug in wasmer; please report it",
        "Usage": "a flag or a file of wasmer is invalid",
    },
}


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for title, meanings in REASONS.items():
        rows = ((f"`{reason}`", meaning) for reason, meaning in meanings.items())
        parts.append(f"## {title}\n\n{markdown.table('| reason | means |', rows)}")
    parts.append(
        "The reasons of Pods (`status.pods.missing`, and `Loaded`) are in [proof](../explanation/proof.md)."
    )
    return "\n".join(parts) + "\n"
