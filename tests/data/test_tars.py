"""ImageNet tars, the Kaggle layout and WebDataset shards against plain Pillow and tarfile."""

import gzip
import io
import os
import resource
import tarfile

import numpy as np
import pytest

from imnet.data.readers import recognise
from imnet.data.readers.picture import ResizeRule
from imnet.data.store import load_store
from imnet.data.store.pack import Options, pack
from imnet.data.tool import main
from imnet.errors import DataError
from tests.data import making

BOX16 = Options(ResizeRule(16), workers=1, quiet=True)
AS_IS = Options(workers=1, quiet=True)


def imagenet_tars(folder, **forms):
    inner = {
        f"{wnid}.tar": making.tar_bytes({f"{wnid}_{i}.JPEG": making.picture(10 * c + i) for i in range(3)}, **forms)
        for c, wnid in reversed(list(enumerate(making.WNIDS)))
    }
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": making.picture(500 + i) for i in range(1, 7)}
    folder.mkdir()
    (folder / "ILSVRC2012_img_train.tar").write_bytes(making.tar_bytes(inner, **forms))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(making.tar_bytes(val, **forms))
    return val


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("truth", ["synsets", "clsloc", "devkit", "devkit.tar.gz"])
def test_imagenet_tars(tmp_path, form, truth):
    val = imagenet_tars(tmp_path / "in", form=form)
    order = [2, 0, 1, 1, 0, 2]
    if truth == "synsets":
        lines = "\n".join(making.WNIDS[i] for i in order)
        (tmp_path / "in" / "imagenet_2012_validation_synset_labels.txt").write_text(lines)
    elif truth.startswith("devkit"):
        listed = dict(zip(reversed(making.WNIDS), (2, 1, 3), strict=True))
        files = making.devkit(listed, [making.WNIDS[i] for i in order], compress=form == tarfile.GNU_FORMAT)
        if truth == "devkit":
            making.write_tree(tmp_path / "in", files)
        else:
            packed = gzip.compress(making.tar_bytes(files, form))
            (tmp_path / "in" / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(packed)
    else:
        numbers = [7, 3, 5]
        clsloc = "".join(f"{wnid} {numbers[i]} name\n" for i, wnid in enumerate(making.WNIDS))
        (tmp_path / "in" / "map_clsloc.txt").write_text(clsloc)
        lines = "".join(f"{numbers[i]}\n" for i in order)
        (tmp_path / "in" / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    pack(recognise(tmp_path / "in"), tmp_path / "out", BOX16)
    data = load_store(tmp_path / "out")
    train = [making.expected(making.picture(10 * c + i), 16) for c in range(3) for i in range(3)]
    assert np.array_equal(data.train.images, np.stack(train))
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert np.array_equal(data.test.images, np.stack([making.expected(val[name], 16) for name in sorted(val)]))
    assert data.test.labels.tolist() == order


def test_a_tar_of_more_class_tars_than_imagenet_1k_has_is_not_called_so(tmp_path):
    """The winter release of ImageNet-21K is one tar that contains a folder of class tars."""
    one = making.tar_bytes({"x.JPEG": making.picture(1, 4, 4)})
    for count in (1000, 1001):
        inner = {f"winter21_whole/n{i:08d}.tar": one for i in range(count)}
        (tmp_path / f"{count}.tar").write_bytes(making.tar_bytes(inner))
    found = [recognise(tmp_path / f"{count}.tar") for count in (1000, 1001)]
    assert [one.name for one in found] == ["imagenet", "imagenet21k"]
    assert not any("1K" in one.kind for one in found)


@pytest.mark.parametrize("place", ["", "val/", "ILSVRC2012_devkit_t12/data/"])
def test_a_flat_validation_folder_takes_its_labels_from_the_devkit(tmp_path, place):
    """The devkit may be unpacked as it is, or its two files lie beside the pictures or beside the val folder."""
    val = {f"val/ILSVRC2012_val_{i:08d}.JPEG": making.picture(500 + i) for i in range(1, 4)}
    kit = making.devkit(dict(zip(making.WNIDS, (3, 1, 2), strict=True)), [making.WNIDS[i] for i in (2, 0, 1)])
    lists = {place + name.rpartition("/")[2]: content for name, content in kit.items() if "/data/" in name}
    found = recognise(making.write_tree(tmp_path / "in", {**making.class_files(), **val, **lists}))
    assert found.splits["test"].labels().tolist() == [2, 0, 1]
    assert not found.left


def test_a_damaged_class_list_of_the_devkit_is_one_line(tmp_path):
    imagenet_tars(tmp_path / "in")
    rng = np.random.default_rng(0)
    kit = making.devkit(dict(zip(making.WNIDS, (3, 1, 2), strict=True)), making.WNIDS * 2, compress=False)
    name = next(name for name in kit if name.endswith("meta.mat"))
    whole, refused = kit[name], 0
    for cut in (0, 100, 128, 140, 300, len(whole) - 9, *rng.integers(128, len(whole), 60).tolist()):
        flipped = bytearray(whole)
        flipped[cut : cut + 1] = rng.bytes(1)
        for data in (whole[:cut], bytes(flipped)):
            making.write_tree(tmp_path / "in", kit | {name: data})
            try:
                recognise(tmp_path / "in")  # not every damaged byte is one that is read
            except DataError:
                refused += 1
    assert refused > 66


def test_validation_tar_without_labels_says_what_to_add(tmp_path):
    imagenet_tars(tmp_path / "in")
    with pytest.raises(DataError, match="synset_labels"):
        recognise(tmp_path / "in")


def test_kaggle_layout_with_flat_validation(tmp_path):
    val = {f"val/ILSVRC2012_val_{i:08d}.JPEG": making.picture(500 + i) for i in range(1, 4)}
    source = making.write_tree(tmp_path / "ILSVRC" / "Data" / "CLS-LOC", {**making.class_files(), **val})
    assert "beside it" in recognise(source).notes[0]
    rows = [f"ILSVRC2012_val_{i:08d},{making.WNIDS[wnid]} 1 2 3 4" for i, wnid in ((3, 0), (1, 2), (2, 2))]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    pack(recognise(source), tmp_path / "out", BOX16)
    data = load_store(tmp_path / "out")
    assert data.test.labels.tolist() == [2, 2, 0]
    assert np.array_equal(data.test.images, np.stack([making.expected(val[name], 16) for name in sorted(val)]))
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows[:2]]))
    with pytest.raises(DataError, match="2 validation labels do not cover it"):
        recognise(source)
    twice = [*rows, rows[1].replace(making.WNIDS[2], making.WNIDS[1])]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *twice]))
    with pytest.raises(DataError, match=r"line 5.*: n01530575 for a picture that is n01601694 on a line above"):
        recognise(source)


