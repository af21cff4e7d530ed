"""Writes a packed split: streamed to a locked ``.part`` file, resumable, fsynced and renamed when it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import time
import zlib
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from imnet.data.files import io_errors, publish
from imnet.data.store import BLOCK_BYTES, END, FORMAT, MAGIC, PAGE, scan
from imnet.errors import IOFailure
from imnet.files import write_atomic

JOURNAL_EVERY_S = 5.0
_COPY_BYTES = 8 << 20
_TTY_S, _PLAIN_S = 0.2, 10.0


class Writer:
    """Appends the images of one split in order; ``finish`` takes the labels.

    ``descriptor`` is the locked ``part`` file. ``key`` identifies source and rule: if the part file's journal has the
    same key, and no more bad images than ``most_bad``, writing goes on where it ended, otherwise it starts again.
    ``done`` is the number of source images used, ``bad`` are those of them left out, and ``turned`` is the number of
    images with an EXIF rotation.
    """

    def __init__(
        self, part: Path, descriptor: int, key: str, shape: tuple[int, int, int] | None, most_bad: int = 0
    ) -> None:
        self._part, self._fd, self._key, self._shape = part, descriptor, key, shape
        self._journal_path = part.with_name(part.name + ".json")
        self.done = 0
        self.bad: list[int] = []
        self.turned = 0
        # The next write's offset, and the end of the last complete append; they differ after a failed write.
        self._at = self._whole = PAGE
        self._index = array("Q")
        self._resume(most_bad)
        self._journal_time = time.monotonic()

    def _resume(self, most_bad: int) -> None:
        """Go on from the state in the journal; anything in the file beyond it is cut off."""
        try:
            journal = json.loads(self._journal_path.read_text())
            sound = journal["key"] == self._key and os.fstat(self._fd).st_size >= journal["end"] >= PAGE
            done, bad, turned, end = (journal[name] for name in ("done", "bad", "turned", "end"))
            sound = sound and len(bad) <= most_bad
        except (OSError, ValueError, KeyError, TypeError):
            sound, done, bad, turned, end = False, 0, [], 0, PAGE
        if sound:
            self.done, self.bad, self.turned, self._at, self._whole = done, bad, turned, end, end
            self._index = array("Q", self._walk() if self._shape is None else ())
        with io_errors(self._part, "write"):
            os.ftruncate(self._fd, self._at if sound else 0)

    def _walk(self) -> Iterator[int]:
        """Offsets of the encoded pictures already in the file, from their length prefixes."""
        at = PAGE
        while at < self._at:
            yield at - PAGE
            at += 4 + struct.unpack("<I", os.pread(self._fd, 4, at))[0]

    def pixels(self, images: np.ndarray, taken: int, bad: list[int], turned: int = 0) -> None:
        """Append uint8 (n, H, W, C), made from ``taken`` source images, of which those numbered ``bad`` were left out;
        ``turned`` of the others have an EXIF rotation."""
        if images.shape[1:] != self._shape or images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype} {images.shape[1:]}, expected uint8 {self._shape}")
        self._put(np.ascontiguousarray(images).reshape(-1).data)
        self._count(taken, bad, turned)

    def encoded(self, pictures: list[bytes], taken: int, bad: list[int], turned: int = 0) -> None:
        """Append encoded pictures, each after its length; the other arguments are as for ``pixels``."""
        at = self._at - PAGE
        for picture in pictures:
            self._index.append(at)
            at += 4 + len(picture)
        self._put(b"".join(struct.pack("<I", len(picture)) + picture for picture in pictures))
        self._count(taken, bad, turned)

    def _put(self, body: memoryview | bytes) -> None:
        with io_errors(self._part, "write"):
            rest = memoryview(body)
            while len(rest):
                written = os.pwrite(self._fd, rest[:_COPY_BYTES], self._at)
                rest, self._at = rest[written:], self._at + written

    def _count(self, taken: int, bad: list[int], turned: int) -> None:
        self._whole = self._at
        self.done += taken
        self.bad += bad
        self.turned += turned
        if time.monotonic() - self._journal_time >= JOURNAL_EVERY_S:
            self._journal()

    def pause(self) -> None:
        """Save the journal, so that the next run goes on from here. Its own errors are ignored, since this is called
        while another error is raised."""
        with suppress(IOFailure):
            self._journal()

    def _journal(self) -> None:
        """Write the journal after the data is on the disk, so that it never claims more than survives a crash."""
        state = {"key": self._key, "done": self.done, "bad": self.bad, "turned": self.turned, "end": self._whole}
        with io_errors(self._part, "write"):
            os.fdatasync(self._fd)
        write_atomic(self._journal_path, json.dumps(state))
        self._journal_time = time.monotonic()

    def finish(self, final: Path, labels: np.ndarray, about: dict) -> dict:
        """Write labels (N,), index, checksums and header, then publish the file as ``final``.

        The header, which is returned, has ``about`` and the fields that the writer itself fills in.
        """
        count = len(labels)
        data = [PAGE, self._at - PAGE]
        shape = None if self._shape is None else [count, *self._shape]
        if shape is not None and int(np.prod(shape, dtype=object)) != data[1]:
            raise ValueError(f"{data[1]} bytes of pixels for {count} labels of shape {self._shape}")
        if shape is None and len(self._index) != count:
            raise ValueError(f"{len(self._index)} pictures for {count} labels")
        self._put(bytes(-self._at % PAGE))
        sections = {"data": data}
        raw_labels = np.ascontiguousarray(labels, dtype="<i8")
        sections["labels"] = self._section(raw_labels)
        sections["index"] = self._section(np.array(self._index, dtype="<u8"))
        with io_errors(self._part, "read back"):
            # Computed from the file and not from the images passed in, since a resumed run has not seen all of them.
            crcs, digest = scan(self._fd, data[1], self._at, raw_labels, shape)
        sections["crc"] = self._section(crcs)
        known = {"format": FORMAT, "count": count, "shape": shape, "sections": sections, "digest": digest}
        header = {**about, **known, "block_bytes": BLOCK_BYTES, "left_out": len(self.bad)}
        if self.turned:
            header["turned"] = self.turned
        self._close(crcs, json.dumps(header).encode())
        publish(self._part, final, self._fd)
        self._journal_path.unlink(missing_ok=True)
        return header

    def _section(self, values: np.ndarray) -> list[int]:
        start = self._at
        self._put(values.tobytes())
        return [start, self._at - start]

    def _close(self, crcs: np.ndarray, raw_header: bytes) -> None:
        first = struct.pack("<8sQQ", MAGIC, self._at, len(raw_header))
        first += struct.pack("<I", zlib.crc32(first))
        footer = hashlib.sha256(first + crcs.tobytes() + raw_header).digest() + END
        self._put(raw_header + footer)
        with io_errors(self._part, "write"):
            os.pwrite(self._fd, first.ljust(PAGE, b"\0"), 0)


class Progress:
    """The progress of packing, on stderr: one line that is rewritten on a terminal, otherwise a line every 10 s.

    ``update(done)`` is called as work goes on; rates count only the images of this run.
    """

    def __init__(self, what: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self._what, self._total, self._first, self._quiet = what, total, done, quiet
        self._tty = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()

    def update(self, done: int) -> None:
        now = time.monotonic()
        if self._quiet or now - self._shown < (_TTY_S if self._tty else _PLAIN_S):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        left = (self._total - done) / rate if rate > 0 else float("inf")
        line = f"{self._what}: {done:,} of {self._total:,} images, {rate:,.0f} images/s, {left:,.0f} s left"
        sys.stderr.write(f"\r\x1b[K{line}" if self._tty else line + "\n")
        sys.stderr.flush()

    def close(self, line: str) -> None:
        """Print the last line, unless quiet."""
        if not self._quiet:
            sys.stderr.write(f"\r\x1b[K{line}\n" if self._tty else line + "\n")
