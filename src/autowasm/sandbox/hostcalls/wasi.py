"""The functions of WASI preview 1 that Envoy has, under both of its module names: output, environment, clock, random numbers.

There are no files, sockets or arguments. Source: proxy-wasm-cpp-host src/exports.cc `wasi_unstable_*`, with its error numbers.
"""

from collections.abc import Callable, Mapping
from typing import Final

from autowasm.sandbox.host import ALONE, ANY, NEWER_LIBRARY, STARTING, Call, Host, Phase
from autowasm.sandbox.protocol import Errno, LogLevel

_STDOUT, _STDERR = 1, 2
_LEVELS: Final = {_STDOUT: LogLevel.INFO, _STDERR: LogLevel.ERROR}
_MOST_RANDOM: Final = 64 * 1024
_REALTIME, _MONOTONIC = 0, 1
_VECTOR_FUEL: Final = 500
"""For each piece of an output: about as many instructions as the host takes for it."""


# --- output


def fd_write(host: Host, descriptor: int, vectors: int, count: int, written_at: int) -> Errno:
    """Log the data written to standard output (info) or standard error (error)."""
    written = _write(host, descriptor, vectors, count)
    if isinstance(written, Errno):
        return written
    return _ok(host.write_number(written_at, written))


def fd_pwrite(
    host: Host, descriptor: int, vectors: int, count: int, _offset: int, written_at: int
) -> Errno:
    """Like `fd_write`: there are no offsets."""
    return fd_write(host, descriptor, vectors, count, written_at)


def _write(host: Host, descriptor: int, vectors: int, count: int) -> int | Errno:
    level = _LEVELS.get(descriptor)
    if level is None:
        return Errno.BADF
    parts = []
    for index in range(count):
        entry = host.read(vectors + 8 * index, 8)
        if entry is None:
            return Errno.FAULT
        address, size = int.from_bytes(entry[:4], "little"), int.from_bytes(entry[4:], "little")
        host.instance.charge(_VECTOR_FUEL)
        if size:
            part = host.read(address, size)
            if part is None:
                return Errno.FAULT
            parts.append(part)
    text = b"".join(parts)
    if text:
        host.log.add(level, text.removesuffix(b"\n"), prefix=host.context.log_prefix)
    return len(text)


# --- descriptors


def fd_fdstat_get(host: Host, descriptor: int, stat_at: int) -> Errno:
    """The rights of standard output and error: write."""
    if descriptor not in _LEVELS:
        return Errno.BADF
    host.write(stat_at, bytes(8) + (64).to_bytes(8, "little") + bytes(8))
    return Errno.SUCCESS


def only_output(_host: Host, descriptor: int, *_arguments: int) -> Errno:
    """Success for standard output and error, for which there is nothing to do."""
    return Errno.SUCCESS if descriptor in _LEVELS else Errno.BADF


def fd_tell(host: Host, descriptor: int, offset_at: int) -> Errno:
    """Standard output and error are at 0."""
    if descriptor not in _LEVELS:
        return Errno.BADF
    return _ok(host.write_number(offset_at, 0, 8))


def fd_renumber(_host: Host, descriptor: int, target: int) -> Errno:
    """Not supported."""
    return Errno.NOTSUP if {descriptor, target} <= set(_LEVELS) else Errno.BADF


def fd_readdir(
    host: Host, _descriptor: int, _buffer: int, _size: int, _cookie: int, read_at: int
) -> Errno:
    """There are no directories."""
    return Errno.NOTDIR if host.write_number(read_at, 0) else Errno.FAULT


def path_readlink(
    host: Host, _descriptor: int, _path: int, _size: int, _buffer: int, _buffer_size: int, at: int
) -> Errno:
    """There are no links."""
    return Errno.NOTSUP if host.write_number(at, 0) else Errno.FAULT


# --- sockets


def sock_accept(host: Host, _descriptor: int, _flags: int, descriptor_at: int) -> Errno:
    """There are no sockets."""
    return Errno.NOTSUP if host.write_number(descriptor_at, 0, 8) else Errno.FAULT


def sock_recv(
    host: Host, _descriptor: int, _data: int, _count: int, _flags: int, size_at: int, flags_at: int
) -> Errno:
    """There are no sockets."""
    if not host.write_number(size_at, 0) or not host.write_number(flags_at, 0, 2):
        return Errno.FAULT
    return Errno.NOTSUP


def sock_send(
    host: Host, _descriptor: int, _data: int, _count: int, _flags: int, size_at: int
) -> Errno:
    """There are no sockets."""
    return Errno.NOTSUP if host.write_number(size_at, 0) else Errno.FAULT


# --- arguments and environment


def args_sizes_get(host: Host, count_at: int, size_at: int) -> Errno:
    """There are no arguments."""
    return _ok(host.write_number(count_at, 0) and host.write_number(size_at, 0))


def environ_get(host: Host, pointers: int, buffer: int) -> Errno:
    """The environment variables of the VM's configuration."""
    for text in _environment(host):
        if not host.write_number(pointers, buffer) or not host.write(buffer, text):
            return Errno.FAULT
        pointers += 4
        buffer += len(text)
    return Errno.SUCCESS


def environ_sizes_get(host: Host, count_at: int, size_at: int) -> Errno:
    """The number of variables, and their size in bytes."""
    texts = _environment(host)
    return _ok(
        host.write_number(count_at, len(texts))
        and host.write_number(size_at, sum(len(text) for text in texts))
    )


def _environment(host: Host) -> list[bytes]:
    return [
        f"{name}={value}".encode(errors="surrogateescape") + b"\0"
        for name, value in host.plugin.environment.items()
    ]


# --- time and random numbers