def test_long_names_in_tars(tmp_path):
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        name = "d" * 150 + "/" + "ä" * 60 + ".jpg"
        files = {name: making.picture(1), name.replace(".jpg", ".cls"): b"0"}
        (tmp_path / f"shard-{form}.tar").write_bytes(making.tar_bytes(files, form))
    found = recognise(tmp_path)
    assert len(found.splits["train"]) == 2
    assert found.splits["train"].name(0) == name


def test_webdataset(tmp_path):
    (tmp_path / "in").mkdir()
    for split, shards in (("train", 2), ("val", 1)):
        for shard in range(shards):
            files = {}
            for i in range(3):
                key = f"{split}/{shard}-{i}"
                files[f"{key}.jpg"] = making.picture(10 * shard + i)
                if i < 2:
                    files[f"{key}.cls"] = str(i).encode()
                else:
                    files[f"{key}.json"] = b'{"label": 4, "caption": "x"}'
            (tmp_path / "in" / f"set-{split}-{shard:06d}.tar").write_bytes(making.tar_bytes(files))
    (tmp_path / "in" / "classnames.txt").write_text("a\nb\nc\nd\ne\n")
    pack(recognise(tmp_path / "in"), tmp_path / "out", BOX16)
    data = load_store(tmp_path / "out")
    assert data.train.labels.tolist() == [0, 1, 4, 0, 1, 4]
    assert len(data.test) == 3
    assert data.class_names == ("a", "b", "c", "d", "e")
    assert np.array_equal(data.train.images[4], making.expected(making.picture(11), 16))


