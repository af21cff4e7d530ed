"""Initial weights from elsewhere: kinds of source, what fits and is reported, freezing, rates, resuming without."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import imnet
from imnet import dryrun, hubs, weights
from imnet.errors import DataError, IOFailure, UsageError
from imnet.models import build
from imnet.models.head import freeze, head_name
from imnet.optim import build as build_optimizer
from imnet.optim import param_groups, set_lr
from imnet.recipe import SGD, AdamW
from imnet.run_options import RunOptions
from imnet.start import train

from .conftest import command, finished, start_ranks

SMALL = {"train_images": 96, "test_images": 48, "image_px": 16, "batch_images": 32}


def recipe(**changes):
    base = imnet.recipes["quickstart"]
    data = replace(base.data, **SMALL)
    augment = replace(base.augment, crop_pad_px=1, cutout_px=0)
    return replace(base, data=data, augment=augment, epochs=1, model="wrn10_1", model_options={}, **changes)


@pytest.fixture(scope="module")
def donor():
    """A network of three classes with weights of its own seed."""
    torch.manual_seed(7)
    return build("wrn10_1", 3)


def test_what_fits_is_taken_and_the_rest_is_said(donor, tmp_path):
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    net = build("wrn10_1", 5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    put = weights.put(net, weights.read(str(tmp_path / "donor.safetensors")))
    head = head_name(net)
    assert set(put.new) == set(put.skipped) == {f"{head}.weight", f"{head}.bias"}
    for name, value in net.state_dict().items():
        wanted = before if name.startswith(head) else donor.state_dict()
        assert torch.equal(value, wanted[name]), name
    text = f"{put.loaded} tensors loaded, 2 new ({head}.weight, {head}.bias), 2 left out ({', '.join(put.skipped)})"
    assert str(put) == text


def test_a_dry_run_says_what_fits_and_leaves_a_run_that_goes_on_alone(donor, tmp_path):
    source, out = tmp_path / "donor.safetensors", tmp_path / "run"
    save_file(donor.state_dict(), source)
    options = RunOptions(out=str(out), device="cpu", threads=1)
    told = dryrun.text(recipe(weights=str(source)), options)
    assert (
        f"begins with  {source}: {len(donor.state_dict()) - 2} tensors loaded, 2 new (head.weight, head.bias)" in told
    )
    train(recipe(weights=str(source)), options)
    source.unlink()
    assert "begins with" not in dryrun.text(recipe(weights=str(source)), options)
    for saved in out.glob("checkpoints/step-*"):
        saved.rename(saved.with_suffix(".tmp"))  # as of a run that was killed while it saved: no checkpoint
    for place in (out, tmp_path / "another"):
        with pytest.raises(UsageError, match="no such file"):
            dryrun.text(recipe(weights=str(source)), replace(options, out=str(place)))
    hub = "torchvision:ResNet18_Weights.IMAGENET1K_V1"
    if not hubs.is_here(hub):
        told = dryrun.text(recipe(weights=hub), replace(options, out=str(tmp_path / "another")))
        assert f"begins with  {hub}, fetched when training begins" in told


def test_another_network_is_refused(tmp_path):
    save_file(build("speednet", 3).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"they fill 0% of the network.*theirs are named"):
        weights.put(build("wrn10_1", 3), weights.read(str(tmp_path / "other.safetensors")))


def test_a_colour_stem_serves_grey_pictures(donor):
    grey = build("wrn10_1", 3, in_channels=1)
    weights.put(grey, weights.Weights("donor", donor.state_dict()))
    image = torch.randn(2, 1, 32, 32)
    colour = donor.eval()(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey.eval()(image), colour, rtol=1e-4, atol=1e-4)


def refused(address, timeout):
    raise OSError("no route")


def test_hubs_that_are_away_are_said_at_once_with_the_file_to_fetch(monkeypatch, tmp_path):
    monkeypatch.setattr(hubs.socket, "create_connection", refused)
    monkeypatch.setattr(hubs.urllib.request, "getproxies", dict)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    pytest.importorskip("timm")
    with pytest.raises(IOFailure, match=r"fetch model\.safetensors of timm/resnet10t\.c3_in1k"):
        weights.read("timm:resnet10t.c3_in1k")
    with pytest.raises(IOFailure, match=r"resnet18-f37072fd\.pth and put it into"):
        weights.read("torchvision:ResNet18_Weights.IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("timm:resnet18.a1_in2k", "did you mean"),
        ("torchvision:ResNet18_Weights.IMAGENET1K_V9", "did you mean"),
        ("torchvision:resnet18", "has no weights"),
    ],
)
def test_unknown_weights_get_a_suggestion(source, says):
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match=says):
        weights.read(source)


def test_torchvisions_cached_file_is_read_as_it_is_there(monkeypatch, tmp_path):
    import torchvision

    state = torchvision.models.resnet18().state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = weights.read("torchvision:ResNet18_Weights.IMAGENET1K_V1")
    net = build("torchvision:resnet18", 7)
    assert set(weights.put(net, found).new) == {"fc.weight", "fc.bias"}


def test_what_images_went_through_comes_with_the_weights():
    pytest.importorskip("timm")
    assert weights.preprocessing("timm:resnet50.a1_in1k") == weights.Preprocessing()
    assert weights.preprocessing("timm:vit_base_patch16_224.augreg_in21k").mean == (0.5, 0.5, 0.5)
    found = weights.preprocessing("torchvision:EfficientNet_B3_Weights.IMAGENET1K_V1")
    assert (found.image_px, found.mean) == (300, weights.IMAGENET_MEAN)


def test_frozen_parts_stand_still_and_their_norms_keep_their_statistics(tmp_path):
    run = imnet.train(recipe(freeze="all-but-head", seed=3), out=tmp_path, device="cpu", precision="fp32")
    trained, first = run.model().state_dict(), build_first(3)
    head = head_name(run.model())
    changed = {name for name, value in trained.items() if not torch.equal(value, first[name])}
    assert changed == {f"{head}.weight", f"{head}.bias"}


def build_first(seed):
    from imnet.from_recipe import build_network

    return build_network(recipe(seed=seed)).state_dict()


def test_the_first_parts_alone_can_be_frozen():
    net = build("wrn10_1", 5)
    names = [name for name, child in net.named_children() if next(child.parameters(), None) is not None]
    still = freeze(net, "2")
    open_ = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert open_ == set(names[2:])
    assert still
    with pytest.raises(UsageError, match=rf"allowed: all-but-head, or 1\.\.{len(names) - 1}"):
        freeze(net, str(len(names)))
    with pytest.raises(ValueError, match="all-but-head, or a number"):
        recipe(freeze="body")


@pytest.mark.parametrize("kind", [SGD(lr=1.0, weight_decay=0.1, decay_norms=False), AdamW(lr=1.0)])
def test_the_body_trains_at_its_share_of_the_rate(kind):
    net = build("wrn10_1", 5)
    head = head_name(net)
    optimizer = build_optimizer(net, kind, "torch", body_lr=0.1)
    set_lr(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in net.named_parameters():
        assert rates[id(p)] == pytest.approx(0.5 if name.startswith(head) else 0.05)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, kind.weight_decay}
    assert len(param_groups(net, kind)) == 2


def test_a_run_begins_with_the_weights_and_goes_on_without_their_source(donor, tmp_path):
    source = tmp_path / "donor.safetensors"
    save_file(donor.state_dict(), source)
    asked = recipe(weights=str(source), body_lr=1e-9)
    out = tmp_path / "run"
    run = imnet.train(asked, out=out, device="cpu", precision="fp32")
    assert run.info["weights"]["sha256"] == weights.read(str(source)).sha256
    assert run.info["weights"]["new"] == [f"{head_name(donor)}.weight", f"{head_name(donor)}.bias"]
    stem = next(name for name, p in donor.named_parameters() if p.dim() == 4)
    torch.testing.assert_close(run.model().state_dict()[stem], donor.state_dict()[stem], rtol=0, atol=1e-6)
    source.unlink()
    again = imnet.train(asked, out=out, device="cpu", precision="fp32")
    assert again.info["weights"] == run.info["weights"]


def test_a_run_can_start_from_a_run(tmp_path):
    first = imnet.train(recipe(seed=1), out=tmp_path / "first", device="cpu", precision="fp32")
    asked = recipe(weights=str(tmp_path / "first"), freeze="all-but-head", seed=2)
    second = imnet.train(asked, out=tmp_path / "second", device="cpu", precision="fp32")
    mine, theirs = second.model().state_dict(), first.model().state_dict()
    head = head_name(second.model())
    assert all(torch.equal(mine[k], v) for k, v in theirs.items() if not k.startswith(head))
    assert second.info["weights"]["skipped"] == []


def test_ranks_start_from_the_same_weights(donor, tmp_path):
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    words = ["--model", "wrn10_1", "--recipe", "quickstart", "--weights", str(tmp_path / "donor.safetensors")]
    for name, value in SMALL.items():
        words += [f"--data.{name}", str(value)]
    words += ["--augment.crop_pad_px", "1", "--augment.cutout_px", "0", "--epochs", "1", "--freeze", "all-but-head"]
    run = ["--procs", "2", "--device", "cpu", "--out", str(tmp_path / "run"), "--precision", "fp32"]
    said = tmp_path / "said"
    assert finished(start_ranks(command, *[("train_main", [*words, *run], said, said)] * 2)) == [0, 0], said.read_text()
    assert "weights    " in said.read_text()
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["weights"]["loaded"] > 20
    mine = imnet.load_run(str(tmp_path / "run")).model().state_dict()
    head = head_name(donor)
    assert all(torch.equal(mine[k], v) for k, v in donor.state_dict().items() if not k.startswith(head))


def test_a_network_without_a_classifier_is_said():
    with pytest.raises(UsageError, match="no classifier"):
        head_name(nn.Sequential(nn.Flatten()))


def test_a_run_gives_its_newest_weights_or_none(tmp_path):
    """Larger batches mean lower step numbers; checkpoints of the earlier configuration must not count as newer."""
    first = imnet.train(replace(recipe(), epochs=2), out=tmp_path / "first", device="cpu", keep="3")
    wider = replace(recipe(), epochs=3, data=replace(recipe().data, batch_images=96))
    last = imnet.train(wider, out=tmp_path / "first", device="cpu", keep="3", allow_change=True)
    assert len(list(first.path.glob("checkpoints/step-*"))) > 1
    found = weights.read(str(last.path)).tensors
    for name, value in last.model().state_dict().items():
        assert torch.equal(found[name], value), name
    newest = last.path / "checkpoints/step-00000003/model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(DataError, match="the newest checkpoint is damaged"):
        weights.read(str(last.path))


@pytest.mark.parametrize("bands", ["all", None])
@pytest.mark.parametrize(("there", "says"), [(False, "no such file"), (True, "of the network")])
def test_wrong_weights_are_refused_before_the_set_is_looked_for(tmp_path, bands, there, says):
    """This holds for ensembles too, whose networks are built after the data set, which can take an hour to load."""
    file = tmp_path / "others.safetensors"
    if there:
        save_file({"x": torch.zeros(3)}, file)
    base = recipe(weights=str(file))
    data = replace(base.data, name="imagenet64", num_classes=1000, train_images=None, test_images=None)
    band = replace(base.augment, hflip="none", crop_pad_px=0, spectral_r=2, spectral_band=0)
    asked = replace(base, data=data, augment=band)
    out = tmp_path / "run"
    with pytest.raises(UsageError, match=says):
        train(asked, RunOptions(out=str(out), data_dir=str(tmp_path), device="cpu", bands=bands))
    assert not list(out.rglob("run.json"))
