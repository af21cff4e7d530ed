"""The table of layouts: which are read, which are refused and which files are left out.

test_layouts.py tests every row. ``python -m tests.data.layouts`` prints the table for docs/data.md.
"""

import gzip
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.data import making
from tests.data.damage_parquet import table, write

CASES = {}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "data.md"
W = making.WNIDS


@dataclass(frozen=True)
class Case:
    """A layout: ``build(folder)`` writes it and returns the path to read; the rest is what reading must give."""

    title: str
    build: object
    train: int = 0
    test: int = 0
    final: int = 0
    classes: tuple = ("cat", "dog")
    left: str = ""
    note: str = ""
    refused: str = ""

    def outcome(self):
        if self.refused:
            return f"refused: {self.refused}"
        counts = (
            f"{self.train} train"
            + (f", {self.test} test" * bool(self.test))
            + (f", {self.final} final" * bool(self.final))
        )
        classes = ", ".join(self.classes) if len(self.classes) < 5 else f"{len(self.classes)} classes"
        return "; ".join(filter(None, (f"{counts} ({classes})", self.left, self.note)))


def layout(title, **expected):
    def register(build):
        assert build.__name__ not in CASES
        CASES[build.__name__] = Case(title, build, **expected)
        return build

    return register


def files(*parts, classes=("cat", "dog"), count=3, suffix=".jpg"):
    """{name: bytes} with ``count`` pictures of each class in each part; part '' is the top of the tree."""
    out = {}
    for part in parts:
        for name in classes:
            for i in range(count):
                out["/".join(filter(None, (part, name, f"{name}_{i}{suffix}")))] = making.picture(len(out), 8, 8)
    return out


def tree(folder, *parts, extra=None, **form):
    return making.write_tree(folder / "in", {**files(*parts, **form), **(extra or {})})


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(making.tar_bytes(members))
    return path


def shard(start=0, count=4, label=lambda i: i % 2, **more):
    """Members of ``count`` samples: jpg, cls, and ``more`` {extension: bytes}."""
    out = {}
    for i in range(start, start + count):
        parts = {"jpg": making.picture(i, 8, 8), "cls": str(label(i)).encode(), **more}
        out |= {f"{i:06d}.{extension.replace('__', '.')}": data for extension, data in sorted(parts.items())}
    return out


JUNK = {
    "train/.ipynb_checkpoints/cat_0-checkpoint.jpg": b"x", "train/cat/.ipynb_checkpoints/cat_0.jpg": b"x",
    "__MACOSX/train/cat/._cat_0.jpg": b"x", "train/cat/._cat_0.jpg": b"x", "train/Thumbs.db": b"x",
    "train/@eaDir/cat/thumb.jpg": b"x", "train/desktop.ini": b"x",
}  # fmt: skip
JUNK_LEFT = "left out: 7 files (junk 4, hidden 3)"


@layout("`train/<class>/`, `val/<class>/`", train=6, test=6)
def train_val(folder):
    return tree(folder, "train", "val")


@layout("split names in any spelling: `Training_Set/`, `TEST/`", train=6, test=6)
def spelled(folder):
    return tree(folder, "Training_Set", "TEST")


@layout(
    "train, valid and test side by side: valid is held out, test is kept as the store's `final` part",
    train=6,
    test=6,
    final=6,
)
def three_parts(folder):
    return tree(folder, "train", "valid", "test")


@layout("val and valid", refused="val and valid are names of one part (val)")
def two_names(folder):
    return tree(folder, "train", "val", "valid")


@layout(
    "train and val one or more folders down, a README and annotations beside them",
    train=6,
    test=6,
    left="left out: 2 files (.md 1, .xml 1)",
)
def wrapped(folder):
    return tree(folder, "data/images/train", "data/images/val", extra={"README.md": b"x", "Annotations/a.xml": b"x"})


@layout("`seg_train/seg_train/<class>/`, `seg_test/seg_test/<class>/`", train=6, test=6)
def decorated(folder):
    return tree(folder, "seg_train/seg_train", "seg_test/seg_test")


@layout("`<class>/` alone", train=6)
def classes_alone(folder):
    return tree(folder, "")


@layout("classes that are called like a part: `bus/`, `train/`", train=6, classes=("bus", "train"))
def train_is_a_class(folder):
    return tree(folder, "", classes=("bus", "train"))


