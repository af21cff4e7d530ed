"""The environment of a run: locks, disks, ports, locales, closed streams, and a caller that must not be changed."""

import dataclasses
import errno
import fcntl
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import imnet
from imnet import announce, dryrun, fits, launch, models, weights
from imnet.errors import DeviceError, IOFailure
from imnet.export import export
from imnet.run import Run
from imnet.start import train

from .conftest import TINY, command, finished, fork_ranks, options, start_ranks
from .test_ensemble import BANDS
from .test_ranks import ENV, SMALL

TRAIN = [sys.executable, "-m", "imnet.cli", "--device", "cpu", *SMALL, "--data.train_images", "64", "--epochs", "1"]


def test_a_file_system_without_locks_is_said_and_there_is_a_way_round(tiny, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    short = dataclasses.replace(tiny, epochs=1)
    with pytest.raises(IOFailure, match=r"this file system has no locks \(No locks available\); --no-lock goes on"):
        train(short, options(tmp_path))
    train(short, options(tmp_path, lock=False))
    assert (tmp_path / "report.html").exists()


def test_a_full_disk_is_found_before_the_first_epoch(tmp_path):
    """A limit of 16 KiB per file is found only by allocating the room for a checkpoint."""
    run, errors = tmp_path / "run", tmp_path / "errors"
    assert finished(start_ranks(limited, ([*TRAIN[3:], "--out", str(run)], errors))) == [74]
    assert "no room for a checkpoint of 1 MiB: File too large" in errors.read_text()
    assert errors.read_text().count("\n") == 1
    assert not run.exists()


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_host_without_the_memory_for_a_batch_says_how_to_train_it(tmp_path, ranks):
    """Some clusters limit the address space, where an allocation then fails; torch's error is a RuntimeError."""
    words = [*TRAIN[3:], "--data", "synthetic", "--data.train_images", "2000", "--batch-size", "2000"]
    words += ["--data.image_px", "64", "--model_options.width", "64", "--out", str(tmp_path / "run")]
    words, errors = words + (["--procs", "2"] if ranks == 2 else []), tmp_path / "errors"
    assert finished(start_ranks(with_a_gibibyte, (words, errors))) == [69]
    told = rf"out of memory with {2000 // ranks} images at once: a tensor of [\d.]+ GiB did not fit; "
    assert re.search(rf"{told}try --micro-batch-images {1000 // ranks}: .*\n$", errors.read_text())
    assert errors.read_text().count("\n") == 1


def test_a_network_that_does_not_fit_is_not_answered_with_smaller_batches(tmp_path):
    words, errors = [*TRAIN[3:], "--model_options.width", "4096", "--out", str(tmp_path / "run")], tmp_path / "errors"
    assert finished(start_ranks(with_a_gibibyte, (words, errors))) == [69]
    told = (
        r"out of memory: a tensor of [\d.]+ GiB did not fit; train on fewer or smaller images, or a smaller network\n$"
    )
    assert re.search(told, errors.read_text())


def with_a_gibibyte(words, errors):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, [pages * resource.getpagesize() + (1 << 30)] * 2)
    return command("train_main", words, errors)