def test_a_json_beside_a_label_may_be_large(tmp_path):
    outline = b'{"outline": [' + b"0.5, " * 20_000 + b"0.5]}"
    files = {"0.jpg": making.picture(0), "0.cls": b"2", "0.json": outline}
    (tmp_path / "train.tar").write_bytes(making.tar_bytes(files))
    assert recognise(tmp_path).splits["train"].labels().tolist() == [2]


def test_a_tar_of_ones_own_may_be_called_devkit(tmp_path):
    files = {f"{part}/cat/{i}.png": making.picture(i) for i, part in enumerate(("train", "val"))}
    tar = tmp_path / "pets-devkit.tar"
    tar.write_bytes(making.tar_bytes(files))
    assert {split: len(items) for split, items in recognise(tar).splits.items()} == {"train": 1, "test": 1}


@pytest.mark.parametrize("name", ["in.tar.gz", "Imagenet8_train.zip"])
def test_no_room_to_unpack_says_where_it_is_needed(tmp_path, name, capsys):
    """The room is short by less than the buffer of a file, so that the last write fails."""
    if name == "in.tar.gz":
        inside = making.tar_bytes(making.class_files())
        (tmp_path / name).write_bytes(gzip.compress(inside))
    else:
        inside = making.batch_bytes(5, 8)
        making.write_zip(tmp_path / name, {"train_data_batch_1": inside})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(inside) - 1000, limits[1]))
    try:
        assert main(["inspect", str(tmp_path / name)]) == 74
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{name}: cannot unpack it: File too large; make room in" in capsys.readouterr().err


def test_more_gzipped_shards_than_files_may_be_open_at_first(tmp_path):
    """A set may have thousands of shards, but the usual limit is 1024 open files."""
    for i in range(80):
        sample = {"0.jpg": making.picture(1, 4, 4), "0.cls": b"%d" % (i % 2)}
        (tmp_path / f"train-{i:03}.tar.gz").write_bytes(gzip.compress(making.tar_bytes(sample), 1))
    before, lowest = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 40, before[1]))
        items = recognise(tmp_path).splits["train"]
        assert {items.read(i) for i in range(80)} == {making.picture(1, 4, 4)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("twice", ["n01440764_0.JPEG", "n01440764.tar", "ILSVRC2012_val_00000001.JPEG"])
def test_a_member_of_an_official_tar_that_came_twice(tmp_path, twice):
    """It would count twice: ``tar -r`` appends a file again without a word."""
    imagenet_tars(tmp_path / "in")
    (tmp_path / "in" / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(making.WNIDS * 2))
    path = tmp_path / "in" / f"ILSVRC2012_img_{'val' if 'val' in twice else 'train'}.tar"
    with tarfile.open(path) as archive:
        members = [(one.name, archive.extractfile(one).read()) for one in archive]
    if twice == "n01440764_0.JPEG":
        inner = making.tar_bytes({twice: making.picture(1)}).rstrip(b"\0")
        inner += bytes(-len(inner) % 512)
        members = [(name, inner + data if name == "n01440764.tar" else data) for name, data in members]
    else:
        members += [one for one in members if one[0] == twice]
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(DataError, match=rf"{path.name} \({twice}\): two members have this name"):
        recognise(tmp_path / "in")


def test_two_class_tars_of_one_class_in_the_official_tar(tmp_path):
    inner = making.tar_bytes({"n01440764_0.JPEG": making.picture(1)})
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(making.tar_bytes({"n01440764.tar": inner, "more/n01440764.tar": inner}))
    with pytest.raises(DataError, match=r"\(n01440764\.tar\): two tars of one class"):
        recognise(path)


@pytest.mark.parametrize("truth", ["synsets", "devkit"])
def test_a_label_too_many_for_imagenets_validation_pictures(tmp_path, truth):
    """The pictures behind the additional line would have the labels of others."""
    imagenet_tars(tmp_path / "in")
    if truth == "devkit":
        kit = making.devkit({wnid: number for number, wnid in enumerate(making.WNIDS, 1)}, [])
        kit["ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"] = b"1\n" * 50_001
        making.write_tree(tmp_path / "in", kit)
    else:
        labels = f"{making.WNIDS[0]}\n" * 50_001
        (tmp_path / "in" / "imagenet_2012_validation_synset_labels.txt").write_text(labels)
    with pytest.raises(DataError, match=r"50001 labels; allowed 50000, one for each validation picture"):
        recognise(tmp_path / "in")
