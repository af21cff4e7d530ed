"""Every format that is read: what is packed equals, byte for byte, what plain Pillow, pickle and numpy read."""

import io
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from imnet.data import load
from imnet.data.readers import recognise
from imnet.data.readers.base import select
from imnet.data.readers.picture import ResizeRule
from imnet.data.store import load_store, open_store, split_path
from imnet.data.store.pack import Options, pack
from imnet.errors import DataError, UsageError
from tests.data import making

BOX16 = Options(ResizeRule(16), workers=1, quiet=True)
AS_IS = Options(workers=1, quiet=True)


def packed(source, target, options=BOX16):
    pack(recognise(source), target, options)
    return open_store(split_path(target, "train"))


def assert_pictures(store, files, size=16):
    """Asserts that the store holds exactly the pictures of ``files`` {name: bytes}, sorted by name."""
    wanted = np.stack([making.expected(files[name], size) for name in sorted(files)])
    assert np.array_equal(store.images(), wanted)


@pytest.mark.parametrize("form", ["folder", "zip", "stored zip", "wrapped folder", "wrapped zip"])
def test_class_folders(tmp_path, form):
    train, val = making.class_files(), making.class_files("val", 2, 50)
    inner = {**train, **val, "train/n01440764/notes.txt": b"not a picture", "train/.hidden.jpg": b"no"}
    files = {("imagenet/" if "wrapped" in form else "") + name: data for name, data in inner.items()}
    if "zip" in form:
        method = zipfile.ZIP_STORED if "stored" in form else zipfile.ZIP_DEFLATED
        source = making.write_zip(tmp_path / "in.zip", files, method)
    else:
        source = making.write_tree(tmp_path / "in", files)
    store = packed(source, tmp_path / "out")
    assert_pictures(store, train)
    assert store.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert store.class_names == making.WNIDS
    data = load_store(tmp_path / "out")
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("form", ["folder", "zip", "parent"])
def test_tiny_imagenet(tmp_path, form, workers):
    files = making.tiny_files()
    if form == "zip":
        source = making.write_zip(tmp_path / "tiny-imagenet-200.zip", files)
    else:
        source = making.write_tree(tmp_path / "in", files)
        source = source if form == "parent" else source / "tiny-imagenet-200"
    pack(recognise(source), tmp_path / "out", Options(ResizeRule(64), workers=workers, quiet=True))
    data = load_store(tmp_path / "out")
    train = {name: value for name, value in files.items() if "/train/" in name and name.endswith("JPEG")}
    assert np.array_equal(data.train.images, np.stack([making.expected(train[n], 64) for n in sorted(train)]))
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.class_names == ("n01440764 tench", "n01530575 brambling", "n01601694")


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_imagenet64_pickles_of_every_binary_protocol(tmp_path, protocol):
    making.imagenet64_folder(tmp_path / "in", 32, lambda n, s, seed: making.batch_bytes(n, s, seed, protocol))
    store = packed(tmp_path / "in", tmp_path / "out", AS_IS)
    images, labels = making.imagenet64_expected(32)
    assert np.array_equal(store.images(), images)
    assert np.array_equal(store.labels, labels)


