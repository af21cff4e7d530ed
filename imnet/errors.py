"""One error type with an exit code per class; the command line prints it as ONE line.

Exit codes follow sysexits.h where one fits: 2 usage, 65 data, 69 device, 74 input/output, 75 preempted (requeue me).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

UNSET = "is a variable of the shell not set?"
"""The hint at an empty word, which as a path would mean the current folder."""
# Control characters, the two line ends of Unicode, and what stands for bytes that are no UTF-8.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(name: str) -> str:
    """A name on one line that any terminal and file can hold: ``a\\n``, and ``\\xe9`` for a byte that is no UTF-8."""
    return _UNSEEN.sub(_escape, name)


def first_few(names: Sequence[str]) -> str:
    """The first three, as ``shown``, and dots where there are more."""
    return ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    # Python has the bytes of a file's name that are not UTF-8 as U+DC80 to U+DCFF.
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else match[0].encode("unicode_escape").decode()


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
        where = "" if self.file is None else f"{shown(self.file)}: "
        if self.offset is not None:
            at = f"byte {self.offset}" if isinstance(self.offset, int) else shown(self.offset)
            where = f"{where[:-2]} ({at}): " if where else f"{at}: "
        hint = f"; {self.hint}" if self.hint else ""
        # What libraries say may have several lines; the spaces of a name stay, so that it can be found.
        return where + shown(re.sub(r"\s*\n\s*", " ", f"{self.what}{hint}".strip()))


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
