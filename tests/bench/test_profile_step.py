"""imnet-profile step: a real step of a tiny network; bytes, FLOPs and times against sums computed independently."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent

from bench.profile.cli import again, main
from bench.profile.ops import OpCall, count
from bench.profile.trace import STEP, Roofs, argument_costs, kernel_costs, kernels, rows
from imnet import models
from imnet.models.count import flops

BATCH, PX, STEPS = 8, 16, 2
COMMAND = ["step", "--model", "wrn10_1", "--image-px", str(PX), "--batch-size", str(BATCH), "--steps", str(STEPS)]
COMMON = ["--device", "cpu", "--threads", "1", "--precision", "fp32"]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """One run's step.json, the events of its Chrome trace, and its printed text."""
    out = tmp_path_factory.mktemp("profile") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch, open(out.parent.parent / "printed", "w+") as printed:
        patch.setattr(sys, "stdout", printed)
        assert main([*COMMAND, *COMMON, "--by-shape", "--out", str(out)]) == 0
        printed.seek(0)
        text = printed.read()
    trace = json.loads((out / "step-trace.json").read_text())
    return json.loads((out / "step.json").read_text()), trace["traceEvents"], text


def test_rows_account_for_every_microsecond_of_the_steps(profiled):
    found, events, _ = profiled
    steps_us = [e["dur"] for e in events if e.get("name") == STEP and e.get("cat") == "user_annotation"]
    assert len(steps_us) == STEPS
    assert sum(row["seconds"] for row in found["rows"]) == pytest.approx(sum(steps_us) * 1e-6, rel=0.01)
    assert sum(row["share"] for row in found["rows"]) == pytest.approx(1.0)
    phases = found["phases_s"]
    inside = sum(seconds for name, seconds in phases.items() if name != STEP)
    assert 0.5 * phases[STEP] < inside <= phases[STEP]


def test_flops_are_those_of_the_network(profiled):
    found, _, _ = profiled
    with torch.device("meta"):
        net = models.build("wrn10_1", 1000, 3)
    assert found["flops_per_step"] == BATCH * flops(net, (3, PX, PX), backward=True)
    assert sum(row["flops"] or 0 for row in found["rows"]) == STEPS * found["flops_per_step"]


def test_first_convolution_moves_and_computes_what_its_shapes_say(profiled):
    found, _, _ = profiled
    shapes = [[BATCH, 3, PX, PX], [16, 3, 3, 3]]
    (row,) = (r for r in found["rows"] if r["name"] == "aten::convolution" and r["shapes"] == shapes)
    elements = BATCH * 3 * PX * PX + 16 * 3 * 3 * 3 + BATCH * 16 * PX * PX
    assert row["calls"] == STEPS
    assert row["bytes"] == STEPS * 4 * elements
    assert row["flops"] == STEPS * 2 * BATCH * 16 * PX * PX * 3 * 3 * 3
    assert row["bytes_per_s"] == pytest.approx(row["bytes"] / row["seconds"])
    by_bytes, by_flops = row["bytes"] / found["copy_bytes_per_s"], row["flops"] / found["matmul_flops_per_s"]["float32"]
    assert row["of_roof"] == pytest.approx(max(by_bytes, by_flops) / row["seconds"])


def test_printed_table_is_that_of_the_file(profiled):
    found, _, text = profiled
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("operator")) + 2
    shown = lines[first : first + 25]
    assert [line.split()[0] for line in shown] == [row["name"].split()[0] for row in found["rows"][:25]]
    assert all(f"{100 * row['share']:.1f} %" in line for line, row in zip(shown, found["rows"], strict=False))
    assert f"{BATCH / found['seconds_without_profiler']:,.0f} images/s" in text


def test_commands_repeat_this_very_run(profiled):
    _, _, text = profiled
    for tool, line in (("nsys", "timeline"), ("ncu", "counters")):
        words = shlex.split(next(t for t in text.splitlines() if line in t).partition(":")[2])
        assert words[0] == tool
        assert words[-1] == "--nvtx"
        start = words.index(sys.executable)
        assert words[start : start + 3] == [sys.executable, "-m", "bench.profile.cli"]
        assert words[start + 3 : start + 3 + len(COMMAND)] == COMMAND
    quoted = again(["step", "--out", "a b"], ["--nvtx"])
    assert shlex.split(quoted)[-4:] == ["step", "--out", "a b", "--nvtx"]


def event(name, start_us, end_us, children=(), on_gpu=False, **keys):
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    made = FunctionEvent(1, name, 1, start_us, end_us, device_type=kind, use_device="cuda", **keys)
    for child in children:
        made.append_cpu_child(child)
        child.set_cpu_parent(made)
    return made


