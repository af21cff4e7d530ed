"""Cases of the damage table: damaged pictures, and folders that are not valid image sets."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, features

from tests.data import making
from tests.data.damage_arrays import batch, dumped
from tests.data.damage_table import case


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


if features.check("avif"):

    @case(r"picture is damaged: ", shown="bad.avif")
    def jpeg_not_but_avif_without_planes(folder):
        raw = making.picture(1, form="AVIF")
        data = raw.index(b"mdat") + 4
        return one_picture(folder, raw[:data] + bytes(len(raw) - data), "bad.avif")


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
