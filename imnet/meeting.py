"""Connects the ranks before training: the address of their store, the network interface, and a check that all ranks
have the same settings."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import queue
import re
import socket
import stat
import struct
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from imnet.errors import DeviceError, UsageError
from imnet.files import exists

INIT_TIMEOUT_S = 30
COLLECTIVE_TIMEOUT_S = 600
SIOCGIFADDR = 0x8915
"""Linux's ioctl request for the IPv4 address of a network interface."""
LOST = re.compile(r"gloo/transport/|closed by peer|reset by peer|Broken pipe|Connection refused|remote process")
"""Matches the errors of gloo and NCCL during an operation when another rank has ended or cannot be reached."""
SILENT = re.compile(r"[Tt]ime(d )?out|No route to host|unreachable")
"""Matches those errors, or the store's, when the other rank has not ended but does not answer."""


def number(name: str) -> int | None:
    """The number in an environment variable, None if it is unset or empty. Raises UsageError for other text."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise UsageError(f"got {name}={text} in the environment; allowed: a number", hint=f"unset {name}")
    return int(text)


def master() -> tuple[str, int]:
    """(host, port) at which the ranks meet: MASTER_ADDR and MASTER_PORT. Under plain srun the first node of the step
    and a port derived from the job's id are used instead. Raises UsageError for an invalid port.
    """
    env = os.environ
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    port = number("MASTER_PORT")
    if port is None:
        port = 20000 + (number("SLURM_JOB_ID") or 0) % 20000
    if not 0 < port < 1 << 16:
        raise UsageError(f"got MASTER_PORT={port} in the environment; allowed: 1 to 65535", hint="choose a free one")
    return env.get("MASTER_ADDR") or _first_host(nodes), port


def _first_host(nodes: str) -> str:
    """``rack[0-3]_node[003-005,009],other`` -> ``rack0_node003``."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes).split(",")[0]


def join(rank: int, size: int, life: int, device: torch.device, settings: Mapping[str, Any]) -> dist.Store:
    """Create the process group and return the ranks' store. Its prefix names ``life``, the number of restarts, so that
    a restarted rank does not read addresses of a dead one.

    Raises DeviceError if ranks do not arrive in time, an error of ``is_lost`` if one of them ends after it has arrived,
    and UsageError on every rank if their ``settings`` (name -> number or text) differ: they would train with different
    arithmetic, or wait for each other for ever.
    """
    (host, port), store, met = master(), None, False
    agent_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = _open_store(host, port, size, rank == 0 and not agent_store)
        _end_where_silent(port, INIT_TIMEOUT_S)
        store = dist.PrefixStore(f"imnet-life-{life}", store)
        mine = {"device": device.type, "torch": torch.__version__, **settings}
        address, met = _agree(store, rank, size, mine, _address(host, port)), True
        backend = "nccl" if device.type == "cuda" else "gloo"
        if backend == "gloo":
            _choose_interface(address)
        # All ranks are known to be there by now, so each joins at once or never.
        timeout = datetime.timedelta(seconds=INIT_TIMEOUT_S)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        # torch 2.14 made this function public.
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        set_timeout(datetime.timedelta(seconds=COLLECTIVE_TIMEOUT_S))
        _end_where_silent(port, COLLECTIVE_TIMEOUT_S)
        return store
    except (RuntimeError, OSError, dist.DistError) as error:
        if any(word in str(error) for word in ("EADDRINUSE", "ddress already in use")):
            what = f"port {port} of {host} is in use, at which the ranks would meet"
            raise DeviceError(what, hint="choose another MASTER_PORT, or end the run that has it") from error
        if store is not None and is_lost(error) and (met or not SILENT.search(str(error))):
            raise  # a rank has ended after it had come, as it may in the middle of training
        what = f"rank {rank} of {size} could not join at {host}:{port} within {INIT_TIMEOUT_S} s"
        hint = "are all ranks started, and the port open between them? it may be another program's"
        raise DeviceError(what, hint=hint) from error


def is_lost(error: Exception) -> bool:
    """Whether a rank got this error (the store's, gloo's, NCCL's) because another one has ended or is out of reach."""
    return isinstance(error, dist.DistNetworkError | dist.DistStoreError) or LOST.search(str(error)) is not None