def test_imagenet64_batch_of_python_2(tmp_path):
    """Python 2 pickled the same structure with BINSTRING; the test writes its opcodes by hand."""
    data, labels = making.rows(40, 64)
    raw = data.tobytes()
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(K(J" + (12288).to_bytes(4, "little") + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01" + shape + dtype + b"\x89"
    array += b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    numbers = b"](" + b"".join(b"M" + label.to_bytes(2, "little") for label in labels) + b"e"
    (tmp_path / "train_data_batch_1").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u.")
    assert np.array_equal(pickle.loads((tmp_path / "train_data_batch_1").read_bytes(), encoding="latin1")["data"], data)
    store = packed(tmp_path, tmp_path / "out", AS_IS)
    assert np.array_equal(store.images(), data.reshape(-1, 3, 64, 64).transpose(0, 2, 3, 1))


def test_imagenet64_npz(tmp_path):
    making.imagenet64_folder(tmp_path / "in", 16, making.npz_bytes, ".npz")
    store = packed(tmp_path / "in", tmp_path / "out", AS_IS)
    images, labels = making.imagenet64_expected(16)
    assert np.array_equal(store.images(), images)
    assert np.array_equal(store.labels, labels)


@pytest.mark.parametrize(("npz", "inside"), [(False, ""), (True, ""), (False, "./"), (True, "batches\\")])
def test_imagenet64_zips(tmp_path, npz, inside):
    make, suffix = (making.npz_bytes, ".npz") if npz else (making.batch_bytes, "")
    folder = making.imagenet64_folder(tmp_path / "loose", 16, make, suffix)
    files = {inside + file.name: file.read_bytes() for file in folder.iterdir()}
    (tmp_path / "in").mkdir()
    tail = "_npz.zip" if npz else ".zip"
    first = {name: data for name, data in files.items() if "train" in name and "_10" not in name}
    second = {name: data for name, data in files.items() if "_10" in name}
    third = {name: data for name, data in files.items() if "val" in name}
    making.write_zip(tmp_path / "in" / f"Imagenet16_train_part1{tail}", first)
    making.write_zip(tmp_path / "in" / f"Imagenet16_train_part2{tail}", second)
    making.write_zip(tmp_path / "in" / f"Imagenet16_val{tail}", third)
    data = load("imagenet64", tmp_path / "in", image_px=16)
    images, labels = making.imagenet64_expected(16)
    assert np.array_equal(data.train.images, images)
    assert np.array_equal(data.train.labels, labels)
    assert len(data.test) == 20


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"labels": [1] * 29 + [10**30]}, f"label {10**30} of image 29; allowed 1..1000"),
     ({"data": np.asfortranarray(making.rows(30, 16)[0])}, "data: array is in Fortran order; expected C order")],
    ids=["label", "order"],
)  # fmt: skip
def test_imagenet64_pickles_with_a_huge_label_or_another_order(tmp_path, changed, said):
    batch = dict(zip(("data", "labels"), making.rows(30, 16), strict=True)) | changed
    folder = making.imagenet64_folder(tmp_path / "in")
    (folder / "train_data_batch_1").write_bytes(pickle.dumps(batch, protocol=4))
    with pytest.raises(DataError, match=re.escape(said)):
        packed(tmp_path / "in", tmp_path / "out", AS_IS)


@pytest.mark.parametrize("train", [(8, 28, 28), (8, 0, 28)])
def test_a_part_without_images_or_pixels_is_refused(tmp_path, train):
    test = (0, *train[1:])
    for part, shape in (("train", train), ("t10k", test)):
        making.write_idx(np.zeros(shape, np.uint8), tmp_path / f"{part}-images-idx3-ubyte")
        making.write_idx(np.zeros(shape[0], np.uint8), tmp_path / f"{part}-labels-idx1-ubyte")
    said = "test part has 0 images of 28x28x1" if all(train) else "train part has 8 images of 0x28x1"
    with pytest.raises(DataError, match=said):
        recognise(tmp_path)
    if all(train):
        with pytest.raises(DataError, match="test part has 0 images"):
            load("fashion-mnist", tmp_path, split="official")


def test_imagenet64_names_come_from_map_clsloc(tmp_path):
    making.imagenet64_folder(tmp_path)
    lines = [f"n{i:08d} {i} name_{i}" for i in range(1, 1001)]
    (tmp_path / "map_clsloc.txt").write_text("\n".join(reversed(lines)), encoding="utf-8-sig")  # as Notepad writes it
    found = recognise(tmp_path)
    assert found.class_names[::999] == ("n00000001 name_1", "n00001000 name_1000")
    assert not found.notes


