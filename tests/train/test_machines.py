"""Ranks that were started on several machines, each with its own words and its own copy of the data."""

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from imnet import fits, meeting, recipes
from imnet.device import Place
from imnet.errors import UsageError
from imnet.run_options import OF_ONE_MACHINE, RunOptions

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
        ((0, 0), (1, 2), 2, "rank 1 has seed = 2, rank 0 has 1; start all ranks with the same words"),
        ((0, 0), (1, 1), 0, ""),
    ],
)
def test_ranks_of_two_copies_are_refused_where_those_differ(shades, seeds, code, expected, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = []
    for rank in range(2):
        photos = pictures(tmp_path / f"machine-{rank}" / "photos", shades[rank])
        words = ["--config", str(tmp_path / "config.yaml"), "--data-dir", str(photos), "--seed", str(seeds[rank])]
        if rank == 0:
            made = [sys.executable, "-m", "imnet.cli", str(photos), *WORDS, "--print-config"]
            (tmp_path / "config.yaml").write_text(subprocess.run(made, capture_output=True, text=True).stdout)
        names = os.environ | {name: str(value) for name, value in (common | {"RANK": rank}).items()}
        names |= {"XDG_CACHE_HOME": str(tmp_path / f"machine-{rank}" / "cache")}
        asked = [sys.executable, "-m", "imnet.cli", *words, "--out", str(tmp_path / f"machine-{rank}" / "run")]
        ranks.append(subprocess.Popen(asked, env=names, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [code, code], said
    assert all(expected in words for words in said), said
    assert not any("Traceback" in words for words in said), said
    if code == 0:
        _judge_where_one_has_no_run(tmp_path, common)


def _judge_where_one_has_no_run(folder, common):
    """Rank 0 alone has written one; evaluating, it said a traceback where another rank had ended."""
    ranks = []
    for rank in range(2):
        names = os.environ | {name: str(value) for name, value in (common | {"RANK": rank}).items()}
        asked = [sys.executable, "-c", "import sys; from imnet.cli import eval_main; sys.exit(eval_main())"]
        asked += [str(folder / f"machine-{rank}" / "run"), "--device", "cpu"]
        ranks.append(subprocess.Popen(asked, env=names, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
    said = [rank.communicate(timeout=60)[1].splitlines()[-1] for rank in ranks]
    assert "rank 0 of 2 has lost its connection to another rank" in said[0]
    assert "machine-1/run: no run.json" in said[1]


def settings(recipe=recipes["quickstart"], precision="fp32", **options):
    return fits.settings(recipe, RunOptions(**options), Place(torch.device("cpu"), precision, ""))


ANOTHER = {"bands": "0", "keep": "best", "kernels": "reference", "on_nonfinite": "skip:2", "log": "csv", "out": "x"}
ANOTHER |= {"precision": "fp32", "pipeline": "host", "on_bad_image": "skip", "resume": "never", "data_dir": "x"}
ANOTHER |= {"optim_backend": "torch", "device": "cpu"}


@pytest.mark.parametrize("field", dataclasses.fields(RunOptions), ids=lambda field: field.name)
def test_every_option_is_a_machines_own_or_the_same_on_all(field):
    """Ranks that log, save or evaluate at other steps waited for each other; of another arithmetic they trained on."""
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
hostname node-a; mount --bind "$FOLDER/a" /etc/hosts
$there hostname node-b; $there mount --bind "$FOLDER/b" /etc/hosts
$there mount -t tmpfs none "$FOLDER/private"
[ $# = 0 ] && exit
for epochs in 1 2; do
    RANK=1 $there "$@" --epochs $epochs & other=$!
    RANK=0 "$@" --epochs $epochs
    wait $other
done
"""


@pytest.mark.parametrize("hosts", [DEBIAN, pytest.param("", marks=pytest.mark.slow)], ids=["debian", "nameless"])
def test_two_machines_with_a_network_between_them_and_no_folder_in_common(tmp_path, hosts):
    """Gloo took the address of each machine's name, at which the other finds nobody, and the second machine, which
    goes on from the first one's checkpoint, looked for it in its own folder."""
    own = [
        sys.executable,
        "-m",
        "imnet.cli",
        "--device",
        "cpu",
        "--batch-size",
        "4",
        "--threads",
        "1",
        "--data.image_px",
        "16",
    ]
    own += ["--data.train_images", "64", "--data.test_images", "16", "--allow-change"]
    for name, other, far in (("a", "b", 2), ("b", "a", 1)):
        (tmp_path / name).write_text("127.0.0.1 localhost\n" + hosts.format(own=name, other=other, far=far))
    (tmp_path / "private").mkdir()
    meet = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "node-a" if hosts else "10.77.0.1"}
    machines = ["unshare", "--map-root-user", "--net", "--uts", "--mount", "bash", "-c", TWO_MACHINES, "-"]
    how = {"env": os.environ | meet | {"MASTER_PORT": "29500", "FOLDER": str(tmp_path)}, "capture_output": True}
    if not shutil.which("ip") or subprocess.run(machines, check=False, **how).returncode:
        pytest.skip("this user may not make a network of two machines (unshare, ip)")
    done = subprocess.run([*machines, *own, "--out", str(tmp_path / "private" / "run")], text=True, timeout=90, **how)
    assert done.returncode == 0, done.stderr
    assert "resuming   at step 16" in done.stdout
    assert "127.0" not in done.stderr
