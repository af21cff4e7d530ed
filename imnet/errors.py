"""The error classes, each with an exit code; the command line prints an error as one line.

Exit codes follow sysexits.h if one fits: 2 usage, 65 data, 69 device, 74 input/output, 75 preempted (requeue me).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

UNSET = "is a variable of the shell not set?"
"""The hint for an empty word, which as a path would mean the current folder."""
# Control characters, Unicode's two line separators, and surrogates, which stand for bytes that are not UTF-8.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(name: str) -> str:
    """The name on one line, printable anywhere: ``a\\n``, and ``\\xe9`` for a byte that is not UTF-8."""
    return _UNSEEN.sub(_escape, name)


def first_few(names: Sequence[str]) -> str:
    """The first three names, as ``shown``, followed by dots if there are more."""
    return ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")


def quoted(path: str | os.PathLike[str]) -> str:
    """The path as one word of a command that the user copies to a shell: in quotes if it has spaces or the like."""
    return shlex.quote(os.fspath(path))


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    # Python represents bytes of a file name that are not UTF-8 as U+DC80 to U+DCFF.
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else match[0].encode("unicode_escape").decode()


class ImnetError(Exception):
    """An error for the user: what is wrong, where, and what to do about it.

    ``what`` gives what was got and what is allowed, ``hint`` what to do, ``file`` and ``offset`` (in bytes, or the name
    of a member in an archive) the place.
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
        # Messages of libraries may have several lines. Spaces within a name are kept, so that it can be found.
        return where + shown(re.sub(r"\s*\n\s*", " ", f"{self.what}{hint}".strip()))


class UsageError(ImnetError):
    """A wrong option, recipe or combination."""

    exit_code = 2


class DataError(ImnetError):
    """Damaged, hostile or missing data."""

    exit_code = 65


class DeviceError(ImnetError):
    """A device or kernel tier that was asked for is missing, or the memory of the device or of the host ran out."""

    exit_code = 69


class IOFailure(ImnetError):  # noqa: N818  (reads better at the raise site than IOFailureError)
    """A disk, folder or network that failed or refused access."""

    exit_code = 74


class Preempted(ImnetError):  # noqa: N818
    """The command was stopped by a signal after saving; running it again goes on from there."""

    exit_code = 75
