"""Damaged and hostile sources, each a function that writes one into a folder and returns the path to pack."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image

from imnet.data.idx import write_idx
from tests.data import making

CASES = {}


def case(expected, *, shown=""):
    """Register a case: ``expected``: a regular expression for the one line; ``shown`` must be in it (file, member)."""

    def register(build):
        assert build.__name__ not in CASES
        CASES[build.__name__] = (build, expected, shown)
        return build

    return register


# IDX ----------------------------------------------------------------------------------------------------------------


def idx_set(folder, name, change):
    """The four files of a sound small set, one of them changed: ``change(bytes) -> bytes``."""
    for part, count in (("train", 8), ("t10k", 4)):
        write_idx(np.zeros((count, 28, 28), np.uint8), folder / f"{part}-images-idx3-ubyte")
        write_idx(np.zeros(count, np.uint8), folder / f"{part}-labels-idx1-ubyte")
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    return folder


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@case(r"\(byte 0\).*starts with 01000803", shown=IMAGES)
def idx_magic(folder):
    return idx_set(folder, IMAGES, lambda raw: b"\x01" + raw[1:])


@case(r"\(byte 2\).*type is 0x0d, expected 0x08", shown=IMAGES)
def idx_type(folder):
    return idx_set(folder, IMAGES, lambda raw: raw[:2] + b"\x0d" + raw[3:])


@case(r"\(byte 3\).*2 dimensions, expected 3", shown=IMAGES)
def idx_dims(folder):
    return idx_set(folder, IMAGES, lambda raw: raw[:3] + b"\x02" + raw[4:])


@case(r"\(byte 4\).*claims 79228162458924105385300197375 bytes", shown=IMAGES)
def idx_overflow(folder):
    return idx_set(folder, IMAGES, lambda raw: raw[:4] + b"\xff" * 12 + raw[16:])


@case(r"\(byte 6288\).*trailing bytes", shown=IMAGES)
def idx_trailing(folder):
    return idx_set(folder, IMAGES, lambda raw: raw + b"\0")


@case(r"claims 6272 bytes.*holds at most 6284|data ends after 6268", shown=IMAGES)
def idx_short(folder):
    return idx_set(folder, IMAGES, lambda raw: raw[:-4])


@case(r"\(byte 0\).*starts with nothing", shown=LABELS)
def idx_empty(folder):
    return idx_set(folder, LABELS, lambda raw: b"")


@case("gzip stream ends early", shown=IMAGES)
def idx_gz_truncated(folder):
    return idx_set(folder, IMAGES, lambda raw: gzip.compress(raw)[:-20])


@case("gzip stream is damaged.*CRC", shown=IMAGES)
def idx_gz_crc(folder):
    return idx_set(folder, IMAGES, lambda raw: gzip.compress(raw)[:-8] + b"\0\1\2\3" + gzip.compress(raw)[-4:])


@case(r"header claims .* holds at most", shown=IMAGES)
def idx_gz_bomb_header(folder):
    return idx_set(folder, IMAGES, lambda raw: gzip.compress(raw[:4] + struct.pack(">3I", 60000, 28, 28) + raw[16:]))


@case(r"\(byte 4\).*7 labels for 8 images", shown=LABELS)
def idx_labels_not_images(folder):
    return idx_set(folder, LABELS, lambda raw: raw[:4] + struct.pack(">I", 7) + raw[8:-1])


@case(r"\(byte 11\).*label 10 of image 3; allowed 0..9", shown=LABELS)
def idx_label_range(folder):
    return idx_set(folder, LABELS, lambda raw: raw[:11] + b"\x0a" + raw[12:])


# ImageNet-64 pickles ------------------------------------------------------------------------------------------------


def batch(folder, raw):
    (folder / "train_data_batch_1").write_bytes(raw)
    return folder


BATCH = "train_data_batch_1"


def dumped(protocol=3, **changed):
    data, labels = making.rows(12, 8)
    return pickle.dumps({"data": data, "labels": labels, **changed}, protocol=protocol)


class Runs:
    """Unpickling this would create the canary file."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (self.canary, "w")


@case(r"empty file", shown=BATCH)
def pickle_empty(folder):
    return batch(folder, b"")


@case(r"pickle refused", shown=BATCH)
def pickle_truncated(folder):
    return batch(folder, making.batch_bytes(30, 16)[:-100])


