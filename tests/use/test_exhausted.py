"""A machine that has no more memory, threads, processes, open files or room ends a command in one line."""

import errno
import gc
import multiprocessing
import os
import resource
import subprocess
import sys
import threading

import pytest
import torch

from bench import cli as bench_cli
from imnet import checkpoint, cli
from imnet.command import guarded
from imnet.data.readers import recognise
from imnet.data.readers.picture import ResizeRule
from imnet.data.store.decode import decoded
from imnet.errors import IOFailure

NO_MEMORY = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 3.90 GiB"
BATCH = "take a smaller --batch-size"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(NO_MEMORY), ": 2.50 GiB more did not fit on the GPU"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous"), " on the GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), " on the GPU"),
    ],
)
@pytest.mark.parametrize(
    ("main", "words", "hint"),
    [
        (cli.eval_main, ["RUN"], BATCH),
        (cli.predict_main, ["RUN", "PICTURES"], BATCH),
        (cli.export_main, ["RUN", "--to", "onnx"], "take fewer or smaller images at once"),
        (bench_cli.main, ["throughput", "--recipe", "quickstart", "--device", "cpu", "--threads", "1"], BATCH),
    ],
)
def test_a_gpu_without_the_memory_is_one_line(main, words, hint, error, said, run, pictures, monkeypatch, capsys):
    """There may be no GPU here, so the first convolution of the command raises what torch raises of one."""

    def fail(*_):
        raise error

    monkeypatch.setattr(torch.nn.Conv2d, "forward", fail)
    assert main([{"RUN": str(run.path), "PICTURES": str(pictures)}.get(word, word) for word in words]) == 69
    err = capsys.readouterr().err
    assert f": out of memory{said}; {hint}" in err
    assert err.endswith(", or a machine with more\n")
    assert err.count("\n") == 1


def start_a_process():
    subprocess.run(["true"], check=True)


def fork():
    os._exit(0) if os.fork() == 0 else None


@pytest.mark.parametrize("act", [lambda: threading.Thread(target=int).start(), start_a_process, fork])
def test_a_user_with_no_more_processes_is_told_of_the_limit(act, tmp_path):
    words = ended_alone(tmp_path, act, resource.RLIMIT_NPROC, 69)
    assert words.startswith("x: no more threads or processes can be started here; raise their limit (ulimit -u,")


@pytest.mark.parametrize("act", [lambda: os.pipe(), lambda: open(os.devnull)])  # noqa: SIM115
def test_a_process_with_no_more_files_is_told_of_the_limit(act, tmp_path):
    words = ended_alone(tmp_path, act, resource.RLIMIT_NOFILE, 74)
    assert words in (
        f"x: {place}too many open files; raise their limit: ulimit -n 4096\n" for place in ("", "/dev/null: ")
    )


def ended_alone(tmp_path, act, limit, code):
    """What a command prints that does ``act`` in a process of its own with the lowest limit; it ends with ``code``."""
    errors = os.open(tmp_path / "errors", os.O_RDWR | os.O_CREAT)
    child = os.fork()
    if child == 0:
        ended = 1
        try:
            os.dup2(errors, 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            if os.getuid() == 0 and limit == resource.RLIMIT_NPROC:
                os.setuid(65534)  # this limit does not bind root
            resource.setrlimit(limit, (1, 1))
            ended = guarded("x", lambda _: act(), [])
        finally:
            os._exit(ended)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    words = (tmp_path / "errors").read_text()
    assert words.count("\n") == 1
    return words


def test_a_pool_of_which_only_some_workers_could_start_leaves_none(folder):
    """The command said why it ended, and then waited for them for ever."""
    content = recognise(folder).splits["train"]
    first = os.dup(0)
    os.close(first)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in range(0, 100, 3):  # Python itself leaves a file open at each failure
        resource.setrlimit(resource.RLIMIT_NOFILE, (first + more, hard))
        try:
            chunks = len(list(decoded(content, range(0, len(content), 32), ResizeRule(8), 2)))
        except OSError:
            chunks = 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not multiprocessing.active_children()
        gc.collect()
        if chunks:
            break
    assert more > 6
    assert chunks == 2


def test_a_checkpoint_for_which_there_are_no_more_files_is_not_a_matter_of_room(tmp_path):
    """Whichever of its files is the one too many: the limit is named, and what was there stays."""
    (tmp_path / "checkpoints").mkdir()
    checkpoint.save(tmp_path / "checkpoints", 1, {"model": {"w": torch.zeros(3)}}, {"config_hash": "a"})
    first = os.dup(0)
    os.close(first)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    errors = []
    for more in range(20):
        resource.setrlimit(resource.RLIMIT_NOFILE, (first + more, hard))
        try:
            checkpoint.save(tmp_path / "checkpoints", 2, {"model": {"w": torch.ones(3)}}, {"config_hash": "a"})
            break
        except IOFailure as error:
            errors.append(error)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert errors
    for error in errors:
        assert "Too many open files" in str(error)
        assert error.hint == "the older checkpoints are untouched; raise their limit: ulimit -n 4096"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]


def test_a_file_that_the_memory_does_not_hold_is_one_line(tmp_path, capfd):
    """torch maps it, and says so in a RuntimeError."""
    with open(tmp_path / "file", "wb") as file:
        file.truncate(1 << 43)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 42, hard))
    try:
        assert guarded("x", lambda _: torch.from_file(str(tmp_path / "file"), size=1 << 41) is None, []) == 69
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert capfd.readouterr().err.startswith("x: out of memory: a file of 8192.0 GiB could not be mapped; ")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError(errno.ENOSPC, "", "/a/b"), "x: /a/b: not written: No space left on device; free some space there\n"),
        (
            RuntimeError("a.cpp:1: warning: old\nerror writing to /tmp/c.s: No space left on device\n"),
            "x: /tmp/c.s: not written: No space left on device; free some space, or set TMPDIR\n",
        ),
    ],
)
def test_a_full_disk_under_a_library_is_one_line(raised, said, capfd):
    def fail(_):
        raise raised

    assert guarded("x", fail, []) == 74
    assert capfd.readouterr().err == said


@pytest.mark.parametrize("which", ["CUDA-capable device(s) is/are", "all CUDA-capable devices are"])
def test_a_gpu_that_another_program_has_for_itself_is_one_line(which, capfd):
    """In the words of CUDA 13 and of versions before; there may be no GPU here to ask for them."""

    def fail(_):
        raise RuntimeError(f"CUDA error: {which} busy or unavailable\nSearch for `cudaErrorDevicesUnavailable'")

    assert guarded("x", fail, []) == 69
    err = capfd.readouterr().err
    assert err.startswith("x: the GPU is busy or unavailable; another program has it for itself (exclusive mode)")
    assert err.count("\n") == 1


def test_a_library_that_the_memory_does_not_hold_is_one_line(tmp_path):
    """As on a cluster's login node that limits the address space: torch itself cannot be loaded."""
    begun = f"ulimit -v 900000; exec {sys.executable} -m imnet.cli --dry-run --device cpu"
    ended = subprocess.run(["sh", "-c", begun], capture_output=True, text=True)
    assert ended.returncode == 69
    assert ended.stderr.startswith("imnet-train: out of memory: libtorch")
    assert ended.stderr.count("\n") == 1
