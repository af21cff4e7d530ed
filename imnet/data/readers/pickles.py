"""Reads pickled ImageNet-64 batches without unpickling: a short list of opcodes is interpreted, nothing is executed.

``pickletools.genops`` splits the file into opcodes; long byte strings stay in the file and become (offset, length). The
stack machine of ``pickle_machine`` refuses all other opcodes and globals; numpy's own unpickling code is never called.
Since an allow-list does not bound memory, ``run_child`` reads in a process with limited address space and time. This
file is the script of that process, which imports nothing else of this package but the machine.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import mmap
import os
import pickletools
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

if __name__ == "__main__":  # the child is run by path and isolated (-I), so the path to its sibling is added here
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    from pickle_machine import Array, Machine, Span  # pyright: ignore[reportMissingImports]
else:
    from imnet.data.readers.pickle_machine import Array, Machine, Span

# Longer byte strings, which are the pixels, are not copied but left in the mapped file.
_KEEP_BYTES = 1 << 16
# Address space for the child beyond the mapped file, and its processor time; a batch of 128,123 labels needs a tenth.
_CHILD_BYTES = 512 << 20
_CHILD_S = 120


_COPIED = ("BYTEARRAY8", "BINUNICODE", "BINUNICODE8")
_TEXT_BYTES = 1 << 20


class RefusedError(ValueError):
    """The pickle is not a batch; ``at`` is the byte offset of the opcode that was refused."""

    def __init__(self, why: str, at: int) -> None:
        super().__init__(why)
        self.at = at


class _View(io.RawIOBase):
    """A mapped file for genops. Long reads return Spans; a length beyond the file is an error before memory is used."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._map, self._at = mapped, 0
        self.last = Span()
        self.last.offset = self.last.length = 0

    def tell(self) -> int:
        return self._at

    def read(self, count: int = -1) -> bytes:
        if count < 0 or self._at + count > len(self._map):
            raise ValueError(f"{count} bytes wanted, {len(self._map) - self._at} are left")
        start, self._at = self._at, self._at + count
        if count <= _KEEP_BYTES:
            return self._map[start : self._at]
        span = Span()
        span.offset, span.length = start, count
        self.last = span
        return span

    def readline(self, limit: int | None = -1) -> bytes:
        end = self._map.find(b"\n", self._at, self._at + 4096)
        if end < 0:
            raise ValueError("no end of line within 4096 bytes")
        start, self._at = self._at, end + 1
        return self._map[start : self._at]


def read_structure(path: Path) -> Any:
    """The pickled object of a file, with arrays as Array; RefusedError with the offset of an opcode not allowed."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise RefusedError("empty file, expected a pickle", 0)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = _View(mapped)
            at = 0
            machine = Machine()
            try:
                for opcode, argument, position in pickletools.genops(view):  # type: ignore[arg-type]
                    at = position or 0
                    # genops copies byte arrays and text, which loses the Span; it is the one that was just read.
                    long = opcode.name in _COPIED and view.last.offset + view.last.length == view.tell()
                    if long and opcode.name != "BYTEARRAY8":
                        view.last.latin1 = _characters(mapped, view.last)
                    machine.step(opcode.name, view.last if long else argument)
                if view.tell() != len(mapped):
                    at = view.tell()
                    raise ValueError(f"{len(mapped) - at} bytes after the end")
                return machine.result()
            except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
                raise RefusedError(f"{error}", at) from error


def _characters(mapped: mmap.mmap, span: Span) -> int:
    """The number of characters of a long text; ValueError if it is not UTF-8 or has characters above U+00FF."""
    decoder, count, end = codecs.getincrementaldecoder("utf-8")(), 0, span.offset + span.length
    for at in range(span.offset, end, _TEXT_BYTES):
        piece = mapped[at : min(at + _TEXT_BYTES, end)]
        count += len(decoder.decode(piece, at + _TEXT_BYTES >= end).encode("latin-1"))
    return count


class Latin1:
    """Reads the UTF-8 text of a binary file as bytes: each character U+0000 .. U+00FF stands for one byte."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8")()

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes, or fewer if the text ends or is invalid."""
        parts, rest = [], size
        while rest:
            # A character has at least one byte, so that reading ``rest`` bytes never reads too many characters.
            piece = self._file.read(rest)
            try:
                part = self._decoder.decode(piece).encode("latin-1")
            except ValueError:
                break
            if not piece:
                break
            parts.append(part)
            rest -= len(part)
        return b"".join(parts)

    def __enter__(self) -> Latin1:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_batch(path: Path) -> dict[str, Any]:
    """{"data": place, "labels": [int] or place} of a batch file; RefusedError if it is not one."""
    batch = read_structure(path)
    if type(batch) is not dict or not {"data", "labels"} <= set(batch):
        keys = sorted(batch)[:8] if type(batch) is dict else type(batch).__name__
        raise RefusedError(f"holds {keys}, expected a dict with data and labels", 0)
    out: dict[str, Any] = {}
    for key in ("data", "labels"):
        value = batch[key]
        if type(value) is Array:
            try:
                out[key] = value.place()
            except ValueError as error:
                raise RefusedError(f"{key}: {error}", 0) from error
        elif key == "labels" and isinstance(value, list | tuple) and all(type(label) is int for label in value):
            out[key] = list(value)
        else:
            raise RefusedError(f"{key} is {type(value).__name__}, expected an array", 0)
    return out


def run_child(path: Path) -> dict[str, Any]:
    """``read_batch`` in a child process with limited memory and time; RefusedError also if it exceeds them."""
    command = [sys.executable, "-I", "-S", __file__, os.fspath(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=2 * _CHILD_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RefusedError(f"reading took more than {2 * _CHILD_S} s", 0) from error
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        why = f"reader ended with {done.returncode}: {done.stderr[-200:].decode(errors='replace')}"
        raise RefusedError(why, 0) from error
    if "refused" in answer:
        raise RefusedError(answer["refused"], answer["at"])
    return answer


def _child(path: str) -> dict[str, Any]:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc/self/statm") else 1 << 16
    limit = pages * resource.getpagesize() + os.path.getsize(path) + _CHILD_BYTES
    with contextlib.suppress(ValueError):  # macOS does not accept this limit
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (_CHILD_S, _CHILD_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        return read_batch(Path(path))
    except RefusedError as error:
        return {"refused": str(error), "at": error.at}
    except (MemoryError, RecursionError) as error:
        return {"refused": f"needs more memory than {_CHILD_BYTES >> 20} MiB ({type(error).__name__})", "at": 0}
    except OSError as error:
        return {"refused": f"cannot read: {error.strerror}", "at": 0}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_child(sys.argv[1])))
