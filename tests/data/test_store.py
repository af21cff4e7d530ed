"""The packed store returns what was written, reports damage in one line, loads by every route; old files still open."""

import base64
import hashlib
import json
import os
import re
import struct
import zlib

import numpy as np
import pytest

from imnet.data import load
from imnet.data.base import Split
from imnet.data.files import locked
from imnet.data.judged import images_at
from imnet.data.readers import recognise
from imnet.data.readers.picture import ResizeRule
from imnet.data.store import BLOCK_BYTES, PAGE, load_store, open_store, split_path
from imnet.data.store.pack import Options, pack
from imnet.data.store.write import Writer
from imnet.errors import DataError
from tests.data import making

ABOUT = {"name": "made", "split": "train", "class_names": ["a", "b", "c"], "resize": None,
         "source": {"kind": "test", "key": "k"}}  # fmt: skip


def write(folder, images, labels, split="train", about=ABOUT):
    folder.mkdir(exist_ok=True)
    final = split_path(folder, split)
    part = final.with_name(final.name + ".part")
    with locked(part) as descriptor:
        writer = Writer(part, descriptor, "k", None if isinstance(images, list) else images.shape[1:])
        (writer.encoded if isinstance(images, list) else writer.pixels)(images, len(images), [])
        writer.finish(final, np.asarray(labels, dtype=np.int64), about)
    return final


@pytest.fixture
def sound(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (700, 24, 24, 3), dtype=np.uint8)
    return write(tmp_path / "store", images, np.arange(700) % 3), images