@layout(
    "classes with a part's name in theirs: `latest/`, `carnival/`, `bullet_train/`",
    train=9,
    classes=("bullet_train", "carnival", "latest"),
)
def words_within(folder):
    return tree(folder, "", classes=("latest", "carnival", "bullet_train"))


@layout(
    "`<class>/train/`, `<class>/val/`", refused="two ways to read it: cat has train, val in it, and lies beside dog"
)
def parts_in_classes(folder):
    return making.write_tree(folder / "in", {f"{c}/{s}/{i}.jpg": making.picture(i, 8, 8) for c in ("cat", "dog")
                                             for s in ("train", "val") for i in range(2)})  # fmt: skip


@layout(
    "`data/train/<class>/` beside another folder of pictures",
    refused="two ways to read it: data has train in it, and lies beside docs",
)
def train_beside_pictures(folder):
    return tree(folder, "data/train", extra={"docs/screen.png": making.picture(1, 8, 8, form="PNG")})


@layout("val and test without train", refused="without a training part beside it")
def no_train(folder):
    return tree(folder, "val", "test")


@layout("a class in val that train spells otherwise", refused="class folder Cat is not in train; train has cat")
def other_case(folder):
    return tree(folder, "train", extra={"val/Cat/1.jpg": making.picture(1, 8, 8)})


@layout("classes whose names look the same: an accent in two forms of Unicode, a space at the end",
        refused="two classes have names that look the same: 'cafe\\u0301' and 'caf\\xe9'")  # fmt: skip
def accents(folder):
    return tree(folder, "train", classes=("caf\u00e9", "cafe\u0301", "dog"))


@layout("classes that differ in capitals alone", train=6, classes=("Cat", "cat"),
        note="classes that differ in capitals alone: Cat and cat")  # fmt: skip
def capitals(folder):
    return tree(folder, "", classes=("cat", "Cat"))


@layout("folders inside class folders, beside pictures or not", train=8,
        note="folders inside class folders count as their class: cat has masks")  # fmt: skip
def folders_inside(folder):
    masks = {f"train/cat/masks/{i}.png": making.picture(i, 8, 8, form="PNG") for i in range(2)}
    return tree(folder, "train", extra=masks)


@layout("val with nothing in it, as an extraction that broke off leaves it", train=6, note="val/ has no pictures")
def emptied_val(folder):
    source = tree(folder, "train")
    (source / "val" / "cat").mkdir(parents=True)
    return source


@layout("hidden files, `__MACOSX`, `Thumbs.db`, thumbnails of NAS systems", train=6, left=JUNK_LEFT)
def junk_folder(folder):
    return tree(folder, "train", extra=JUNK)


@layout("the same in a zip", train=6, left=JUNK_LEFT)
def junk_zip(folder):
    return making.write_zip(folder / "in.zip", {**files("train"), **JUNK})


@layout("the same in a .tar.gz", train=6, left=JUNK_LEFT)
def junk_tgz(folder):
    (folder / "in.tar.gz").write_bytes(gzip.compress(making.tar_bytes({**files("train"), **JUNK})))
    return folder / "in.tar.gz"


@layout("a zip whose names have backslashes", train=6, test=6)
def backslashes(folder):
    return making.write_zip(folder / "in.zip", {k.replace("/", "\\"): v for k, v in files("train", "val").items()})


@layout("a zip of which some names begin with `./`", train=6, test=6)
def dotted(folder):
    made = {f"{'./' * ('_0' in name)}{name}": data for name, data in files("train", "val").items()}
    return making.write_zip(folder / "in.zip", made)


@layout("`train.zip` and `val.zip`", train=6, test=6)
def two_zips(folder):
    for part in ("train", "val"):
        making.write_zip(folder / f"{part}.zip", files(""))
    return folder


@layout("`train.tar` and `val.tgz`, with what else lies there", train=6, test=6,
        left="left out: 3 files (.csv 1, .md 1, hidden 1)")  # fmt: skip
def two_tars(folder):
    packed = gzip.compress(tar(folder / "in" / "train.tar", files("")).read_bytes())
    (folder / "in" / "val.tgz").write_bytes(packed)
    return making.write_tree(folder / "in", {"README.md": b"x", ".hidden": b"x", "lists/x.csv": b"x"})