@case(r"\(byte 0\).*pickle refused", shown=BATCH)
def pickle_is_text(folder):
    return batch(folder, b"<!DOCTYPE html><html>not found</html>")


@case(r"global io\.open is not allowed", shown=BATCH)
def pickle_runs_code(folder):
    return batch(folder, dumped(mean=Runs(str(folder / "canary"))))


@case(r"global .*system is not allowed", shown=BATCH)
def pickle_os_system(folder):
    return batch(folder, b"cos\nsystem\n(S'touch canary'\ntR.")


@case(r"549755813888 bytes wanted", shown=BATCH)
def pickle_asks_for_512_gib(folder):
    return batch(folder, b"\x80\x04\x8e" + struct.pack("<Q", 512 << 30) + b"x.")


@case(r"\d+ bytes after the end", shown=BATCH)
def pickle_trailing(folder):
    return batch(folder, dumped() + b"more")


@case(r"holds \['images'\], expected a dict with data and labels", shown=BATCH)
def pickle_other_keys(folder):
    return batch(folder, pickle.dumps({"images": [1]}))


@case(r"data: array 'u1' \(13, 192\) does not fit its 2304 bytes", shown=BATCH)
def pickle_shape_lies(folder):
    raw = dumped()
    return batch(folder, raw.replace(b"K\x0cK\xc0\x86", b"K\x0dK\xc0\x86"))


@case(r"\(11,\) labels for 12 images", shown=BATCH)
def pickle_labels_not_images(folder):
    return batch(folder, dumped(labels=list(range(1, 12))))


@case(r"label 0 of image 0; allowed 1\.\.1000", shown=BATCH)
def pickle_label_range(folder):
    return batch(folder, dumped(labels=list(range(12))))


@case(r"data is f8", shown=BATCH)
def pickle_float_pixels(folder):
    return batch(folder, dumped(data=np.zeros((12, 192))))


@case(r"rows have 191 bytes; allowed", shown=BATCH)
def pickle_odd_columns(folder):
    return batch(folder, dumped(data=np.zeros((12, 191), np.uint8)))


@case(r"global _codecs\.encode is not allowed", shown=BATCH)
def pickle_protocol_2_of_python_3(folder):
    return batch(folder, dumped(protocol=2))


@case(r"opcode BINPERSID is not allowed", shown=BATCH)
def pickle_persistent_id(folder):
    return batch(folder, b"\x80\x02K\x01Q.")


@case(r"more than 500000 opcodes", shown=BATCH)
def pickle_million_lists(folder):
    return batch(folder, b"\x80\x02" + b"]" * 4_100_000 + b".")


@case(r"pickle refused: array bytes are list", shown=BATCH)
def pickle_object_array(folder):
    return batch(folder, dumped(data=np.array([None, "x"], dtype=object)))


@case(r"rows have 192 bytes|batches of different sizes", shown="")
def pickle_mixed_sizes(folder):
    (folder / "train_data_batch_2").write_bytes(making.batch_bytes(5, 16))
    return batch(folder, dumped())


# npz ----------------------------------------------------------------------------------------------------------------


def npz(folder, raw):
    (folder / "train_data_batch_1.npz").write_bytes(raw)
    return folder


