"""Execution options that a run leaves open: decided from measurements, kept in run.json and overruled by the user."""

import dataclasses
import functools
import json
import os
import random
import re
import subprocess
import sys

import pytest
import torch
from imnet_kernels import tier

from imnet import defaults, device, models, recipes
from imnet.capture import NotCapturableError, repeatable
from imnet.device import Place
from imnet.errors import DeviceError, UsageError
from imnet.from_recipe import build_network
from imnet.launch import World
from imnet.models.count import flops, sizes
from imnet.run_options import RunOptions
from imnet.start import train
from imnet.step import TrainStep
from imnet.watch import first_bad_layer, not_finite

from .conftest import TINY, options
from .test_step import batch, make_step

GPU = Place(torch.device("cuda", 0), "bf16", "test")
FASHION, IMAGENET = 29_952, 1_281_024
KERNELS = {
    "quickstart": (8000, False),
    "fashion-mnist/speedrun": (FASHION, False),
    "fashion-mnist/speedrun_long": (FASHION, False),
    "fashion-mnist/wrn28_10_fast": (FASHION, True),
    "fashion-mnist/shake_shake26_2x96d_fast": (FASHION, True),
    "fashion-mnist/wrn28_10": (FASHION, True),
    "imagenet64/wrn36_5": (IMAGENET, True),
}


@pytest.fixture(autouse=True)
def an_h100(monkeypatch):
    """Uses the measured rates of an H100, so that no GPU is needed."""
    monkeypatch.setattr(defaults, "rates", lambda place: defaults.RATES["H100"])


@functools.cache
def network(recipe):
    """The network of a recipe, drawn once, since that takes up to a second and nothing here changes it."""
    return build_network(recipes[recipe])


def decide(recipe="quickstart", images=8000, world=None, kept=None, **asked):
    net = network(recipe)
    return defaults.decide(recipes[recipe], net, RunOptions(**asked), GPU, world or World(), images, kept)


@pytest.mark.parametrize("name", KERNELS)
def test_our_kernels_are_for_runs_that_earn_them_back(name):
    images, taken = KERNELS[name]
    found = decide(name, images)
    assert found.cuda_graphs
    assert not found.compile
    assert found.step_kernels == taken
    assert "s of training predicted" in found.reason


@pytest.mark.parametrize(("images", "compiled"), [(10_000, False), (IMAGENET, True)])
def test_compiling_is_for_networks_whose_norms_are_not_ours_and_for_runs_that_earn_it_back(images, compiled):
    """DaViT has no batch norm; on several ranks, where no step is captured, networks with one are compiled too."""
    assert decide("imagenet64/davit_tiny", images).compile == compiled
    assert decide("imagenet64/wrn36_5", images, world=World(0, 2)).compile == compiled
    assert not decide("imagenet64/wrn36_5", images, world=World(0, 2)).step_kernels


# images/s measured on an H100 (bench/results/h100-2026-11-26.json), captured except for WRN-36-5, which was eager.
MEASURED = {
    "imagenet64/wrn36_5": 5394,
    "fashion-mnist/wrn28_10": 12898,
    "fashion-mnist/shake_shake26_2x96d": 10166,
    "fashion-mnist/densenet_bc100_12": 7718,
}


@pytest.mark.parametrize("name", MEASURED)
def test_predictions_are_near_what_was_measured(name):
    """Within a fifth, except for DenseNet, whose kernels are too small to reach the rate of a memory copy."""
    one_epoch = dataclasses.replace(recipes[name], epochs=1)
    rate = 1 / defaults.seconds_of_training(one_epoch, network(name), GPU, 1)
    assert rate / MEASURED[name] == pytest.approx(2.15 if "densenet" in name else 1.0, rel=0.2)


@pytest.mark.parametrize("name", ["wrn10_1", "speednet", "shake_shake26_2x32d", "resnet18_64"])
def test_sizes_counts_what_the_exact_count_does(name):
    with torch.device("meta"):
        exact = flops(models.build(name, 10), (3, 32, 32))
    net = models.build(name, 10).train()
    found, elements = sizes(net, (3, 32, 32))
    assert found == exact
    assert elements > 0
    assert net.training
    assert not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(b, torch.zeros_like(b)) for n, b in net.named_buffers() if n.endswith("running_mean"))


