"""Labels of ImageNet-1K's validation pictures, which come in one flat folder or tar: three files that hold them."""

from __future__ import annotations

import re
from pathlib import Path

from imnet.data.readers.tree import FolderTree
from imnet.errors import DataError

VAL_PICTURE = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.JPEG")
_SYNSETS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SOLUTION = "LOC_val_solution.csv"
LABEL_FILES = f"{_SYNSETS[0]}, {_SOLUTION}, or {_TRUTH} with map_clsloc.txt,"


def validation_wnids(folders: list[Path]) -> dict[int, str] | None:
    """{picture number from 1: wnid} from the first folder that holds such labels; None where none does.

    A synset list (one wnid a line, in picture order), Kaggle's solution table, or the devkit's numbers, which count as
    ``map_clsloc.txt`` does.
    """
    for folder in folders:
        for name in _SYNSETS:
            if (folder / name).is_file():
                return dict(enumerate(FolderTree(folder).text(name).split(), 1))
        if (folder / _SOLUTION).is_file():
            return _solution(folder)
        for truth in (folder / _TRUTH, folder / "ILSVRC2012_devkit_t12" / "data" / _TRUTH):
            if truth.is_file() and (folder / "map_clsloc.txt").is_file():
                return _devkit(folder, truth)
    return None


def _solution(folder: Path) -> dict[int, str]:
    out: dict[int, str] = {}
    for row, line in enumerate(FolderTree(folder).text(_SOLUTION).splitlines(), 1):
        match = re.match(r"ILSVRC2012_val_(\d{8}),(n\d{8}) ", line)
        if match is None and row > 1:
            got = f"got {line[:60]!r}; expected ILSVRC2012_val_########,n######## ..."
            raise DataError(got, file=folder / _SOLUTION, offset=f"line {row}")
        if match is not None:
            out[int(match[1])] = match[2]
    return out


def _devkit(folder: Path, truth: Path) -> dict[int, str]:
    rows = (line.split() for line in FolderTree(folder).text("map_clsloc.txt").splitlines())
    wnid = {row[1]: row[0] for row in rows if len(row) >= 2}
    out: dict[int, str] = {}
    for line, number in enumerate(FolderTree(truth.parent).text(truth.name).split(), 1):
        if number not in wnid:
            raise DataError(f"class {number[:20]!r} is not in map_clsloc.txt", file=truth, offset=f"line {line}")
        out[line] = wnid[number]
    return out
