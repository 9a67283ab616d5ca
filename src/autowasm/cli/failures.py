"""An error of `wasmc` as a sentence on standard error and, with --json, as a document on standard output.

Invariant: the document is `{"error": {"reason", "message", "hint"}}`; `reason` is a value of `reasons.Reason`, and `hint` is null
or a sentence that begins in lower case.
"""

import json
import os
import sys
from typing import Final

from autowasm.errors import AutoWasmError, UsageError
from autowasm.reasons import Reason, Topic

FAILURE: Final = 1
USAGE: Final = 2

_HINTS: Final[dict[Topic, str]] = {
    Topic.MISSING: "check the name and the tag; `wasmc tags HOST/NAME` lists the tags",
    Topic.ACCESS: "log in with `wasmc login HOST`, with an account that may read, and for a push also write, the repository",
    Topic.CONNECTION: "try again; if the error persists, check the host, the proxy and the TLS flags (--plain-http, --insecure, --ca-file)",
    Topic.MODULE: "`wasmc inspect FILE` describes the module; --force pushes or pulls it anyway",
}
_OWN_HINTS: Final[dict[Reason, str]] = {
    Reason.USAGE: "see `wasmc help COMMAND`",
    Reason.INTERNAL_ERROR: "this is a bug; WASMC_DEBUG=1 prints the traceback",
    Reason.CREDENTIAL_HELPER: "run `docker-credential-NAME get` to see why it fails",
    Reason.STORAGE_FULL: "free space on the disk",
    Reason.CERTIFICATE_INVALID: "trust the registry's authority with --ca-file",
}


def hint_of(reason: Reason) -> str | None:
    """The usual way to correct an error of this reason."""
    return _OWN_HINTS.get(reason) or _HINTS.get(reason.topic)


def document(reason: Reason, message: str) -> str:
    """The error as JSON."""
    hint = hint_of(reason)
    return json.dumps({"error": {"reason": reason, "message": message, "hint": hint}}, indent=2)


def report(error: BaseException, *, program: str, as_json: bool) -> int:
    """Print the error, return the exit status."""
    if os.environ.get("WASMC_DEBUG") == "1":
        import traceback  # noqa: PLC0415

        traceback.print_exception(error)
    reason, sentence = _described(error)
    print(f"{program}: error: {sentence}", file=sys.stderr)
    if as_json:
        print(document(reason, sentence), flush=True)
    return USAGE if isinstance(error, UsageError) else FAILURE


def _described(error: BaseException) -> tuple[Reason, str]:
    if isinstance(error, AutoWasmError):
        return error.reason, str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return Reason.STORAGE_UNAVAILABLE, f"{where}{error.strerror or error}"
    # A bug, in one line without a traceback.
    hint = "this is a bug; WASMC_DEBUG=1 prints the traceback"
    return Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error} ({hint})"
