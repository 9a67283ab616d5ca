"""Reason: the cause of a failure or the state that was reached, with its meaning.

The values are in the conditions of a status (`Loaded` has those of Pods too, see `controller/pods/loadreport.py`), in the errors of a
start of wasmer, and in those of `wasmc`. docs/reference/conditions.md is generated from them. They exclude the reasons of Events (see
`kube/recorder.py`). Invariants: a value never changes, because users write alerts on it; a reason of `Ready` is `Stalled` only if a change by a
person is necessary to end it: deployment tools then stop waiting.
"""

import enum
from typing import Self


class Progress(enum.Enum):
    """The condition of kstatus that a status has while `Ready` has the reason. The value is its type; `""`: none."""

    DONE = ""
    """`Ready` is True."""
    RECONCILING = "Reconciling"
    """wasmer is working on it, or retries an operation that may succeed without a change by a person."""
    STALLED = "Stalled"
    """A person must change something: the object, its source, a login, the policy. wasmer may resolve the source again all the same."""
    ELSEWHERE = "-"
    """Never a reason of `Ready`: one of other conditions, of commands, of metrics."""


class Topic(enum.Enum):
    """The sections of docs/reference/conditions.md. The value is the heading; `progress` is the default for its reasons."""

    progress: Progress

    def __new__(cls, heading: str, progress: Progress = Progress.ELSEWHERE) -> Self:
        """The heading alone is the value."""
        member = object.__new__(cls)
        member._value_ = heading
        member.progress = progress
        return member

    STATE = "Success or in progress", Progress.RECONCILING
    OBJECT = "The AutoWasm: change it", Progress.STALLED
    MISSING = "The source does not exist", Progress.STALLED
    ACCESS = "Authentication", Progress.STALLED
    CONNECTION = "Connection to the source: wasmer retries", Progress.RECONCILING
    MODULE = "The module: push another one", Progress.STALLED
    START = (
        "The start of the module (condition `Starts`): before it is published",
        Progress.STALLED,
    )
    RUN = "The module in sidecars (condition `Running`, `status.pods.notRunning`)"
    ENVOYFILTER = "The EnvoyFilter", Progress.RECONCILING
    WASMER = "wasmer itself", Progress.RECONCILING