@pytest.mark.parametrize(("free_kib", "most"), [(6000, None), (4096, 16), (1229, 2), (800, 0)])
def test_a_run_beyond_the_memory_of_the_host_is_told_so_before_its_first_step(
    tiny, tmp_path, monkeypatch, capsys, free_kib, most
):
    """The system kills such a process without a word. 32 images of this network at once take 5.8 MiB."""
    for module in (fits, announce):
        monkeypatch.setattr(module, "free_memory_bytes", lambda: free_kib << 10)
    train(dataclasses.replace(tiny, epochs=1), options(tmp_path / "run"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory ")]
    smaller = f"; --micro-batch-images {most} may fit" if most else ""
    told = f"memory     about 0.0 GiB needed, 0.0 GiB free: the system may kill the run{smaller}"
    assert lines == ([] if most is None else [told])
    planned = dryrun.text(tiny, options(tmp_path / "other", micro_batch_images=8))
    assert ("the system may kill the run" in planned) == (free_kib < 2000)


def test_the_memory_of_all_ranks_of_the_host_counts(tiny, tmp_path, monkeypatch, capsys):
    """torchrun says their number by a variable, as imnet does to the processes of --procs."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for module in (fits, announce):
        monkeypatch.setattr(module, "free_memory_bytes", lambda: 6000 << 10)
    train(dataclasses.replace(tiny, epochs=1), options(tmp_path / "run"))
    assert "the system may kill the run; --micro-batch-images 8 may fit" in capsys.readouterr().out


@pytest.mark.parametrize(("threads", "variables", "told"), [(2, {}, 1), (1, {}, 0), (2, {"LOCAL_WORLD_SIZE": "2"}, 0)])
def test_a_run_beside_other_programs_is_told_to_take_fewer_threads(
    busy, tiny, tmp_path, monkeypatch, capsys, threads, variables, told
):
    """Not a run whose other ranks are the other programs, nor one whose only thread waits for no other."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    short = dataclasses.replace(tiny, epochs=1)
    train(short, options(tmp_path / "run", threads=threads))
    said = re.findall("note .* other programs leave .* 2 threads wait .*: --threads 1 may", capsys.readouterr().out)
    assert len(said) == told


@pytest.mark.parametrize(("bands", "told"), [("3", 0), ("all", 1)])
def test_the_networks_of_all_bands_of_a_rank_count(tmp_path, monkeypatch, capsys, bands, told):
    how = options(tmp_path, bands=bands)
    free = fits.memory(BANDS, how, BANDS.data.batch_images, "fp32", 1).total
    for module in (fits, announce):
        monkeypatch.setattr(module, "free_memory_bytes", lambda: free)
    train(dataclasses.replace(BANDS, epochs=1), how)
    assert capsys.readouterr().out.count("the system may kill the run") == told


def test_what_is_frozen_needs_the_memory_of_its_weights_alone(tiny, tmp_path):
    frozen = dataclasses.replace(tiny, freeze="all-but-head")
    whole, less = (fits.memory(recipe, options(tmp_path), 32, "fp32", 1) for recipe in (tiny, frozen))
    head, parameters = 64 * 4 + 4, 77_460
    assert whole.fixed == 4 * 4 * parameters
    assert less.fixed == 4 * 2 * parameters + 4 * 2 * head
    assert less.per_image < whole.per_image / 100


class Reader(nn.Sequential):
    """A network that reads a value in its forward pass, which it has not on the meta device."""

    def forward(self, x):
        return super().forward(x) * (1 if float(x.detach().sum()) else 2)


def test_a_network_whose_memory_cannot_be_estimated_is_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(announce, "free_memory_bytes", lambda: 0)
    monkeypatch.setattr(models, "build", lambda *_, **__: Reader(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)))
    train(dataclasses.replace(tiny, epochs=1), options(tmp_path / "run"))
    assert (tmp_path / "run" / "report.html").exists()


def limited(words, errors):
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, 16 << 10))
    return command("train_main", words, errors)


@pytest.mark.parametrize(("place", "said"), [("file", "File exists"), ("file/run", "Not a directory")])
def test_a_file_in_the_folders_place_is_said_as_such(tiny, tmp_path, place, said):
    (tmp_path / "file").touch()
    with pytest.raises(IOFailure, match=rf"{place}: run folder: {said}; choose another --out"):
        train(tiny, options(tmp_path / place))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is Unicode")
