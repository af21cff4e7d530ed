"""No command replaces a file that imnet did not write: it refuses before it does anything else."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import imnet
from bench.gpu.files import merge
from imnet import report
from imnet.cli import eval_main, export_main, report_main
from imnet.data.tool import main as data_main
from imnet.errors import IOFailure, UsageError
from imnet.files import check_output, write_atomic
from imnet.find import PICTURE
from imnet.find import lr as find_lr
from imnet.run_options import RunOptions

MINE = b"the only copy\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "run"
    recipe = imnet.replace(imnet.recipes["quickstart"], epochs=1, model_options={"width": 8})
    imnet.train(recipe, out=folder, device="cpu", precision="fp32", threads=1)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    from PIL import Image

    place = tmp_path_factory.mktemp("outputs-store")
    for i in range(6):
        folder = place / "pictures" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    assert data_main(["pack", str(place / "pictures"), str(place / "store"), "--size", "8"]) == 0
    return place / "store"


def evaluated(run: Path, out: Path) -> int:
    return eval_main([str(run), "--device", "cpu", "--no-flip", "--out", str(out)])


def exported(run: Path, out: Path, to: str = "safetensors") -> int:
    return export_main([str(run), "--to", to, "--out", str(out)])


def reported(run: Path, out: Path) -> int:
    return report_main([str(run), "--out", str(out)])


def of_system(run: Path, out: Path) -> int:
    return report_main([str(run), "--system", "fashion-mnist", "--out", str(out)])


COMMANDS = [evaluated, exported, reported, of_system]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_imnet_did_not_write_is_kept_also_behind_a_link(command, run, tmp_path, capsys):
    mine, link = tmp_path / "mine.html", tmp_path / "link.html"
    mine.write_bytes(MINE)
    link.symlink_to("mine.html")
    for out in (mine, link):
        assert command(run, out) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert mine.read_bytes() == MINE
    assert link.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.html", "mine.html"]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_same_command_wrote_is_replaced_unless_it_is_read_only(command, run, tmp_path, capsys):
    real, link = tmp_path / "real.html", tmp_path / "link.html"
    link.symlink_to("real.html")
    assert command(run, link) == 0
    assert link.is_symlink()
    assert command(run, link) == 0
    assert link.is_symlink()
    before = real.read_bytes()
    real.chmod(0o444)
    assert command(run, link) == 74
    assert "read-only" in capsys.readouterr().err
    assert real.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("folder", [".", "..", "pictures", "pictures/"])
def test_a_folder_for_a_file_is_one_line(command, folder, run, tmp_path, monkeypatch, capsys):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(MINE)
    monkeypatch.chdir(tmp_path)
    assert command(run.resolve(), Path(folder)) == 2
    assert "got a folder for --out" in capsys.readouterr().err


@pytest.mark.parametrize("command", [evaluated, exported, reported])
def test_no_file_of_a_run_is_replaced(command, run, capsys):
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for path in files:
        if path.name != "report.html" and files[path]:
            assert command(run, path) == 2, path
    assert {path: path.read_bytes() for path in files if path.name != "report.html"} == {
        path: content for path, content in files.items() if path.name != "report.html"
    }


def test_the_table_and_the_text_beside_a_systems_page_are_looked_at_too(run, tmp_path, capsys):
    for suffix in (".md", ".csv"):
        mine = tmp_path / f"page{suffix}"
        mine.write_bytes(MINE)
        assert of_system(run, tmp_path / "page.html") == 2
        assert mine.read_bytes() == MINE
        mine.unlink()
    assert not list(tmp_path.iterdir())


def test_a_comparison_from_python_is_refused_in_the_same_way(run, tmp_path):
    mine = tmp_path / "thesis.html"
    mine.write_bytes(b"<!DOCTYPE html>\n<html>\n<body>mine</body></html>\n")
    with pytest.raises(UsageError, match="imnet has not written"):
        report.compare([run, run], mine)
    with pytest.raises(UsageError, match="imnet has not written"):
        report.render(run, mine)


def test_a_folder_of_weights_for_timm_that_others_wrote_is_kept(run, tmp_path, capsys):
    """Every model of the Hugging Face hub has files of these names, so the names do not show that imnet wrote them."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b'{"architectures": []}')
    assert exported(run, tmp_path, "timm") == 2
    assert "got a folder for --out" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_export_left_is_cleared_by_the_next(run, tmp_path):
    left = tmp_path / ".model.safetensors.999999999.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(MINE)
    assert exported(run, tmp_path / "model.safetensors") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_mean_image_takes_the_place_of_no_store_and_of_no_other_array(store, tmp_path, capsys):
    before = (store / "train.imnet").read_bytes()
    other, out = tmp_path / "other.npy", tmp_path / "mean.npy"
    np.save(other, np.zeros(3))
    for path in (store / "train.imnet", other, tmp_path):
        assert data_main(["stats", str(store), "--mean-image", str(path)]) == 2
    assert (store / "train.imnet").read_bytes() == before
    assert len(np.load(other)) == 3
    for _ in range(2):
        assert data_main(["stats", str(store), "--mean-image", str(out)]) == 0
        assert np.load(out).shape == (8, 8, 3)