def _open_store(host: str, port: int, size: int, is_master: bool) -> dist.Store:
    """Open or join the store; DistStoreError if the other side does not answer within INIT_TIMEOUT_S.

    torch's timeout ends when the connection stands; then it waits for an answer, for ever if another program has the
    port and says nothing. So a thread waits, and is left behind.
    """
    found: queue.SimpleQueue[dist.Store | Exception] = queue.SimpleQueue()

    def wait() -> None:
        try:
            timeout = datetime.timedelta(seconds=INIT_TIMEOUT_S)
            found.put(dist.TCPStore(host, port, size, is_master=is_master, timeout=timeout))
        except Exception as error:
            found.put(error)

    threading.Thread(target=wait, daemon=True).start()
    try:
        # Longer than torch's own timeout, whose message is the better one.
        store = found.get(timeout=1.2 * INIT_TIMEOUT_S)
    except queue.Empty as error:
        raise dist.DistStoreError(f"no answer within {INIT_TIMEOUT_S} s") from error
    if isinstance(store, Exception):
        raise store
    return store


def _end_where_silent(port: int, seconds: int) -> None:
    """Let Linux close this process's connection to the store if the machine at its other end acknowledges nothing for
    ``seconds``. The store's own timeout covers only keys that are not set yet: for an answer it waits until the
    connection ends, and an idle connection to a lost machine never does."""
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return  # not Linux, or no /proc
    limits = {socket.TCP_KEEPIDLE: -(-seconds // 2), socket.TCP_KEEPINTVL: -(-seconds // 10)}
    limits |= {socket.TCP_USER_TIMEOUT: 1000 * seconds}
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # listdir's own descriptor is closed by now; a listening socket has no peer
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as copy:
                    if copy.getpeername()[1:2] == (port,):
                        copy.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                        for name, value in limits.items():
                            copy.setsockopt(socket.IPPROTO_TCP, name, value)


def _agree(store: dist.Store, rank: int, size: int, settings: dict[str, Any], address: str) -> str:
    """The address at which the other ranks reach this one; UsageError if the settings of the ranks differ.

    Every rank puts its settings and address into the store; rank 0 compares them and puts the answer there.
    """
    store.set(f"started-{rank}", json.dumps([settings, address], default=str))
    if rank == 0:
        all_of_them = [json.loads(store.get(f"started-{i}")) for i in range(size)]
        first = all_of_them[0][0]
        unlike = next(filter(None, (_unlike(found, first, i) for i, (found, _) in enumerate(all_of_them))), "")
        far = next((there for _, there in all_of_them if not _is_loopback(there)), "")
        store.set("agreed", json.dumps([unlike, far]))
    unlike, far = json.loads(store.get("agreed"))
    if store.add("read", 1) == size:
        store.set("all-read", "")
    if unlike:
        if rank == 0:
            store.wait(["all-read"])  # this process may hold the store, and is about to end
        raise UsageError(unlike, hint="start all ranks with the same words, of the same version, on the same data")
    return _address(far, 1) if far and _is_loopback(address) else address


def _unlike(found: Mapping[str, Any], first: Mapping[str, Any], rank: int) -> str:
    """A line about the first setting whose value on ``rank`` (``found``) differs from rank 0's (``first``); else ""."""
    name = next((name for name in [*first, *found] if found.get(name) != first.get(name)), None)
    if name is None:
        return ""
    told = f"rank {rank} has {name} = {found.get(name)}, rank 0 has {first.get(name)}"
    return f"the ranks have different recipes, options or versions: {told}"


def _address(host: str, port: int) -> str:
    """This machine's own address on the route to ``host``; nothing is sent."""
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(where)
        return probe.getsockname()[0]


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")


def _choose_interface(address: str) -> None:
    """Let gloo use the interface that has ``address``, unless $GLOO_SOCKET_IFNAME names one. By default gloo resolves
    the machine's host name, which may fail on a laptop, and which on Debian is always 127.0.1.1."""
    names = [name for _, name in socket.if_nameindex()]
    loopback = next((name for name in names if name in ("lo", "lo0")), None)  # Linux and macOS
    name = loopback if _is_loopback(address) else next((n for n in names if address in _addresses(n)), None)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _addresses(interface: str) -> list[str]:
    """The IPv6 addresses of a network interface and its first IPv4 address; empty outside Linux."""
    if sys.platform != "linux":
        return []
    import fcntl

    found = []
    table = Path("/proc/net/if_inet6")
    for words in (line.split() for line in (table.read_text().splitlines() if exists(table) else [])):
        if words[-1] == interface:
            found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0])))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            raw = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", interface.encode()))
        except OSError:  # the interface has no IPv4 address
            return found
    return [*found, socket.inet_ntoa(raw[20:24])]