def clock_time_get(host: Host, clock: int, _precision: int, time_at: int) -> Errno:
    """Virtual time."""
    match clock:
        case 0:
            time = host.clock.real()
        case 1:
            time = host.clock.monotonic()
        case _:
            return Errno.NOTSUP
    return _ok(host.write_number(time_at, time, 8))


def clock_res_get(host: Host, clock: int, resolution_at: int) -> Errno:
    """One nanosecond."""
    if clock not in (_REALTIME, _MONOTONIC):
        return Errno.NOTSUP
    return _ok(host.write_number(resolution_at, 1, 8))


def random_get(host: Host, buffer: int, size: int) -> Errno:
    """Random numbers from the seed of the environment."""
    if size > _MOST_RANDOM:
        return Errno.INVAL
    return _ok(not size or host.write(buffer, host.random.randbytes(size)))


# --- the rest


def poll_oneoff(host: Host, _in: int, _out: int, _count: int, events_at: int) -> Errno:
    """No events. Go's runtime calls it to sleep; in Envoy 1.36 it is not implemented."""
    if host.environment.envoy < NEWER_LIBRARY:
        return Errno.NOSYS
    return _ok(host.write_number(events_at, 0))


def proc_exit(_host: Host, _code: int) -> None:
    """Does nothing: Envoy logs the call at level trace, and the module continues."""


def always(errno: Errno) -> Callable[..., Errno]:
    """A function that does nothing."""

    def answer(_host: Host, *_arguments: int) -> Errno:
        return errno

    return answer


def _ok(is_written: bool) -> Errno:
    return Errno.SUCCESS if is_written else Errno.FAULT


CALLS: Final[Mapping[str, Call]] = {
    "args_get": Call(always(Errno.SUCCESS), Errno, STARTING | ALONE),
    "args_sizes_get": Call(args_sizes_get, Errno, STARTING),
    "environ_get": Call(environ_get, Errno, STARTING),
    "environ_sizes_get": Call(environ_sizes_get, Errno, STARTING),
    "clock_time_get": Call(clock_time_get, Errno, ANY | ALONE),
    "clock_res_get": Call(clock_res_get, Errno, STARTING | ALONE),
    "random_get": Call(random_get, Errno, STARTING | ALONE),
    "fd_write": Call(fd_write, Errno, ANY | ALONE),
    "fd_pwrite": Call(fd_pwrite, Errno, STARTING | ALONE),
    "fd_read": Call(always(Errno.NOSYS), Errno, Phase.RUN | ALONE),
    "fd_pread": Call(always(Errno.NOSYS), Errno, STARTING | ALONE),
    "fd_seek": Call(always(Errno.SUCCESS), Errno, Phase.RUN),
    "fd_close": Call(always(Errno.SUCCESS), Errno, Phase.RUN),
    "fd_tell": Call(fd_tell, Errno, STARTING | ALONE),
    "fd_readdir": Call(fd_readdir, Errno, STARTING),
    "fd_renumber": Call(fd_renumber, Errno, STARTING | ALONE),
    "fd_sync": Call(only_output, Errno, STARTING | ALONE),
    "fd_datasync": Call(only_output, Errno, STARTING | ALONE),
    "fd_allocate": Call(only_output, Errno, STARTING | ALONE),
    "fd_advise": Call(always(Errno.SUCCESS), Errno, STARTING | ALONE),
    "fd_fdstat_get": Call(fd_fdstat_get, Errno, STARTING | ALONE),
    "fd_fdstat_set_flags": Call(always(Errno.NOSYS), Errno, STARTING | ALONE),
    "fd_fdstat_set_rights": Call(only_output, Errno, STARTING | ALONE),
    "fd_filestat_get": Call(always(Errno.BADF), Errno, STARTING | ALONE),
    "fd_filestat_set_size": Call(only_output, Errno, STARTING | ALONE),
    "fd_filestat_set_times": Call(only_output, Errno, STARTING | ALONE),
    "fd_prestat_get": Call(always(Errno.BADF), Errno, STARTING | ALONE),
    "fd_prestat_dir_name": Call(always(Errno.NOSYS), Errno, STARTING | ALONE),
    "path_open": Call(always(Errno.NOENT), Errno, Phase.RUN | ALONE),
    "path_create_directory": Call(always(Errno.NOTSUP), Errno, STARTING | ALONE),
    "path_remove_directory": Call(always(Errno.NOTSUP), Errno, STARTING | ALONE),
    "path_unlink_file": Call(always(Errno.NOTSUP), Errno, STARTING | ALONE),
    "path_symlink": Call(always(Errno.NOTSUP), Errno, STARTING | ALONE),
    "path_link": Call(always(Errno.NOTSUP), Errno, STARTING | ALONE),
    "path_rename": Call(always(Errno.NOTSUP), Errno, STARTING | ALONE),
    "path_readlink": Call(path_readlink, Errno, STARTING),
    "path_filestat_get": Call(always(Errno.NOTSUP), Errno, STARTING | ALONE),
    "path_filestat_set_times": Call(always(Errno.NOTSUP), Errno, STARTING | ALONE),
    "sock_accept": Call(sock_accept, Errno, STARTING),
    "sock_recv": Call(sock_recv, Errno, STARTING),
    "sock_send": Call(sock_send, Errno, STARTING),
    "sock_shutdown": Call(always(Errno.NOTSUP), Errno, STARTING | ALONE),
    "poll_oneoff": Call(poll_oneoff, Errno, ANY | ALONE),
    "sched_yield": Call(always(Errno.SUCCESS), Errno, Phase.RUN | ALONE),
    "proc_exit": Call(proc_exit, None, Phase.RUN),
}
