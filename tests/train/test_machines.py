"""Ranks that were started on several machines, each with its own command line and its own copy of the data."""

import contextlib
import ctypes
import dataclasses
import os
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from imnet import cli, fits, launch, meeting, recipes
from imnet.device import Place
from imnet.errors import DeviceError, UsageError
from imnet.run_options import OF_ONE_MACHINE, RunOptions

from . import silent_script
from .conftest import command, finished, start_ranks

WORDS = ["--device", "cpu", "--epochs", "1", "--batch-size", "4", "--model", "speednet", "--threads", "1"]


def pictures(root, shade):
    for i in range(12):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (i * 10, shade, 0)).save(path)
    return root


@pytest.mark.parametrize(
    ("shades", "seeds", "code", "expected"),
    [
        ((0, 9), (1, 1), 65, "the ranks have different data: rank 1 has "),
        pytest.param(
            (0, 0),
            (1, 2),
            2,
            "rank 1 has seed = 2, rank 0 has 1; start all ranks with the same words",
            marks=pytest.mark.slow,
        ),
        ((0, 0), (1, 1), 0, ""),
    ],
)
def test_ranks_of_two_copies_are_refused_where_those_differ(shades, seeds, code, expected, tmp_path, capsys):
    words = []
    for rank in range(2):
        photos = pictures(tmp_path / f"machine-{rank}" / "photos", shades[rank])
        words.append(["--config", str(tmp_path / "config.yaml"), "--data-dir", str(photos), "--seed", str(seeds[rank])])
        words[rank] += ["--out", str(tmp_path / f"machine-{rank}" / "run")]
        if rank == 0:
            assert cli.train_main([str(photos), *WORDS, "--print-config"]) == 0
            (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    codes, said = both(tmp_path, "train_main", words)
    assert codes == [code, code], said
    assert all(expected in words for words in said), said
    assert not any("Traceback" in words for words in said), said
    if code == 0:
        _judge_where_one_has_no_run(tmp_path)
        _start_where_the_first_has_no_run(tmp_path, words[::-1])


def both(folder, main, words):
    """Runs a command on one list of words per rank, each with its own cache; returns (exit codes, standard errors)."""
    caches, files = ([folder / f"machine-{rank}" / name for rank in range(2)] for name in ("cache", "errors"))
    for file in files:
        file.write_text("")
    codes = finished(start_ranks(_on_machine, *zip(caches, [main] * 2, words, files, strict=True), LOCAL_RANK=0))
    return codes, [file.read_text() for file in files]


def _on_machine(cache, *asked):
    os.environ["XDG_CACHE_HOME"] = str(cache)
    return command(*asked)


def _judge_where_one_has_no_run(folder):
    """Only rank 0 has a run folder; when the other rank ended, imnet-eval on rank 0 must not print a traceback."""
    asked = [[str(folder / f"machine-{rank}" / "run"), "--device", "cpu"] for rank in range(2)]
    said = [words.splitlines()[-1] for words in both(folder, "eval_main", asked)[1]]
    assert "rank 0 of 2 has lost its connection to another rank" in said[0]
    assert "machine-1/run: no run.json" in said[1]


def _start_where_the_first_has_no_run(folder, words):
    """The machines have swapped ranks: training must not start anew and ignore the run on the other machine."""
    codes, said = both(folder, "train_main", words)
    assert codes == [2, 2], said
    assert all("on its machine, rank 0 has no checkpoint; start rank 0, which alone" in w for w in said), said
    assert not (folder / "machine-1" / "run").exists()


def settings(recipe=recipes["quickstart"], precision="fp32", **options):
    return fits.settings(recipe, RunOptions(**options), Place(torch.device("cpu"), precision, ""))


ANOTHER = {"bands": "0", "keep": "best", "kernels": "reference", "on_nonfinite": "skip:2", "log": "csv", "out": "x"}
ANOTHER |= {"precision": "fp32", "pipeline": "host", "on_bad_image": "skip", "resume": "never", "data_dir": "x"}
ANOTHER |= {"optim_backend": "torch", "device": "cpu"}


@pytest.mark.parametrize("field", dataclasses.fields(RunOptions), ids=lambda field: field.name)
def test_every_option_is_a_machines_own_or_the_same_on_all(field):
    """Ranks that log, save or evaluate at different steps wait for each other; other arithmetic would go unnoticed."""
    other = ANOTHER.get(field.name, not field.default if "bool" in field.type else 7)
    here, there = settings(), settings(**{field.name: other})
    differ = [name for name in here if here[name] != there[name]]
    assert differ == ([] if field.name in OF_ONE_MACHINE or field.name == "precision" else [field.name])


def test_what_a_recipe_and_a_processor_decide_is_the_same_on_all():
    recipe = recipes["quickstart"]
    changed = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, lr=9.0))
    for there, name in ((settings(changed), "optim.lr"), (settings(precision="bf16"), "precision")):
        assert [key for key, value in settings().items() if value != there[key]] == [name]
    assert {"imnet", "model", "weights", "data.batch_images"} <= settings().keys()
    assert settings(dataclasses.replace(recipe, source="elsewhere")) == settings()