@layout("`train.tar` beside `train.tar.gz`", refused="two archives are called train: train.tar and train.tar.gz")
def tar_twice(folder):
    packed = gzip.compress(tar(folder / "in" / "train.tar", files("")).read_bytes())
    tar(folder / "in" / "val.tar", files(""))
    return making.write_tree(folder / "in", {"train.tar.gz": packed})


@layout("an archive beside the folders that it was unpacked to", train=6, test=6, left="left out: 1 file (.tar 1)")
def archive_beside(folder):
    source = tree(folder, "train", "val")
    tar(source / "all.tar", files("train"))
    return source


@layout(
    "pictures of every suffix that Pillow reads; others are counted",
    train=8,
    left="left out: 2 files (.heic 1, .txt 1)",
)
def suffixes(folder):
    forms = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.tif": "TIFF", "d.ppm": "PPM", "e.PNG": "PNG"}
    pictures = {f"train/cat/{name}": making.picture(1, 8, 8, form=form) for name, form in forms.items()}
    extra = {"train/cat/f.heic": b"x", "train/cat/notes.txt": b"x"}
    return tree(folder, "train", classes=("dog",), extra={**pictures, **extra})


@layout("a class folder without a picture", refused="1 of 3 class folders have no pictures, the first is ant")
def empty_class(folder):
    source = tree(folder, "train")
    (source / "train" / "ant").mkdir()
    return source


@layout("test pictures without labels", train=6, test=6, left="left out: 2 files (unlabelled 2)")
def flat_test(folder):
    return tree(folder, "train", "val", extra={f"test/{i}.jpg": making.picture(i, 8, 8) for i in range(2)})


@layout("pictures beside the class folders of val", train=6, test=6, left="left out: 2 files (unlabelled 2)")
def flat_beside_classes(folder):
    return tree(folder, "train", "val", extra={f"val/{i}.jpg": making.picture(i, 8, 8) for i in range(2)})


@layout("links to files that are not there (git-annex, DVC)", refused="1 links point at files that are not there")
def dangling(folder):
    source = tree(folder, "train")
    (source / "train" / "cat" / "x.jpg").symlink_to("/nonexistent/x.jpg")
    return source


@layout("pictures in one flat folder", refused="seen: 3 .jpg files one folder down, pictures need one folder a class")
def flat(folder):
    return tree(folder, "", classes=("cat",))


TINY_NAMES = (f"{W[0]} tench", f"{W[1]} brambling", W[2])
TINY_LEFT = "left out: 3 files (.txt 3)"


def tiny(folder, place):
    """Writes tiny-imagenet-200 with validation picture i, of class w, at each path in ``place(i, w)``."""
    made = making.tiny_files()
    val = sorted(name for name in made if "/val/images/" in name)
    for i, name in enumerate(val):
        data = made.pop(name)
        for inner in place(i, W[i % 3]):
            made[f"tiny-imagenet-200/val/{inner}"] = data
    return making.write_tree(folder / "in", made)


@layout("tiny-imagenet-200 as it comes", train=9, test=6, classes=TINY_NAMES, left=TINY_LEFT)
def tiny_official(folder):
    return tiny(folder, lambda i, w: [f"images/val_{i}.JPEG"])


@layout(
    "its val in class folders, with or without `images/`, annotations kept or gone",
    train=9,
    test=6,
    classes=TINY_NAMES,
    left=TINY_LEFT,
)
def tiny_class_folders(folder):
    source = tiny(folder, lambda i, w: [f"{w}/images/val_{i}.JPEG"])
    (source / "tiny-imagenet-200/val/val_annotations.txt").unlink()
    return source


@layout("its val copied into class folders, and left in `images/` too", train=9, test=6, classes=TINY_NAMES,
        left="left out: 9 files (copy of a picture in its class folder 6, .txt 3)")  # fmt: skip
def tiny_both(folder):
    return tiny(folder, lambda i, w: [f"images/val_{i}.JPEG", f"{w}/val_{i}.JPEG"])


@layout(
    "Kaggle's ImageNet, from its root", train=6, test=3, classes=W[:2], left="left out: 3 files (unlabelled 2, .xml 1)"
)
def kaggle(folder):
    base = "ILSVRC/Data/CLS-LOC"
    made = files(f"{base}/train", classes=W[:2], suffix=".JPEG")
    made |= {f"{base}/val/ILSVRC2012_val_{i:08d}.JPEG": making.picture(i, 8, 8) for i in (1, 2, 3)}
    made |= {f"{base}/test/ILSVRC2012_test_{i:08d}.JPEG": making.picture(i, 8, 8) for i in (1, 2)}
    rows = [f"ILSVRC2012_val_{i:08d},{W[i % 2]} 1 2 3 4" for i in (2, 3, 1)]
    made["LOC_val_solution.csv"] = "\n".join(["ImageId,PredictionString", *rows]).encode()
    return making.write_tree(folder / "in", {**made, "ILSVRC/Annotations/x.xml": b"x"})


