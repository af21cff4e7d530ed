"""Sets on a server: their description, where they are searched for, and how their files are downloaded.

A download is checked by size and checksum, resumes from ``.part``, times out, and is renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from imnet.command import suggest
from imnet.data.base import DataSet, Split, make
from imnet.data.files import cache_dir, io_errors, locked, make_dir, publish
from imnet.data.sets import AbsentError, Request, all_sets, require, search_path
from imnet.data.store import is_store, load_store
from imnet.errors import IOFailure, UsageError
from imnet.files import exists, is_dir, is_file

if TYPE_CHECKING:  # imported where it is used: http and ssl are a third of the time to import imnet.data
    import http.client

_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Remote:
    """A file on a server: its address, exact size, and ``algorithm:hex`` checksum."""

    url: str
    size_bytes: int
    checksum: str


@dataclass(frozen=True)
class Patience:
    """When to give up: after ``silence_s`` seconds without data, after ``attempts``, or if fewer than ``window_bytes``
    arrive in ``window_s`` seconds."""

    silence_s: float = 10.0
    attempts: int = 3
    window_s: float = 30.0
    window_bytes: int = 32_768


Cut = Callable[[Split, Split], tuple[Split, Split]]


@dataclass(frozen=True, kw_only=True)
class RemoteSet:
    """A set of files on a server; ``load`` finds it on the search path or in the cache, or downloads it.

    ``files`` has the size and the ``algorithm:hex`` checksum of each file below ``base_url``. ``folders`` are the names
    that its folder may have, and ``wanted`` describes in words what is searched for. ``place`` returns the path in a
    folder that ``read`` can read, or None; ``read`` returns (train, test, class names). ``splits`` maps the allowed
    values of ``Request.split`` (the first is the default) to a function of the official (train, test), or None.
    """

    name: str
    base_url: str
    files: Mapping[str, tuple[int, str]]
    folders: tuple[str, ...]
    wanted: str
    image_shape: tuple[int, int, int]
    num_classes: int
    place: Callable[[Path], Path | None]
    read: Callable[[Path], tuple[Split, Split, tuple[str, ...]]]
    splits: Mapping[str, Cut | None] = field(default_factory=dict)

    def load(self, request: Request) -> DataSet:
        """Load the set from a packed store in ``data_dir`` or else from its files; UsageError if the request asks for a
        form that it does not have."""
        cut = self._checked(request)
        if request.data_dir is not None and is_store(request.data_dir):
            held = load_store(request.data_dir, name=self.name)
            if cut is None:
                return held
            train, test, names = held.train, held.test, held.class_names
            assert isinstance(train, Split), "without image_px a store of encoded pictures is refused"
            assert isinstance(test, Split), "as above"
        else:
            train, test, names = self.read(self.find(request.data_dir) or self._downloaded(request))
        return make(self.name, *(cut(train, test) if cut else (train, test)), names)

    def _checked(self, request: Request) -> Cut | None:
        """The function that makes the requested split; UsageError if an option of the request does not fit."""
        require("image_px", request.image_px, self.image_shape[0], self.name)
        require("hold_out", request.hold_out or None, None, self.name)
        require("num_classes", request.num_classes, self.num_classes, self.name)
        require("channels", request.channels, self.image_shape[2], self.name)
        if not self.splits:
            require("split", request.split, None, self.name)
            return None
        split = request.split or next(iter(self.splits))
        if split not in self.splits:
            what = f"split is {split!r} for data set {self.name}; allowed {', '.join(self.splits)}"
            raise UsageError(what, hint=suggest(split, self.splits))
        return self.splits[split]

    def find(self, data_dir: Path | None) -> Path | None:
        """The first place on the search path or in the cache that has any of the set, or None. The reader reports
        missing files."""
        folders = [*search_path(data_dir, self.folders), cache_dir() / self.name]
        return next((place for place in map(self.place, folders) if place is not None), None)

    def download(self, folder: Path, base_url: str | None = None) -> Path:
        """Download the files into ``folder``, resuming earlier downloads; returns the folder. IOFailure if it fails."""
        for name, (size_bytes, checksum) in self.files.items():
            fetch(Remote((base_url or self.base_url) + name, size_bytes, checksum), folder / name)
        return folder

    def _downloaded(self, request: Request) -> Path:
        """Download the set and return its place. AbsentError, if that is not allowed or fails, states what was searched
        for, where, and what to do."""
        total = sum(size for size, _ in self.files.values())
        why = f"a download would be {total / 1e6:,.1f} MB" if request.look else "no download asked"
        in_a_file = request.data_dir is not None and is_file(request.data_dir)
        target = (cache_dir() if in_a_file or request.data_dir is None else request.data_dir) / self.name
        if in_a_file:
            why = f"{request.data_dir} is a file, and --data-dir is the folder of these files"
        elif request.data_dir is not None and not is_dir(request.data_dir) and not request.look:
            why = f"the folder {request.data_dir} does not exist, so nothing was downloaded into it"
        elif request.download and not request.look:
            try:
                return self.place(self.download(target)) or target
            except IOFailure as error:
                why = str(error)
        looked = ", ".join(map(str, [*search_path(request.data_dir, (self.name,)), cache_dir() / self.name]))
        raise AbsentError(
            f"{self.name} not found: looked for {self.wanted} in {looked}; {why}",
            hint=f"put {', '.join(self.files)} of {self.base_url} into {target}, or train on --data shapes, which "
            "needs nothing",
        )


def remote_sets() -> dict[str, RemoteSet]:
    """Every set that can be downloaded, by name: the RemoteSet values of the sets' modules."""
    modules = {source.__module__: None for source in all_sets().values()}
    values = (value for name in modules for value in vars(sys.modules[name]).values())
    return {value.name: value for value in values if isinstance(value, RemoteSet)}


