"""Cases of the damage table: damaged IDX files, ImageNet-64 pickles and npz files."""

import gzip
import io
import pickle
import struct
import zipfile

import numpy as np

from tests.data import making
from tests.data.damage_table import case


def idx_set(folder, name, change):
    """Writes the four files of a small valid set and applies ``change(bytes) -> bytes`` to the one called ``name``."""
    for part, count in (("train", 8), ("t10k", 4)):
        making.write_idx(np.zeros((count, 28, 28), np.uint8), folder / f"{part}-images-idx3-ubyte")
        making.write_idx(np.zeros(count, np.uint8), folder / f"{part}-labels-idx1-ubyte")
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


def batch(folder, raw):
    (folder / "train_data_batch_1").write_bytes(raw)
    return folder


BATCH = "train_data_batch_1"


def dumped(protocol=3, **changed):
    data, labels = making.rows(12, 8)
    return pickle.dumps({"data": data, "labels": labels, **changed}, protocol=protocol)


class Runs:
    """An object that creates the canary file when it is unpickled."""

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


@case(r"global _?io\.open is not allowed", shown=BATCH)  # _io since Python 3.12
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


@case(r"text is encoded as 'zlib_codec'; allowed latin1", shown=BATCH)
def pickle_other_codec(folder):
    return batch(folder, dumped(protocol=2).replace(b"X\x06\0\0\0latin1", b"X\x0a\0\0\0zlib_codec"))


@case(r"pickle refused: 'latin-1' codec can't encode", shown=BATCH)
def pickle_text_beyond_a_byte(folder):
    """Protocol 2 stores the 70,080 pixels as latin-1 text; characters beyond one byte replace 20,000 of them."""
    data = np.full((365, 192), 7, np.uint8)
    raw = dumped(protocol=2, data=data, labels=[1] * 365)
    return batch(folder, raw.replace(b"\7" * 20_000, b"\xc4\x80" * 10_000, 1))


@case(r"pickle refused: 'utf-8' codec can't decode", shown=BATCH)
def pickle_text_is_not_utf8(folder):
    data = np.full((365, 192), 7, np.uint8)
    raw = dumped(protocol=2, data=data, labels=[1] * 365)
    return batch(folder, raw.replace(b"\7" * 20_000, b"\xff" * 20_000, 1))


@case(r"opcode (UNICODE|DICT|PUT) is not allowed", shown=BATCH)
def pickle_protocol_0(folder):
    return batch(folder, dumped(protocol=0))


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


@case(r"\(data\.npy\).*damaged: .*invalid", shown=BATCH)
def npz_deflated(folder):
    """A file of numpy.savez_compressed, damaged inside its deflate stream."""
    out = io.BytesIO()
    np.savez_compressed(out, data=making.rows(5, 8)[0] // 64 * 64, labels=np.ones(5, int))
    raw = bytearray(out.getvalue())
    raw[58:64] = b"\xff" * 6  # the start of the first deflate block
    return npz(folder, bytes(raw))


@case(r"\(data\.npy\).*not a \.npy array", shown=BATCH)
def npz_header_without_end(folder):
    header = b"{'descr': '|u1', 'shape': ((5L, 192)"
    return npz(folder, npz_members(data=b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header))


@case(r"\(data\.npy\).*Fortran", shown=BATCH)
def npz_fortran(folder):
    return npz(folder, making.npz_bytes(5, 8, data=np.asfortranarray(making.rows(5, 8)[0])))


@case(r"\(data\.npy\).*not a \.npy array", shown=BATCH)
def npz_not_npy(folder):
    return npz(folder, npz_members(data=b"hello", labels=npy(np.ones(5, int))))