def test_a_run_in_a_folder_whose_name_is_no_utf8_is_read_again(tiny, tmp_path):
    """Some Rust and C++ libraries write files under such a name but cannot open them, so no run would resume."""
    place, short = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\n \xff")), dataclasses.replace(tiny, epochs=1)
    place.mkdir()
    train(short, options(place / "run"))
    train(dataclasses.replace(short, epochs=2), options(place / "run", allow_change=True))
    run = Run(place / "run")
    export(run.classifier(), "safetensors", place / "a.safetensors")
    torch.save(run.model().state_dict(), place / "a.pth")
    wanted = run.model().state_dict()
    for file in ("run", "a.safetensors", "a.pth"):
        found = weights.read(str(place / file)).tensors
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_port_in_use_is_said(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        values = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        words = rf"port {port} of 127.0.0.1 is in use.*choose another MASTER_PORT"
        with pytest.raises(DeviceError, match=words), launch.connected(torch.device("cpu")):
            pass


POSIX = pytest.param({"LC_ALL": "POSIX", "PYTHONUTF8": "0"}, marks=pytest.mark.slow)


@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "ascii"}, POSIX])
def test_an_odd_locale_is_no_traceback(tmp_path, locale):
    words = [*TRAIN, "--dry-run", "--out", str(tmp_path / "Prüfung")]
    done = subprocess.run(words, env=ENV | locale, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_what_the_shell_says_to_matplotlib_does_not_end_a_run_at_its_report(tmp_path):
    """Profiles keep backends that matplotlib no longer has, and it refuses some values of both variables."""
    variables = {"MPLBACKEND": "Qt4Agg", "SOURCE_DATE_EPOCH": "yesterday"}
    words = [*TRAIN, "--out", str(tmp_path / "run")]
    done = subprocess.run(words, env=ENV | variables, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/report.html").is_file()


@pytest.mark.parametrize("gone", ["both", *(pytest.param(n, marks=pytest.mark.slow) for n in ("stdout", "terminal"))])
def test_a_run_that_nobody_reads_any_more_saves_first(tmp_path, gone):
    """For example ``| head``, ``2>&1 | tee`` whose tee Ctrl-C ends at once, or a closed window under setsid."""
    place, told = str(tmp_path / "pipe"), tmp_path / "told"
    if gone == "terminal":
        reader, writer = os.openpty()
        place = os.ttyname(writer)
    else:
        os.mkfifo(place)
    words = [*TRAIN[3:], "--epochs", "500", "--out", str(tmp_path / "run")]
    ranks = start_ranks(command, ("train_main", words, told if gone == "stdout" else place, place))
    if gone != "terminal":
        reader = writer = os.open(place, os.O_RDONLY)
    said = b""
    while b"warm-up" not in said:
        more = os.read(reader, 4096)
        assert more, said
        said += more
    for end in {reader, writer}:
        os.close(end)
    assert finished(ranks) == [75]
    assert list(tmp_path.glob("run/checkpoints/step-????????"))
    if gone == "stdout":
        assert told.read_text().startswith("imnet-train: nobody reads the output: saved at step ")
        assert told.read_text().count("\n") == 1


SOME = [pytest.param(how, marks=pytest.mark.slow) for how in (">&-", "2>&-", "<&-")]


@pytest.mark.parametrize("how", ["<&- >&- 2>&-", *SOME])
def test_a_caller_that_has_closed_its_streams_gets_its_run(tmp_path, how):
    """Some daemons close them; the run's files must not get descriptors 0 to 2, to which libraries write."""
    command = ["bash", "-c", f'exec {how}; exec "$@"', "-", *TRAIN, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=ENV, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
    look = "import os; from imnet.command import printable as p; p(); print(os.open('.', 0), file=open('n', 'w'))"
    subprocess.run([*command[:3], "-", sys.executable, "-c", look], env=ENV, cwd=tmp_path, check=True, timeout=60)
    assert int((tmp_path / "n").read_text()) > 2


def test_a_folder_that_was_removed_under_the_shell_is_said(tmp_path):
    command = [
        "bash",
        "-c",
        'mkdir gone; cd gone; rmdir ../gone; exec "$@"',
        "-",
        *TRAIN,
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 74
    assert done.stderr == "imnet-train: the current folder has been removed; cd to one that is there\n"


def test_the_caller_gets_everything_back(tmp_path):
    assert finished(start_ranks(train_in_two_ways, (tmp_path,))) == [0]


def surroundings():
    found = {number: signal.getsignal(number) for number in signal.valid_signals()}
    levels = {name: logging.getLogger(name).level for name in ["", *logging.root.manager.loggerDict]}
    streams = [(s.encoding, s.errors) for s in (sys.stdout, sys.stderr)]
    return found, dict(os.environ), levels, list(warnings.filters), streams, signal.pthread_sigmask(0, ())


def train_in_two_ways(folder):
    """imnet.train() must leave its caller's handlers, environment and loggers as they were, also with two ranks."""
    fork_ranks()
    recipe = dataclasses.replace(TINY, epochs=1)
    imnet.train(recipe, out=folder / "one", device="cpu", precision="fp32")  # imports all that it needs
    before = surroundings()
    imnet.train(recipe, out=folder / "two", device="cpu", procs=2, threads=1, precision="fp32")
    for was, now in zip(before, surroundings(), strict=True):
        assert was == now, (was, now)
    return 0