@pytest.mark.parametrize("holds", ["a", "train/a", "notes.txt"])
def test_a_store_is_exported_beside_nothing_of_the_users(store, tmp_path, holds, capsys):
    place = tmp_path / holds
    if place.suffix:
        place.write_bytes(MINE)
    else:
        place.mkdir(parents=True)
    assert data_main(["export", str(store), str(tmp_path)]) == 74
    assert "exists already" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))


def test_a_range_test_draws_over_no_other_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PICTURE.write_bytes(MINE)
    with pytest.raises(UsageError, match="imnet has not written"):
        find_lr(imnet.recipes["quickstart"], RunOptions(device="cpu"))
    assert PICTURE.read_bytes() == MINE


@pytest.mark.parametrize("option", ["--json", "--save", "--picture"])
def test_a_benchmark_looks_at_its_files_before_it_measures(option, tmp_path, capsys):
    from bench.cli import main

    mine = tmp_path / "mine.png"
    mine.write_bytes(MINE)
    words = ["throughput", "--against", "GTX 1080 Ti"] if option == "--picture" else ["step"]
    assert main([*words, option, str(mine)]) == 2
    assert "imnet has not written" in capsys.readouterr().err
    assert mine.read_bytes() == MINE


def test_merged_results_take_no_other_files_place(tmp_path):
    (tmp_path / "card.json").write_text(
        '{"benchmark": "gpu", "dry": false, "fingerprint": {"device": "x"}, "rows": []}'
    )
    mine = tmp_path / "mine.txt"
    mine.write_bytes(MINE)
    with pytest.raises(UsageError, match="imnet has not written"):
        merge(tmp_path, mine)
    assert mine.read_bytes() == MINE
    merge(tmp_path, tmp_path / "merged.json")


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(run, store, tmp_path, capsys):
    """Otherwise a run would seem to have no checkpoint, an ensemble one band less. A circular link also stops root."""
    copy, bands, circle = tmp_path / "run", tmp_path / "bands", tmp_path / "circle"
    for place in (copy, bands / "band-0"):
        shutil.copytree(run, place)
    shutil.rmtree(copy / "checkpoints")
    for link in (copy / "checkpoints", bands / "band-1", circle):
        link.symlink_to(link.name)
    words = [[str(place), "--device", "cpu"] for place in (copy, bands)]
    others = ((data_main, ["verify", str(circle)]), (report_main, [str(bands)]), (report_main, [str(tmp_path)]))
    for command, argv in ((eval_main, words[0]), (eval_main, words[1]), *others):
        assert command(argv) == 74
        said = capsys.readouterr().err
        assert "cannot be listed: Too many levels of symbolic links; choose another path" in said
        assert said.count("\n") == 1
    (bands / "band-1").rename(bands / "lost+found")  # ext4 has one that only root may list
    assert report.expand([bands]) == [bands / "band-0"]


def test_a_file_keeps_its_mode_and_a_hard_link_its_content(tmp_path):
    path, other = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_bytes(MINE)
    path.chmod(0o600)
    other.hardlink_to(path)
    write_atomic(check_output(path, MINE), b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert other.read_bytes() == MINE


def test_links_to_nothing_and_in_a_circle_and_pipes(tmp_path):
    dangling, circle, pipe = tmp_path / "dangling", tmp_path / "circle", tmp_path / "pipe"
    dangling.symlink_to("made")
    write_atomic(dangling, b"new")
    assert dangling.is_symlink()
    assert (tmp_path / "made").read_bytes() == b"new"
    circle.symlink_to("circle")
    os.mkfifo(pipe)  # which nobody reads
    for path in (circle, pipe):
        with pytest.raises(IOFailure, match="not written"):
            write_atomic(path, b"new")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(check_output(pipe, MINE), b"new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("step.json", "step"),
        ("step-trace.json", "step"),
        ("kernels-spectral.json", "kernels spectral"),
        ("kernels-spectral.svg", "kernels spectral"),
    ],
)
def test_a_profile_looks_at_its_files_before_it_measures(name, words, tmp_path, capsys):
    from bench.profile.cli import main

    (tmp_path / name).write_bytes(MINE)
    assert main([*words.split(), "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "imnet has not written" in capsys.readouterr().err
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, MINE)]


@pytest.mark.parametrize("name", ["report.html", "trial.json"])
def test_a_sweep_looks_at_its_files_before_it_trains(name, tmp_path, capsys):
    from imnet.sweep import main

    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text("grid: {epochs: [1, 2]}\n")
    sweep = [str(grid), "--out", str(out)]
    assert main([*sweep, "--dry-run"]) == 0
    folder = out if name == "report.html" else out / capsys.readouterr().out.strip().rpartition("/")[2]
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b'{"mine": true}')
    assert main([*sweep, "--", "--device", "cpu"]) == 2
    assert "imnet has not written" in capsys.readouterr().err
    assert (folder / name).read_bytes() == b'{"mine": true}'
    assert [path for path in out.rglob("*") if path.is_file()] == [folder / name]


def test_the_standard_output_in_a_file_holds_all_in_order(tmp_path):
    code = "from imnet.files import write_atomic; from pathlib import Path\n"
    code += "print('before'); write_atomic(Path('/dev/stdout'), 'table\\n'); print('behind')"
    with (tmp_path / "all.txt").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "all.txt").read_text() == "before\ntable\nbehind\n"
