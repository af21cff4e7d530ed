"""Callers who have switched torch to another mode or train in threads get the same figures, or are told why not."""

import contextlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import imnet
from imnet import cli
from imnet.errors import UsageError
from tests.use.test_own import folder_of
from tests.use.test_python import ON_CPU, TINY

PICTURE = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)


@contextlib.contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "float64": float64,
    "device": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return imnet.train(TINY, out=tmp_path_factory.mktemp("plain") / "r", **ON_CPU)


def same(mine, other):
    return all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))


def test_a_step_in_bf16_reads_the_weights_of_the_step(tmp_path):
    """Autocast keeps the cast of a weight until the outermost context ends: if that were a caller's, all steps would
    read the weights of the first."""
    how = ON_CPU | {"precision": "bf16"}
    runs = [imnet.train(TINY, out=tmp_path / "plain", **how)]
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.nn.functional.linear(torch.ones(1, 2), torch.nn.Parameter(torch.ones(2, 2)))
        runs.append(imnet.train(TINY, out=tmp_path / "within", **how))
        assert torch.autocast_increment_nesting() == 3
        torch.autocast_decrement_nesting()
        assert torch.is_autocast_enabled("cpu")
        again = runs[0].evaluate(device_name="cpu")
    assert same(runs[0].model(), runs[1].model())
    for run in runs:
        assert run.metrics[-1]["loss"] == again.loss


@pytest.mark.parametrize("mode", MODES)
def test_what_a_caller_has_switched_on_changes_no_figure(mode, plain, tmp_path):
    wanted, judged = plain.predict([PICTURE]), plain.evaluate(device_name="cpu")
    with MODES[mode]():
        mine = imnet.train(TINY, out=tmp_path / "r", **ON_CPU)
        assert mine.predict([PICTURE]) == wanted
        again = mine.evaluate(device_name="cpu")
        assert (again.top1, again.loss) == (judged.top1, judged.loss)
        network = mine.model()
    assert same(network, plain.model())
    assert not any(p.is_inference() for p in network.parameters())


def test_a_callers_random_numbers_go_on(plain, tmp_path, monkeypatch):
    """A caller's generators must not be reseeded, on the CPU or on GPUs, all of which torch.manual_seed would seed."""
    torch.manual_seed(5)
    wanted, on_gpus = torch.rand(3), []
    torch.manual_seed(5)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", on_gpus.append)
    imnet.train(TINY, out=tmp_path / "r", **ON_CPU)
    plain.model()
    plain.predict([PICTURE])
    plain.evaluate(device_name="cpu")
    assert torch.equal(torch.rand(3), wanted)
    assert not on_gpus


def test_two_trainings_in_one_process_do_not_mix(plain, tmp_path):
    start = threading.Barrier(2)

    def train(name):
        start.wait()
        try:
            return imnet.train(TINY, out=tmp_path / name, **ON_CPU)
        except UsageError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(train, "ab"))
    refused = [str(one) for one in ended if isinstance(one, UsageError)]
    assert all(why.startswith("another run is being trained in this process; wait") for why in refused)
    trained = [one for one in ended if not isinstance(one, UsageError)]
    assert trained
    assert all(same(one.model(), plain.model()) for one in trained)
    assert same(imnet.train(TINY, out=tmp_path / "c", **ON_CPU).model(), plain.model())


def test_data_that_are_gone_are_asked_for_by_the_option_of_the_command(tmp_path, monkeypatch, capsys):
    """The message must not suggest another data set's name: the run would be evaluated on that set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "photos")
    assert cli.train_main(["photos", "--epochs", "1", "--model", "speednet", "--out", "run", "--device", "cpu"]) == 0
    shutil.move("photos", "elsewhere")
    capsys.readouterr()
    assert cli.eval_main(["run", "--device", "cpu"]) == 65
    said = capsys.readouterr().err
    assert said.endswith("looked for class folders in photos; give the folder that it was trained on by --data-dir\n")
    assert "shapes" not in said
    words = ["run", "--device", "cpu", "--data-dir", "elsewhere"]
    assert cli.eval_main(words) == 0
