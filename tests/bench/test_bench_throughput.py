"""imnet-bench throughput, step and scaling: small real runs whose figures must follow from one another."""

import json
import os
import subprocess
import sys

import pytest
import torch

import imnet
from bench import commands, machine, scaling, step, throughput
from bench.case import build, find_recipe, run_options, synthetic
from bench.cli import GATED, main, parser
from bench.clock import Timing, Window
from imnet import defaults, device
from imnet.capture import NotCapturableError
from imnet.errors import UsageError
from imnet.models import build as build_model
from imnet.models.count import num_params
from imnet.recipes import by_name
from imnet.run_options import RunOptions

SMALL = ["--recipe", "quickstart", "--batch-size", "32"]


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_cpus_roof_is_its_best_call(monkeypatch):
    """Measurements are the best of several windows; as shares of a median roof they would come out too large."""
    monkeypatch.setattr(machine, "on_device", lambda make, num_bytes, device: Timing(0.5, 2.0, 1.0, 9))
    assert machine.copy_bytes_per_s("cpu", 1 << 10) == 2 * (1 << 10) / 0.5
    assert machine.matmul_flops_per_s("cpu", torch.float32, 16) == 2 * 16**3 / 0.5


@pytest.mark.parametrize(("words", "graphs"), [([], None), (["--cuda-graphs"], True), (["--no-cuda-graphs"], False)])
def test_a_step_is_captured_where_training_captures_it_unless_told_otherwise(words, graphs):
    """None leaves it to the rules of a training: on one GPU the step is captured."""
    assert run_options(parser().parse_args(["throughput", *words])).cuda_graphs is graphs


def test_a_step_that_cannot_be_captured_is_measured_as_it_is(monkeypatch):
    """There may be no GPU here, so the warm-up says what it would say of such a network there."""
    case = build(synthetic(find_recipe("quickstart", None, batch_images=32)), RunOptions(device="cpu", threads=1))
    batch = next(case.batches())

    def fail(*_):
        raise NotCapturableError("the step waits for the device", hint="")

    monkeypatch.setattr(case.step, "warm_up", fail)
    case.step.graph = object()
    with pytest.raises(NotCapturableError):
        throughput._first_step(case, batch, True)
    assert throughput._first_step(case, batch, None) > 0
    assert case.step.graph is None


@pytest.mark.parametrize(("name", "images"), [("fashion-mnist/wrn28_10", 30_000), ("imagenet64/wrn36_5", 1_281_167)])
def test_what_decides_how_steps_run_sees_a_training_as_long_as_the_recipes(monkeypatch, name, images):
    """On a GPU our kernels are used from half a minute of training, and the random images are far fewer than the set's.
    Here the decision is listened to, and the network is replaced by a small one."""
    seen, decide = [], defaults.decide

    def listening(recipe, net, options, place, world, train_images, *rest):
        seen.append(recipe.epochs * train_images)
        return decide(recipe, net, options, place, world, train_images, *rest)

    monkeypatch.setattr(defaults, "decide", listening)
    recipe = imnet.replace(by_name(name), model="speednet", model_options={"width": 8})
    recipe = imnet.replace(recipe, data=imnet.replace(recipe.data, batch_images=8))
    options = RunOptions(device="cpu", threads=1, precision="fp32")
    throughput.measure(recipe, options, seconds=0.01, parts=("model",))
    whole = recipe.epochs * images
    assert [whole <= taken < 1.05 * whole for taken in seen] == [True]


def test_throughput_measures_loader_model_and_both_and_says_what_bounds(tmp_path, capsys, one_thread):
    out = tmp_path / "out.json"
    where = ["--device", "cpu", "--threads", "1", "--precision", "fp32", "--seconds", "0.5", "--json", str(out)]
    assert main(["throughput", *SMALL, *where]) == 0
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    rates = {name: part["images_per_s_by_clock"] for name, part in row["rates"].items()}
    assert set(rates) == set(throughput.PARTS)
    assert all(part["n"] >= 3 and part["images_per_s"] > 0 for part in row["rates"].values())
    assert row["mfu"] == pytest.approx(row["train_flops_per_image"] * rates["model"] / row["matmul_flops_per_s"])
    assert row["mfu"] > 0  # may exceed 1 if something else slowed the matrix product that is its roof
    assert row["first_step_s"] > 0
    assert row["peak_memory_bytes"] > 4 * num_params(build_model("speednet", 10, 3))
    slower = "model" if rates["model"] < rates["loader"] else "loader"
    assert row["bound"].startswith(f"bound by the {slower}: ")
    assert row["bound"] in capsys.readouterr().out
    about = found["fingerprint"]
    assert about["precision"] == "fp32"
    assert about["threads"] == 1
    assert about["versions"]["torch"] == torch.__version__
    assert {"cpu", "cores", "gpu", "git_sha", "date", "n"} <= about.keys()


