"""How far a long piece of work is, on stderr."""

from __future__ import annotations

import sys
import time

_TTY_S, _PLAIN_S = 0.2, 10.0


class Progress:
    """How far a pack is, on stderr: one line rewritten on a terminal, a plain line now and then elsewhere.

    ``update(done)`` as work goes on; rates count only what this run did.
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
        """The last line, always shown unless quiet."""
        if not self._quiet:
            sys.stderr.write(f"\r\x1b[K{line}\n" if self._tty else line + "\n")