def test_time_on_a_gpu_goes_to_the_operator_that_launched_it():
    """Uses torch's own event type, filled in as CUPTI does, where a marked range also appears among the kernels."""
    launch = event("cudaLaunchKernel", 12, 13)
    inner = event("aten::_convolution", 11, 19, [launch], input_shapes=[[2, 3]])
    inner.append_kernel("sm90_gemm", 0, 70)
    convolution = event("aten::convolution", 10, 20, [inner], input_shapes=[[2, 3], []])
    convolution.append_kernel("pad", 0, 10)
    step = event(STEP, 0, 100, [convolution], is_user_annotation=True)
    step.append_kernel(STEP, 0, 95)
    step.append_kernel("memset", 0, 5)
    device = [event("sm90_gemm", 200, 270, on_gpu=True), event("pad", 190, 200, on_gpu=True)]
    device += [event("memset", 280, 285, on_gpu=True), event(STEP, 190, 285, on_gpu=True, is_user_annotation=True)]
    events = [step, convolution, inner, launch, *device]
    call = OpCall("aten::convolution", ((2, 3),), torch.float32, 1000, 6000)
    found = {row.name: row for row in rows(events, [call], steps=1, on_gpu=True)}
    assert found["aten::convolution"].seconds == pytest.approx(80e-6)
    assert (found["aten::convolution"].bytes_moved, found["aten::convolution"].flops) == (1000, 6000)
    assert found[STEP].seconds == pytest.approx(5e-6)
    by_kernel = {row.name: row.seconds for row in kernels(events)}
    assert by_kernel == pytest.approx({"sm90_gemm": 70e-6, "pad": 10e-6, "memset": 5e-6})
    assert sum(row.seconds for row in found.values()) == pytest.approx(sum(by_kernel.values()))


def test_kernels_take_their_share_of_what_their_operator_moves():
    inner = event("aten::cudnn_convolution", 2, 8)
    inner.append_kernel("sm90_gemm", 0, 75)
    inner.append_kernel("pad", 0, 25)
    tree = [event(STEP, 0, 30, [event("aten::convolution", 1, 9, [inner], input_shapes=[[2, 3]])])]
    call = OpCall("aten::convolution", ((2, 3),), torch.bfloat16, 1000, 6000)
    costs = kernel_costs(tree, [call], steps=1)
    assert {k: (c.calls, c.bytes_moved, c.flops) for k, c in costs.items()} == {
        "sm90_gemm": (1, 750, 4500), "pad": (1, 250, 1500)}  # fmt: skip
    replays = [event("sm90_gemm", 10 * i, 10 * i + 5, on_gpu=True) for i in range(2)]
    replays.append(event("other", 50, 51, on_gpu=True))
    found = {row.name: row for row in kernels(replays, costs)}
    assert (found["sm90_gemm"].bytes_moved, found["sm90_gemm"].flops) == (1500, 9000)
    assert found["sm90_gemm"].dtype == torch.bfloat16
    assert found["other"].bytes_moved is None


def test_generated_kernels_move_their_tensor_arguments():
    def one(name, *arguments):
        shapes, dtypes = zip(*arguments, strict=True)
        return SimpleNamespace(name=lambda: name, shapes=lambda: shapes, dtypes=lambda: dtypes)

    arguments = ([[2, 3], "c10::BFloat16"], [[6], "float"], [[], "Scalar"], [[2], "long int"])
    found = argument_costs([one("triton_poi_fused_add_0", *arguments)] * 2 + [one("aten::add", ([9], "float"))])
    assert {k: (c.calls, c.bytes_moved) for k, c in found.items()} == {
        "triton_poi_fused_add_0": (2, 2 * (12 + 24 + 16))
    }


def test_custom_operators_go_by_their_own_name():
    forward = event("GeneratedBackwardFor_imnet_shake_shake_default", 1, 4, [event("aten::empty_like", 2, 3)])
    backward = event("GeneratedBackwardFor_imnet_shake_shake_defaultBackward", 5, 9)
    tree = [event(STEP, 0, 10, [forward, backward])]
    calls = [OpCall(f"imnet::shake_shake{end}", (), torch.float32, 8, None) for end in ("", "_backward")]
    found = {row.name: row.seconds for row in rows(tree, calls, steps=1)}
    assert found == pytest.approx({"imnet::shake_shake": 3e-6, "imnet::shake_shake_backward": 4e-6, STEP: 3e-6})


def test_steps_that_differ_from_the_counted_one_are_matched_by_shape_or_not_at_all():
    first, second = (event("aten::add_", 10 * i, 10 * i + 1, input_shapes=[[i, 4], [i, 4], []]) for i in (1, 2))
    tree = [event(STEP, 0, 100, [first, second])]
    calls = [OpCall("aten::add_", ((1, 4), (1, 4)), torch.float32, 48, None) for _ in range(3)]
    calls.append(OpCall("aten::add", ((2, 4), (2, 4)), torch.float32, 96, None))
    (row,) = (r for r in rows(tree, calls, steps=1) if r.name == "aten::add_")
    assert (row.calls, row.bytes_moved) == (2, 48 + 96)
    (row,) = (r for r in rows(tree, calls[:3], steps=1) if r.name == "aten::add_")
    assert (row.calls, row.bytes_moved) == (2, None)