@layout("ImageNet's three official files: the tars of train and val, and the devkit's .tar.gz",
        train=4, test=3, classes=W[:2])  # fmt: skip
def official(folder):
    inner = {f"{w}.tar": making.tar_bytes({f"{w}_{i}.JPEG": making.picture(i, 8, 8) for i in (1, 2)}) for w in W[:2]}
    tar(folder / "in" / "ILSVRC2012_img_train.tar", inner)
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": making.picture(i, 8, 8) for i in (1, 2, 3)}
    tar(folder / "in" / "ILSVRC2012_img_val.tar", val)
    kit = tar(folder / "kit.tar", making.devkit({W[0]: 2, W[1]: 1}, (W[0], W[1], W[1])))
    (folder / "in" / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(kit.read_bytes()))
    return folder / "in"


@layout("class folders in a tar", train=6, test=6)
def tar_of_folders(folder):
    return tar(folder / "set.tar", {f"./set/{name}": data for name, data in files("train", "val").items()})


NUMBERED = ("class_0000", "class_0001")


@layout(
    "WebDataset shards, also in `train/` and `val/`; `latest-train-0.tar` is for training",
    train=8,
    test=2,
    classes=NUMBERED,
)
def shards(folder):
    tar(folder / "in" / "train" / "latest-train-0.tar", shard())
    tar(folder / "in" / "train" / "latest-train-1.tar", shard(4))
    tar(folder / "in" / "val" / "0.tar", shard(50, 2))
    return folder / "in"


@layout(
    "several pictures under one key",
    refused="sample has 2 pictures (depth.png, jpg); choose one: imnet-data pack --image-key jpg",
)
def two_pictures(folder):
    return tar(folder / "train-0.tar", shard(depth__png=making.picture(1, 8, 8, "L", "PNG")))


@layout("neighbouring samples with one key", refused="neighbouring samples have one key: 2 members a.jpg")
def twin_keys(folder):
    whole = making.tar_bytes({"a.jpg": making.picture(1, 8, 8), "a.cls": b"0"})
    body = whole.rstrip(b"\0")
    body += bytes(-len(body) % 512)
    (folder / "train-0.tar").write_bytes(body + whole)
    return folder / "train-0.tar"


@layout(
    "captions beside the pictures; `.cls.txt`; labels that are words",
    train=4,
    classes=("n1", "n2"),
    left="left out: 4 files (.txt 4)",
)
def word_labels(folder):
    made = {
        name.replace(".cls", ".cls.txt"): data
        for name, data in shard(label=lambda i: f"n{1 + i % 2}", txt=b"a cat").items()
    }
    return tar(folder / "train-0.tar", made)


@layout("labels of -1", train=4, test=2, classes=NUMBERED, left="left out: 2 files (unlabelled 2)")
def unlabelled(folder):
    tar(folder / "in" / "train-0.tar", shard())
    tar(folder / "in" / "val-0.tar", shard(50, 2))
    tar(folder / "in" / "test-0.tar", shard(60, 2, lambda i: -1))
    return folder / "in"


@layout(
    "labels of -1 in all of val: the test set takes its place",
    train=4,
    test=2,
    classes=NUMBERED,
    left="left out: 2 files (unlabelled 2)",
)
def unlabelled_val(folder):
    tar(folder / "in" / "train-0.tar", shard())
    tar(folder / "in" / "val-0.tar", shard(50, 2, lambda i: -1))
    tar(folder / "in" / "test-0.tar", shard(60, 2))
    return folder / "in"


@layout("word labels of val that train has not", refused="1 classes have no training pictures: cow; train has cat")
def new_words(folder):
    tar(folder / "in" / "train-0.tar", shard(label=lambda i: "cat"))
    tar(folder / "in" / "val-0.tar", shard(50, 2, lambda i: "cow"))
    return folder / "in"


HOLE = "1 shards seem to be missing: there is no train-...1.tar"


