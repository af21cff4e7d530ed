"""What lies at a path: a path that cannot be looked at is never taken for absent, in any version of Python."""

from __future__ import annotations

import errno
import os

import pytest

from imnet.files import exists, is_dir, is_file


def test_what_lies_there(tmp_path):
    file, folder, pipe = tmp_path / "file", tmp_path / "folder", tmp_path / "pipe"
    file.write_text("x")
    folder.mkdir()
    os.mkfifo(pipe)
    for name, target in (("to-file", file), ("to-folder", folder), ("broken", tmp_path / "none"), ("loop", "loop")):
        (tmp_path / name).symlink_to(target)
    found = {p.name: (exists(p), is_dir(p), is_file(p)) for p in tmp_path.iterdir()}
    nothing = (False, False, False)
    assert found == {
        "file": (True, False, True),
        "folder": (True, True, False),
        "pipe": (True, False, False),
        "to-file": (True, False, True),
        "to-folder": (True, True, False),
        "broken": nothing,
        "loop": nothing,
    }
    for absent in ("none", "none/inside", "file/inside", "nul\0in it"):
        assert (exists(tmp_path / absent), is_dir(tmp_path / absent), is_file(tmp_path / absent)) == nothing


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG])
@pytest.mark.parametrize("look", [exists, is_dir, is_file])
def test_what_cannot_be_told_is_raised(tmp_path, look, number, monkeypatch):
    if number == errno.ENAMETOOLONG:
        path = tmp_path / ("n" * 300)
    else:  # the superuser, who may run these tests, may look everywhere; and the disk is a good one
        path = tmp_path / "there"

        def stat(*_, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(OSError, match=os.strerror(number)) as told:
        look(path)
    assert told.value.errno == number