def test_compiled_operators_keep_no_figures_that_they_do_not_have():
    roofs = Roofs(10.0, {torch.float32: 100.0})
    assert roofs.least_s(None, None, None) is None
    assert roofs.least_s(20, None, torch.float32) == 2.0
    assert roofs.least_s(20, 500, torch.float32) == 5.0
    assert roofs.least_s(20, 500, torch.bfloat16) == 2.0


A, B, C = (torch.ones(6, 5) for _ in range(3))
ONE = torch.ones(())
SGD_STEP: dict[str, Any] = {
    **{"weight_decay": 0.0, "momentum": 0.9, "lr": 0.1, "dampening": 0.0},
    **{"nesterov": True, "maximize": False, "is_first_step": False},
}


@pytest.mark.parametrize(
    ("work", "elements"),
    [
        (lambda: A + B, 90),
        (lambda: A.add_(B), 90),
        (lambda: A.copy_(B), 60),
        (lambda: A.zero_(), 30),
        (lambda: A.t(), 0),
        (lambda: torch.empty(9), 0),
        (lambda: A[:1].expand(6, 5) + B, 5 + 60),
        (lambda: A @ B.t(), 60 + 36),
        (lambda: torch.add(A, B, out=torch.empty(6, 5)), 90),
        (lambda: torch._foreach_add_([A, B], 1.0), 120),
        (lambda: torch._foreach_copy_([A, B], [B, C]), 120),
        (lambda: torch._foreach_zero_([A, B]), 60),
        (lambda: torch._fused_sgd_([A], [B], [C], **SGD_STEP), 5 * 30),  # weights and momenta twice, gradients once
        (lambda: torch._fused_sgd_([A], [B], [C], **SGD_STEP, grad_scale=ONE, found_inf=ONE), 6 * 30 + 2),
        (lambda: A.max(1), 30 + 6 + 12),
    ],
)
def test_bytes_of_known_operators(work, elements):
    assert sum(call.bytes_moved for call in count(work)) == 4 * elements


def test_flops_of_known_operators():
    assert sum(call.flops or 0 for call in count(lambda: A @ B.t())) == 2 * 6 * 5 * 6
    linear, images = nn.Linear(5, 7), torch.ones(3, 5)
    backward = count(lambda: linear(images).sum().backward())
    assert sum(call.flops or 0 for call in backward) == 2 * (2 * 3 * 5 * 7)
    assert all(call.flops is None for call in count(lambda: A + B))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--recipe", "fashion-mnist/speedrunn"], 2, "did you mean fashion-mnist/speedrun"),
        (["--model", "wnr28_10"], 2, "wrn28_10"),
        (["--model", "wrn10_1", "--recipe", "quickstart"], 2, "leave one out"),
        (["--nvtx"], 2, "need CUDA"),
        (["--image-px", "1"], 2, "got augment.crop_pad_px = 2; allowed: under 1"),
        (["--image-px", "65537"], 2, "got data.image_px = 65537; allowed: 1 to 65,536"),
        (["--batch-size", "1000000001"], 2, "got data.batch_images = 1000000001"),
        (["--batch-size", "1", "--image-px", "8"], 2, "got batches of which a pass has one image"),
        (["--steps", "0"], 2, "a whole number from 1"),
        (["--precision", "fp61"], 2, "did you mean fp16"),
        (["--out", __file__ + "/below"], 74, "choose another --out"),
    ],
)
def test_mistakes_are_one_line(words, code, said, capsys):
    assert main(["step", "--device", "cpu", *words]) == code
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


@pytest.mark.slow
def test_the_profiler_itself_says_nothing_on_a_cpu(tmp_path):
    """Runs in a process of its own, because the profiler's library reads its log level only once."""
    words = [
        "step",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--image-px",
        "12",
        "--batch-size",
        "8",
        "--out",
    ]
    command = [sys.executable, "-m", "bench.profile.cli", *words, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""


@pytest.mark.gpu
def test_a_gpu_step_names_its_kernels_and_takes_nvtx_ranges(tmp_path, capsys):
    words = [*COMMAND, "--device", "cuda", "--out", str(tmp_path)]
    assert main(words) == 0
    found = json.loads((tmp_path / "step.json").read_text())
    assert sum(row["share"] for row in found["kernels"]) == pytest.approx(1.0)
    by_operator = sum(row["seconds"] for row in found["rows"])
    assert by_operator == pytest.approx(found["total_s"], rel=0.05)
    assert found["peak_bytes"] > 0
    assert main([*words, "--nvtx"]) == 0
    assert "NVTX ranges data, forward, backward, update" in capsys.readouterr().out
