"""Weight files that other scripts wrote: what is found in them, what is refused, and that nothing is executed."""

from pathlib import Path

import pytest
import torch

from imnet import weights
from imnet.errors import DataError, UsageError
from imnet.models import build


@pytest.fixture(scope="module")
def donor():
    torch.manual_seed(7)
    return build("wrn10_1", 3)


def _in_front(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    ["plain", "state_dict", "ddp", "compiled", "both", "ema first", "nested", "torch's averages", "beside a tensor",
     "lightning", "a word of one's own", "a name of one's own"],
)  # fmt: skip
def test_checkpoints_of_other_scripts_are_read(donor, tmp_path, wrap):
    state = donor.state_dict()
    other = {k: torch.zeros_like(v) for k, v in state.items()}
    held = {
        "plain": state,
        "state_dict": {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
        "ddp": {"model": _in_front("module.", state)},
        "compiled": _in_front("_orig_mod.", state),
        "both": {"state_dict": _in_front("_orig_mod.module.", state)},
        "ema first": {"state_dict": other, "state_dict_ema": state},
        "nested": {"model": {"state_dict": state}},
        "torch's averages": {"model": other, "model_ema": torch.optim.swa_utils.AveragedModel(donor).state_dict()},
        "beside a tensor": {"best_acc1": torch.tensor(70.0), "state_dict": _in_front("module.", state)},
        "lightning": {"state_dict": {**_in_front("net.", state), "loss.weight": torch.ones(3)}},
        "a word of one's own": {"weights of today": state, "optimizer": {"state": {0: other}, "param_groups": []}},
        "a name of one's own": {**_in_front("a.backbone.", state), **_in_front("b.", dict(list(other.items())[:9]))},
    }[wrap]
    torch.save(held, tmp_path / "donor.pth")
    net = build("wrn10_1", 3)
    put = weights.put(net, weights.read(str(tmp_path / "donor.pth")))
    assert put.loaded == len(state)
    assert not put.new
    assert all(torch.equal(net.state_dict()[k], v) for k, v in state.items())


def test_a_network_that_is_there_twice_is_not_guessed(donor, tmp_path):
    state = donor.state_dict()
    torch.save(_in_front("student.", state) | _in_front("teacher.", state), tmp_path / "two.pth")
    with pytest.raises(UsageError, match=r"several times, as student\., teacher\.; save the one"):
        weights.put(build("wrn10_1", 3), weights.read(str(tmp_path / "two.pth")))


def test_a_download_that_broke_off_is_said(donor, tmp_path):
    whole, path = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save(donor.state_dict(), whole)
    for size in (0, 3, 1000, whole.stat().st_size - 1):
        path.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(DataError, match=r"cut\.pth: the file is empty or cut off; get it again"):
            weights.read(str(path))


class Evil:
    def __reduce__(self):
        return (Path("evil").write_text, ("ran",))


def test_nothing_in_a_pickle_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pth")
    with pytest.raises(DataError, match="no file of tensors"):
        weights.read("evil.pth")
    assert not Path("evil").exists()


@pytest.mark.parametrize("held", [[1, 2], {"a": 1}, {}])
def test_a_file_without_tensors_is_said(tmp_path, held):
    torch.save(held, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"no tensors by name|no file of tensors"):
        weights.read(str(tmp_path / "x.pt"))


def test_a_damaged_file_and_an_absent_one_are_one_line(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(DataError, match="no safetensors file"):
        weights.read(str(tmp_path / "cut.safetensors"))
    with pytest.raises(UsageError, match=r"no such file.*timm:NAME"):
        weights.read(str(tmp_path / "none.pth"))
    with pytest.raises(UsageError, match=r"without run\.json"):
        weights.read(str(tmp_path))


def test_why_a_file_is_refused_fits_in_its_line(donor, tmp_path):
    """torch's own message is a page long and contains terminal colour codes."""
    torch.save(donor, tmp_path / "whole.pt")
    with pytest.raises(DataError, match=r"of tensors: it holds Python objects, which are not executed; save the"):
        weights.read(str(tmp_path / "whole.pt"))
    (tmp_path / "text.pth").write_text("x")
    with pytest.raises(DataError, match=r"no file of tensors: \w+; save the state_dict") as caught:
        weights.read(str(tmp_path / "text.pth"))
    assert str(caught.value).isprintable()