@pytest.mark.parametrize(
    ("rates", "line"),
    [
        ((1000, 200, 150), "bound by the model: loader 1,000, model 200, end to end 150 images/s (75% of the model alone)"),  # noqa: E501
        ((50, 200, 48), "bound by the loader: loader 50, model 200, end to end 48 images/s (96% of the loader alone)"),
    ],
)  # fmt: skip
def test_the_slower_of_loader_and_model_is_the_bound(rates, line):
    assert throughput.bound(dict(zip(throughput.PARTS, rates, strict=True))) == line


def test_a_rate_is_the_median_of_windows_and_the_best_by_the_clock():
    taken = [Window(wall_s=w, seconds=s) for w, s in ((1.0, 0.5), (2.0, 0.4), (4.0, 0.8))]
    found = throughput.rate(100, taken)
    assert (found["images_per_s"], found["n"]) == (50, 3)
    assert found["images_per_s_by_clock"] == 250


def test_the_case_is_the_recipe_on_images_of_its_shape():
    recipe = find_recipe("imagenet64/wrn36_2", None, batch_images=4)
    assert recipe.data.batch_images == 4
    stand_in = synthetic(recipe)
    assert (stand_in.data.name, stand_in.data.image_px, stand_in.data.num_classes) == ("synthetic", 64, 1000)
    assert stand_in.optim == recipe.optim
    large = synthetic(find_recipe("spectral/resnet50_224", None, batch_images=60))
    assert large.data.train_images % 60 == 0  # filling 128 MiB exactly would leave an incomplete last batch
    case = build(synthetic(find_recipe("quickstart", None, batch_images=8)), RunOptions(device="cpu", precision="fp32"))
    batches = case.batches()
    seen = [next(batches) for _ in range(20)]  # more than an epoch of the 128 images
    assert {tuple(images.shape) for images, _ in seen} == {(8, 3, 32, 32)}
    before = [p.clone() for p in case.step.params]
    case.train(seen[0])
    assert any(not torch.equal(a, b) for a, b in zip(before, case.step.params, strict=True))


def test_a_network_without_a_recipe_gets_a_plain_one_and_nonsense_a_suggestion():
    assert find_recipe(None, "wrn28_10").name == "fashion-mnist/wrn28_10"
    plain = find_recipe(None, "resnet101_64", batch_images=4)
    assert plain.data.batch_images == 4
    with pytest.raises(UsageError, match="did you mean"):
        find_recipe(None, "wrn28_1o")
    with pytest.raises(UsageError, match="allowed: one of them"):
        find_recipe("quickstart", "wrn28_10")


