"""Troublesome sources that users of other tools report, made by scripts beside the checkout, with correct results."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imnet.data.readers import recognise
from imnet.data.store import open_store
from imnet.data.tool import main
from imnet.errors import DataError
from tests.data.conftest import SHARED

SCRIPTS = SHARED.parent / "cases" / "data"
pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason=f"{SCRIPTS} is not on this machine")

# Source -> (train, test, final, classes), or a part of the refusal's text.
TINY, PETS, PAIR = (12, 6, 0, 3), (6, 6, 0, 2), (4, 0, 0, 2)
EXPECTED = {
    "c01_tiny_val_reorganised": {
        "A_official": TINY, "B_wnid_images": TINY, "C_wnid_noann": TINY, "D_wnid_emptyimages": TINY,
        "E_images_wnid": TINY, "F_kaggle_double": TINY, "G_copied_both": TINY, "H_nownids_flatval": TINY,
    },
    "c02_folders": {
        "a_ipynb": PETS, "a_ipynb.zip": PETS, "a2_ipynb_in_class": PETS, "a2_ipynb_in_class.zip": PETS,
        "b_TrainTest": PETS, "b2": PETS, "c_macos": PETS, "c_macos.zip": PETS, "d": PETS, "d_backslash.zip": PETS,
        "e_kaggle": (6, 4, 0, 2), "f_nested": PETS, "g_valsubset": (6, 3, 0, 2),
        "g2_valcase": "class folder Cat is not in train", "h_links": PETS, "h_src": PETS,
        "h2_dangling": "1 links point at files that are not there", "h3_lfs": PETS, "i_unicode": (12, 12, 0, 4),
        "i2_latin1": PETS, "i3_latin1_file": PETS, "j_empty": "class folders have no pictures, the first is ant",
        "k_ext": (18, 6, 0, 2), "k2_alltif": (9, 9, 0, 3), "l_flat": "4 .jpg files", "m_eadir": PETS,
        "n_tvt": (6, 6, 6, 2), "o_testflat": (6, 0, 0, 2),
    },
    "c05_tars": {
        "w1_plain": (4, 2, 0, 2), "w2_depth": "2 pictures (depth.png, jpg)", "w2_seg": "2 pictures (jpg, seg.png)",
        "w3_clstxt": PAIR, "w3_caption": PAIR, "w3_jpgtxt": PAIR, "w4_wnid_cls": PAIR, "w4_json": PAIR,
        "w4_json_str": PAIR, "w5_names": (8, 2, 0, 2), "w5b_names": (4, 2, 0, 2), "w6_sub": (4, 2, 0, 2), "w7_gz": PAIR,
        "w8_img2dataset": "no .cls or .json label; it has .jpg, .json, .txt", "w9_mac": (3, 0, 0, 2), "w10_dirs": PAIR,
        "w11_dots": "a key ends at its first dot", "w12_unsorted": "must be neighbours", "w13_tvt": (4, 2, 0, 2),
        "w13b_tvt_labelled": (4, 2, 3, 2), "w14_newline": PAIR, "w14_gap": (4, 0, 0, 3),
        "t1_classfolders.tar": (4, 4, 0, 2),
        "t1b.tgz": (4, 4, 0, 2), "t2_links": "type b'2'", "t2_hard": "type b'1'", "t3_long_gnu": PAIR,
        "t3_long_pax": PAIR, "t6_21k": (2, 0, 0, 3), "t7_torchvision": "validation tar without labels",
        "t7b_labels": (4, 4, 0, 2), "t8_mac_train": PAIR,
    },
    "c07_parquet": {
        "a_shards": (12, 2, 0, 2), "b_convert": (3, 2, 0, 2), "c_string": (2, 0, 0, 2), "d_dict": (2, 0, 0, 2),
        "e_null": (1, 0, 0, 2), "f_pathonly": "picture has no bytes", "g_binary": (2, 0, 0, 2),
        "h_cifar100": (2, 0, 0, 2),
        "i_mask": (2, 0, 0, 2), "i2_mask_pixel_values": "2 columns of pictures: annotation, pixel_values",
        "j_differ": (4, 0, 0, 2), "j2_traintest_differ": (2, 2, 0, 2), "k_missing": "train-00001-of-00003.parquet",
        "l_lfs": "Git LFS pointer", "m_large": (2, 0, 0, 2), "n_tiny_valid": (2, 1, 0, 2), "o_arrow": ".arrow file",
        "p_nullimage": "picture has no bytes",
    },
    "c08_idx": {
        **dict.fromkeys(["a_gz", "b_raw", "c_dot", "c2_dot_gz", "d_torchvision", "e_kaggle_dirs", "g_rawnamedgz",
                         "l_extra_dir", "m_emnist"], (40, 20, 0, 10)),
        "f_html": "not an IDX file", "h_trunc": "gzip stream ends early", "i_swapped": "20 labels for 40 images",
        "j_missing_test": "no t10k-images-idx3-ubyte", "k_kaggle_csv": "2 .csv files",
    },
}  # fmt: skip


def commands(folder):
    """Fills ``folder`` with commands that run this tree with this Python, installed or not, and returns it for PATH."""
    folder.mkdir(exist_ok=True)
    for name, words in (("imnet-data", "-m imnet.data.tool"), ("imnet-train", "-m imnet.cli"), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def write(name, out):
    out.mkdir(exist_ok=True)
    call = [sys.executable if name.endswith(".py") else "bash", str(SCRIPTS / name), str(out)]
    top = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(top), str(top / "kernels")])}
    env["PATH"] = os.pathsep.join([str(commands(out.parent / "bin")), os.environ["PATH"]])
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


@pytest.mark.parametrize("script", EXPECTED)
def test_each_source_has_its_right_value_or_is_refused(script, tmp_path):
    if script == "c07_parquet":
        pytest.importorskip("pyarrow")
    write(f"{script}.py", tmp_path / "out")
    got = {path.name: outcome(path) for path in (tmp_path / "out").iterdir()}
    assert set(got) == set(EXPECTED[script])
    wrong = {name: (got[name], wanted) for name, wanted in EXPECTED[script].items()
             if (wanted not in got[name] if isinstance(wanted, str) else got[name] != wanted)}  # fmt: skip
    assert not wrong


def outcome(path):
    try:
        found = recognise(path)
    except DataError as error:
        return str(error)
    return (*(len(found.splits.get(split, ())) for split in ("train", "test", "final")), len(found.class_names))


def test_labels_of_class_lists_in_another_order(tmp_path):
    pytest.importorskip("pyarrow")
    write("c07_parquet.py", tmp_path / "out")
    found = recognise(tmp_path / "out" / "j_differ")
    assert [found.class_names[label] for label in found.splits["train"].labels()] == ["cat", "dog", "dog", "cat"]


def test_imagenet64_forms(tmp_path):
    """Packed pixels and labels equal numpy's; forms with another meaning are refused."""
    write("c06_imagenet64.py", tmp_path / "out")
    refused = {"data_nchw", "data_nhwc", "fortran", "lab_npscalars", "npz_float", "npz_fortran", "npz_list_obj",
               "npz_other_keys", "zero_based"}  # fmt: skip
    for source in sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir()):
        code = main(["pack", str(source), str(tmp_path / "packed" / source.name)])
        assert code == (65 if source.name in refused else 0), source.name
        if code or not (source / "val_data.x.npy").exists():
            continue
        for split, batch in (("train", "train_data_batch_1"), ("test", "val_data")):
            store = open_store(tmp_path / "packed" / source.name / f"{split}.imnet")
            planar = np.load(source / f"{batch}.x.npy").reshape(-1, 3, 8, 8)
            assert np.array_equal(store.images(), planar.transpose(0, 2, 3, 1)), source.name
            assert np.array_equal(store.labels, np.load(source / f"{batch}.y.npy").ravel() - 1), source.name


