"""Every command answers a mistake in the same way: one line that begins with its name, a suggestion, exit code 2."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from bench import cli as bench_cli
from bench.profile import cli as profile_cli
from imnet import cli, sweep
from imnet.command import MEANINGS, guarded, option_hint, suggest
from imnet.data import tool
from imnet.errors import DataError, ImnetError
from imnet.parser import ALIASES, build_parser
from imnet.recipes import by_name

WRONG = [
    ("imnet-train", cli.train_main, ["--num-gpus", "2"], "did you mean --gpus?"),
    ("imnet-eval", cli.eval_main, ["run", "--data-root", "x"], "did you mean --data-dir?"),
    ("imnet-report", cli.report_main, ["run", "--output", "x"], "did you mean --out?"),
    ("imnet-sweep", sweep.main, ["grid", "--output-dir", "x"], "did you mean --out?"),
    ("imnet-sweep", sweep.main, ["grid", "--device", "cpu"], "words for imnet-train go behind --"),
    ("imnet-data", tool.main, ["pack", "a", "b", "--num-workers", "3"], "did you mean --workers?"),
    ("imnet-data", tool.main, ["pck", "a", "b"], "did you mean pack?"),
    ("imnet-bench", bench_cli.main, ["throughput", "--bs", "3"], "did you mean --batch-size?"),
    ("imnet-bench", bench_cli.main, ["THROUGHPUT"], "did you mean throughput?"),
    ("imnet-export", cli.export_main, ["run", "--to", "ONNX"], "did you mean onnx?"),
    ("imnet-sweep", sweep.main, ["FASHION_MNIST"], "did you mean fashion-mnist?"),
    ("imnet-report", cli.report_main, ["--system", "Fashion_MNIST"], "did you mean fashion-mnist?"),
    ("imnet-profile", profile_cli.main, ["step", "--resolution", "3"], "did you mean --image-px?"),
    ("imnet-profile", profile_cli.main, ["step", "--image-pixels", "3"], "did you mean --image-px?"),
    ("imnet-profile", profile_cli.main, ["step", "stray"], "'stray', which no option takes"),
    ("imnet-eval", cli.eval_main, [""], "variable of the shell not set?"),
    ("imnet-report", cli.report_main, ["run", "--out="], "variable of the shell not set?"),
]


@pytest.mark.parametrize(("name", "main", "argv", "hint"), WRONG)
def test_a_mistake_is_one_line_of_the_command(name, main, argv, hint, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{name}: got ") or "invalid choice" in err
    assert hint in err
    assert err.count("\n") == 1


def test_every_meaning_is_of_an_option_that_there_is():
    known = {*(a.dest for a in build_parser(by_name("quickstart"))._actions), *ALIASES}
    missing = set(MEANINGS) - known
    assert missing == {"schedule.milestones_epochs"}  # belongs to a schedule that quickstart does not use
    for option, words in MEANINGS.items():
        for word in words.split():
            if option in known and word not in known:
                assert option_hint(word, sorted(known), "x").startswith("did you mean --")


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (DataError("broken", file="f"), 65, "x: f: broken\n"),
        (ImnetError("odd"), 1, "x: odd\n"),
        (KeyboardInterrupt(), 130, "x: interrupted\n"),
        (BrokenPipeError(), 74, ""),
        (OSError(errno.ENOSPC, "No space left"), 74, "x: output not written: No space left; free some space there\n"),
        (MemoryError(), 69, "x: out of memory; take fewer or smaller images at once, or a machine with more\n"),
        (
            OSError(errno.ENOMEM, ""),
            69,
            "x: out of memory; take fewer or smaller images at once, or a machine with more\n",
        ),
    ],
)
def test_the_guard_gives_every_error_its_line_and_code(raised, code, words, capfd):
    def fail(_):
        raise raised

    kept = os.dup(1)  # if printing fails, ``guarded`` sends stdout to /dev/null
    try:
        assert guarded("x", fail, []) == code
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    assert capfd.readouterr().err == words


@pytest.mark.parametrize(
    ("allocate", "said"),
    [
        (lambda: b"0" * (1 << 60), ""),
        (lambda: np.empty(1 << 60, np.uint8), ": Unable to allocate 1.00 EiB for an array"),
        (lambda: torch.empty(1 << 58, dtype=torch.uint8), ": a tensor of 268435456.0 GiB did not fit"),
    ],
    ids=["python", "numpy", "torch"],
)  # fmt: skip
def test_memory_that_there_is_not_is_one_line(allocate, said, capfd):
    assert guarded("x", lambda _: allocate() is None, []) == 69
    err = capfd.readouterr().err
    assert err.startswith(f"x: out of memory{said}")
    assert err.count("\n") == 1
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):  # no other error of torch is hidden
        guarded("x", lambda _: int(torch.ones(2) @ torch.ones(3)), [])


@pytest.mark.parametrize(
    ("main", "argv"),
    [(cli.train_main, [""]), (cli.train_main, ["--data", ""]), (cli.train_main, ["--data="]),
     (cli.train_main, ["--data", "packed:", "--dry-run"]),
     (cli.train_main, ["--data-dir", ""]), (cli.train_main, ["--out="]), (cli.eval_main, [""]),
     (cli.eval_main, ["run", "--data", ""]), (cli.predict_main, ["", "a.jpg"]), (cli.predict_main, ["run", ""]),
     (cli.export_main, ["run", "--to", "onnx", "--out", ""]), (cli.report_main, [""]), (tool.main, ["inspect", ""]),
     (tool.main, ["pack", "", "store"])],
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(main, argv, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith("; is a variable of the shell not set?\n") or "variable of the shell not set?; imnet" in err


@pytest.mark.parametrize("module", ["imnet.recipe", "numpy", "imnet.report"])
def test_ctrl_c_while_a_command_is_imported_shows_no_frames(module, tmp_path):
    """The script is like the installed one: it has the command's name and first imports the command."""
    script = tmp_path / "imnet-data"
    script.write_text(f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
class Interrupted:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupted())
import imnet.data.tool
from imnet.command import guarded
sys.exit(guarded("imnet-data", lambda _: __import__("imnet.report"), []))
""")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=False)
    by_the_command = (130, "imnet-data: interrupted\n")
    assert (ended.returncode, ended.stderr) == (by_the_command if module == "imnet.report" else (-signal.SIGINT, ""))


def test_an_unforeseen_error_keeps_its_traceback():
    def fail(_):
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        guarded("x", fail, [])


def test_nothing_near_is_no_suggestion():
    assert suggest("qqqq", ["epochs"]) == ""
    assert option_hint("qqqq", ["epochs"], "x") == "x --help lists every option"
