"""One file over HTTP: checked by size and checksum, resumed from ``.part``, never hanging, renamed when whole."""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imnet.data.files import io_errors, locked, make_dir, publish
from imnet.errors import IOFailure

if TYPE_CHECKING:  # imported where they are used: http and ssl are a third of the time to import imnet.data
    import http.client

_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Remote:
    """A file elsewhere: its address, exact size, and ``algorithm:hex`` checksum."""

    url: str
    size_bytes: int
    checksum: str


@dataclass(frozen=True)
class Patience:
    """When to give up: silence in seconds, attempts, and the least bytes wanted in any ``window_s`` seconds."""

    silence_s: float = 10.0
    attempts: int = 3
    window_s: float = 30.0
    window_bytes: int = 32_768


class _Retry(Exception):  # noqa: N818  (control flow inside this module)
    """This attempt failed; what arrived is kept and the next attempt goes on from there."""


def fetch(remote: Remote, final: Path, patience: Patience | None = None) -> Path:
    """Download ``remote`` to ``final`` unless it is there; several processes may ask at once, one downloads.

    IOFailure, one line, when the server cannot be reached, lies about sizes, loops, is too slow, or sends other bytes.
    """
    if final.exists():
        return final
    patience = patience or Patience()
    make_dir(final.parent)
    part = final.with_name(final.name + ".part")
    with locked(part) as descriptor:
        if not final.exists():
            _attempts(remote, descriptor, part, patience)
            publish(part, final, descriptor)
            return final
        part.unlink(missing_ok=True)
    return final


def _attempts(remote: Remote, descriptor: int, part: Path, patience: Patience) -> None:
    import http.client
    import urllib.error

    why = ""
    for attempt in range(1, patience.attempts + 1):
        try:
            _one_attempt(remote, descriptor, part, patience)
            return
        except urllib.error.URLError as error:
            why = f"{error.reason} (not tried again)"
            break
        except (_Retry, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            why = f"{str(error) or type(error).__name__} (attempt {attempt} of {patience.attempts})"
            time.sleep(min(0.5, patience.silence_s / 10))
    got = os.fstat(descriptor).st_size
    if got == 0:
        part.unlink(missing_ok=True)
    detail = f"got {got} of {remote.size_bytes} bytes, then: {why}"
    raise IOFailure(f"download failed: {detail}", file=remote.url, hint="run again to go on from there")


def _one_attempt(remote: Remote, descriptor: int, part: Path, patience: Patience) -> None:
    have = os.fstat(descriptor).st_size
    if have > remote.size_bytes:
        have = _truncate(descriptor, part)
    if have < remote.size_bytes:
        _receive(remote, descriptor, part, have, patience)
    got = _checksum(descriptor, remote.checksum.partition(":")[0])
    if got != remote.checksum:
        _truncate(descriptor, part)
        raise _Retry(f"checksum is {got}, expected {remote.checksum}")


def _receive(remote: Remote, descriptor: int, part: Path, have: int, patience: Patience) -> None:
    """Append what the server sends after byte ``have``; a server that ignores the range starts the file anew."""
    import urllib.request

    request = urllib.request.Request(remote.url, headers={"User-Agent": "imnet", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=patience.silence_s) as response:
        if response.status == 200:
            have = _truncate(descriptor, part)
        elif response.status != 206 or _range_start(response) != have:
            _truncate(descriptor, part)
            raise _Retry(f"status {response.status} with range {response.headers.get('Content-Range')!r}")
        _copy(response, descriptor, part, remote.size_bytes - have, patience)


def _range_start(response: http.client.HTTPResponse) -> int | None:
    match = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range") or "")
    return int(match[1]) if match else None


def _copy(response: http.client.HTTPResponse, descriptor: int, part: Path, missing: int, patience: Patience) -> None:
    os.lseek(descriptor, 0, os.SEEK_END)
    window_end, window_bytes = time.monotonic() + patience.window_s, 0
    while missing > 0:
        block = response.read1(min(_BLOCK_BYTES, missing))
        if not block:
            raise _Retry(f"the server closed {missing} bytes early")
        with io_errors(part, "write"):
            os.write(descriptor, block)
        missing -= len(block)
        window_bytes += len(block)
        if time.monotonic() > window_end:
            if window_bytes < patience.window_bytes:
                raise _Retry(f"only {window_bytes} bytes in {patience.window_s:g} s")
            window_end, window_bytes = time.monotonic() + patience.window_s, 0


def _truncate(descriptor: int, part: Path) -> int:
    with io_errors(part, "write"):
        os.ftruncate(descriptor, 0)
    return 0


def _checksum(descriptor: int, algorithm: str) -> str:
    state = hashlib.new(algorithm, usedforsecurity=False)
    os.lseek(descriptor, 0, os.SEEK_SET)
    while block := os.read(descriptor, 1 << 20):
        state.update(block)
    return f"{algorithm}:{state.hexdigest()}"