@layout("a hole in the numbers of shards", train=8, classes=NUMBERED, note=HOLE)
def hole(folder):
    tar(folder / "in" / "train-0.tar", shard())
    tar(folder / "in" / "train-2.tar", shard(10))
    return folder / "in"


@layout(
    "labels from 1",
    train=4,
    classes=(*NUMBERED, "class_0002"),
    note="1 of 3 classes have no training pictures, the first is number 0; do labels count from 1?",
)
def labels_from_1(folder):
    return tar(folder / "train-0.tar", shard(label=lambda i: 1 + i % 2))


@layout(
    "a shard without a part's name beside others that have one",
    refused="extra-0.tar names no part of the set, beside train-0.tar",
)
def unmarked(folder):
    for name in ("train-0", "extra-0"):
        tar(folder / "in" / f"{name}.tar", shard())
    return folder / "in"


def parquet(folder, parts, names=("cat", "dog")):
    for name, labels in parts.items():
        path = folder / "in" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        made = names[name] if isinstance(names, dict) else names
        write(path, table([making.picture(i, 8, 8) for i in range(len(labels))], labels, made))
    return folder / "in"


if importlib.util.find_spec("pyarrow"):

    @layout("Parquet as the hub serves it: `train-00000-of-00002.parquet`, `train/0000.parquet`", train=4, test=2)
    def hub(folder):
        return parquet(folder, {"default/train/0000": [0, 1, 0, 1], "default/validation/0000": [1, 0]})

    @layout(
        "a shard of `-of-N` that is not there",
        refused="1 shards are missing, the first is train-00001-of-00003.parquet",
    )
    def missing_shard(folder):
        return parquet(folder, {"train-00000-of-00003": [0], "train-00002-of-00003": [1]})

    @layout(
        "class lists in another order",
        train=2,
        test=2,
        note="class names of test.parquet come in another order: matched by name",
    )
    def other_order(folder):
        return parquet(folder, {"train": [0, 1], "test": [0, 1]}, {"train": ("cat", "dog"), "test": ("dog", "cat")})

    @layout("class lists that differ", refused="its class names (cat, cow, ...) are not those of train.parquet")
    def other_classes(folder):
        return parquet(folder, {"train": [0, 1], "test": [0, 1]}, {"train": ("cat", "dog"), "test": ("cat", "cow")})


def idx(folder, name):
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        folder.mkdir(parents=True, exist_ok=True)
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        making.write_idx(images, folder / name.format(part=part, kind="images", dims=3))
        making.write_idx(np.arange(count, dtype=np.uint8) % 10, folder / name.format(part=part, kind="labels", dims=1))
    return folder


DIGITS = tuple("0123456789")


@layout(
    "IDX files, dotted or not, gz or not, in torchvision's folder: Fashion-MNIST by their content alone",
    train=20,
    test=10,
    classes=DIGITS,
)
def idx_files(folder):
    idx(folder / "FashionMNIST" / "raw", "{part}-{kind}.idx{dims}-ubyte.gz")
    return folder


@layout("IDX files of two sets", refused="IDX files of 2 sets")
def idx_twice(folder):
    idx(folder / "MNIST" / "raw", "{part}-{kind}-idx{dims}-ubyte")
    idx(folder / "KMNIST" / "raw", "{part}-{kind}-idx{dims}-ubyte")
    return folder


THOUSAND = tuple(f"class_{i:04d}" for i in range(1, 1001))


@layout("ImageNet-64 batches in sub-folders", train=101, test=20, classes=THOUSAND,
        note="no map_clsloc.txt beside the batches: classes are named by number")  # fmt: skip
def batches(folder):
    making.imagenet64_folder(folder / "in" / "a", 8)
    (folder / "in" / "b").mkdir()
    (folder / "in" / "a" / "val_data").rename(folder / "in" / "b" / "val_data")
    return folder / "in"


@layout(
    "an arrow folder of `save_to_disk`",
    refused="no known data set here; seen: 1 .json file, 1 .arrow file one folder down",
)
def arrow(folder):
    return making.write_tree(folder / "in", {"dataset_dict.json": json.dumps({}).encode(), "train/data.arrow": b"x"})


def rows():
    """Returns the Markdown table that docs/data.md contains."""
    lines = ["| what lies there | what becomes of it |", "|---|---|"]
    return "\n".join(lines + [f"| {case.title} | {case.outcome()} |" for case in CASES.values()])


if __name__ == "__main__":
    print(rows())