def test_sample_jpegs_equal_pillow_box_and_survive_the_imagenet64_form(shared, tmp_path):
    """A 64 px store of 100 ImageNet JPEGs has Pillow's pixels; written as ImageNet-64 pickles it is read back equal."""
    source = shared("imagenet-1k-sample.zip")
    store = packed(source, tmp_path / "out", Options(ResizeRule(64), workers=2, quiet=True))
    with zipfile.ZipFile(source) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert len(files) == 100
    assert_pictures(store, files, 64)
    planar = np.stack([image.transpose(2, 0, 1).reshape(-1) for image in store.images()])
    batch = {"data": planar, "labels": (store.labels + 1).tolist(), "mean": planar.mean(axis=0)}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train_data_batch_1").write_bytes(pickle.dumps(batch, protocol=3))
    again = packed(tmp_path / "in", tmp_path / "again", AS_IS)
    assert np.array_equal(again.images(), store.images())
    assert np.array_equal(again.labels, store.labels)


@pytest.mark.slow
def test_whole_tiny_imagenet_zip(shared, tmp_path):
    """All 20,000 + 10,000 pictures are compared with Pillow's pixels."""
    found = recognise(shared("tiny-imagenet-200-small.zip"))
    pack(found, tmp_path / "out", Options(ResizeRule(64), workers=2, quiet=True))
    data = load_store(tmp_path / "out")
    assert np.bincount(data.train.labels).tolist() == [100] * 200
    assert np.bincount(data.test.labels).tolist() == [50] * 200
    assert all(open_store(split_path(tmp_path / "out", split)).verify() for split in ("train", "test"))
    for items, images in ((found.splits["train"], data.train.images), (found.splits["test"], data.test.images)):
        assert all(np.array_equal(images[i], making.expected(items.read(i), 64)) for i in range(len(items)))


def test_part_of_the_real_tiny_imagenet(shared, tmp_path):
    found = recognise(shared("tiny-imagenet-200-small.zip"))
    assert {split: len(items) for split, items in found.splits.items()} == {"train": 20_000, "test": 10_000}
    assert len(found.class_names) == 200
    for split, items in found.splits.items():
        rows = np.arange(0, len(items), 97)
        found.splits[split] = items.take(rows, items.labels()[rows])
    pack(found, tmp_path / "out", Options(ResizeRule(64), workers=1, quiet=True))
    train = found.splits["train"]
    images = load_store(tmp_path / "out").train.images
    for i in range(0, len(train), 20):
        assert np.array_equal(images[i], making.expected(train.read(i), 64))


@pytest.mark.parametrize("tars", [False, True])
def test_imagenet21k_filter(tmp_path, tars):
    """Classes with >= 5 pictures are kept and 2 of each are held out; which ones depends on their names alone."""
    counts = dict(zip(making.WNIDS, (7, 4, 5), strict=True))
    for wnid, count in counts.items():
        files = {f"{wnid}_{i}.JPEG": making.picture(i) for i in range(count)}
        if tars:
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / f"{wnid}.tar").write_bytes(making.tar_bytes(files))
        else:
            making.write_tree(tmp_path / "in" / wnid, files)
    found = recognise(tmp_path / "in")
    chosen = select(found, min_images=5, hold_out=2)
    assert chosen.class_names == (making.WNIDS[0], making.WNIDS[2])
    assert chosen.splits["train"].labels().tolist() == [0] * 5 + [1] * 3
    assert chosen.splits["test"].labels().tolist() == [0] * 2 + [1] * 2
    names = {split: {items.name(i) for i in range(len(items))} for split, items in chosen.splits.items()}
    assert not names["train"] & names["test"]
    again = select(recognise(tmp_path / "in"), min_images=4, hold_out=2).splits["test"]
    assert names["test"] <= {again.name(i) for i in range(len(again))}
    with pytest.raises(DataError, match="no class has 100"):
        select(found, min_images=100)


def test_hold_out_needs_pictures_without_a_test_split(tmp_path):
    making.write_tree(tmp_path / "in", {**making.class_files(), **making.class_files("val")})
    with pytest.raises(UsageError, match="test split already"):
        select(recognise(tmp_path / "in"), hold_out=1)
    making.imagenet64_folder(tmp_path / "b")
    with pytest.raises(UsageError, match="holds pixels"):
        select(recognise(tmp_path / "b"), min_images=1)