class Reason(enum.StrEnum):
    """`status.conditions[].reason`, the label `reason` of metrics, and `AutoWasmError.reason`, also in commands."""

    topic: Topic
    meaning: str
    """Markdown, for the reference page."""
    progress: Progress

    def __new__(
        cls, value: str, topic: Topic, meaning: str, progress: Progress | None = None
    ) -> Self:
        """The value alone is the string. If `progress` is None, the topic's default applies."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.topic = topic
        member.meaning = meaning
        member.progress = progress or topic.progress
        return member

    SYNCED = (
        "Synced",
        Topic.STATE,
        "the module is fetched and the EnvoyFilter is in place",
        Progress.DONE,
    )
    PUBLISHED = "Published", Topic.STATE, "the EnvoyFilter is in place", Progress.ELSEWHERE
    NOT_PUBLISHED = (
        "NotPublished",
        Topic.STATE,
        "no EnvoyFilter has been written yet",
        Progress.ELSEWHERE,
    )
    FETCHING = "Fetching", Topic.STATE, "a fetch is in progress"
    FETCHED = (
        "Fetched",
        Topic.STATE,
        "the module is stored; for `Loaded`: all matched Pods have it",
        Progress.ELSEWHERE,
    )
    ROLLING_OUT = (
        "RollingOut",
        Topic.STATE,
        "a staged rollout is in progress: some Pods have the new filter, or it waits for Pods",
    )
    ROLLOUT_PAUSED = (
        "RolloutPaused",
        Topic.STATE,
        "a staged rollout is paused: requested by the annotation `wasm.tcm.io/rollout`, or because the previous filter is not known",
    )
    NO_PODS = (
        "NoPods",
        Topic.STATE,
        "for `Loaded` and `Running`: the selector matches no Pod (with a sidecar)",
        Progress.ELSEWHERE,
    )

    INVALID_SPEC = (
        "InvalidSpec",
        Topic.OBJECT,
        "a field is invalid; the message begins with its path",
    )
    POLICY_DENIED = (
        "PolicyDenied",
        Topic.OBJECT,
        "the operator's policy forbids this source in this namespace",
    )
    MESH_WIDE_NOT_ALLOWED = (
        "MeshWideNotAllowed",
        Topic.OBJECT,
        "empty `matchLabels` in the root namespace, without `--allow-mesh-wide`",
    )
    ADDRESS_NOT_ALLOWED = (
        "AddressNotAllowed",
        Topic.OBJECT,
        "the host has a private, loopback or link-local address, and the operator has not allowed it (`--allow-private-host`)",
    )
    URL_NOT_ALLOWED = "UrlNotAllowed", Topic.OBJECT, "the URL or a redirect is not allowed"
    SHA256_MISMATCH = (
        "Sha256Mismatch",
        Topic.OBJECT,
        "the digest of the module differs from `spec.filter.sha256`",
    )
    NOT_FOUND = (
        "NotFound",
        Topic.OBJECT,
        "`wasmc explain`: the cluster has no such AutoWasm",
        Progress.ELSEWHERE,
    )
    ROLLOUT_COMMAND_FAILED = (
        "RolloutCommandFailed",
        Topic.OBJECT,
        "`wasmc rollout`: the command changes nothing in this phase, or was not carried out in time",
        Progress.ELSEWHERE,
    )
    DUPLICATE_OBJECT = (
        "DuplicateObject",
        Topic.OBJECT,
        "standalone, `wasmc plan`: an object is defined more than once; the message names the files",
    )
    FILE_INVALID = (
        "FileInvalid",
        Topic.OBJECT,
        "standalone: the file that defines it cannot be read now; the message has the file, the line and the problem; published filters stay in place",
    )

    IMAGE_NOT_FOUND = (
        "ImageNotFound",
        Topic.MISSING,
        "the registry has no such repository, tag or digest",
    )
    OBJECT_NOT_FOUND = "ObjectNotFound", Topic.MISSING, "the server has no such object"
    SOURCE_NOT_FOUND = "SourceNotFound", Topic.MISSING, "the source has no such module"
    PUBLISHED_MODULE_LOST = (
        "PublishedModuleLost",
        Topic.MISSING,
        "no replica stores the published module any more, and its source no longer has it",
    )

    UNAUTHORIZED = (
        "Unauthorized",
        Topic.ACCESS,
        "the registry or server refused access: no login, a wrong login, or a login without permission",
    )
    SECRET_NOT_FOUND = (
        "SecretNotFound",
        Topic.ACCESS,
        "the Secret does not exist in the AutoWasm's namespace",
        Progress.RECONCILING,
    )
    SECRET_INVALID = (
        "SecretInvalid",
        Topic.ACCESS,
        "the Secret has another type, or its content is invalid",
    )
    SECRET_FORBIDDEN = (
        "SecretForbidden",
        Topic.ACCESS,
        "wasmer has no permission to read the Secret",
        Progress.RECONCILING,
    )
    SECRET_UNAVAILABLE = (
        "SecretUnavailable",
        Topic.ACCESS,
        "the API server did not return the Secret; wasmer retries",
        Progress.RECONCILING,
    )
    SERVICE_ACCOUNT_FORBIDDEN = (
        "ServiceAccountForbidden",
        Topic.ACCESS,
        "wasmer has no permission to read the ServiceAccount",
        Progress.RECONCILING,
    )
    CREDENTIAL_HELPER = (
        "CredentialHelper",
        Topic.ACCESS,
        "`wasmc`: docker's credential helper failed",
        Progress.ELSEWHERE,
    )

    REGISTRY_UNAVAILABLE = (
        "RegistryUnavailable",
        Topic.CONNECTION,
        "the registry did not answer, or answered with an error",
    )
    OBJECT_UNAVAILABLE = (
        "ObjectUnavailable",
        Topic.CONNECTION,
        "the server did not answer, or answered with an error",
    )
    SOURCE_UNAVAILABLE = "SourceUnavailable", Topic.CONNECTION, "the source did not answer"
    TIMEOUT = "Timeout", Topic.CONNECTION, "the fetch did not finish before the deadline"
    TOO_SLOW = "TooSlow", Topic.CONNECTION, "the transfer was slower than the minimum rate"
    TLS_FAILED = "TlsFailed", Topic.CONNECTION, "the TLS handshake failed"
    CERTIFICATE_INVALID = "CertificateInvalid", Topic.CONNECTION, "the certificate is not trusted"
    PROXY_REFUSED = "ProxyRefused", Topic.CONNECTION, "the proxy refused the request"
    TOO_MANY_REDIRECTS = "TooManyRedirects", Topic.CONNECTION, "more redirects than the limit"
    UNEXPECTED_ANSWER = (
        "UnexpectedAnswer",
        Topic.CONNECTION,
        "the answer is not valid for this protocol",
    )
    BACKING_OFF = (
        "BackingOff",
        Topic.CONNECTION,
        "the source failed repeatedly; the circuit breaker pauses requests to it",
    )
    TOO_MANY_FETCHES = "TooManyFetches", Topic.CONNECTION, "too many fetches are waiting already"

    NOT_A_FILE = (
        "NotAFile",
        Topic.MODULE,
        "`wasmc push`: the path is not a regular file",
        Progress.ELSEWHERE,
    )
    NOT_WASM = "NotWasm", Topic.MODULE, "the file is not WebAssembly"
    WASM_COMPONENT = (
        "WasmComponent",
        Topic.MODULE,
        "the file is a WebAssembly component; Envoy runs core modules",
    )
    WASM_INVALID = "WasmInvalid", Topic.MODULE, "the code is not valid"
    TRUNCATED = "Truncated", Topic.MODULE, "the file is incomplete"
    ABI_MISSING = "AbiMissing", Topic.MODULE, "the module has no Proxy-Wasm ABI"
    ABI_UNSUPPORTED = (
        "AbiUnsupported",
        Topic.MODULE,
        "Envoy does not support this version of the Proxy-Wasm ABI",
    )
    IMPORT_UNKNOWN = (
        "ImportUnknown",
        Topic.MODULE,
        "the module imports a function that Envoy does not provide (if your Envoy does, set `--envoy-version` or `--allow-import`)",
    )
    ENVOY_CRASH = (
        "EnvoyCrash",
        Topic.MODULE,
        "the module may call one of Envoy's functions by reference, which crashes the whole Envoy; the message has the build flags to change",
    )
    START_FAILS = (
        "StartFails",
        Topic.MODULE,
        "the module cannot start in Envoy: it is a program instead of a library, or makes a call that Envoy forbids during the start",
    )
    IMPORT_MISMATCH = (
        "ImportMismatch",
        Topic.MODULE,
        "the module imports a function with other parameters than Envoy's, or a memory or table that Envoy cannot create",
    )
    EXPORT_MISSING = (
        "ExportMissing",
        Topic.MODULE,
        "the module lacks a function or memory that Envoy needs",
    )
    EXPORT_MISMATCH = (
        "ExportMismatch",
        Topic.MODULE,
        "an exported function has other parameters than Envoy expects, or an export has a type that crashes Envoy",
    )
    TOO_LARGE = (
        "TooLarge",
        Topic.MODULE,
        "the module is larger than a limit, usually Envoy's 32 MiB",
    )
    CONTENT_REJECTED = "ContentRejected", Topic.MODULE, "the content was rejected"
    DIGEST_MISMATCH = (
        "DigestMismatch",
        Topic.MODULE,
        "the bytes do not match the digest",
        Progress.RECONCILING,
    )
    SIZE_MISMATCH = (
        "SizeMismatch",
        Topic.MODULE,
        "the size differs from the announced size",
        Progress.RECONCILING,
    )
    MANIFEST_INVALID = "ManifestInvalid", Topic.MODULE, "the manifest is invalid"
    UNSUPPORTED_LAYOUT = (
        "UnsupportedLayout",
        Topic.MODULE,
        "the image has no layout that wasmer supports ([layouts](../layouts.md))",
    )
    AMBIGUOUS_MODULE = (
        "AmbiguousModule",
        Topic.MODULE,
        "there are several modules, and no rule selects one of them",
    )
    MODULE_NOT_FOUND_IN_ARCHIVE = (
        "ModuleNotFoundInArchive",
        Topic.MODULE,
        "the image or archive contains no module",
    )
    ARCHIVE_INVALID = "ArchiveInvalid", Topic.MODULE, "the archive is broken"
    ARCHIVE_TOO_LARGE = (
        "ArchiveTooLarge",
        Topic.MODULE,
        "the archive has more bytes or entries than the limits allow",
    )

    STARTED = "Started", Topic.START, "the module starts with its configuration", Progress.ELSEWHERE
    CONFIGURATION_REFUSED = (
        "ConfigurationRefused",
        Topic.START,
        "the module refuses `pluginConfig`: every sidecar would answer 503; the message has its last log lines. For `Running`: a sidecar has the module "
        "but runs no VM of it",
    )
    START_FAILED = (
        "StartFailed",
        Topic.START,
        "the module fails while it starts: every sidecar would answer 503",
    )
    FIRST_REQUEST_FAILED = (
        "FirstRequestFailed",
        Topic.START,
        "the module starts, but fails on a plain request",
    )
    FIRST_REQUEST_HELD = (
        "FirstRequestHeld",
        Topic.START,
        "the module starts, but does not let a plain request pass",
    )
    CALLOUT_NEEDED = (
        "CalloutNeeded",
        Topic.START,
        "the module calls a cluster, and its further behaviour depends on the answer",
    )
    DEPENDS_ON_ENVOY = (
        "DependsOnEnvoy",
        Topic.START,
        "the module refuses or fails after it requested a property that only a real Envoy has",
    )
    SANDBOX_LIMIT = (
        "SandboxLimit",
        Topic.START,
        "the module used up the sandbox's time, fuel or memory; Envoy has no such limit",
    )
    SANDBOX_UNSUPPORTED = (
        "SandboxUnsupported",
        Topic.START,
        "the module needs an Envoy extension or a WebAssembly feature that the sandbox lacks",
    )
    PREFLIGHT_UNAVAILABLE = (
        "PreflightUnavailable",
        Topic.START,
        "no verdict: the child process crashed, exceeded a limit or could not be started; it is not the module's fault",
        Progress.RECONCILING,
    )

    RUNNING = "Running", Topic.RUN, "the module runs in the sidecars of all matched Pods"
    STARTING = (
        "Starting",
        Topic.RUN,
        "a sidecar has not started the module yet, or still drains the previous one",
    )
    CRASHING = "Crashing", Topic.RUN, "the module crashes, and the sidecar reloads it"
    FETCH_FAILED = (
        "FetchFailed",
        Topic.RUN,
        "a sidecar gave up fetching the module; wasmer resends it",
    )
    NOT_ACCEPTED = (
        "NotAccepted",
        Topic.RUN,
        "a sidecar does not have the configuration: it has not arrived from istiod, or Envoy rejected it",
    )
    STATS_UNREACHABLE = (
        "StatsUnreachable",
        Topic.RUN,
        "the statistics of a sidecar, port 15090 of its Pod, cannot be read; the module may run",
    )
    UNKNOWN = (
        "Unknown",
        Topic.RUN,
        "the statistics of a sidecar do not show whether the module runs ([what can be known](sidecar-statistics.md))",
    )

    ROLLOUT_FAILED = (
        "RolloutFailed",
        Topic.ENVOYFILTER,
        "a staged rollout was aborted: all Pods have the previous filter; the message has the Pod, the figures and the reason",
        Progress.STALLED,
    )
    ENVOY_FILTER_CONFLICT = (
        "EnvoyFilterConflict",
        Topic.ENVOYFILTER,
        "an EnvoyFilter of this name exists that wasmer does not manage ([adopt](../how-to/adopt.md))",
        Progress.STALLED,
    )
    ENVOY_FILTER_TERMINATING = (
        "EnvoyFilterTerminating",
        Topic.ENVOYFILTER,
        "the EnvoyFilter is being deleted and waits for a finalizer",
    )
    ENVOY_FILTER_REFUSED = (
        "EnvoyFilterRefused",
        Topic.ENVOYFILTER,
        "the API server refuses the EnvoyFilter because of an admission webhook or policy, a quota, missing permissions, "
        "or a size too large for etcd; wasmer retries",
    )
    SERVICE_NOT_FOUND = (
        "ServiceNotFound",
        Topic.ENVOYFILTER,
        "the Service that EnvoyFilters refer to does not exist; new modules are not published, published ones stay in place",
    )
    SERVICE_PORT_MISSING = (
        "ServicePortMissing",
        Topic.ENVOYFILTER,
        "the Service lacks the port that EnvoyFilters refer to; the consequences are the same",
    )
    SERVICE_WITHOUT_ENDPOINTS = (
        "ServiceWithoutEndpoints",
        Topic.ENVOYFILTER,
        "in metrics and logs only: the Service has no ready endpoint; publication continues",
        Progress.ELSEWHERE,
    )
    MUTATED = (
        "Mutated",
        Topic.ENVOYFILTER,
        "another client changed or deleted the EnvoyFilter after each revert; wasmer stopped reverting it",
        Progress.STALLED,
    )

    STORAGE_FULL = "StorageFull", Topic.WASMER, "the cache has no free space"
    STORAGE_UNAVAILABLE = "StorageUnavailable", Topic.WASMER, "the disk cannot be read or written"
    NAMESPACE_SHARE_EXCEEDED = (
        "NamespaceShareExceeded",
        Topic.WASMER,
        "the namespace has used its disk quota",
    )
    CACHE_DIRECTORY_IN_USE = (
        "CacheDirectoryInUse",
        Topic.WASMER,
        "another wasmer process uses the cache directory",
        Progress.ELSEWHERE,
    )
    INTERNAL_ERROR = "InternalError", Topic.WASMER, "a bug in wasmer; please report it"
    USAGE = "Usage", Topic.WASMER, "a flag or a file of wasmer is invalid", Progress.ELSEWHERE
