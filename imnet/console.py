"""The output of a run: a progress bar on a terminal, or else a plain line per interval; with images/s and time left."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from imnet.command import into_nothing

if TYPE_CHECKING:
    from imnet.watch import Signals


class Console:
    """Prints the output of a run, unless ``enabled`` is false (all ranks but the first). If nobody reads it any more (a
    closed pipe or terminal), that is noted in ``signals`` like a signal to stop, so that the run saves first."""

    def __init__(self, enabled: bool = True, interval_s: float = 10.0, signals: Signals | None = None):
        self.enabled, self.interval_s, self.signals = enabled, interval_s, signals
        self._rich: Any = _rich_console() if enabled and (sys.stdout.isatty() or _in_notebook()) else None
        self._bar: Any = None
        self._last_s = 0.0

    def say(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        with self._read_by_somebody():
            if self._rich is not None:
                self._rich.print(text, markup=False)
            elif self.enabled:
                print(text)
            sys.stdout.flush()

    @contextlib.contextmanager
    def _read_by_somebody(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.signals is None or error.errno not in (errno.EPIPE, errno.EIO):
                raise
            into_nothing(sys.stdout)
            self.signals.name = self.signals.name or "nobody reads the output"

    def header(self, lines: list[str]) -> None:
        """Print the lines at the beginning of a run."""
        for line in lines:
            self.say(line)

    def summary(self, text: str) -> None:
        """Print the text at the end of a run."""
        self.say("")
        self.say(text)

    def say_if(self, text: str) -> None:
        """Print ``text`` with ``say`` unless it is empty."""
        if text:
            self.say(text)

    def start(self, total_steps: int, done_steps: int) -> None:
        """Show the bar, or without a terminal start the interval until the first progress line."""
        self._last_s = time.monotonic()
        if self._rich is not None:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=self._rich, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("train", total=total_steps, completed=done_steps, text="")

    def stop(self) -> None:
        if self._bar is not None:
            with self._read_by_somebody():
                self._bar.stop()
            self._bar = None

    def progress(
        self, step: int, epoch: float, epochs: int, loss: float, lr: float, rate: float, left_s: float
    ) -> None:
        """Update the bar, or print a line if ``interval_s`` is over; called whenever a loss has been read."""
        text = f"epoch {epoch:.1f}/{epochs}  loss {loss:.4f}  lr {lr:.4g}  {rate:,.0f} images/s  {clock(left_s)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif self.enabled and time.monotonic() - self._last_s >= self.interval_s:
            self._last_s = time.monotonic()
            self.say(f"step {step}  {text}")


def say_all(lines: Iterable[str]) -> None:
    """Print the lines as they are made. If nobody reads them any more (| head), or the disk of > FILE is full, all are
    made nevertheless, since whoever makes them also writes files; the OSError is raised at the end."""
    failed: OSError | None = None
    for line in lines:
        if failed is None:
            try:
                print(line, flush=True)
            except OSError as error:
                failed = error
    if failed is not None:
        raise failed


def _in_notebook() -> bool:
    """Whether this is Jupyter's kernel and has ipywidgets, which rich needs to show a bar."""
    return "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None


def _rich_console() -> Any:
    """rich's console, imported only for a terminal or a notebook: a run that writes to a file does not need rich."""
    from rich.console import Console as RichConsole

    return RichConsole(highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """75 -> ``1:15``; 7384 -> ``2:03:04``."""
    whole = max(0, round(seconds))
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