@pytest.fixture
def one_core():
    """Restrict this process and those that it starts to one core, as in a job that was given only one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_two_real_ranks_scale_weakly_and_strongly_beside_the_model(tmp_path, capsys):
    """Unless such rows are marked, a user reads the efficiency of two ranks on one core as that of two cores."""
    out = tmp_path / "out.json"
    assert main(["scaling", *SMALL, "--precision", "fp32", "--procs", "2", "--steps", "3", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    kinds = [(row["kind"], row["ranks"], row["batch_images"]) for row in found["rows"]]
    assert kinds == [("weak", 1, 32), ("strong", 1, 32), ("weak", 2, 64), ("strong", 2, 32)]
    for row in found["rows"]:
        assert row["gradient_bytes"] == 4 * num_params(build_model("speednet", 10, 3))
        assert row["n"] == 3
        assert (row["oversubscribed"], row["threads_a_rank"]) == (row["ranks"] == 2, 1)
    one, two = ([row for row in found["rows"] if row["ranks"] == n] for n in (1, 2))
    assert [row["efficiency"] for row in one] == [1, 1]
    assert [row["predicted_efficiency"] for row in one] == pytest.approx([1, 1], abs=1e-3)
    for row, alone in zip(two, one, strict=True):  # predicted: a rank's share of the images, then the all-reduce
        compute = alone["step_s"] * (1 if row["kind"] == "weak" else 0.5)
        assert row["predicted_efficiency"] == pytest.approx(compute / (compute + row["all_reduce_s"]))
        assert row["all_reduce_s"] > 0
    assert found["backend"] == "gloo"
    assert capsys.readouterr().out.count("the model's") == 4


@pytest.mark.parametrize(("most", "ranks"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_ranks_double_up_to_the_most(most, ranks):
    assert scaling.parse_ranks(most) == ranks


def test_the_step_of_timm_and_ours_agree_before_they_are_timed(one_thread, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr(step, "CASES", [("speednet", 28, 1, 8)])
    (row,) = step.rows(rounds=2)
    times = row["times"]
    assert row["ratio_to_defaults"] == pytest.approx(times["timm defaults"]["best_s"] / times["imnet"]["best_s"])
    once = step.TimmStep.__call__
    monkeypatch.setattr(step.TimmStep, "__call__", lambda self, *batch: once(self, *batch) + once(self, *batch))
    with pytest.raises(SystemExit, match="updates differ"):
        next(step.rows())
    with pytest.raises(UsageError, match="allowed: speednet"):
        next(step.rows("resnet"))


def test_all_is_small_cases_of_the_commands_and_one_that_fails_does_not_end_it(monkeypatch, tmp_path, capsys):
    for words in commands.SMALL:
        assert parser().parse_args(words.split()).command in (*GATED, "scaling")
    few = ("scaling --model 2", "step --only nothing")
    monkeypatch.setattr(commands, "SMALL", few)
    assert main(["all", "--json", str(tmp_path / "all.json")]) == 0
    parts = json.loads((tmp_path / "all.json").read_text())["parts"]
    assert [name.split()[0] for name in parts] == ["scaling", "step"]
    assert "allowed: speednet" in parts[few[1]]["error"]
    assert "not measured: " in capsys.readouterr().out


def test_asking_does_not_import_torch():
    code = "import sys; from bench.cli import parser; parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["speed"], 2, "invalid choice"),
        (["scaling", "--compare", "x.json"], 2, "got --compare for scaling"),
        (["throughput", "--fail-under", "2"], 2, "--fail-under 2.0"),
        (["throughput", "--batch-size", "0"], 2, "a whole number from 1"),
        (["throughput", "--models", "a"], 2, "got --models without --against"),
        (["throughput", "--batch-size", "1000000001"], 2, "got data.batch_images = 1000000001"),
        (["throughput", "--batch-size", "1000000000"], 2, "got data.train_images = 4000000000"),
        (["throughput", "--batch-size", "200000000"], 2, "GiB, the free memory"),
        (["throughput", "--recipe", "quickstrat"], 2, "did you mean quickstart?"),
        (["throughput", "--json", "/no/such/folder/x.json"], 74, "no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(argv, code, says, capsys):
    assert main(argv) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("imnet-bench: ")
    assert says in line


def test_a_wrong_kernel_tier_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("IMNET_KERNELS", "fastest")
    assert main(["throughput", *SMALL]) == 2
    assert "fastest" in capsys.readouterr().err


@pytest.mark.skipif(device.num_gpus() > 0, reason="there is a GPU")
def test_a_gpu_that_is_asked_for_and_absent_is_no_processor(capsys):
    assert main(["scaling", "--device", "cuda"]) == 69
    told = capsys.readouterr()
    assert not told.out
    assert told.err.startswith("imnet-bench: got --device cuda, found 0 usable GPUs")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("throughput --seconds 0", 2),
        ("throughput --seconds nan", 2),
        ("throughput --against V100 --seconds -3", 2),
        ("scaling --model 8 --gpus 2", 2),
        ("scaling --model 8 --recipe quickstart", 2),
        ("scaling --procs 2 --gpus 2", 2),
        ("scaling --device cuda --procs 2", 2),
        ("scaling --device cpu --gpus 2", 2),
        ("scaling --gpus 99", 69),
        ("runs nothing", 65),
        ("whole --timm-script nothing --pictures nothing", 74),
        ("data --jpegs nothing.zip", 65),
    ],
)
def test_what_would_be_ignored_or_is_absent_is_said_before_anything_is_measured(words, code, capsys):
    assert main(words.split()) == code
    told = capsys.readouterr()
    assert not told.out
    assert told.err.count("\n") == 1


def test_files_beside_class_folders_are_no_classes_and_none_at_all_is_one_line(tmp_path, capsys):
    (tmp_path / "train.py").write_text("import sys; sys.exit(' '.join(sys.argv))")
    for part in ("train", "val"):
        (tmp_path / part / "empty").mkdir(parents=True)
        (tmp_path / part / ".DS_Store").touch()
    words = ["whole", "--timm-script", str(tmp_path / "train.py"), "--pictures", str(tmp_path)]
    assert main(words) == 65
    assert f"{tmp_path / 'train'}: no class folders with pictures" in capsys.readouterr().err
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir()
            (tmp_path / part / name / "1.png").touch()
    assert main(words) == 69
    assert "--num-classes 2 " in capsys.readouterr().err  # the arguments that timm's script received
    assert main([*words[:2], str(tmp_path), *words[3:]]) == 74
    assert "no such file" in capsys.readouterr().err
