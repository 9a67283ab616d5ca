"""Host functions for shared data and queues.

Sources: proxy-wasm-cpp-host src/exports.cc, src/shared_data.cc, src/shared_queue.cc, src/context.cc `registerSharedQueue`.
"""

from collections.abc import Mapping
from typing import Final

from autowasm.sandbox.host import Call, Host, Phase
from autowasm.sandbox.protocol import Result
from autowasm.text import shown


def get_data(
    host: Host, key_at: int, key_size: int, address_at: int, size_at: int, cas_at: int
) -> Result:
    """The value of a key, and its version."""
    key = host.read(key_at, key_size)
    if key is None:
        return Result.INVALID_MEMORY_ACCESS
    found = host.environment.shared.get(host.plugin.vm_id, key)
    if found is None:
        host.doubts[f'the shared data "{shown(key)}"'] = None
        return Result.NOT_FOUND
    value, cas = found
    result = host.give(value, address_at, size_at)
    if result is Result.OK and not host.write_number(cas_at, cas):
        return Result.INVALID_MEMORY_ACCESS
    return result


def set_data(host: Host, key_at: int, key_size: int, at: int, size: int, cas: int) -> Result:
    """Set the value of a key if `cas` is its version or 0."""
    key, value = host.read(key_at, key_size), host.read(at, size)
    if key is None or value is None:
        return Result.INVALID_MEMORY_ACCESS
    shared = host.environment.shared
    return shared.set(host.plugin.vm_id, key, value, cas=cas, ledger=host.ledger)


def register_queue(host: Host, name_at: int, name_size: int, token_at: int) -> Result:
    """Create a queue, and notify its root context of new entries."""
    name = host.read(name_at, name_size)
    if name is None:
        return Result.INVALID_MEMORY_ACCESS
    token = host.environment.shared.register(
        host.plugin.vm_id,
        name,
        context=host.root_of(host.context).identifier,
        ledger=host.ledger,
    )
    return _ok(host.write_number(token_at, token))


def resolve_queue(
    host: Host, vm_at: int, vm_size: int, name_at: int, name_size: int, token_at: int
) -> Result:
    """The token of a queue; an empty VM id means that of this VM."""
    vm_id, name = host.read(vm_at, vm_size), host.read(name_at, name_size)
    if vm_id is None or name is None:
        return Result.INVALID_MEMORY_ACCESS
    token = host.environment.shared.resolve(vm_id or host.plugin.vm_id.encode(), name)
    if token is None:
        host.doubts[f'the queue "{shown(name)}"'] = None
        return Result.NOT_FOUND
    return _ok(host.write_number(token_at, token))


def dequeue(host: Host, token: int, address_at: int, size_at: int) -> Result:
    """Take the oldest entry."""
    queue = host.environment.shared.queue(token)
    if queue is None:
        return Result.NOT_FOUND
    if not queue.entries:
        return Result.EMPTY
    entry = queue.entries.popleft()
    host.ledger.release(len(entry))
    return host.give(entry, address_at, size_at)


def enqueue(host: Host, token: int, at: int, size: int) -> Result:
    """Add an entry; `proxy_on_queue_ready` of the queue's root context follows."""
    data = host.read(at, size)
    if data is None:
        return Result.INVALID_MEMORY_ACCESS
    queue = host.environment.shared.queue(token)
    if queue is None:
        return Result.NOT_FOUND
    host.ledger.hold(len(data))
    queue.entries.append(data)
    host.schedule(0, lambda: _ready(host, queue.context, token))
    return Result.OK


def _ready(host: Host, identifier: int, token: int) -> None:
    context = host.contexts.get(identifier)
    if context is not None:
        host.callback(context, "proxy_on_queue_ready", identifier, token)


def _ok(is_written: bool) -> Result:
    return Result.OK if is_written else Result.INVALID_MEMORY_ACCESS


CALLS: Final[Mapping[str, Call]] = {
    "proxy_get_shared_data": Call(get_data, Result, Phase.RUN),
    "proxy_set_shared_data": Call(set_data, Result, Phase.RUN),
    "proxy_register_shared_queue": Call(register_queue, Result, Phase.RUN),
    "proxy_resolve_shared_queue": Call(resolve_queue, Result, Phase.RUN),
    "proxy_dequeue_shared_queue": Call(dequeue, Result, Phase.RUN),
    "proxy_enqueue_shared_queue": Call(enqueue, Result, Phase.RUN),
}
