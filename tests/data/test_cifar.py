"""CIFAR's binary version, read from a folder, an archive and a server; the files are small ones of its layout."""

import gzip
import hashlib
from dataclasses import replace

import numpy as np
import pytest

from imnet.data import load
from imnet.data.readers import recognise
from imnet.data.readers.cifar import FORMS
from imnet.data.sets.remote import remote_sets
from imnet.data.store import load_store
from imnet.data.store.pack import Options, pack
from imnet.errors import DataError, UsageError
from tests.data import making


def files(form):
    """{name: bytes} with 6 images per file, and the rows that the files hold."""
    rng = np.random.default_rng(0)
    raw, rows = {}, {}
    for name in (*form.train, *form.test):
        rows[name] = rng.integers(0, 256, (6, form.label_bytes + 3072), dtype=np.uint8)
        rows[name][:, : form.label_bytes] = rng.integers(0, 10, (6, form.label_bytes))
        raw[name] = rows[name].tobytes()
    names = "\n".join(f"name{i}" for i in range(10 if form.name == "cifar10" else 100))
    raw[form.names_file] = names.encode("utf-8-sig")  # with a byte order mark, as Notepad writes it
    return raw, rows


@pytest.fixture(params=["cifar10", "cifar100"])
def form(request):
    return FORMS[request.param]


@pytest.mark.parametrize("where", ["folder", "parent", "archive"])
def test_read(form, where, tmp_path):
    raw, rows = files(form)
    if where == "archive":
        inside = {f"{form.folder}/{name}": data for name, data in raw.items()}
        (tmp_path / form.archive).write_bytes(gzip.compress(making.tar_bytes(inside)))
    else:
        making.write_tree(tmp_path / form.folder, raw)
    data = load(form.name, tmp_path / form.folder if where == "folder" else tmp_path, download=False)
    wanted = np.concatenate([rows[name] for name in form.train])
    assert np.array_equal(data.train.labels, wanted[:, form.label_bytes - 1])
    planar = wanted[:, form.label_bytes :].reshape(-1, 3, 1024)
    assert np.array_equal(data.train.images.reshape(-1, 1024, 3).transpose(0, 2, 1), planar)
    assert (len(data.test), data.class_names[0], data.class_names[3]) == (6, "name0", "name3")


def test_pack_and_load_again(form, tmp_path):
    making.write_tree(tmp_path / form.folder, files(form)[0])
    pack(recognise(tmp_path / form.folder), tmp_path / "out", Options(quiet=True))
    plain = load(form.name, tmp_path, download=False)
    assert (
        load_store(tmp_path / "out").fingerprint == plain.fingerprint == load(form.name, tmp_path / "out").fingerprint
    )


def test_damage_is_one_line(form, tmp_path):
    raw, _ = files(form)
    first = form.train[0]
    record = form.label_bytes + 3072
    labelled = bytearray(raw[first])
    labelled[record + form.label_bytes - 1] = 200
    kinds = {
        "bytes are not whole records": {first: raw[first][:-1]},
        "label 200 of image 1": {first: bytes(labelled)},
        "^(?s:.)*0 bytes are not whole": {first: b""},
    }
    for expected, change in kinds.items():
        making.write_tree(tmp_path / form.folder, {**raw, **change})
        with pytest.raises(DataError, match=expected):
            load(form.name, tmp_path, download=False)
    archive = gzip.compress(making.tar_bytes({f"x/{name}": data for name, data in raw.items()}))
    (tmp_path / "a").mkdir()
    for expected, changed in (("archive is damaged", archive[:-400]), ("archive is damaged", b"<html>"),
                              ("is missing", gzip.compress(making.tar_bytes({"x/a": b"1"})))):  # fmt: skip
        (tmp_path / "a" / form.archive).write_bytes(changed)
        with pytest.raises(DataError, match=expected):
            load(form.name, tmp_path / "a", download=False)


def test_missing_and_wrong_options(form, tmp_path):
    with pytest.raises(DataError, match="--data shapes"):
        load(form.name, tmp_path, download=False)
    with pytest.raises(UsageError, match="image_px is 64"):
        load(form.name, tmp_path, image_px=64)


def test_download(form, server, tmp_path):
    archive = gzip.compress(making.tar_bytes(files(form)[0]))
    server.files[form.archive] = archive
    changed = {form.archive: (len(archive), "md5:" + hashlib.md5(archive).hexdigest())}
    folder = replace(remote_sets()[form.name], files=changed).download(tmp_path, server.url)
    assert (folder / form.archive).read_bytes() == archive
    assert len(load(form.name, tmp_path, download=False).test) == 6
