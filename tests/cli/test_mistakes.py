"""Mistakes with imnet-train: each gives one line and the exit code of its class, and leaves nothing half-written."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from imnet import cli, options, recipes, yaml_file
from imnet.errors import UsageError
from imnet.recipe import replace
from imnet.recipe_json import config_dict
from imnet.run_options import RunOptions
from tests.data import making

TOO_SMALL = ["--data.image_px", "12", "--augment.spectral_r", "2", "--band", "0"]
MISTAKES = [
    (["--epoch", "3"], 2, "did you mean --epochs?"),
    (["--optimizer", "sgd"], 2, "did you mean --optim.kind?"),
    (["--batch", "8"], 2, "did you mean --batch-size?"),
    (["--num-workers=2"], 2, "did you mean --workers?"),
    (["--weight-decay", "0"], 2, "did you mean --optim.weight_decay?"),
    (["--scheduler", "cosine"], 2, "did you mean --schedule.kind?"),
    (["--img-size", "32"], 2, "did you mean --data.image_px?"),
    (["-j", "3"], 2, "got unknown option -j; did you mean --workers?"),
    (["--seed", "-1"], 2, "0 to 9,223,372,036,854,775,807"),
    (["--amp"], 2, "did you mean --precision?"),
    (["--arch", "x"], 2, "did you mean --model?"),
    (["--pretrained"], 2, "did you mean --weights?"),
    (["--evaluate"], 2, "imnet-eval RUN"),
    (["--warmup", "1"], 2, "did you mean --schedule.warmup_epochs?"),
    (["--optim.lrr", "3"], 2, "did you mean --optim.lr?"),
    (["--batchsize", "3"], 2, "did you mean --batch-size?"),
    (["--augment.cutout", "3"], 2, "did you mean --augment.cutout_px?"),
    (["--recipe", "fashion-mnist/wrn2810"], 2, "did you mean fashion-mnist/wrn28_10?"),
    (["--recipe", "QUICKSTART"], 2, "did you mean quickstart?"),
    (["--recipe", "nonsense"], 2, "--list recipes"),
    (["--recipe"], 2, "without a value"),
    (["--recipe", ""], 2, "got --recipe without a value"),
    (["--config="], 2, "got --config without a value"),
    (["--out", ""], 2, "got out = ''; allowed: a word, or null"),
    (["--weights="], 2, "got --weights without a value"),
    (["--model", "wrn36-5"], 2, "did you mean wrn36_5?"),
    (["--model", "WRN-28-10"], 2, "did you mean wrn28_10?"),
    (["--model", "wrn16_4"], 2, "add --recipe"),
    (["--data", "FashionMNIST"], 2, "did you mean 'fashion-mnist'?"),
    (["--data", "SYNTHETIC"], 2, "did you mean 'synthetic'?"),
    (["--LR", "0.1"], 2, "did you mean --lr?"),
    (["--BS", "8"], 2, "did you mean --batch-size?"),
    (["--list", "recipe"], 2, "did you mean recipes?"),
    (["--epochs", "x"], 2, "--epochs"),
    (["--epochs", "0"], 2, "allowed: 1 or more"),
    (["--epochs", "-3"], 2, "allowed: 1 or more"),
    (["--batch-size", "0"], 2, "1 or more"),
    (["--batch-size", "1000000"], 2, "make --batch-size smaller"),
    (["--precision", "bf15"], 2, "auto"),
    (["--precision", "BF16"], 2, "did you mean bf16?"),
    (["--optim.kind", "SGD"], 2, "did you mean sgd?"),
    (["--device", "gpu"], 2, "did you mean cuda?"),
    (["--optim.beta1", "0.9"], 2, "got unknown option --optim.beta1; it is of --optim.kind adamw or"),
    (["--schedule.milestones-epochs", "[3]"], 2, "it is of --schedule.kind multistep"),
    (["--schedule.kind", "COSINE"], 2, "did you mean cosine?"),
    (["--precision", "fp16", "--device", "cpu"], 69, "allowed: fp32, bf16"),
    (["--device", "tpu"], 2, "cuda"),
    (["--optim.lr", "-1"], 2, "positive"),
    (["--optim.lr", "nan"], 2, "got --optim.lr nan; allowed: a number"),
    (["--optim.kind", "adam"], 2, "allowed: sgd, adamw"),
    (["--schedule.kind", "cosin"], 2, "cosine"),
    (["--optim.momentum", "0", "--optim.nesterov"], 2, "momentum > 0"),
    (["--augment.hflip", "maybe"], 2, "alternating"),
    (["--augment.cutout_px", "99"], 2, "at most data.image_px"),
    (["--augment.mean", "[1,2]"], 2, "1 or 3"),
    (["--augment.mean", "imgae"], 2, "allowed: [X, ...] or image; did you mean image?"),
    (["--augment.std", "[0]"], 2, "positive"),
    (["--augment.std", "0.25"], 2, "allowed: [X, ...]; write [0.25]"),
    (["--augment.color_jitter", "0.4, .4 0 0"], 2, "allowed: [X, ...]; write [0.4,.4,0,0]"),
    (["--augment.crop_pad_px", "32", "--augment.crop_pad_mode", "reflect"], 2, "under 32"),
    (["--augment.crop_pad_px", "32", "--dry-run"], 2, "under 32, the side of the images"),
    (["--augment.crop_pad_px", "20", "--augment.crop_px", "20", "--augment.crop_scale", "[0.1,1]"], 2, "under 20"),
    (["--ema_decay", "1.5"], 2, "between 0 and 1"),
    (["--label_smoothing", "1"], 2, "0 or more, below 1"),
    (["--model_options", "{wings: 2}"], 2, "wings"),
    (["--model_options", "{3: 8}", "--dry-run"], 2, "got model_options with the name 3; allowed: names of options"),
    (["--model_options.width", "wide"], 2, "width"),
    (["--model_options.width", "-3"], 2, "width"),
    (["--model_options.num_classes", "3"], 2, "set --data.num_classes instead"),
    (["--model_options", "{in_chans: 1}", "--dry-run"], 2, "set --data.channels instead"),
    (["--model_options.pretrained", "true"], 2, "set --weights instead"),
    (["--optim.kind", "adamw"], 2, "give it as well: --lr X"),
    (["--schedule.kind", "step", "--schedule.every_epochs", "0"], 2, "1 or more"),
    (["--schedule.warmup_epochs", "7", "--epochs", "6"], 2, "at most 6"),
    (["--threads", "-2"], 2, "allowed: 1 to 1,024"),
    (["--checkpoint-every-steps", "0"], 2, "1 or more"),
    (["--log-every-steps", "-1"], 2, "1 or more"),
    (["--max-restarts", "-1"], 2, "0 to 1,000"),
    (["--workers", "1000000"], 2, "1 to 1,024"),
    (["--data.drop_last", "perhaps"], 2, "allowed: true, false"),
    (["--procs", "2", "--gpus", "2"], 2, "drop one"),
    (["--gpus", "2", "--device", "cpu"], 2, "drop one"),
    (["--gpus", "0"], 2, "1 to 1,024"),
    (["--cuda-graphs", "--device", "cpu"], 2, "got cuda_graphs on a CPU"),
    (["--cuda-graphs", "--procs", "2", "--dry-run"], 2, "leave --cuda-graphs out"),
    (["--compile", "--deterministic", "--dry-run"], 2, "compile together with deterministic"),
    (["--kernels", "fast", "--dry-run"], 2, "kernel tier 'fast'; allowed auto or one of reference"),
    (["--weights", "absent.pth", "--dry-run"], 2, "absent.pth: no such file"),
    (["--weights", "torchvision:Resnet18", "--dry-run"], 2, "torchvision has no weights"),
    (["--on-nonfinite", "ignore"], 2, "skip:N"),
    (["--kernels", "fast"], 2, "reference"),
    (["--kernels", "cuda", "--device", "cpu"], 69, "tier cuda"),
    (["--optim-backend", "apex", "--device", "cpu"], 2, "--optim-backend torch"),
    (["--optim-backend", "imnet", "--optim.kind", "lion", "--lr", "0.1", "--dry-run"], 2, "for lion; allowed: sgd"),
    (["--config", "/nowhere.yaml"], 2, "No such file"),
    (["--out", "/proc/imnet"], 74, "choose another --out"),
    (["--data-dir", "/nowhere", "--recipe", "fashion-mnist/wrn28_10"], 65, "shapes"),
    (["stray"], 2, "stray"),
    (
        ["--data.image_px", "12", "--augment.spectral_r", "2", "--band", "0", "--device", "cpu"],
        2,
        "speednet cannot see",
    ),
    (
        ["--data.image_px", "12", "--augment.spectral_r", "2", "--band", "0", "--dry-run"],
        2,
        "cannot see images of 6 px",
    ),
    (["--data.train_images", "5", "--batch-size", "10", "--dry-run"], 2, "10 for 5 training images; make --batch-size"),
    (["--data.val_images", "118", "--data.train_images", "120", "--batch-size", "10", "--dry-run"], 2, "10 for 2"),
    (["--patience", "1.5"], 2, "got --patience 1.5; allowed: a whole number or null"),
    (["--patience="], 2, "got --patience without a value; allowed: a whole number or null"),
    (["--class-weights", "true"], 2, "got --class-weights true; allowed: none, balanced"),
    (["--sampler", "weighted"], 2, "got --data.sampler weighted; allowed: shuffled, balanced"),
    (["--augment.crop_scale", "[x]"], 2, "allowed: [X, ...] or null"),
    (["--no-sampler"], 2, "got --no-data.sampler, which is no matter of yes or no; give it a value"),
    (["--no-patience"], 2, "give it a value: --patience VALUE"),
    (["--no-find-lr"], 2, "leave it out"),
    (["---lr", "0.1"], 2, "did you mean --lr?"),
    (["--_epochs", "3"], 2, "did you mean --epochs?"),
    (["--log", ""], 2, "got log = ''; allowed: a word, or null"),
    (["--find-lr", "--dry-run"], 2, "got --dry-run and --find-lr; allowed: one at a time"),
    (["--find-batch-size", "--find-lr"], 2, "allowed: one at a time"),
    (["--print-config", "--list"], 2, "got --list and --print-config"),
    (["--augment.rand_augment_magnitude", "12"], 2, "set --augment.rand_augment_ops"),
]


@pytest.mark.parametrize(("argv", "code", "hint"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_a_mistake_is_one_line(argv, code, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMNET_DATA", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    small = ["--data.train_images", "64", "--data.test_images", "16", "--epochs", "1", "--batch-size", "32"]
    # Other mistakes come with options for a run of about a second, so that a missed one is not a long training.
    extra = [] if {"--epochs", "--batch-size", "--data-dir", "--recipe", "--model", "--data"} & set(argv) else small
    assert cli.train_main([*argv, *extra]) == code
    out, err = capsys.readouterr()
    assert err.count("\n") == 1, err
    assert err.startswith("imnet-train: ")
    assert hint in err
    assert "Traceback" not in out + err
    assert not [p for p in tmp_path.rglob("*") if p.name in ("run.json", "metrics.jsonl", "config.yaml")]


def test_a_mistake_in_a_file_names_its_line(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("recipe: quickstart\noptim:\n  lr: 0.1\n  momentun: 0.9\n")
    assert cli.train_main(["--config", str(path)]) == 2
    assert f"{path}:4: got unknown key optim.momentun; did you mean --optim.momentum?" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1", "\x00"])
def test_a_file_that_is_no_configuration(tmp_path, capsys, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert cli.train_main(["--config", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_folder_for_a_configuration_file_is_told_which_file_of_it(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("recipe: quickstart\n")
    assert cli.train_main(["--config", str(tmp_path)]) == 2
    assert f"Is a directory; give the file in it: {tmp_path}/config.yaml\n" in capsys.readouterr().err
    (tmp_path / "run.json").write_text('{"recipe": {"name": "quickstart", "model": "speednet"}}')
    assert cli.train_main(["--config", str(tmp_path / "run.json")]) == 2
    assert "'model'...; allowed: its name; the file of a run folder that" in capsys.readouterr().err
    assert cli.train_main([str(tmp_path)]) == 2
    assert f"a run folder, for the place of data; --config {tmp_path}/config.yaml goes on" in capsys.readouterr().err
    assert cli.train_main([str(tmp_path / "config.yaml")]) == 2
    assert f"a YAML file, for the place of data; --config {tmp_path}/config.yaml reads it\n" in capsys.readouterr().err
    assert cli.train_main(["--recipe", "my.yml"]) == 2
    assert "got unknown recipe 'my.yml'; --config my.yml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("quickstart", "{a: 1}", marks=pytest.mark.slow),
        ("own/x", "[[{b: [2]}]]"),
        pytest.param("quickstart", "[1]", marks=pytest.mark.slow),
        pytest.param("own/x", "[1]", marks=pytest.mark.slow),
    ],
)
def test_a_value_of_another_kind_anywhere_in_a_file_is_one_line(tmp_path, value, name):
    """Every key of a configuration in turn gets a list or a mapping, which few accept, and must not end in a traceback.
    A recipe for the user's own data (own/x) exists only in the file."""
    path, wrong = tmp_path / "c.yaml", yaml_file.parse(value)
    whole, told = config_dict(replace(recipes["quickstart"], name=name), RunOptions()), []
    for name, held in whole.items():
        for inner in (None, *(held if isinstance(held, dict) else ())):
            path.write_text(json.dumps(whole | {name: wrong if inner is None else held | {inner: wrong}}))
            try:
                options.parse(["--config", str(path)])
            except UsageError as error:
                told.append(str(error))
    assert len(told) > 100
    assert not any("\n" in line for line in told)


