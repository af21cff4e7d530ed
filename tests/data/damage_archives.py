"""Cases of the damage table: damaged and hostile zip and tar archives."""

import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile

from tests.data import making
from tests.data.damage_table import case


def zip_of(folder, files, method=zipfile.ZIP_DEFLATED):
    return making.write_zip(folder / "in.zip", files, method)


@contextlib.contextmanager
def edited(path):
    """The bytes of ``path``, which are written back as they are left."""
    raw = bytearray(path.read_bytes())
    yield raw
    path.write_bytes(raw)


@case(r"not a readable zip", shown="in.zip")
def zip_truncated(folder):
    path = zip_of(folder, making.class_files())
    path.write_bytes(path.read_bytes()[:-200])
    return path


@case(r"not a readable zip", shown="in.zip")
def zip_is_text(folder):
    (folder / "in.zip").write_bytes(b"<html>not found</html>")
    return folder / "in.zip"


@case(r"points outside", shown="../evil")
def zip_traversal(folder):
    return zip_of(folder, {**making.class_files(), "train/../../evil.jpg": making.picture(1)})


@case(r"points outside", shown="/etc/evil")
def zip_absolute(folder):
    return zip_of(folder, {**making.class_files(), "/etc/evil.jpg": making.picture(1)})


@case(r"link or device", shown="train/n01440764/link.jpg")
def zip_symlink(folder):
    path = zip_of(folder, making.class_files())
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("train/n01440764/link.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return path


@case(r"encrypted", shown="train/a/x.jpg")
def zip_encrypted(folder):
    path = zip_of(folder, {"train/a/x.jpg": making.picture(1)})
    with edited(path) as raw:
        raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
    return path


@case(r"two members have this name", shown="train/a/x.jpg")
def zip_twins(folder):
    with zipfile.ZipFile(folder / "in.zip", "w") as archive:
        for i in range(2):
            archive.writestr("train/a/x.jpg", making.picture(i))
    return folder / "in.zip"


@case(r"zip bomb", shown="train/a/x.jpg")
def zip_bomb(folder):
    return zip_of(folder, {"train/a/x.jpg": bytes(20_000_000)})


@case(r"zip method is 12", shown="train/a/x.jpg")
def zip_method(folder):
    return zip_of(folder, {"train/a/x.jpg": making.picture(1)}, zipfile.ZIP_BZIP2)


@case(r"crc is .*expected", shown="train/a/x.jpg")
def zip_member_crc(folder):
    path = zip_of(folder, {"train/a/x.jpg": making.picture(1)}, zipfile.ZIP_STORED)
    with edited(path) as raw:
        raw[200] ^= 1
    return path


@case(r"deflate stream is damaged|inflates to", shown="train/a/x.jpg")
def zip_member_deflate(folder):
    path = zip_of(folder, {"train/a/x.jpg": making.picture(1)})
    with edited(path) as raw:
        raw[43:60] = b"\xff" * 17
    return path


@case(r"not a readable zip: 11 members, its end says 12", shown="in.zip")
def zip_member_swallowed(folder):
    """A zip of which one directory entry has become part of the name of the entry before."""
    path = zip_of(folder, making.class_files())
    with edited(path) as raw:
        first = raw.index(b"PK\x01\x02")
        length = raw.index(b"PK\x01\x02", first + 4) - first
        raw[first + 28] += length
    return path


@case(r"its header has another name: train/n01440764/n01440764_0.JPEG", shown="train/n01530575/n01440764_0.JPEG")
def zip_directory_names_another_class(folder):
    path = zip_of(folder, making.class_files())
    with edited(path) as raw:
        at = raw.index(b"n01440764/", raw.index(b"PK\x01\x02"))
        raw[at : at + 9] = b"n01530575"
    return path


@case(r"overlap", shown="in.zip")
def zip_overlapping_members(folder):
    """A zip with two directory entries for one compressed member, as non-recursive zip bombs have."""
    path = zip_of(folder, {"train/a/x.jpg": making.picture(1), "train/a/y.jpg": b"1"}, zipfile.ZIP_STORED)
    with edited(path) as raw:
        first = raw.index(b"PK\x01\x02")
        second = raw.index(b"PK\x01\x02", first + 4)
        for start, length in ((10, 18), (42, 4)):
            raw[second + start : second + start + length] = raw[first + start : first + start + length]
    return path


def shard(folder, raw):
    (folder / "shard-train-0.tar").write_bytes(raw)
    return folder


def shard_files():
    return {"0.jpg": making.picture(0), "0.cls": b"0", "1.jpg": making.picture(1), "1.cls": b"1"}


def tar_with(kind, name="2.jpg", link=""):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info)
    return out.getvalue()


