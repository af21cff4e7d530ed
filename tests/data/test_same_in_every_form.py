"""Property tests: a tree gives the same set as a folder, zip, tar and .tar.gz, and every file is counted once."""

import gzip
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from imnet.data.readers import recognise
from imnet.errors import DataError
from tests.data import making

PICTURE = making.picture(0, 4, 4)
PARTS = {
    "train": ("train", "Train", "TRAINING", "training_set", "trn", "TrainSet", "train images"),
    "val": ("val", "Valid", "VALIDATION", "validation_set", "dev"),
    "test": ("test", "TEST", "testing", "Test_Set"),
}
CLASSES = ("cat", "dog", "latest", "carnival", "retrain", "a & b", "Ñandú", "犬", "contest", "validity")
SUFFIXES = (".jpg", ".JPG", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".TIFF", ".ppm", ".webp", ".bmp", ".gif")
OTHERS = ("notes.txt", "a.csv", "b.heic", "c.xml", "README", "boxes.json", "weights.bin")
JUNK = (
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
    "._cat.jpg",
    ".ipynb_checkpoints/x.jpg",
    "__MACOSX/._x.jpg",
    "@eaDir/x.jpg",
)
FOLDERS = st.lists(st.sampled_from(["train", "val", "test", "cat", "dog", "images", "Valid", "x"]), max_size=3)
FILES = ("1.jpg", "2.png", "a.txt", ".hidden", "Thumbs.db")


@st.composite
def trees(draw):
    """Draws ({name: bytes}, sorted class names, pictures per part) of a tree with unusual folders and other files."""
    wrapper = draw(st.sampled_from(["", "set", "data/images", "latest"]))
    classes = draw(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4, unique=True))
    parts = {"train", *draw(st.sets(st.sampled_from(["val", "test"])))}
    files, counts = {}, Counter()
    for part in sorted(parts):
        folder = draw(st.sampled_from(PARTS[part]))
        for name in classes:
            for i in range(draw(st.integers(1, 2))):
                inner = draw(st.sampled_from(["", "images/"])) if part != "train" else ""
                files[
                    "/".join(filter(None, (wrapper, folder, name, f"{inner}{i}{draw(st.sampled_from(SUFFIXES))}")))
                ] = PICTURE
                counts[part] += 1
    folders = sorted({name.rsplit("/", 1)[0] for name in files} | ({wrapper} if wrapper else set()))
    for other in draw(st.lists(st.sampled_from(OTHERS + JUNK), max_size=5)):
        files[f"{draw(st.sampled_from(folders))}/{other}"] = b"x"
    return files, sorted(classes), counts


def read(path):
    """Returns (classes, {split: sorted (name, label)}, left-out files, notes), or the refusal without the path."""
    try:
        found = recognise(path)
    except DataError as error:
        return str(error).replace(str(path), "")
    splits = {split: sorted((items.name(i), items.label(i)) for i in range(len(items))) for split, items in
              found.splits.items()}  # fmt: skip
    return found.class_names, splits, dict(found.left), found.notes


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(trees())
def test_folder_zip_and_tar_agree_and_every_file_counts_once(made):
    files, classes, counts = made
    with tempfile.TemporaryDirectory() as top:
        top = Path(top)
        raw = making.tar_bytes(files)
        (top / "set.tar").write_bytes(raw)
        (top / "set.tgz").write_bytes(gzip.compress(raw, 1))
        forms = [
            making.write_tree(top / "in", files),
            making.write_zip(top / "set.zip", files),
            top / "set.tar",
            top / "set.tgz",
        ]
        first, *others = [read(form) for form in forms]
    assert others == [first] * 3
    assert not isinstance(first, str), first
    names, splits, left, _ = first
    assert sorted(names) == classes
    split_of = {"train": "train", "val": "test", "test": "final" if "val" in counts else "test"}
    assert {split: len(rows) for split, rows in splits.items()} == {split_of[part]: n for part, n in counts.items()}
    assert sum(map(len, splits.values())) + sum(left.values()) == len(files)
    for rows in splits.values():
        assert all(f"/{names[label]}/" in f"/{name}" for name, label in rows)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(FOLDERS, st.sampled_from(FILES)), min_size=1, max_size=9))
@example([(["train"], "1.jpg"), (["train", "train"], "1.jpg"), (["train", "val"], ".hidden")])
def test_any_tree_is_read_or_refused_alike(placed):
    """Holds also for trees that make no sense: both forms agree, and no file is counted twice or lost."""
    files = {"/".join((*folders, name)): PICTURE for folders, name in placed}
    with tempfile.TemporaryDirectory() as top:
        forms = [making.write_tree(Path(top) / "in", files), making.write_zip(Path(top) / "set.zip", files)]
        folder, zipped = [read(form) for form in forms]
    assert isinstance(folder, str) == isinstance(zipped, str)
    if isinstance(folder, str):
        return
    assert folder == zipped
    assert sum(map(len, folder[1].values())) + sum(folder[2].values()) == len(files)
