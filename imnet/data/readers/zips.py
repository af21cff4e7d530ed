"""Lists the members of a zip, none of which is extracted."""

from __future__ import annotations

import os
import zipfile
from contextlib import suppress
from pathlib import Path

from imnet.data.files import reading
from imnet.data.readers.archive import (
    DEFLATED,
    MAX_MEMBERS,
    MAX_RATIO,
    RATIO_MATTERS_BYTES,
    STORED,
    Member,
    by_name,
    check_name,
    plain,
    refuse_pointer,
)
from imnet.errors import DataError

_UTF8_FLAG = 0x800
# Encryption in its weak and its strong form, and patches of other files: zipfile opens none of such members.
_ENCRYPTED = 0x61


def list_zip(path: Path) -> tuple[dict[str, Member], set[str]]:
    """The regular members of a zip by name, and its folder entries; DataError for damage, encryption, links, path
    traversal and zip bombs."""
    with reading(path):
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
            _refuse_lost(path, len(infos))
        except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, ValueError) as error:
            with open(path, "rb") as file:
                refuse_pointer(file, path)
            raise DataError(f"not a readable zip: {error}", file=path, hint="get the file again") from error
    if len(infos) > MAX_MEMBERS:
        raise DataError(f"zip has {len(infos)} members; allowed {MAX_MEMBERS}", file=path)
    end = os.path.getsize(path)
    members = [_zip_member(info, path, end) for info in infos if not info.filename.endswith(("/", "\\"))]
    packed = sum(member.size for member in members)
    if packed > end:
        raise DataError(f"members overlap: {packed} packed bytes in a {end} byte file", file=path)
    folders = {zip_name(info, path) for info in infos if info.filename.endswith(("/", "\\"))}
    return by_name(members, path), folders - {""}


def _refuse_lost(path: Path, found: int) -> None:
    """Raise BadZipFile if the record at the end of the zip counts more or fewer members than were ``found``: damage in
    the name of one can hide the next. The count has 16 bits; in a zip64, all of them are set."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - (1 << 16) - 22))
        count = int.from_bytes(file.read().rpartition(b"PK\5\6")[2][6:8], "little")
    if count not in (found & 0xFFFF, 0xFFFF):
        raise zipfile.BadZipFile(f"{found} members, its end says {count}")


def zip_name(info: zipfile.ZipInfo, path: Path) -> str:
    """The member's name with ``/``, which some Windows programs write as ``\\``, and without a ``./`` in front. It is
    read as UTF-8 even if it is not marked as such."""
    name = info.filename
    if not info.flag_bits & _UTF8_FLAG:
        with suppress(UnicodeEncodeError):
            name = os.fsdecode(name.encode("cp437"))
    return plain(check_name(name, path).replace("\\", "/"))


def _zip_member(info: zipfile.ZipInfo, path: Path, end: int) -> Member:
    name = zip_name(info, path)
    if not 0 <= info.header_offset <= end - info.compress_size:
        raise DataError(f"member lies at byte {info.header_offset} of {end}: zip is damaged", file=path, offset=name)
    if info.flag_bits & _ENCRYPTED:
        raise DataError("zip member is encrypted", file=path, offset=name, hint="unpack it with its password first")
    kind = (info.external_attr >> 16) & 0o170000
    if kind not in (0, 0o100000):
        raise DataError("zip member is a link or device; allowed regular files", file=path, offset=name)
    if info.compress_type not in (STORED, DEFLATED):
        raise DataError(f"zip method is {info.compress_type}; allowed 0 (stored), 8 (deflate)", file=path, offset=name)
    if info.file_size > max(RATIO_MATTERS_BYTES, MAX_RATIO * info.compress_size):
        got = f"{info.compress_size} bytes claim to inflate to {info.file_size}"
        raise DataError(f"zip bomb: {got}; allowed {MAX_RATIO} times", file=path, offset=name)
    return Member(name, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
