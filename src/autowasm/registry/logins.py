"""Logins: which credentials a registry has refused lately, so that no account is locked by asking again (ADR 19).

Not a cache of tokens (`authorization.py`) nor the pause after other failures (`artifacts/breaker.py`). Invariants: as long
as a host has not accepted a credential it is shown it by one request at a time; after `limits.login_refusals` refusals in
a row it is not shown it for a while, whatever repository is asked for. A rotated secret is another credential.
"""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from autowasm.backoff import Backoff
from autowasm.errors import SourceDenied
from autowasm.limits import Limits
from autowasm.net.transfer import current_transfer
from autowasm.registry.credentials import Credential

_KEPT_MOST: Final = 10_000
"""Hosts and credentials remembered; the oldest go first. Both come from tenants."""


@dataclass(slots=True)
class _State:
    refusals: int = 0
    """In a row."""
    accepted: bool = False
    left_alone_until: float = 0.0
    trying: Future[None] | None = None
    """Ends when the one request that shows the credential has its answer."""


class Login:
    """One showing of a credential: told how it went."""

    def __init__(self) -> None:
        self.outcome: bool | None = None

    def accepted(self) -> None:
        """The host knows this credential."""
        self.outcome = True

    def refused(self) -> None:
        """The host does not take this credential."""
        self.outcome = False


class Logins:
    """Those of one process. Safe in any thread. `clock` in seconds, monotonic."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._backoff = Backoff(limits.login_pause, limits.login_pause_most)
        self._lock = threading.Lock()
        self._states: OrderedDict[tuple[str, str], _State] = OrderedDict()

    @contextlib.contextmanager
    def attempt(self, host: str, credential: Credential | None) -> Iterator[Login]:
        """Around the exchange that shows the credential. In a transfer's thread: may wait for another's answer.

        Raises SourceDenied if the credential is left alone, and TransferEnded.
        """
        login = Login()
        if credential is None:
            yield login
            return
        key = (host, credential.fingerprint)
        mine = self._enter(key, credential)
        try:
            yield login
        finally:
            self._leave(key, login.outcome, mine)

    def refused(self, host: str, credential: Credential) -> None:
        """A credential that was accepted before is refused now, outside of an attempt."""
        self._leave((host, credential.fingerprint), False, None)

    def _enter(self, key: tuple[str, str], credential: Credential) -> Future[None] | None:
        while True:
            with self._lock:
                state = self._states.setdefault(key, _State())
                self._states.move_to_end(key)
                self._forget_oldest()
                if self._clock() < state.left_alone_until:
                    raise SourceDenied(
                        f"{key[0]} has refused the login of {credential.shown} several times: it is not sent for a while, so "
                        "that the account is not locked; another login is tried at once"
                    )
                if state.accepted:
                    return None
                if state.trying is None:
                    state.trying = Future()
                    return state.trying
                first = state.trying
            with contextlib.suppress(TimeoutError):
                current_transfer().wait_for(_follower(first), timeout=self._limits.answer_timeout)

    def _leave(
        self, key: tuple[str, str], accepted: bool | None, mine: Future[None] | None
    ) -> None:
        with self._lock:
            state = self._states.setdefault(key, _State())
            if accepted:
                state.accepted, state.refusals, state.left_alone_until = True, 0, 0.0
            elif accepted is not None:
                state.accepted = False
                state.refusals += 1
                beyond = state.refusals - self._limits.login_refusals + 1
                if beyond > 0:
                    state.left_alone_until = self._clock() + self._backoff.delay(beyond)
            if mine is not None and state.trying is mine:
                state.trying = None
        if mine is not None:
            mine.set_result(None)

    def _forget_oldest(self) -> None:
        if len(self._states) > _KEPT_MOST:
            self._states.popitem(last=False)


def _follower(first: Future[None]) -> Future[None]:
    """A future of one's own: `Transfer.wait_for` cancels what it gives up on, and others wait for the same."""
    own: Future[None] = Future()

    def pass_on(_: Future[None]) -> None:
        if own.set_running_or_notify_cancel():
            own.set_result(None)

    first.add_done_callback(pass_on)
    return own
