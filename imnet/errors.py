"""One error type with an exit code per class; the command line prints it as ONE line.

Exit codes follow sysexits.h where one fits: 2 usage, 65 data, 69 device, 74 input/output, 75 preempted (requeue me).
"""

from __future__ import annotations

import os


class ImnetError(Exception):
    """What went wrong, where, and what to do about it.

    ``what`` says what was got and what was allowed; ``hint`` says what to do; ``file`` and ``offset`` (bytes, or a
    member's name inside an archive) say where.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        file: str | os.PathLike[str] | None = None,
        offset: int | str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.file = os.fspath(file) if file is not None else None
        self.offset = offset
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        where = "" if self.file is None else f"{self.file}: "
        if self.offset is not None:
            at = f"byte {self.offset}" if isinstance(self.offset, int) else self.offset
            where = f"{where[:-2]} ({at}): " if where else f"{at}: "
        hint = f"; {self.hint}" if self.hint else ""
        return " ".join(f"{where}{self.what}{hint}".split())


class UsageError(ImnetError):
    """A wrong option, recipe or combination."""

    exit_code = 2


class DataError(ImnetError):
    """Damaged, hostile or missing data."""

    exit_code = 65


class DeviceError(ImnetError):
    """A device or kernel tier that was asked for and is not there, or ran out of memory."""

    exit_code = 69


class IOFailure(ImnetError):  # noqa: N818  (reads better at the raise site than IOFailureError)
    """A disk, folder or network that refused."""

    exit_code = 74


class Preempted(ImnetError):  # noqa: N818
    """Stopped by a signal after saving; run the same command again to go on."""

    exit_code = 75