def test_round_trip_mapped_and_page_aligned(sound):
    path, images = sound
    store = open_store(path)
    assert np.array_equal(store.images(), images)
    assert not store.images().flags.writeable
    assert store.images().ctypes.data % PAGE == 0
    assert store.labels.dtype == np.int64
    assert store.verify() == -(-(images.nbytes + 700 * 8) // BLOCK_BYTES)
    assert store.header["digest"] == Split(images, np.arange(700, dtype=np.int64) % 3).digest()
    assert not list(path.parent.glob("*.part*"))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_small_and_empty_splits(tmp_path, count):
    images = np.full((count, 1, 5, 2), 7, dtype=np.uint8)
    store = open_store(write(tmp_path / "s", images, np.zeros(count)))
    assert np.array_equal(store.images(), images)
    store.verify()


def test_encoded_round_trip(tmp_path):
    pictures = [b"", b"x", os.urandom(5000), b"yz" * 800_000]
    store = open_store(write(tmp_path / "s", pictures, [0, 1, 2, 0]))
    assert [store.encoded(i) for i in range(4)] == pictures
    store.verify()


def header_of(raw):
    offset, length = struct.unpack_from("<QQ", raw, 8)
    return offset, length


def resealed(raw, change):
    """A crafted store: ``change`` applied to its header, all checksums recomputed except those of the blocks."""
    offset, length = header_of(raw)
    header = json.loads(raw[offset : offset + length])
    change(header)
    body = json.dumps(header).encode()
    first = struct.pack("<8sQQ", raw[:8], offset, len(body))
    first += struct.pack("<I", zlib.crc32(first))
    start, extent = header["sections"]["crc"] if "sections" in header else (0, 0)
    footer = hashlib.sha256(first + raw[start : start + extent] + body).digest() + b"IMNETEND"
    return first + raw[28:offset] + body + footer


def flip(raw, at):
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def set_key(**values):
    return lambda header: header.update(values)


def widen(section, by):
    return lambda header: header["sections"][section].__setitem__(1, header["sections"][section][1] + by)


DAMAGE = {
    "empty": (lambda raw: b"", "0 bytes are too few"),
    "magic": (lambda raw: b"NOTASTOR" + raw[8:], r"\(byte 0\).*starts with"),
    "first page": (lambda raw: flip(raw, 9), r"first page is damaged"),
    "truncated": (lambda raw: raw[:-1000], r"truncated or overlong"),
    "trailing": (lambda raw: raw + b"x", r"truncated or overlong"),
    "header": (lambda raw: flip(raw, header_of(raw)[0] + 30), r"header|footer hash"),
    "block crcs": (lambda raw: flip(raw, header_of(raw)[0] - 2), r"footer hash"),
    "footer": (lambda raw: flip(raw, len(raw) - 20), r"footer hash"),
    "format": (lambda raw: resealed(raw, set_key(format=2)), r"format is 2; this version reads 1"),
    "no sections": (lambda raw: resealed(raw, lambda h: h.pop("sections")), r"header is not what"),
    "no digest": (lambda raw: resealed(raw, lambda h: h.pop("digest")), r"lacks or garbles 'digest'"),
    "count": (lambda raw: resealed(raw, set_key(count=701)), r"do not fit"),
    "negative count": (lambda raw: resealed(raw, set_key(count=-1)), r"do not fit"),
    "shape": (lambda raw: resealed(raw, set_key(shape=[700, 24, 24, 4])), r"do not fit"),
    "huge shape": (lambda raw: resealed(raw, set_key(shape=[700, 2**40, 2**40, 3])), r"do not fit"),
    "data beyond": (lambda raw: resealed(raw, widen("data", 1 << 40)), r"do not fit"),
    "labels beyond": (lambda raw: resealed(raw, widen("labels", 8)), r"do not fit"),
    "class names": (lambda raw: resealed(raw, set_key(class_names=["a", "b"])), r"\(byte \d+\).*label 2 of image 2"),
    "label value": (lambda raw: flip(raw, json_labels(raw) + 1), r"label 256 of image 0; allowed 0..2"),
}
VERIFY_ONLY = {
    "pixel": (lambda raw: flip(raw, PAGE + BLOCK_BYTES + 77), rf"\(byte {PAGE + BLOCK_BYTES}\).*block 1 has crc"),
    "padding": (lambda raw: flip(raw, json_labels(raw) - 1), r"has crc"),
    "digest": (lambda raw: resealed(raw, set_key(digest="0" * 64)), r"content digest is"),
}


def json_labels(raw):
    offset, length = header_of(raw)
    return json.loads(raw[offset : offset + length])["sections"]["labels"][0]


@pytest.mark.parametrize("kind", [*DAMAGE, *VERIFY_ONLY])
def test_damage_is_one_line(sound, kind):
    path, _ = sound
    change, expected = {**DAMAGE, **VERIFY_ONLY}[kind]
    path.write_bytes(change(path.read_bytes()))
    if kind in VERIFY_ONLY:
        open_store(path)
    with pytest.raises(DataError) as caught:
        open_store(path).verify()
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    assert re.search(expected, line), line


def test_damaged_index_of_encoded_pictures(tmp_path):
    path = write(tmp_path / "s", [b"abc", b"defg"], [0, 1])
    raw = path.read_bytes()
    offset, length = header_of(raw)
    index = json.loads(raw[offset : offset + length])["sections"]["index"][0]
    path.write_bytes(raw[: index + 9] + b"\x07" + raw[index + 10 :])
    with pytest.raises(DataError, match="picture 1 goes beyond the data"):
        open_store(path).encoded(1)


def test_two_splits_must_belong_together(sound, tmp_path):
    path, images = sound
    with pytest.raises(DataError, match=r"no test split.*--data\.hold_out"):
        load_store(path.parent)
    write(path.parent, images[:9], np.zeros(9), "test", {**ABOUT, "class_names": ["x"]})
    with pytest.raises(DataError, match="different class names"):
        load_store(path.parent)


def test_load_by_every_route(tmp_path):
    pack(recognise(making.write_tree(tmp_path / "in", making.tiny_files())), tmp_path / "data" / "tiny-imagenet",
         Options(ResizeRule(64), workers=1, quiet=True))  # fmt: skip
    store = tmp_path / "data" / "tiny-imagenet"
    loaded = [load(f"packed:{store}"), load("packed", store)]
    loaded += [load("tiny-imagenet", tmp_path / "data"), load("tiny-imagenet", store)]
    assert len({data.fingerprint for data in loaded}) == 1
    assert {data.name for data in loaded} == {"tiny-imagenet"}
    assert all(isinstance(data.train.images.base, np.ndarray | memoryview) for data in loaded)
    with pytest.raises(DataError, match=r"holds tiny-imagenet, not imagenet64"):
        load("imagenet64", tmp_path / "data" / "tiny-imagenet")
    with pytest.raises(DataError, match=r"train.imnet is missing"):
        load(f"packed:{tmp_path}")


def test_first_use_packs_into_the_cache_and_the_second_only_maps(tmp_path, capfd):
    making.write_zip(tmp_path / "tiny-imagenet-200.zip", making.tiny_files())
    first = load("tiny-imagenet", tmp_path, image_px=32)
    assert "packing" in capfd.readouterr().err
    second = load("tiny-imagenet", tmp_path, image_px=32)
    assert "packing" not in capfd.readouterr().err
    assert first.fingerprint == second.fingerprint
    assert first.train.images.shape == (9, 32, 32, 3)
    making.write_tree(tmp_path / "classes", {**making.class_files(), **making.class_files("val")})
    folder = load("folder", tmp_path / "classes", image_px=16)
    assert (folder.num_classes, len(folder.train), len(folder.test)) == (3, 12, 12)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tiny-imagenet-200.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="not a readable zip"):
        load("tiny-imagenet", tmp_path / "broken")


def test_imagenet_by_its_folders(tmp_path):
    files = {**making.class_files(), **making.class_files("val", 1, 40)}
    making.write_tree(tmp_path / "ILSVRC" / "Data" / "CLS-LOC", files)
    data = load("imagenet", tmp_path, image_px=24)
    assert (data.name, data.image_shape, data.num_classes) == ("imagenet", (24, 24, 3), 3)