def npz_members(**members):
    """An npz with hand-made members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(f"{name}.npy", raw)
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@case(r"\(data\.npy\).*Python objects", shown=BATCH)
def npz_object_array(folder):
    return npz(folder, making.npz_bytes(5, 8, data=np.array([Runs(str(folder / "canary"))], dtype=object)))


@case(r"\(data\.npy\).*zip bomb", shown=BATCH)
def npz_bomb(folder):
    return npz(
        folder, npz_members(data=npy(np.zeros((20_000, 12288), np.uint8)[:2000]), labels=npy(np.ones(2000, int)))
    )


@case(r"npz has no data\.npy", shown=BATCH)
def npz_without_data(folder):
    return npz(folder, npz_members(labels=npy(np.ones(3, int))))


@case(r"\(data\.npy\).*its header announces", shown=BATCH)
def npz_header_lies(folder):
    return npz(folder, npz_members(data=npy(making.rows(5, 8)[0])[:-10], labels=npy(np.ones(5, int))))


@case(r"\(labels\.npy\).*expected integers \(5,\)", shown=BATCH)
def npz_labels_not_images(folder):
    return npz(folder, making.npz_bytes(5, 8, labels=np.ones(4, int)))


@case(r"not a readable zip", shown=BATCH)
def npz_truncated(folder):
    return npz(folder, making.npz_bytes(5, 8)[:-30])


@case(r"\(data\.npy\).*damaged", shown=BATCH)
def npz_crc(folder):
    raw = bytearray(making.npz_bytes(5, 8))
    raw[600] ^= 255
    return npz(folder, bytes(raw))


@case(r"\(data\.npy\).*Fortran", shown=BATCH)
def npz_fortran(folder):
    return npz(folder, making.npz_bytes(5, 8, data=np.asfortranarray(making.rows(5, 8)[0])))


@case(r"\(data\.npy\).*not a \.npy array", shown=BATCH)
def npz_not_npy(folder):
    return npz(folder, npz_members(data=b"hello", labels=npy(np.ones(5, int))))


# zip ----------------------------------------------------------------------------------------------------------------


def zip_of(folder, files, method=zipfile.ZIP_DEFLATED):
    return making.write_zip(folder / "in.zip", files, method)


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
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
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
    raw = bytearray(path.read_bytes())
    raw[200] ^= 1
    path.write_bytes(raw)
    return path


@case(r"deflate stream is damaged|inflates to", shown="train/a/x.jpg")
def zip_member_deflate(folder):
    path = zip_of(folder, {"train/a/x.jpg": making.picture(1)})
    raw = bytearray(path.read_bytes())
    raw[43:60] = b"\xff" * 17
    path.write_bytes(raw)
    return path


@case(r"overlap", shown="in.zip")
def zip_overlapping_members(folder):
    """Two directory entries for one packed member: the trick behind non-recursive bombs."""
    path = zip_of(folder, {"train/a/x.jpg": making.picture(1), "train/a/y.jpg": b"1"}, zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    first = raw.index(b"PK\x01\x02")
    second = raw.index(b"PK\x01\x02", first + 4)
    for start, length in ((10, 18), (42, 4)):
        raw[second + start : second + start + length] = raw[first + start : first + start + length]
    path.write_bytes(raw)
    return path


# tar ----------------------------------------------------------------------------------------------------------------


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


@case(r"gunzip it first", shown=SHARD)
def tar_gzipped(folder):
    return shard(folder, gzip.compress(making.tar_bytes(shard_files())))


@case(r"type b'2'; allowed regular", shown="2.jpg")
def tar_symlink(folder):
    return shard(folder, tar_with(tarfile.SYMTYPE, link="/etc/passwd"))


@case(r"type b'1'; allowed regular", shown="2.jpg")
def tar_hardlink(folder):
    return shard(folder, tar_with(tarfile.LNKTYPE, link="../../x"))


@case(r"type b'3'; allowed regular", shown="2.jpg")
def tar_device(folder):
    return shard(folder, tar_with(tarfile.CHRTYPE))


@case(r"points outside", shown="../../evil.jpg")
def tar_traversal(folder):
    return shard(folder, making.tar_bytes({"../../evil.jpg": b"x", "../../evil.cls": b"0"}))


@case(r"points outside", shown="/etc/evil.jpg")
def tar_absolute(folder):
    return shard(folder, making.tar_bytes({"/etc/evil.jpg": b"x"}))


def resized(raw, size):
    """The first header's size field overwritten, its checksum mended."""
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


@case(r"label is not a number", shown="1.cls")
def webdataset_label_text(folder):
    return shard(folder, making.tar_bytes({**shard_files(), "1.cls": b"cat"}))


@case(r"label is -1", shown="1.cls")
def webdataset_label_range(folder):
    return shard(folder, making.tar_bytes({**shard_files(), "1.cls": b"-1"}))


# pictures -----------------------------------------------------------------------------------------------------------


def one_picture(folder, raw, name="bad.JPEG"):
    return making.write_tree(folder / "in", {**making.class_files(count=1), f"train/n01440764/{name}": raw})


@case(r"picture is damaged: .*truncated", shown="bad.JPEG")
def jpeg_truncated(folder):
    return one_picture(folder, making.picture(1, 200, 200)[:-300])


@case(r"picture is empty", shown="bad.JPEG")
def jpeg_zero(folder):
    return one_picture(folder, b"")


@case(r"not a picture .*starts with 3c68746d", shown="bad.JPEG")
def jpeg_is_html(folder):
    return one_picture(folder, b"<html>404</html>")


