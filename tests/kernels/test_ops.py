"""The ops as torch and users meet them: opcheck, whole-graph compilation, the choice of a tier and its errors."""

from __future__ import annotations

import os
import subprocess
import sys

import imnet_kernels as kernels
import pytest
import torch
from imnet_kernels import build, implementations, tier
from imnet_kernels.augment import augment_op
from imnet_kernels.batch_norm import backward_op as norm_backward_op
from imnet_kernels.batch_norm import forward_op as norm_op
from imnet_kernels.sgd_ema import sgd_ema_op
from imnet_kernels.shake_shake import shake_backward_op, shake_op
from imnet_kernels.spectral import spectral_op
from torch.utils._pytree import tree_map_only

STORE = torch.arange(3 * 8 * 8 * 3).remainder(251).to(torch.uint8).view(3, 8, 8, 3)
IDS = torch.tensor([2, 0, 1, 1])
VECTOR = torch.rand(4) + 0.5


def _image(requires_grad=True):
    return torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last).requires_grad_(requires_grad)


def _op_calls():
    x = [_image() for _ in range(3)]
    plain = [t.detach() for t in x]
    coefficients = torch.rand(2), torch.rand(2)
    norm = (plain[0], *(torch.rand(4) for _ in range(4)))
    back = (*plain[:2], *(torch.rand(4) for _ in range(4)))
    keys = (5, 1, 2, "zero", "random", 0.5, 3, False, torch.bfloat16)
    weights = [torch.randn(5), torch.randn(2, 3)]
    lists = [[w.clone() for w in weights] for _ in range(4)]
    return {
        "augment": (augment_op, (STORE, IDS, IDS, VECTOR[:3], VECTOR[:3], *keys)),
        "spectral": (spectral_op, (plain[0], 2, [0, 3], None, None, torch.float32)),
        "shake": (shake_op, (*x, *coefficients)),
        "shake_backward": (shake_backward_op, (plain[0], coefficients[1])),
        "batch_norm": (norm_op, (*norm, plain[1], 0.1, 1e-5, True)),
        "batch_norm_of_a_sum": (norm_op, (*norm, None, 0.1, 1e-5, True, plain[1])),
        "batch_norm_backward": (norm_backward_op, (*back, plain[2], True)),
        "batch_norm_of_a_sum_backward": (norm_backward_op, (*back, None, True, plain[2])),
        "sgd_ema": (sgd_ema_op, (*lists, torch.tensor(0.1), None, None, 0.9, 1e-4, 0.99, True)),
    }


def _on(device, value):
    """Returns an op's arguments with their tensors on ``device``, as leaves with the same ``requires_grad``."""
    return tree_map_only(torch.Tensor, lambda t: t.detach().to(device).requires_grad_(t.requires_grad), value)


@pytest.mark.parametrize("spec", ["auto", *(pytest.param(t, marks=pytest.mark.gpu) for t in ("triton", "cuda"))])
@pytest.mark.parametrize("name", list(_op_calls()))
def test_opcheck(name, spec):
    device = "cpu" if spec == "auto" else "cuda"
    why = None if spec == "auto" else tier.missing(spec, device)
    if why is not None:
        pytest.skip(why)
    if name.startswith("batch_norm") and spec != "triton":
        pytest.skip("the op is Triton's alone")
    op, args = _op_calls()[name]
    # test_aot_dispatch expects the forward's derivative, which Shake-Shake's backward is not by design.
    utils = ["test_schema", "test_faketensor"] + ([] if name.startswith("shake") else ["test_aot_dispatch_dynamic"])
    with tier.using(spec):
        torch.library.opcheck(op, _on(device, args), test_utils=utils)


@pytest.mark.parametrize("spec", ["reference", "auto"])
def test_whole_graph_compiles(spec):
    def step(x1, x2, residual, alpha, beta, store, ids):
        y = kernels.shake_shake(x1, x2, residual, alpha, beta)
        y = kernels.shake_shake(y, x2, residual, alpha, beta)
        bands = kernels.spectral(y, 2)
        batch = kernels.augment(store, ids, seed=1, epoch=2, pad_px=2, hflip="random", cutout_px=3, mean=0.5, std=0.2)
        return y.square().sum(), bands, batch

    torch._dynamo.reset()
    arguments = ([_image() for _ in range(3)], (torch.rand(2), torch.rand(2)))
    with tier.using(spec):
        want = step(*arguments[0], *arguments[1], STORE, IDS)
        want_grads = torch.autograd.grad(want[0], arguments[0])
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        got = compiled(*arguments[0], *arguments[1], STORE, IDS)
        got_grads = torch.autograd.grad(got[0], arguments[0])
    for g, w in zip((*got, *got_grads), (*want, *want_grads), strict=True):
        torch.testing.assert_close(g, w)
        assert g.stride() == w.stride()


