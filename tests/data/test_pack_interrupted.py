"""Packing that is killed, raced, or without disk space or permission leaves no half-written store and loses no work."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imnet.data import AbsentError, load
from imnet.data.files import locked
from imnet.data.readers import recognise
from imnet.data.readers.picture import ResizeRule
from imnet.data.store import open_store, split_path
from imnet.data.store.pack import Options, pack
from imnet.data.tool import main
from imnet.errors import DataError, IOFailure
from imnet.files import write_atomic
from tests.data import making

WHOLE = ["source.json", "train.imnet", "train.source.npz"]
PACK = (
    "import sys, imnet.data.store.write as w; w.JOURNAL_EVERY_S = 0.02; "
    "from imnet.data.tool import main; sys.exit(main(sys.argv[1:]))"
)


def command(source, target, *more):
    return [sys.executable, "-c", PACK, "pack", str(source), str(target), "--workers", "2", *more]


ENCODED = pytest.param((), id="encoded", marks=pytest.mark.slow)


@pytest.mark.parametrize("options", [pytest.param(("--size", "32"), id="pixels"), ENCODED])
def test_kill_9_at_random_costs_only_time(tmp_path, options):
    picture = [making.picture(i, 600, 500) for i in range(5)]
    files = {f"train/{c}/{i:03d}.jpg": picture[(i + c) % 5] for c in range(2) for i in range(300)}
    source = making.write_tree(tmp_path / "in", files)
    subprocess.run(command(source, tmp_path / "whole", *options), check=True, capture_output=True)
    random.seed(1)
    journal = tmp_path / "killed" / "train.imnet.part.json"
    kills, resumed_from = 0, []
    while kills < 3:
        if journal.exists():
            resumed_from.append(json.loads(journal.read_text())["done"])
        child = subprocess.Popen(command(source, tmp_path / "killed", *options), stderr=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL)  # fmt: skip
        before = resumed_from[-1] if resumed_from else 0
        wait_for(lambda: child.poll() is not None or done_in(journal) > before, 20)  # noqa: B023
        time.sleep(random.random() * 0.02)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "packed before it was killed"
        kills += 1
    assert resumed_from == sorted(resumed_from)
    done = subprocess.run(command(source, tmp_path / "killed", *options), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, killed = (open_store(tmp_path / name / "train.imnet") for name in ("whole", "killed"))
    assert killed.header == whole.header
    assert killed.verify() == whole.verify()
    assert sorted(os.listdir(tmp_path / "killed")) == WHOLE


def test_a_packing_that_skipped_a_picture_is_not_finished_by_one_that_must_not(tmp_path, monkeypatch):
    """It would be a whole store of fewer pictures, made by a command that promises to stop at a bad one."""
    files = {f"train/a/{i:03}.png": making.picture(i % 5, 9, 8, form="PNG") if i != 3 else b"?" for i in range(130)}
    source, whole = making.write_tree(tmp_path / "in", files), Options(ResizeRule(8), workers=1, quiet=True)
    monkeypatch.setattr("imnet.data.store.pack.Progress.update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pack(recognise(source), tmp_path / "out", replace(whole, on_bad="skip"))
    monkeypatch.undo()
    assert json.loads((tmp_path / "out" / "train.imnet.part.json").read_text())["bad"] == [3]
    with pytest.raises(DataError, match=r"003\.png: not a picture"):
        pack(recognise(source), tmp_path / "out", whole)
    assert pack(recognise(source), tmp_path / "out", replace(whole, on_bad="skip"))["train"]["left_out"] == 1


def test_a_part_of_which_every_picture_is_bad_is_not_packed(tmp_path):
    files = {f"{part}/a/{i}.jpg": making.picture(i) for part, count in (("train", 3), ("val", 1)) for i in range(count)}
    source = making.write_tree(tmp_path / "in", files | {"val/a/0.jpg": b"?"})
    with pytest.raises(DataError, match=r"val/a/0\.jpg: all pictures of the part are bad \(1, this one first\)"):
        pack(recognise(source), tmp_path / "out", Options(ResizeRule(8), on_bad="skip", workers=1, quiet=True))
    assert not list((tmp_path / "out").glob("*.imnet"))


def done_in(journal):
    try:
        return json.loads(journal.read_text())["done"]
    except (OSError, ValueError):
        return 0


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)


def test_another_source_does_not_continue_a_part_file(tmp_path):
    files = making.class_files(count=2)
    source = making.write_tree(tmp_path / "in", files)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.imnet.part").write_bytes(b"x" * 50_000)
    (tmp_path / "out" / "train.imnet.part.json").write_text('{"key": "other", "done": 3, "bad": [], "end": 9000}')
    pack(recognise(source), tmp_path / "out", Options(ResizeRule(16), workers=1, quiet=True))
    assert np.array_equal(open_store(split_path(tmp_path / "out", "train")).images()[0],
                          making.expected(files["train/n01440764/n01440764_0.JPEG"], 16))  # fmt: skip


@pytest.mark.parametrize("race", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_four_packs_to_one_folder_have_one_winner(tmp_path, race):
    source = making.write_tree(tmp_path / "in", making.class_files(count=40))
    children = [subprocess.Popen(command(source, tmp_path / "out", "--size", "16"), stderr=subprocess.PIPE)
                for _ in range(4)]  # fmt: skip
    lines = [child.communicate(timeout=60)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0] * 4, lines
    assert sum("120 images" in line for line in lines) == 1, lines
    assert sorted(os.listdir(tmp_path / "out")) == WHOLE
    open_store(tmp_path / "out" / "train.imnet").verify()


def test_encoded_pictures_go_on_behind_those_already_written(tmp_path):
    """A bad picture ends the first pack behind its first 64 pictures, and is left out in the second."""
    files = {f"train/{c}/{i:02d}.png": making.picture(i, 8, 8, form="PNG") for c in "ab" for i in range(40)}
    source = making.write_tree(tmp_path / "in", {**files, "train/b/30.png": b"no picture"})
    words = ["pack", str(source), str(tmp_path / "out"), "--workers", "1"]
    assert main(words) == 65
    assert json.loads((tmp_path / "out" / "train.imnet.part.json").read_text())["done"] == 64
    for target in ("out", "fresh"):
        assert main([*words[:2], str(tmp_path / target), *words[3:], "--on-bad-image", "skip"]) == 0
    whole = (tmp_path / "fresh" / "train.imnet").read_bytes()
    assert (tmp_path / "out" / "train.imnet").read_bytes() == whole


@pytest.mark.parametrize("room", [60_000, 60])
def test_no_room_is_one_line_and_nothing_under_the_final_name(tmp_path, room):
    """A limit of 60 bytes does not even leave room for the journal."""
    source = making.write_tree(tmp_path / "in", making.class_files(count=40))

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    call = command(source, tmp_path / "out", "--size", "32")
    done = subprocess.run(call, preexec_fn=no_room, capture_output=True, check=False)
    assert done.returncode == 74
    assert len(done.stderr.decode().splitlines()) == 1
    assert not (tmp_path / "out" / "train.imnet").exists()
    assert main(call[3:]) == 0
    assert sorted(os.listdir(tmp_path / "out")) == WHOLE
    open_store(tmp_path / "out" / "train.imnet").verify()


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root, so must start as root")
def test_no_permission_is_one_line():
    """Packs as user nobody in a forked child: root may write everywhere, so the test would test nothing."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        source = making.write_tree(top / "in", making.class_files(count=2))
        top.chmod(0o755)
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
            os._exit(main(["pack", str(source), str(top / "out"), "--size", "8", "--workers", "1"]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 74
        assert sorted(os.listdir(top)) == ["in"]


def test_lock_times_out_with_one_line(tmp_path):
    with (
        locked(tmp_path / "lock"),
        pytest.raises(IOFailure, match=r"another process has held it for 0\.1 s"),
        locked(tmp_path / "lock", wait_s=0.1),
    ):
        pass


def test_who_waits_for_another_process_says_so_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("imnet.data.files._TELL_AFTER_S", 0.1)
    with locked(tmp_path / "lock"):
        assert capsys.readouterr().err == ""
        with pytest.raises(IOFailure, match="another process has held it"), locked(tmp_path / "lock", wait_s=0.4):
            pass
    assert capsys.readouterr().err == f"{tmp_path / 'lock'}: another process is at it; waiting for it\n"


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path):
    """The temporary files of a living process, and those of other files, are left alone."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = f".source.json.{dead.pid}.tmp"
    kept = [f".source.json.{os.getppid()}.tmp", ".source.json.x.tmp", f".other.{dead.pid}.tmp"]
    for name in (left, *kept):
        (tmp_path / name).write_text("half")
    write_atomic(tmp_path / "source.json", "whole")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "source.json"])


def test_parts_of_two_states_of_a_source_are_not_trained_on(tmp_path):
    """A repacking that fails between two parts leaves a new one beside an old one, which must not be loaded."""
    source = making.write_tree(tmp_path / "in", {**making.class_files(), **making.class_files("val", 2, 70)})
    store = f"packed:{tmp_path / 'out'}"
    call = ["pack", str(source), str(tmp_path / "out"), "--size", "8", "--workers", "1"]
    assert main(call) == 0
    before = load(store)
    making.write_tree(source, {**making.class_files(seed=20), **making.class_files("val", 2, 90)})
    picture = source / "train/n01440764/n01440764_0.JPEG"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:300])
    assert main(call) == 65
    with pytest.raises(DataError, match=r"packing has not ended here.*; wait for it, or run the same imnet-data pack"):
        load(store)
    picture.write_bytes(whole)
    assert main(call) == 0
    after = load(store)
    assert before.train.digest() != after.train.digest()
    assert before.test.digest() != after.test.digest()


def test_a_set_whose_training_part_is_not_packed_yet_is_no_store(tmp_path):
    source = making.write_tree(tmp_path / "in", {**making.class_files(), **making.class_files("val", 2, 70)})
    (source / "train/n01440764/n01440764_0.JPEG").write_bytes(b"")
    assert main(["pack", str(source), str(tmp_path / "out"), "--size", "8", "--workers", "1"]) == 65
    for share in (0.0, 0.1):
        with pytest.raises(AbsentError):
            load(f"packed:{tmp_path / 'out'}", hold_out=share)


def bitmaps(part, count, seed):
    """Bitmaps of equal size, so that every archive of them has each picture at the same offset."""
    some = [making.picture(seed + k, 32, 32, form="BMP") for k in range(8)]
    return {f"{part}/c{i % 2}/{i:05d}.bmp": some[i % 8] for i in range(count)}


def swapped(tmp_path, name, old, new, part_bytes):
    """Packs ``in`` and replaces its archive ``name`` once more than ``part_bytes`` of the test part are written.

    Returns (command, standard error, exit code) of the packing."""
    source, store = tmp_path / "in", tmp_path / "out"
    making.write_tree(source, {name: making.tar_bytes(old)})
    making.write_tree(tmp_path / "other", {name: making.tar_bytes(new)})
    call = [*command(source, store, "--size", "32"), "--workers", "1"]
    child = subprocess.Popen(call, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    part = store / "test.imnet.part"
    wait_for(lambda: part.exists() and part.stat().st_size > part_bytes, 20)
    child.send_signal(signal.SIGSTOP)
    assert not (store / "test.imnet").exists(), "packed before the archive changed"
    (tmp_path / "other" / name).replace(source / name)
    child.send_signal(signal.SIGCONT)
    return call, child.communicate()[1].decode(), child.returncode


@pytest.mark.parametrize("name", [pytest.param("train.tar", marks=pytest.mark.slow), "val.tar"])
def test_an_archive_that_changes_while_it_is_packed_makes_no_store_of_both(tmp_path, name):
    """This holds also for an archive that is packed later, because its members were listed before the change."""
    making.write_tree(tmp_path / "in", {f"{part}.tar": making.tar_bytes(bitmaps(part, 6000 if part == "val" else 20,
                      0)) for part in ("train", "val")})  # fmt: skip
    part, count = name.removesuffix(".tar"), 6000 if name == "val.tar" else 20
    call, said, code = swapped(tmp_path, name, bitmaps(part, count, 0), bitmaps(part, count, 100), 500_000)
    split = {"train": "train", "val": "test"}[part]
    assert (code, len(said.splitlines())) == (65, 1 if split == "test" else 2), said
    assert f"{tmp_path / 'in' / name}: changed while it was read" in said
    assert not split_path(tmp_path / "out", split).exists()
    done = subprocess.run(call, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    images = open_store(split_path(tmp_path / "out", split)).images()
    for i, data in enumerate(list(bitmaps(part, count, 100).values())[:16]):
        assert np.array_equal(images[i // 2 + i % 2 * (count // 2)], making.expected(data, 32))


def test_a_store_whose_list_was_not_written_any_more_gets_one(tmp_path):
    """A kill or a full disk may come between store and list; a later change must be packed and not refused."""
    source = making.write_tree(tmp_path / "in", making.class_files())
    call = ["pack", str(source), str(tmp_path / "out"), "--size", "8", "--workers", "1"]
    assert main(call) == 0
    (tmp_path / "out" / "source.json").unlink()
    (tmp_path / "out" / "train.source.npz").unlink()
    assert main(call) == 0
    assert sorted(os.listdir(tmp_path / "out")) == WHOLE
    (source / "train/n01440764/n01440764_0.JPEG").write_bytes(making.picture(900))
    assert main(call) == 0
    image = open_store(split_path(tmp_path / "out", "train")).images()[0]
    assert np.array_equal(image, making.expected(making.picture(900), 8))