def as_another_user(folder, body):
    """Returns the ImnetError that ``body`` prints for a user without a home: as root it could write anywhere."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv to drop root")
    code = f"""
import os
from pathlib import Path
from imnet.data import files
from imnet.errors import ImnetError
from imnet.runfolder import RunFolder
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(54321); os.setuid(54321)
try:
    {body}
except ImnetError as error:
    print(error)
"""
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o005 != 0o005 and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o005)
    env = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cli_root(), env=env)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    told = as_another_user(folder, f"RunFolder(Path({str(folder)!r}) / 'run')")
    assert "Permission denied; choose another --out" in told
    told = as_another_user(
        folder, f"os.environ['XDG_CACHE_HOME'] = {str(folder)!r}; files.make_dir(files.cache_dir() / 'x')"
    )
    assert "permissions, or set XDG_CACHE_HOME to a folder that may be written" in told
    assert not list(folder.iterdir())


def test_a_user_without_a_home_is_told_where_to_keep_what_is_kept(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to become a user that the machine does not know")
    assert as_another_user(tmp_path, "files.cache_dir()").startswith("got no folder for what is kept")


def cli_root():
    from pathlib import Path

    return Path(cli.__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["fashion-mnist/wrn28_10"], 2, "did you mean --recipe fashion-mnist/wrn28_10?"),
        (["fashion-mnist"], 2, "did you mean --data fashion-mnist?"),
        (["wrn36_5"], 2, "did you mean --model wrn36_5?"),
        (["Quickstart"], 2, "did you mean --recipe quickstart?"),
        (["fashion_mnist/wrn28_10"], 2, "did you mean --recipe fashion-mnist/wrn28_10?"),
        (["FashionMNIST"], 2, "did you mean --data fashion-mnist?"),
        (["photos"], 2, "by name: --recipe NAME, --data NAME"),
        (["packed:photos"], 2, "did you mean --data packed:photos?"),
        (["~/nothing"], 2, "got '/nobody/nothing': no such file or folder"),
        (["--config=~/nothing.yaml"], 2, "/nobody/nothing.yaml: cannot be read"),
        (["--data=packed:~/nothing", "--device=cpu"], 65, "/nobody/nothing: no packed store here"),
        ([".", "--weights=~/nothing"], 2, "got --weights /nobody/nothing: no such file or folder"),
    ],
)
def test_a_place_that_is_not_there(words, code, says, tmp_path, monkeypatch, capsys):
    """A known name gets the advice to use its option, and a ``~`` that the shell left is the home folder."""
    monkeypatch.setenv("HOME", "/nobody")
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        making.write_tree(tmp_path / name, {"0.png": making.picture(0, 8, 8), "1.png": making.picture(1, 8, 8)})
    assert cli.train_main(words) == code
    assert says in capsys.readouterr().err.splitlines()[-1]