FIRST = {"lr": 0.1, "mean": [0.5], "torch": "2.14"}


@pytest.mark.parametrize(
    ("third", "said"),
    [
        (FIRST, ""),
        (FIRST | {"lr": 0.2}, "rank 2 has lr = 0.2, rank 0 has 0.1"),
        (FIRST | {"later": 1}, "rank 2 has later = 1, rank 0 has None"),
        (FIRST | {"torch": "2.11"}, "rank 2 has torch = 2.11, rank 0 has 2.14"),
    ],
)
def test_whichever_rank_differs_all_say_the_same_line(third, said):
    store = torch.distributed.HashStore()

    def agree(rank):
        try:
            return meeting._agree(store, rank, 3, third if rank == 2 else FIRST, "127.0.0.1")
        except UsageError as error:
            return error.what

    with ThreadPoolExecutor(3) as pool:
        assert (
            list(pool.map(agree, range(3)))
            == [f"the ranks have different recipes, options or versions: {said}" if said else "127.0.0.1"] * 3
        )


DEBIAN = "127.0.1.1 node-{own}\n10.77.0.{far} node-{other}\n"
TWO_MACHINES = """set -e
unshare --net --uts --mount sleep 300 & peer=$!
trap 'kill $peer' EXIT
there="nsenter --target $peer --net --uts --mount"
until [ "$(readlink /proc/$peer/ns/mnt)" != "$(readlink /proc/$$/ns/mnt)" ]; do sleep 0.05; done
ip link add eth0 type veth peer name eth0 netns $peer
ip link set lo up; ip address add 10.77.0.1/24 dev eth0; ip link set eth0 up
$there ip link set lo up; $there ip address add 10.77.0.2/24 dev eth0; $there ip link set eth0 up
hostname node-a; mount --bind "$1/a" /etc/hosts
$there hostname node-b; $there mount --bind "$1/b" /etc/hosts
$there mount -t tmpfs none "$1/private"
echo $peer
read word && ip link set eth0 down && echo down && read word
"""