def test_forced_but_missing_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(implementations, "find_host", lambda: None)
    with tier.using("host"):
        assert "not installed" in tier.report("cpu")["augment"][1]
        with pytest.raises(RuntimeError, match=r"not installed; .*compiler"):
            kernels.spectral(torch.rand(1, 1, 4, 4), 2)
    with tier.using("cuda"), pytest.raises(RuntimeError, match="CUDA tensors"):
        kernels.augment(STORE, IDS, seed=1, epoch=2, mean=0.5, std=0.2)
    with tier.using("auto"):
        assert tier.report("cpu")["augment"][0] == "reference"
        assert "not installed" in tier.report("cpu")["augment"][1]


def test_triton_without_a_compiler_is_left_out_with_a_remedy(monkeypatch, tmp_path):
    """Triton compiles its driver when a kernel first runs, and container images for GPUs often have no gcc."""
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    assert "not installed; install triton" in (tier.missing("triton", "cuda") or "")
    monkeypatch.setenv("CC", "/opt/cc")
    assert tier.missing("triton", "cuda") is None


@pytest.mark.parametrize("word", ["--host", "--cuda"])
def test_a_build_with_a_compiler_that_is_not_there_is_one_line(word, monkeypatch, tmp_path):
    if word == "--cuda" and build.nvcc() is None:
        pytest.skip("no CUDA toolkit (nvcc) here")
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(SystemExit, match=r"^cannot run .*no-such-compiler: No such file.*; install a C\+\+ compiler"):
        build.main([word, "--out", str(tmp_path)])


def test_a_broken_module_is_raised_not_hidden(monkeypatch):
    class Broken:
        def find_spec(self, name, path, target=None):
            if name == "imnet_kernels._host":
                raise ImportError("undefined symbol", name=name)

    monkeypatch.delitem(sys.modules, "imnet_kernels._host", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ImportError, match="undefined symbol"):
        implementations.find_host()


def test_a_tier_that_a_family_lacks_is_left_to_auto_and_an_error_where_it_is_named(monkeypatch):
    rows = [row for row in implementations.IMPLEMENTATIONS if (row.family, row.tier) != ("spectral", "host")]
    monkeypatch.setattr(implementations, "IMPLEMENTATIONS", tuple(rows))
    with tier.using("host"):
        assert tier.report("cpu")["augment"] == ("host", "forced by tier.using")
        assert tier.report("cpu")["spectral"][1].startswith("auto")
    with tier.using("spectral=host"):
        with pytest.raises(RuntimeError, match="spectral: there is no host tier of it; allowed ref"):
            tier.choose("spectral", "cpu")
        assert "there is no" not in tier.report("cpu")["augment"][1]


def test_every_row_of_the_table_has_its_file():
    for row in implementations.IMPLEMENTATIONS:
        if row.tier == "triton":
            pytest.importorskip("triton", reason="triton is not installed")
        assert implementations.module(row.family, row.tier).__name__.startswith(f"imnet_kernels.{row.family}.")


def test_tier_spec():
    with tier.using("reference,augment=auto"):
        rows = tier.report("cpu")
        assert rows["spectral"] == ("reference", "forced by tier.using")
        assert rows["augment"][1].startswith("auto")
    for bad in ("fast", "augment=fast", "conv=host"):
        with pytest.raises(ValueError, match="kernel tier"):
            tier.set(bad)


def test_environment_variable_forces_a_tier():
    """One process for both values, because each would take seconds to import torch."""
    code = """
import os
import imnet_kernels  # a word that is not a tier makes the choice of a tier fail, not the import of the package
from imnet_kernels import tier
print(tier.report("cpu")["spectral"])
try:
    tier.choose("spectral", "cpu")
except RuntimeError as error:
    print("RuntimeError:", error)
os.environ["IMNET_KERNELS"] = "reference"
tier._as_the_environment_says()
print(tier.report("cpu")["spectral"])
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "IMNET_KERNELS": "fast"}
    done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, check=True)
    reported, refused, forced = done.stdout.splitlines()
    assert "kernel tier 'fast'" in reported
    assert refused.startswith("RuntimeError: kernel tier 'fast'")
    assert forced == "('reference', 'forced by IMNET_KERNELS')"
