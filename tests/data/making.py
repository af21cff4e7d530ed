"""Small sources of every format, made with plain Pillow, pickle, numpy, zipfile and tarfile, without imnet."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01530575", "n01601694")


def picture(seed, width=40, height=30, mode="RGB", form="JPEG"):
    """Returns the encoded bytes of a smooth random picture."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(out, form)
    return out.getvalue()


def plain(level):
    """Returns a PNG of 8 x 8 pixels of one grey ``level``."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(out, "PNG")
    return out.getvalue()


def expected(data, size, mode="RGB"):
    """The picture as the ImageNet-64 authors' script resizes it: to RGB, then with BOX straight to size x size."""
    image = Image.open(io.BytesIO(data))
    image = image if image.mode == mode else image.convert(mode)
    return np.asarray(image.resize((size, size), Image.BOX)).reshape(size, size, -1)


def class_files(prefix="train", count=4, seed=0):
    """{name: bytes} with ``count`` pictures of each of three classes."""
    return {
        f"{prefix}/{wnid}/{wnid}_{i}.JPEG": picture(seed + 100 * c + i) for c, wnid in enumerate(WNIDS)
        for i in range(count)
    }  # fmt: skip


def tiny_files(count=3, val=6):
    """{name: bytes} of a small tiny-imagenet-200 with three classes and one greyscale picture."""
    root = "tiny-imagenet-200/"
    files = {root + "wnids.txt": "\n".join(reversed(WNIDS)).encode()}
    files[root + "words.txt"] = f"{WNIDS[0]}\ttench, Tinca tinca\n{WNIDS[1]}\tbrambling\n".encode()
    for c, wnid in enumerate(WNIDS):
        files[f"{root}train/{wnid}/{wnid}_boxes.txt"] = b"x\t0\t0\t1\t1\n"
        for i in range(count):
            mode = "L" if c == i == 1 else "RGB"
            files[f"{root}train/{wnid}/images/{wnid}_{i}.JPEG"] = picture(10 * c + i, 64, 64, mode)
    lines = []
    for i in range(val):
        files[f"{root}val/images/val_{i}.JPEG"] = picture(1000 + i, 64, 64)
        lines.append(f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t32\t44\t62")
    files[root + "val/val_annotations.txt"] = ("\n".join(lines) + "\n").encode()
    return files


def write_tree(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tar_bytes(files, form=tarfile.GNU_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def rows(count, side, seed=0):
    """Planar uint8 rows (count, 3 * side * side) and labels 1..1000."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3 * side * side), dtype=np.uint8), rng.integers(1, 1001, count).tolist()


def batch_bytes(count, side, seed=0, protocol=3, mean=True):
    data, labels = rows(count, side, seed)
    batch = {"data": data, "labels": labels}
    if mean:
        batch["mean"] = data.mean(axis=0, dtype=np.float64)
    return pickle.dumps(batch, protocol=protocol)


def npz_bytes(count, side, seed=0, **changed):
    data, labels = rows(count, side, seed)
    out = io.BytesIO()
    np.savez(out, **{"data": data, "labels": np.array(labels), "mean": data.mean(axis=0), **changed})
    return out.getvalue()


def imagenet64_folder(folder, side=16, make=batch_bytes, suffix=""):
    """Writes three training batches of 30, 31 and 40 rows and a validation batch of 20."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, count in ((1, 30), (2, 31), (10, 40)):
        (folder / f"train_data_batch_{number}{suffix}").write_bytes(make(count, side, number))
    (folder / f"val_data{suffix}").write_bytes(make(20, side, 99))
    return folder


def imagenet64_expected(side=16):
    """(images, labels from 0) of the training split that ``imagenet64_folder`` writes."""
    parts = [rows(count, side, number) for number, count in ((1, 30), (2, 31), (10, 40))]
    planar = np.concatenate([part[0] for part in parts]).reshape(-1, 3, side, side)
    labels = np.concatenate([part[1] for part in parts])
    return np.stack([planar[:, c] for c in range(3)], axis=-1), labels - 1


def write_idx(array, path):
    """Writes a uint8 array as an IDX file, gzipped if the name ends in .gz."""
    body = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(body, 1, mtime=0) if path.name.endswith(".gz") else body)


def devkit(numbers, labels, compress=True):
    """{name: bytes} of ImageNet's devkit, its class list written by SciPy with one inner WordNet node added.

    ``numbers`` is {wnid: ILSVRC2012_ID} in any order; ``labels`` are the wnids of the validation pictures."""
    from scipy.io import savemat

    names = ("ILSVRC2012_ID", "WNID", "words", "num_children", "children")
    nodes = [(number, wnid, f"{wnid} in words, caf\u00e9", 0, np.array([])) for wnid, number in numbers.items()]
    nodes.append((max(numbers.values()) + 1, "n00001740", "entity", len(nodes), np.arange(len(nodes)) + 1.0))
    listed, out = np.array(nodes, dtype=[(name, "O") for name in names]).reshape(-1, 1), io.BytesIO()
    savemat(out, {"synsets": listed}, do_compression=compress)
    truth = "".join(f"{numbers[wnid]}\n" for wnid in labels).encode()
    folder = "ILSVRC2012_devkit_t12"
    made = {"data/meta.mat": out.getvalue(), "data/ILSVRC2012_validation_ground_truth.txt": truth, "readme.txt": b"x"}
    return {f"{folder}/{name}": content for name, content in made.items()}