@contextlib.contextmanager
def two_machines(folder, hosts):
    """Makes two network namespaces, in which ``hosts`` is the text of /etc/hosts with their names. Yields the process
    that keeps them, which takes the network down at a word, and a process in each of them."""
    for name, other, far in (("a", "b", 2), ("b", "a", 1)):
        (folder / name).write_text("127.0.0.1 localhost\n" + hosts.format(own=name, other=other, far=far))
    (folder / "private").mkdir()
    if not shutil.which("unshare"):
        pytest.skip("this machine has no unshare")
    words = ["unshare", "--map-root-user", "--net", "--uts", "--mount", "bash", "-c", TWO_MACHINES, "-", str(folder)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(words, text=True, **pipes) as keeper:
        peer = keeper.stdout.readline()
        if not peer:
            pytest.skip("this user may not make a network of two machines (unshare, ip)")
        yield keeper, (keeper.pid, int(peer))
        keeper.communicate("")


def start_on(machines, hosts, main, *rows):
    """Starts a rank of ``main`` on each of the two machines."""
    rows = [(machine, main, *row) for machine, row in zip(machines, rows, strict=True)]
    first = "node-a" if hosts else "10.77.0.1"
    return start_ranks(_inside, *rows, LOCAL_RANK=0, MASTER_ADDR=first, MASTER_PORT=29500)


def _inside(machine, main, *arguments):
    """Runs ``main`` in the namespaces of the process ``machine``."""
    with contextlib.ExitStack() as stack:
        kinds = ("user", "net", "uts", "mnt")
        for file in [stack.enter_context(open(f"/proc/{machine}/ns/{kind}")) for kind in kinds]:
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
    return main(*arguments)


@pytest.mark.parametrize("hosts", [DEBIAN, pytest.param("", marks=pytest.mark.slow)], ids=["debian", "nameless"])
def test_two_machines_with_a_network_between_them_and_no_folder_in_common(tmp_path, hosts):
    """Gloo must not take the address of the machine's own name, where the other machine cannot reach it; the second
    machine must resume from the first one's checkpoint and not look for it in its own folder."""
    words = ["--device", "cpu", "--batch-size", "4", "--threads", "1", "--data.image_px", "12", "--allow-change"]
    words += ["--data.train_images", "64", "--data.test_images", "16", "--out", str(tmp_path / "private" / "run")]
    errors, output = tmp_path / "errors", tmp_path / "output"
    with two_machines(tmp_path, hosts) as (_, machines):
        for epochs in ("1", "2"):
            row = ("train_main", [*words, "--epochs", epochs], errors, output)
            assert finished(start_on(machines, hosts, command, row, row)) == [0, 0], errors.read_text()
    assert "resuming   at step 16" in output.read_text()
    assert "127.0" not in errors.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["joining", "preparing"])
def test_a_rank_whose_first_one_is_out_of_reach_ends_in_a_line(tmp_path, when):
    """The store waits for an answer as long as its connection lives: a quarter of an hour for a request, and forever
    for the word that the data are ready."""
    sign, errors = tmp_path / "sign", tmp_path / "errors"
    with two_machines(tmp_path, "") as (keeper, machines):
        ranks = start_on(machines, "", silent_script.rank, *[(when, sign, errors)] * 2)
        while not sign.exists() and all(rank.is_alive() for rank in ranks):
            time.sleep(0.05)
        time.sleep(1)  # until the other waits
        keeper.stdin.write("now\n")
        keeper.stdin.flush()
        assert keeper.stdout.readline() == "down\n"
        (code,) = finished(ranks[1:])
        ranks[0].kill()
    said = {
        "joining": "rank 1 of 2 could not join at 10.77.0.1:29500 within 3 s",
        "preparing": "rank 1 of 2 has had no",
    }
    assert errors.read_text().startswith(f"script: {said[when]}")
    assert errors.read_text().count("\n") == 1
    assert code == 69


def _join(rank, gone, file):
    """Joins the other rank; the rank ``gone`` ends as soon as it has met it."""
    meeting.INIT_TIMEOUT_S = 3
    if rank == gone:
        meeting.dist.init_process_group = lambda *_, **__: os._exit(9)
    try:
        with launch.named_loss(launch.current_world()), launch.connected(torch.device("cpu")):
            pass
    except DeviceError as error:
        file.write_text(str(error))
        return error.exit_code
    return 0


@pytest.mark.parametrize(
    ("gone", "said"),
    [(0, "rank 1 of 2 has lost its connection"), (1, "rank 0 of 2 has had no answer from another rank in time")],
)
def test_a_rank_that_ends_when_all_have_met_is_not_one_that_was_never_started(gone, said, tmp_path):
    """The other one's message must not ask whether all are started. Rank 0 holds the store, so that its end is seen at
    once; the end of another rank is seen by its silence."""
    files = [tmp_path / "0", tmp_path / "1"]
    codes = finished(start_ranks(_join, *[(rank, gone, files[rank]) for rank in range(2)]))
    assert codes == [69, 9] if gone else codes == [9, 69]
    assert files[1 - gone].read_text().startswith(said)


@pytest.mark.parametrize("accepts", [False, True])
def test_a_port_of_another_program_that_says_nothing_ends_the_wait(accepts, monkeypatch):
    """torch waits for an answer without end, once the connection stands."""
    monkeypatch.setattr(meeting, "INIT_TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        names = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))
        if accepts:
            threading.Thread(target=lambda: other.accept()[0].recv(100), daemon=True).start()
        could_not = "rank 1 of 2 could not join at .*another program"
        with pytest.raises(DeviceError, match=could_not), launch.connected(torch.device("cpu")):
            pass