SHARD = "shard-train-0.tar"


@case(r"\(byte \d+\).*truncated|goes beyond the end", shown=SHARD)
def tar_truncated(folder):
    return shard(folder, making.tar_bytes(shard_files())[:3000])


@case(r"\(byte \d+\).*truncated", shown=SHARD)
def tar_without_end_mark(folder):
    raw = making.tar_bytes(shard_files())
    return shard(folder, raw[: len(raw.rstrip(b"\0")) // 512 * 512 + 512])


@case(r"\(byte 0\).*checksum", shown=SHARD)
def tar_checksum(folder):
    raw = making.tar_bytes(shard_files())
    return shard(folder, b"9" + raw[1:])


@case(r"gzip stream ends early", shown=SHARD)
def tar_gz_truncated(folder):
    return shard(folder, gzip.compress(making.tar_bytes(shard_files()))[:-900])


@case(r"tar bomb", shown=SHARD)
def tar_gz_bomb(folder):
    return shard(folder, gzip.compress(making.tar_bytes({"0.jpg": bytes(30_000_000)})))


@case(r"compressed with xz; allowed none or gzip", shown=SHARD)
def tar_xz(folder):
    return shard(folder, lzma.compress(making.tar_bytes(shard_files())))


@case(r"type b'2'; allowed regular", shown="2.jpg")
def tar_symlink(folder):
    return shard(folder, tar_with(tarfile.SYMTYPE, link="/etc/passwd"))


@case(r"type b'1'; allowed regular", shown="2.jpg")
def tar_hardlink(folder):
    return shard(folder, tar_with(tarfile.LNKTYPE, link="../../x"))


@case(r"type b'3'; allowed regular", shown="2.jpg")
def tar_device(folder):
    return shard(folder, tar_with(tarfile.CHRTYPE))


@case(r"tar member is sparse; allowed regular files; make the tar without tar's option -S", shown=SHARD)
def tar_sparse(folder):
    """A tar as GNU tar -S writes it in the pax format, where a sparse file has the type of a regular one."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("GNUSparseFile.1/0.jpg")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "0.jpg"}
        archive.addfile(info)
    return shard(folder, out.getvalue())


@case(r"points outside", shown="../../evil.jpg")
def tar_traversal(folder):
    return shard(folder, making.tar_bytes({"../../evil.jpg": b"x", "../../evil.cls": b"0"}))


@case(r"points outside", shown="/etc/evil.jpg")
def tar_absolute(folder):
    return shard(folder, making.tar_bytes({"/etc/evil.jpg": b"x"}))


def resized(raw, size):
    """Returns the tar with ``size`` in its first header, whose checksum is computed again."""
    head = bytearray(raw[:512])
    head[124:136] = b"%011o\0" % size
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + raw[512:]


@case(r"goes beyond the end", shown=SHARD)
def tar_size_lies(folder):
    return shard(folder, resized(making.tar_bytes(shard_files()), 1 << 32))


@case(r"extension block has 8589934591 bytes", shown=SHARD)
def tar_long_name_bomb(folder):
    raw = resized(making.tar_bytes({"d" * 300 + ".jpg": b"x"}), (1 << 33) - 1)
    with open(folder / SHARD, "wb") as file:
        file.write(raw)
        file.truncate(1 << 34)
    return folder


@case(r"pax record is damaged", shown=SHARD)
def tar_pax(folder):
    raw = making.tar_bytes({"ä" * 120 + ".jpg": b"x"}, tarfile.PAX_FORMAT)
    return shard(folder, raw[:512] + b"999 path=x\n" + raw[523:])


@case(r"tar is empty", shown=SHARD)
def tar_empty(folder):
    return shard(folder, bytes(10240))


@case(r"no \.cls or \.json label", shown="1")
def webdataset_without_label(folder):
    files = shard_files()
    del files["1.cls"]
    return shard(folder, making.tar_bytes(files))


@case(r"labels are numbers and words: 0 .* and 'cat'", shown=SHARD)
def webdataset_label_text(folder):
    return shard(folder, making.tar_bytes({**shard_files(), "1.cls": b"cat"}))


@case(r"label is -2", shown="1.cls")
def webdataset_label_range(folder):
    return shard(folder, making.tar_bytes({**shard_files(), "1.cls": b"-2"}))


@case(r"label is neither a number nor a word", shown="1.cls")
def webdataset_label_binary(folder):
    return shard(folder, making.tar_bytes({**shard_files(), "1.cls": b"\xff\xfe"}))