def test_a_short_run_does_not_import_the_compiler(tmp_path):
    """The import took 5 of quickstart's 12 seconds on a GPU machine. Other tests import it, hence the own process."""
    program = f"""
import sys, torch
from imnet import defaults, recipes, replace
from imnet.device import Place
from imnet.from_recipe import build_network
from imnet.run_options import RunOptions
from imnet.start import train
place = Place(torch.device("cuda", 0), "bf16", "test")
defaults.rates = lambda place: defaults.RATES["H100"]
long = recipes["fashion-mnist/wrn28_10_fast"]
assert defaults.seconds_of_training(long, build_network(long), place, 29952) > 1
quick = recipes["quickstart"]
quick = replace(quick, data=replace(quick.data, train_images=256, test_images=64), epochs=1)
train(quick, RunOptions(out={str(tmp_path)!r}, device="cpu", threads=1))
print([name for name in ("torch._dynamo", "torchvision", "sympy", "scipy", "timm") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_is_asked_for_is_done():
    found = decide(compile=True, cuda_graphs=False)
    assert (found.compile, found.cuda_graphs) == (True, False)
    assert decide("imagenet64/davit_tiny", IMAGENET, compile=False).compile is False
    assert decide("imagenet64/wrn36_5", IMAGENET, compile=True).compile
    assert not decide("imagenet64/wrn36_5", IMAGENET, compile=True).step_kernels


def test_a_run_goes_on_as_it_began_unless_asked_otherwise():
    began = {"compile": True, "cuda_graphs": False, "deterministic": False}
    assert (decide(kept=began).compile, decide(kept=began).cuda_graphs) == (True, False)
    assert decide(kept=began, cuda_graphs=True).cuda_graphs
    assert defaults.keep_deterministic(RunOptions(), {"deterministic": True}).deterministic
    assert not defaults.keep_deterministic(RunOptions(deterministic=False), {"deterministic": True}).deterministic


def test_a_run_keeps_its_kernels_and_torchs_own_where_a_family_is_younger_or_a_tier_is_gone():
    kept = {"augment": {"tier": "reference"}, "shake_shake": {"tier": "cuda"}, "spectral": {"tier": "host"}}
    before = tier.snapshot()
    try:
        taken = defaults.Execution(compile=False, cuda_graphs=True, deterministic=False, reason="", step_kernels=True)
        defaults.choose_kernels(RunOptions(device="cpu"), taken, kept)
        report = {family: tier.choose(family, "cpu") for family in tier.FAMILIES}
        assert report["augment"] == "reference"
        assert report["sgd_ema"] == report["batch_norm"] == tier.choose("batch_norm", "cuda") == "reference"
        defaults.choose_kernels(RunOptions(device="cpu"), taken, None)
        assert tier.report("cuda")["batch_norm"][1].startswith("auto")
    finally:
        tier.restore(before)


def test_the_headline_takes_our_kernels_on_the_card_that_measured_it(monkeypatch):
    """The predicted time of this recipe is near the limit on an H200, and it alone decides."""
    monkeypatch.setattr(defaults, "rates", lambda place: defaults.RATES["H200"])
    assert decide("fashion-mnist/wrn28_10_fast", FASHION).step_kernels
    assert not decide("fashion-mnist/speedrun_gpu", FASHION).step_kernels


def test_what_a_graph_cannot_repeat_is_not_captured():
    assert not decide(world=World(0, 2)).cuda_graphs
    found = decide(on_nonfinite="skip:3")
    assert not found.cuda_graphs
    assert "skip:N" in found.reason


def test_several_gpus_are_captured_only_where_that_is_asked_for():
    found = decide("fashion-mnist/wrn28_10", FASHION, world=World(0, 2))
    assert "not captured on 2 ranks" in found.reason
    found = decide("fashion-mnist/wrn28_10", FASHION, world=World(0, 2), cuda_graphs=True)
    assert (found.cuda_graphs, found.compile, found.step_kernels) == (True, False, True)


def test_without_a_compiler_nothing_is_compiled_and_asking_for_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    assert not decide("imagenet64/davit_tiny", IMAGENET).compile
    with pytest.raises(DeviceError, match=r"got --compile, for which torch needs a C compiler \(gcc\)"):
        decide("imagenet64/davit_tiny", IMAGENET, compile=True)
    with pytest.raises(DeviceError, match=r"needs a C\+\+ compiler \(g\+\+\) on the path; install one, or leave"):
        train(TINY, options(tmp_path / "run", compile=True))


def test_deterministic_and_compiled_is_refused():
    assert not decide("imagenet64/davit_tiny", IMAGENET, deterministic=True).compile
    with pytest.raises(ValueError, match="compile together with deterministic; allowed: one of them"):
        decide(compile=True, deterministic=True)


@pytest.mark.parametrize(
    ("kernels", "words"),
    [("reference", "torch's own"), ("augment=host", "augment host,"), ("sgd_ema=host", "sgd_ema host;")],
)
def test_the_header_names_the_kernels_that_are_not_torchs_own(kernels, words, tmp_path, capsys):
    if "host" in kernels and tier.missing("host", "cpu"):
        pytest.skip("the host module is not built")
    train(dataclasses.replace(TINY, epochs=1), options(tmp_path, kernels=kernels))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("kernels ")]
    assert words in line
    assert line.endswith("torch's own")
    assert "reference" not in line


def test_run_json_says_how_steps_were_executed_and_a_deterministic_run_resumes_so(tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    recipe = dataclasses.replace(TINY, epochs=1)
    train(recipe, options(tmp_path, deterministic=True))
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["execution"] == {
        "compile": False, "cuda_graphs": False, "deterministic": True, "reason": "deterministic", "step_kernels": False
    }  # fmt: skip
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    train(recipe, options(tmp_path))
    assert json.loads((tmp_path / "run.json").read_text())["execution"]["deterministic"]


def test_an_operator_without_a_deterministic_form_is_one_line():
    pooled, where = torch.nn.functional.max_pool2d(torch.randn(1, 1, 4, 4), 2, return_indices=True)
    with pytest.raises(UsageError, match=r"no deterministic max_unpooling2d_forward_out.*leave --deterministic out"), \
            device.exact(True):  # fmt: skip
        torch.nn.functional.max_unpool2d(pooled, where, 2)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="something else"), device.exact(True):
        raise RuntimeError("something else")


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random], ids=["torch", "random"])
def test_a_step_that_draws_on_the_host_is_not_captured(draw):
    with pytest.raises(NotCapturableError, match="on the host"), repeatable():
        draw()
    with repeatable():
        torch.randn(3, generator=torch.Generator())


def test_an_odd_batch_is_computed_without_the_compiler():
    step, shapes = make_step(dataclasses.replace(TINY, ema_decay=None)), []
    step.warm_up([batch(0)], 8)
    step.forward = lambda images: shapes.append(images.shape[0]) or step.parallel(images)
    for images in (8, 5, 8):
        step([batch(1, images)], images, 0, 0.01)
    assert shapes == [8, 8]


def test_the_diagnosis_leaves_the_network_as_it_was():
    step = make_step(dataclasses.replace(TINY, ema_decay=None))
    before = {k: v.clone() for k, v in step.net.state_dict().items()}
    assert first_bad_layer(step.net, [batch(0), batch(1)], step.loss) is None
    for name, value in step.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in step.net.parameters())


def test_the_diagnosis_reads_every_piece_and_finds_a_gradient():
    step = make_step(dataclasses.replace(TINY, ema_decay=None))
    bad = batch(1)
    bad[0][0] = float("inf")
    assert first_bad_layer(step.net, [batch(0), bad], step.loss) == "the input images"
    step.net.stem.weight.register_hook(lambda grad: grad.fill_(float("nan")))
    assert first_bad_layer(step.net, [batch(0)], step.loss) == "gradient of stem.weight"


def test_the_diagnosis_reads_every_result_of_a_layer():
    """A Shake-Shake block returns its sum in addition to the sum's ReLU."""
    step, net = make_step(dataclasses.replace(TINY, ema_decay=None)), models.build("shake_shake26_2x32d", 10)
    net.blocks[2].register_forward_hook(lambda block, given, result: result._replace(x=result.x / 0.0))
    assert first_bad_layer(net, [batch(0)], step.loss) == "output of blocks.2"