def test_missing_source_is_one_line(tmp_path):
    for name in ("tiny-imagenet", "imagenet64"):
        with pytest.raises(DataError, match="not found: looked for") as caught:
            load(name, tmp_path / "nowhere")
        assert "\n" not in str(caught.value)


# Two stores of two images, written on 2026-11-26 before this package had its subfolders; zlib, then base85.
OLD_PIXELS = (
    "c-rmSKTE?v6aa9m_5XicbuG8rA%CuE&e;k@EDlbJl*{F!p=nZ*6s+1w#8LbLZo1Y{KSnnPKZJuQIC(D)f*(QNkC5a&-"
    "n)C;7D#=!QQP0!(Tk;#%xUiDd5{jH5rhyz2qA<JLJ0j2xzVxw_{8MY^vvws{KDeW@=Bq&y0(r7gAhUpA%qY@2>qka|3C5Y?f&tcguE@uW{I@9D"
    "@nOTl1|{KkVs?hhma8gPm(6oB`SYNI3yi%r0%gy{4;0|yFmcWQ8yM4pOcm!y4f-^Nui-7dl0rrUj<$iw>j*h!}?J-"
    "gm(iLIN=@WKUBfbWx_s*6saGDNw%`fQw}9mW0oqRP!MoO2HAMF&QzCfK~{|*PqU<<+2xW3IT4HB3_XHrT>lt`RMUBu%^Bl{R-"
    "q0P)R7fo7_`E5Ms2A}+cr!pscA|{nJH{xab{Kx;W1%&Rdvr!CWu6<>Gaa<xO9!$m8u0JN-u3jUD!wKyLWu!sdzPfzIp9EREvYJkL%-"
    "nSs!e_Tz<Y6ZZGQauSTu0^$jB+gp2"
)
OLD_ENCODED = (
    "c-rmSze~eF6bEpNLs#(+kZ?Fjhg`_73T_rDVsQ`^q?F6ui-x92O|Jf=gNw7exH;=4=<49)=zrk9;Nq_LQUw?P0eK%tF8Af`-"
    "Q(u8*E+3@^;JG^O;z@5lksZd{A`L4LI@#*5JCtc|H8C+@(k)`(1*EY9=a1k2qA<JLI@$`zp4F^*T2WP`{&@4Wnutq(P9IkfHf>u4%0+qpbL>?n"
    "8;L=We?YtCf{KK!-"
    "#dwyMQt|!R^^7O>uKRDkRQNSwG2CRR&6p8~SjJ(>@!UNt_o0fv0e+pN}&9cCf&n82+vYQYU#<Ruz@d0vmAcrr)r5hz+D7g0yNY<V{n6`<R-"
    "e;iw87JNyY{At#aJHY~S`ZKz}yyEARc2xJ&LLUGQ0Pbmqm2$W||ia`bf98ZYAjvxXr^v$Yfr~=L%?s3QWe2A(mNpsonMaR0jCvLl;7x>sC#JZP"
    "{@Em)*{h{AKFSjo4#t(0egPHVpdtl8zs_T`do0rX}*P@L-ZL~VeUvNK$i~"
)


@pytest.mark.parametrize("text", [OLD_PIXELS, OLD_ENCODED], ids=["pixels", "encoded"])
def test_an_old_store_opens_and_is_written_the_same_today(tmp_path, text):
    old = zlib.decompress(base64.b85decode(text))
    (tmp_path / "train.imnet").write_bytes(old)
    store = open_store(tmp_path / "train.imnet")
    images = [b"one", b"two two"] if store.is_encoded else np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    assert store.verify() == 1
    assert store.labels.tolist() == [1, 0]
    if store.is_encoded:
        assert [store.encoded(i) for i in range(2)] == images
    else:
        assert np.array_equal(store.images(), images)
    again = write(tmp_path / "again", images, [1, 0], about={**ABOUT, "class_names": ["a", "b"]})
    assert again.read_bytes() == old


def test_pixels_to_judge_are_those_that_are_packed(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 9), ("t10k", 5)):
        making.write_idx(rng.integers(0, 256, (count, 4, 6), dtype=np.uint8), tmp_path / f"{part}-images-idx3-ubyte")
        making.write_idx(np.arange(count, dtype=np.uint8) % 3, tmp_path / f"{part}-labels-idx1-ubyte")
    pack(recognise(tmp_path), tmp_path / "out", Options(quiet=True))
    for split in ("train", "test"):
        read, stored = images_at(tmp_path, split), images_at(tmp_path / "out", split)
        assert np.array_equal(read.labels, stored.labels)
        assert all(np.array_equal(read.read(i), stored.read(i)) for i in range(len(stored)))
