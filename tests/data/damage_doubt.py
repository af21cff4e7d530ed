"""Cases of the damage table: labels that are missing or of a wrong kind, and what is there twice and differs."""

import gzip
import zipfile

import numpy as np

from tests.data import making
from tests.data.damage_archives import SHARD, edited, shard, shard_files
from tests.data.damage_arrays import BATCH, IMAGES, batch, dumped, idx_set, npz
from tests.data.damage_parquet import case as parquet_case
from tests.data.damage_parquet import table, write
from tests.data.damage_table import case


@case(r"header ends after 9 bytes, expected 16", shown=IMAGES)
def idx_header_short(folder):
    return idx_set(folder, IMAGES, lambda raw: raw[:9])


@case(r"holds other data than train-images-idx3-ubyte.gz beside it", shown=IMAGES)
def idx_packed_and_unpacked_differ(folder):
    idx_set(folder, IMAGES, lambda raw: raw)
    (folder / f"{IMAGES}.gz").write_bytes(gzip.compress((folder / IMAGES).read_bytes()[:-1] + b"\1"))
    return folder


@case(r"labels is NoneType, expected an array", shown=BATCH)
def pickle_without_labels(folder):
    return batch(folder, dumped(labels=None))


@case(r"labels are i8 \[3, 4\]; expected integers \(12,\)", shown=BATCH)
def pickle_label_matrix(folder):
    return batch(folder, dumped(labels=np.ones((3, 4), np.int64)))


@case(r"labels: array of type 'f2'; allowed u1, ", shown=BATCH)
def pickle_label_type(folder):
    return batch(folder, dumped(labels=np.ones(12, np.float16)))


@case(r"one batch twice: Imagenet8_train.zip \(train_data_batch_1\) and train_data_batch_1", shown="source")
def pickle_zipped_and_unpacked(folder):
    making.write_zip(folder / "Imagenet8_train.zip", {BATCH: dumped()})
    return batch(folder, dumped())


@case(r"\(train_data_batch_1\): zip is damaged: Bad CRC-32", shown="Imagenet8_train.zip")
def pickle_in_a_damaged_zip(folder):
    path = making.write_zip(folder / "Imagenet8_train.zip", {BATCH: dumped()}, zipfile.ZIP_STORED)
    with edited(path) as raw:
        raw[1000] ^= 1
    return folder


@case(r"no known data set here; seen: 1 .zip file", shown="source")
def pickle_with_a_number_too_long(folder):
    """Python refuses to read a number of so many digits."""
    making.write_zip(folder / "Imagenet8_train.zip", {f"train_data_batch_{'9' * 5000}": dumped()})
    return folder


@case(r"line 1\): got 'n00000001 9{50}'; expected wnid, a new number 1..1000", shown="map_clsloc.txt")
def clsloc_number_too_long(folder):
    (folder / "map_clsloc.txt").write_text(f"n00000001 {'9' * 5000} x")
    return batch(folder, dumped())


@case(r"\(labels\.npy\): zip member is encrypted", shown=f"{BATCH}.npz")
def npz_flag_of_strong_encryption(folder):
    npz(folder, making.npz_bytes(5, 8))
    with edited(folder / f"{BATCH}.npz") as raw:
        raw[raw.index(b"PK\1\2", raw.index(b"PK\1\2") + 4) + 8] |= 0x40
    return folder


@case(r"sample has two labels: 0 in .cls and 1 in .json", shown=SHARD)
def webdataset_two_labels(folder):
    files = {"0.jpg": making.picture(0), "0.cls": b"0", "0.json": b'{"label": 1}'}
    return shard(folder, making.tar_bytes({**files, "1.jpg": making.picture(1), "1.cls": b"1"}))


@case(r"train-...-of-99999999999: more shards are announced than can be", shown="source")
def webdataset_more_shards_than_can_be(folder):
    (folder / "train-0-of-99999999999.tar").write_bytes(making.tar_bytes(shard_files()))
    return folder


@case(r"lies in the folder of n01530575, .*val_annotations.txt says n01440764", shown="val_0.JPEG")
def tiny_folder_and_annotations_differ(folder):
    files, part = making.tiny_files(), "tiny-imagenet-200/val/"
    files[f"{part}{making.WNIDS[1]}/val_0.JPEG"] = files.pop(f"{part}images/val_0.JPEG")
    return making.write_tree(folder, files)


@case(r"another picture than .*n01440764/val_0.JPEG, which has its name", shown="images/val_0.JPEG")
def tiny_copies_differ(folder):
    files = {**making.tiny_files(), f"tiny-imagenet-200/val/{making.WNIDS[0]}/val_0.JPEG": making.picture(7)}
    return making.write_tree(folder, files)


@parquet_case(r"it has no class names, .* has: do its labels count alike", shown="train-00001-of-00002.parquet")
def parquet_names_in_one_file_alone(folder):
    for number, names in enumerate((making.WNIDS, ())):
        made = table([making.picture(i) for i in range(3)], [0, 1, 2], names=names)
        write(folder / f"train-0000{number}-of-00002.parquet", made)
    return folder
