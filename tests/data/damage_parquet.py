"""Parquet files written by plain pyarrow: valid ones, and the damaged ones of the damage table."""

import importlib.util
import json

import pytest

from tests.data import damage_table, making

# Without pyarrow these cases cannot be written, so the table does not have them.
case = damage_table.case if importlib.util.find_spec("pyarrow") else lambda *_, **__: lambda build: build
WNIDS = making.WNIDS


def table(pictures, labels, names=WNIDS, plain=False, **columns):
    """The usual layout: image struct<bytes, path>, label int64, names in the metadata of ``datasets``."""
    pa = pytest.importorskip("pyarrow")
    rows = list(pictures) if plain else [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(pictures)]
    kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    made = pa.table({"image": pa.array(rows, kind), "label": pa.array(labels, pa.int64()), **columns})
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    return made.replace_schema_metadata(about if names else None)


def write(path, made, rows=5, **options):
    pytest.importorskip("pyarrow.parquet").write_table(made, path, row_group_size=rows, **options)
    return path


def one(folder, change=lambda raw: raw, pictures=None, labels=None, **options):
    pictures = pictures or [making.picture(i) for i in range(12)]
    made = table(pictures, [i % 3 for i in range(len(pictures))] if labels is None else labels, **options)
    path = write(folder / "train-00000-of-00001.parquet", made)
    path.write_bytes(change(path.read_bytes()))
    return folder


FILE = "train-00000-of-00001.parquet"


@case(r"not Parquet or truncated", shown=FILE)
def parquet_truncated(folder):
    return one(folder, lambda raw: raw[:-100])


@case(r"not Parquet or truncated", shown=FILE)
def parquet_is_html(folder):
    return one(folder, lambda raw: b"<html>404</html>")


@case(r"footer of 4294967295 bytes", shown=FILE)
def parquet_footer_lies(folder):
    return one(folder, lambda raw: raw[:-8] + b"\xff" * 4 + b"PAR1")


@case(r"Parquet is damaged", shown=FILE)
def parquet_footer_damaged(folder):
    return one(folder, lambda raw: raw[:-200] + bytes(100) + raw[-100:])


@case(r"Parquet is damaged|picture is damaged|not a picture|crc|row group ends", shown=FILE)
def parquet_page_damaged(folder):
    return one(folder, lambda raw: raw[:4] + b"\xff" * 400 + raw[404:])


@case(r"\(row 4\).*not a picture", shown=FILE)
def parquet_bad_picture(folder):
    return one(folder, pictures=[making.picture(i) if i != 4 else b"<html>404" for i in range(9)])


@case(r"\(row 2\).*picture has no bytes", shown=FILE)
def parquet_only_a_path(folder):
    return one(folder, pictures=[making.picture(i) if i != 2 else None for i in range(9)])


@case(r"no row has a label", shown="")
def parquet_without_labels(folder):
    return one(folder, labels=[-1] * 12)


@case(r"\(row 0\).*3 class names, label 3|3 class names, labels go to 3", shown="")
def parquet_label_beyond_names(folder):
    return one(folder, labels=[3] * 12)


@case(r"no column of pictures .* it has text: string", shown=FILE)
def parquet_of_texts(folder):
    pa = pytest.importorskip("pyarrow")
    write(folder / FILE, pa.table({"text": ["a", "b"], "label": [0, 1]}))
    return folder


@case(r"no column label .*of integers or words; it has image: struct.*, label: double", shown=FILE)
def parquet_float_labels(folder):
    made = table([making.picture(0)], [0]).drop_columns(["label"])
    write(folder / FILE, made.append_column("label", [[0.5]]))
    return folder