@case(r"65500 x 65500 pixels|too large", shown="bad.JPEG")
def jpeg_bomb(folder):
    raw = bytearray(making.picture(1))
    at = raw.index(b"\xff\xc0") + 5
    raw[at : at + 4] = struct.pack(">HH", 65500, 65500)
    return one_picture(folder, bytes(raw))


@case(r"picture is damaged|truncated", shown="bad.JPEG")
def jpeg_cmyk_truncated(folder):
    return one_picture(folder, making.picture(1, 200, 200, "CMYK")[:-300])


@case(r"header is damaged|not a picture", shown="bad.JPEG")
def jpeg_header_only(folder):
    return one_picture(folder, making.picture(1)[:20])


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@case(r"too large|pixels; allowed", shown="bad.png")
def png_bomb(folder):
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(bytes(100_000))) + png_chunk(b"IEND", b"")
    return one_picture(folder, b"\x89PNG\r\n\x1a\n" + head + body, "bad.png")


@case(r"mode is I;16", shown="bad.png")
def png_16_bit(folder):
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(out, "PNG")
    return one_picture(folder, out.getvalue(), "bad.png")


@case(r"picture is damaged", shown="bad.png")
def png_crc(folder):
    raw = bytearray(making.picture(1, form="PNG"))
    raw[60] ^= 255
    return one_picture(folder, bytes(raw), "bad.png")


# folders ------------------------------------------------------------------------------------------------------------


@case(r"no known data set here", shown="in")
def folder_empty(folder):
    (folder / "in").mkdir()
    return folder / "in"


@case(r"no such file or folder", shown="missing")
def folder_missing(folder):
    return folder / "missing"


@case(r"1 of 4 class folders have no pictures, the first is n09", shown="in")
def folder_class_empty(folder):
    making.write_tree(folder / "in", {**making.class_files(), "train/n09/readme.txt": b""})
    return folder / "in"


@case(r"class folder n09 is not in train", shown="val")
def folder_class_only_in_val(folder):
    making.write_tree(folder / "in", {**making.class_files(), "val/n09/x.jpg": making.picture(1)})
    return folder / "in"


@case(r"no known data set here", shown="notes.txt")
def folder_is_a_text_file(folder):
    (folder / "notes.txt").write_text("hello")
    return folder / "notes.txt"


def tiny(folder, **changed):
    files = {name: raw for name, raw in {**making.tiny_files(), **changed}.items() if raw is not None}
    return making.write_tree(folder / "in", files)


ANNOTATIONS = "tiny-imagenet-200/val/val_annotations.txt"


@case(r"val_annotations.txt is missing", shown="in")
def tiny_without_annotations(folder):
    return tiny(folder, **{ANNOTATIONS: None})


@case(r"line 2.*expected a new file name, a wnid", shown=ANNOTATIONS)
def tiny_unknown_wnid(folder):
    return tiny(folder, **{ANNOTATIONS: b"val_0.JPEG\tn01440764\t0\nval_1.JPEG\tn99\t0\n"})


@case(r"val_5.JPEG has no line", shown="val_5.JPEG")
def tiny_picture_not_annotated(folder):
    raw = making.tiny_files()[ANNOTATIONS]
    return tiny(folder, **{ANNOTATIONS: b"".join(raw.splitlines(True)[:5])})


@case(r"1 annotated pictures are missing, the first is val_3.JPEG", shown="in")
def tiny_picture_missing(folder):
    return tiny(folder, **{"tiny-imagenet-200/val/images/val_3.JPEG": None})


@case(r"1 of 4 classes have no pictures, the first is n77", shown="in")
def tiny_class_missing(folder):
    return tiny(folder, **{"tiny-imagenet-200/wnids.txt": " ".join((*making.WNIDS, "n77")).encode()})


@case(r"class folder n01601694 is not in wnids", shown="n01601694")
def tiny_class_unknown(folder):
    return tiny(folder, **{"tiny-imagenet-200/wnids.txt": " ".join(making.WNIDS[:2]).encode()})


@case(r"not UTF-8 text", shown="wnids.txt")
def tiny_wnids_binary(folder):
    return tiny(folder, **{"tiny-imagenet-200/wnids.txt": b"\xff\xfe\x00"})


@case(r"line 3.*expected wnid, a new number", shown="map_clsloc.txt")
def clsloc_twice(folder):
    (folder / "map_clsloc.txt").write_text("n1 1 a\nn2 2 b\nn3 2 c\n")
    return batch(folder, dumped())
