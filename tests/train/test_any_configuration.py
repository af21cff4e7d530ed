"""Random configurations: each trains to the same bits with another pipeline and through kill -9, or is refused in one
line before it begins, also by --dry-run."""

import multiprocessing
import os
import shutil
import signal
import sys
import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from imnet.errors import UsageError
from imnet.options import parse

from .test_resume import digests

BASE = {
    "--recipe": "quickstart", "--data.image_px": "16", "--epochs": "2", "--log-every-steps": "1",
    "--device": "cpu", "--threads": "1",
}  # fmt: skip
ALWAYS = {
    "--data.train_images": ("70", "96", "130"),
    "--data.test_images": ("20", "41"),
    "--batch-size": ("16", "32", "48"),
    "--seed": ("0", "1", "77"),
    "--pipeline": ("resident", "host"),
    "--data.channels": ("3", "3", "1"),
}
SOMETIMES = {
    "--data.drop_last": (None,), "--sampler": ("balanced",), "--data.val_images": ("10", "16"),
    "--data.val_stratified": (None,), "--micro-batch-images": ("1", "7", "16", "20"),
    "--optim.momentum": ("0", "0.5"), "--no_optim.nesterov": (None,), "--optim.decay_norms": (None,),
    "--schedule.kind": ("constant", "step", "multistep", "cosine"), "--schedule.warmup_epochs": ("0.5", "1"),
    "--augment.crop_pad_px": ("0", "2", "15", "16"), "--augment.crop_pad_mode": ("zero", "reflect"),
    "--augment.hflip": ("none", "random", "alternating"), "--augment.hflip_p": ("0.3",),
    "--augment.cutout_px": ("0", "5", "16"), "--augment.cutout_inside": (None,),
    "--augment.mean": ("image", "[0.4]", "[0.4,0.5,0.6]"), "--augment.std": ("[0.2]",),
    "--augment.resize_px": ("12", "20"), "--augment.resize_eval_px": ("18", "20"), "--augment.crop_px": ("12", "14"),
    "--augment.crop_scale": ("[0.3,1.0]",), "--augment.color_jitter": ("[0.2,0.2,0.2,0.1]",),
    "--augment.trivial_augment": (None,), "--augment.rand_augment_ops": ("2",),
    "--augment.random_erasing_p": ("0.5",), "--augment.spectral_r": ("2",), "--band": ("0", "3", "4"),
    "--freeze": ("all-but-head", "1"), "--body-lr": ("0.1",), "--label-smoothing": ("0.1",),
    "--class-weights": ("balanced",), "--mixup-alpha": ("0.4",), "--cutmix-alpha": ("1.0",), "--head-outputs": ("12",),
    "--ema-decay": ("0.9", "0.99"), "--ema-warmup": (None,), "--grad-clip": ("0.5",), "--lr-base-images": ("64",),
    "--patience": ("1",), "--eval-every-epochs": ("1", "2"), "--checkpoint-every-steps": ("1", "2", "3"),
    "--checkpoint-every-epochs": ("2",), "--keep": ("best", "2", "best,last"), "--precision": ("fp32", "bf16"),
    "--optim-backend": ("torch", "imnet"), "--on-nonfinite": ("skip:3",), "--deterministic": (None,),
    "--kernels": ("reference",), "--log": ("csv",),
}  # fmt: skip
OTHER_OPTIMISERS = ("adamw", "adamcpr", "lamb", "lion", "muon")


@st.composite
def configurations(draw):
    """Draws words of imnet-train: up to nine random options besides those that keep the run small."""
    chosen = draw(st.lists(st.sampled_from(sorted(SOMETIMES)), max_size=9, unique=True))
    words = BASE | {name: draw(st.sampled_from(values)) for name, values in ALWAYS.items()}
    words |= {name: draw(st.sampled_from(SOMETIMES[name])) for name in chosen}
    if draw(st.booleans()) and not any(name.startswith(("--optim.", "--no_optim.")) for name in chosen):
        words |= {"--optim.kind": draw(st.sampled_from(OTHER_OPTIMISERS)), "--lr": "0.003"}
    if "--augment.spectral_r" in words:
        words.setdefault("--band", "0")  # without --band all bands would train, each in its own folder
    return words


def run(words, folder, said, kill_after_s=None):
    """Runs imnet-train in a forked process that has torch imported; returns (exit code, output), kept in ``said``."""
    process = multiprocessing.get_context("forkserver").Process(target=_train, args=(words, folder, said))
    process.start()
    process.join(kill_after_s)
    if process.is_alive() and kill_after_s is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join(240)
    text = said.read_text(errors="replace") if said.exists() else ""
    assert "Traceback" not in text, text
    assert process.exitcode is not None
    return process.exitcode, text


def _train(words, folder, said):
    from imnet.cli import train_main

    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    flat = [word for pair in words.items() for word in pair if word is not None]
    code = train_main([*flat, "--out", str(folder)])
    sys.stdout.flush()
    os._exit(code)


@pytest.mark.nightly
@given(words=configurations(), share=st.floats(0.05, 0.95))
@settings(
    max_examples=100, deadline=None, phases=(Phase.reuse, Phase.generate), suppress_health_check=list(HealthCheck)
)
def test_any_configuration_trains_exactly_or_is_refused(words, share, tmp_path_factory, spawn):
    at = tmp_path_factory.mktemp("any")
    begun = time.monotonic()
    code, text = run(words, at / "whole", at / "said")
    took = time.monotonic() - begun
    assert code in (0, UsageError.exit_code), text
    planned, plan = run(words | {"--dry-run": None}, at / "dry", at / "said")
    assert planned == code, plan
    assert not (at / "dry").exists()
    if code:
        assert text.splitlines()[-1].startswith("imnet-train: "), text
        assert not (at / "whole" / "run.json").exists()
        return
    other = {"resident": "host", "host": "resident"}[words["--pipeline"]]
    assert run(words | {"--pipeline": other}, at / "other", at / "said")[0] == 0
    assert digests(at / "other") == digests(at / "whole")
    for _ in range(6):
        if run(words, at / "killed", at / "said", kill_after_s=share * took)[0] == 0:
            break
    assert run(words, at / "killed", at / "said")[0] == 0
    assert digests(at / "killed") == digests(at / "whole")
    shutil.rmtree(at)


def test_the_options_are_imnet_trains():
    """If an option were renamed, configurations with it would all be refused, which the test above would accept."""
    words = {name: values[0] for name, values in (ALWAYS | SOMETIMES).items()}
    with pytest.raises(UsageError) as refused:
        parse([word for pair in words.items() for word in pair if word is not None])
    assert "unknown" not in str(refused.value)