@pytest.mark.parametrize(("compiled", "words"), [(True, "finite in eager.*--no-compile"), (False, "does not recur")])
def test_a_number_that_does_not_recur_accuses_the_compiled_step(compiled, words):
    step = make_step(dataclasses.replace(TINY, ema_decay=None))
    step.compiled = compiled
    assert re.search(words, str(not_finite(step, [batch(0)], 3)))


def test_run_json_does_not_claim_a_capture_that_could_not_be(tmp_path, monkeypatch, capsys):
    """The decision is faked as on a GPU; what the run then does with it is the same on a CPU."""

    def warm_up(self, batches, num_images):
        raise NotCapturableError("the step waits for the device")

    decided = defaults.Execution(compile=False, cuda_graphs=False, deterministic=False, reason="as on a GPU")
    monkeypatch.setattr(defaults, "decide", lambda *_: dataclasses.replace(decided, reason="captured"))
    monkeypatch.setattr(TrainStep, "warm_up", warm_up)
    train(dataclasses.replace(TINY, epochs=1), options(tmp_path))
    assert "not captured after all: the step waits for the device" in capsys.readouterr().out
    found = json.loads((tmp_path / "run.json").read_text())["execution"]
    assert not found["cuda_graphs"]
    assert found["reason"] == "not captured: the step waits for the device"