def test_odd_pictures(tmp_path):
    """Packed pixels equal Pillow's; files that are packed encoded and exported keep their bytes."""
    write("c04_pictures.py", tmp_path / "out")
    bad = {"empty_jpg", "html_jpg", "no_eoi_jpg", "truncated_jpg", "gray16_png"}
    from PIL import Image

    for source in sorted((tmp_path / "out").iterdir()):
        path, target = next((source / "train" / "a").iterdir()), tmp_path / "packed" / source.name
        code = main(["pack", str(source), str(target / "px"), "--size", "24", "--workers", "1"])
        assert code == (65 if source.name in bad else 0), source.name
        if code:
            continue
        with Image.open(path) as picture:
            wanted = np.asarray(picture.convert("RGB").resize((24, 24), Image.Resampling.BOX))
        assert np.array_equal(open_store(target / "px" / "train.imnet").images()[0], wanted), source.name
        assert main(["pack", str(source), str(target / "as-is"), "--workers", "1"]) == 0
        assert main(["export", str(target / "as-is"), str(target / "out")]) == 0
        assert next((target / "out" / "train" / "a").iterdir()).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_stale_cache(tmp_path):
    out = write("c03_stale_cache.sh", tmp_path / "out")
    assert "16 train pictures, mean of the first 4: 255.0" in out
    assert "mean of cat in the store 255.0" in out


def test_skip_then_mend(tmp_path):
    lines = write("c10_skip_then_mend.py", tmp_path / "out").splitlines()
    assert "1099 images" in lines[0]
    assert sum("1100 images" in line for line in lines) >= 2


@pytest.mark.slow
def test_partial_extraction(tmp_path):
    out = write("c16_partial_extraction.sh", tmp_path / "out")
    assert "data       imagenet: 6 train, 6 test images" in out
    assert "data       imagenet: 100 train, 6 test images" in out