class _Retry(Exception):  # noqa: N818  (control flow inside this module)
    """This attempt failed; the next one continues with the bytes that have arrived."""


def fetch(remote: Remote, final: Path, patience: Patience | None = None) -> Path:
    """Download ``remote`` to ``final`` unless it exists. Several processes may call this at once; only one downloads.

    Raises IOFailure if the server cannot be reached, announces wrong sizes, redirects endlessly, is too slow, or sends
    wrong bytes.
    """
    if exists(final):
        return final
    patience = patience or Patience()
    make_dir(final.parent)
    part = final.with_name(final.name + ".part")
    with locked(part) as descriptor:
        if not exists(final):
            _Download(remote, part, descriptor, patience).run()
            publish(part, final, descriptor)
            return final
        part.unlink(missing_ok=True)
    return final


@dataclass(frozen=True)
class _Download:
    """A download of ``remote``, appended to the locked file ``part``."""

    remote: Remote
    part: Path
    descriptor: int
    patience: Patience

    def run(self) -> None:
        """Download the whole file in a few attempts; IOFailure if none succeeds."""
        import http.client
        import urllib.error

        why = ""
        for attempt in range(1, self.patience.attempts + 1):
            try:
                self._attempt()
                return
            except urllib.error.URLError as error:
                why = f"{error.reason} (not tried again)"
                break
            except (_Retry, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                why = f"{str(error) or type(error).__name__} (attempt {attempt} of {self.patience.attempts})"
                time.sleep(min(0.5, self.patience.silence_s / 10))
        got = os.fstat(self.descriptor).st_size
        if got == 0:
            self.part.unlink(missing_ok=True)
        what = f"download failed: got {got} of {self.remote.size_bytes} bytes, then: {why}"
        raise IOFailure(what, file=self.remote.url, hint="run again to go on from there")

    def _attempt(self) -> None:
        have = os.fstat(self.descriptor).st_size
        if have > self.remote.size_bytes:
            have = self._anew()
        if have < self.remote.size_bytes:
            self._receive(have)
        got = self._checksum()
        if got != self.remote.checksum:
            self._anew()
            raise _Retry(f"checksum is {got}, expected {self.remote.checksum}")

    def _receive(self, have: int) -> None:
        """Append the file's bytes from ``have`` on. If the server ignores the range, the download starts again."""
        import urllib.request

        headers = {"User-Agent": "imnet", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        request = urllib.request.Request(self.remote.url, headers=headers)
        with urllib.request.urlopen(request, timeout=self.patience.silence_s) as response:
            sent = response.headers.get("Content-Range")
            start = re.match(r"bytes (\d{1,18})-", sent or "")
            if response.status == 200:
                have = self._anew()
            elif response.status != 206 or start is None or int(start[1]) != have:
                self._anew()
                raise _Retry(f"status {response.status} with range {sent!r}")
            self._copy(response, self.remote.size_bytes - have)

    def _copy(self, response: http.client.HTTPResponse, missing: int) -> None:
        os.lseek(self.descriptor, 0, os.SEEK_END)
        window_s = self.patience.window_s
        window_end, window_bytes = time.monotonic() + window_s, 0
        while missing > 0:
            block = response.read1(min(_BLOCK_BYTES, missing))
            if not block:
                raise _Retry(f"the server closed {missing} bytes early")
            with io_errors(self.part, "write"):
                rest = memoryview(block)
                while rest:  # a disk that is almost full may take only a part
                    rest = rest[os.write(self.descriptor, rest) :]
            missing -= len(block)
            window_bytes += len(block)
            if time.monotonic() > window_end:
                if window_bytes < self.patience.window_bytes:
                    raise _Retry(f"only {window_bytes} bytes in {window_s:g} s")
                window_end, window_bytes = time.monotonic() + window_s, 0

    def _anew(self) -> int:
        """Empty the file; returns its new size, 0."""
        with io_errors(self.part, "write"):
            os.ftruncate(self.descriptor, 0)
        return 0

    def _checksum(self) -> str:
        algorithm = self.remote.checksum.partition(":")[0]
        state = hashlib.new(algorithm, usedforsecurity=False)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        while block := os.read(self.descriptor, 1 << 20):
            state.update(block)
        return f"{algorithm}:{state.hexdigest()}"