def test_idx_folder_packs_to_the_same_fingerprint(shared, tmp_path):
    pack(recognise(shared("fashion-mnist")), tmp_path / "out", AS_IS)
    official = load("fashion-mnist", shared("fashion-mnist"), split="official")
    assert load_store(tmp_path / "out").fingerprint == official.fingerprint
    custom = load("fashion-mnist", tmp_path / "out")
    assert custom.fingerprint == load("fashion-mnist", shared("fashion-mnist")).fingerprint


def test_encoded_pictures_stay_as_they_are(tmp_path):
    files = making.class_files()
    files["train/n01440764/cmyk.jpg"] = making.picture(5, mode="CMYK")
    files["train/n01440764/png.JPEG"] = making.picture(6, form="PNG")
    store = packed(making.write_tree(tmp_path / "in", files), tmp_path / "out", AS_IS)
    assert [store.encoded(i) for i in range(len(store))] == [files[name] for name in sorted(files)]
    store.verify()
    with pytest.raises(DataError, match="encoded pictures"):
        store.images()


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA", "1", "LA"])
def test_other_colour_modes_become_what_pillow_makes_of_them(tmp_path, mode):
    form = "JPEG" if mode in ("CMYK", "L") else "PNG"
    files = {"train/a/x.JPEG": making.picture(3, mode=mode, form=form)}
    store = packed(making.write_tree(tmp_path / "in", files), tmp_path / "out")
    assert_pictures(store, files)


@pytest.mark.parametrize("name", ["box", "bilinear", "bicubic", "lanczos", "hamming"])
def test_filters_shorter_side_and_grey(tmp_path, name):
    data = making.picture(1, 50, 30)
    making.write_tree(tmp_path / "in", {"train/a/x.jpg": data})
    rule = ResizeRule(16, name, 1, 20)
    image = packed(tmp_path / "in", tmp_path / "out", Options(rule, workers=1, quiet=True)).images()[0]
    grey = Image.open(io.BytesIO(data)).convert("L").resize((33, 20), getattr(Image.Resampling, name.upper()))
    assert np.array_equal(image[..., 0], np.asarray(grey.crop((8, 2, 24, 18))))


def test_labels_are_not_shuffled_by_workers(tmp_path):
    files = {f"train/{c}/{i:04d}.png": making.picture(200 * c + i, 8, 8, form="PNG") for c in range(2)
             for i in range(150)}  # fmt: skip
    source = making.write_tree(tmp_path / "in", files)
    store = packed(source, tmp_path / "out", Options(ResizeRule(8), workers=3, quiet=True))
    assert_pictures(store, files, 8)


def test_bad_pictures_are_skipped_up_to_one_in_a_thousand(tmp_path):
    files = {f"train/a/{i:04d}.png": making.picture(i % 7, 4, 4, form="PNG") for i in range(2000)}
    files["train/a/0100.png"] = b"broken"
    files["train/a/1500.png"] = files["train/a/1500.png"][:40]
    source = making.write_tree(tmp_path / "in", files)
    skip = Options(ResizeRule(4), "skip", 1, True)
    pack(recognise(source), tmp_path / "out", skip)
    store = open_store(split_path(tmp_path / "out", "train"))
    assert (len(store), store.header["left_out"]) == (1998, 2)
    good = [name for name in sorted(files) if name[8:12] not in ("0100", "1500")]
    assert np.array_equal(store.images()[1497], making.expected(files[good[1497]], 4))
    (source / "train/a/0007.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3 bad pictures, allowed 2 \(0.1 %\)"):
        pack(recognise(source), tmp_path / "out2", skip)
    with pytest.raises(DataError, match=r"0007.png: picture is empty"):
        pack(recognise(source), tmp_path / "out3", Options(ResizeRule(4), workers=2, quiet=True))
    assert not os.path.exists(tmp_path / "out3" / "train.imnet")
