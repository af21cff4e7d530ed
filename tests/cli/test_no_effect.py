"""An option that has no effect beside the other values is taken, and a note says so."""

import pytest

from imnet import options

IDLE = {
    "--augment.crop_pad_mode reflect": "--augment.crop_pad_px 0",
    "--augment.hflip_p 0.3": "--augment.hflip none",
    "--augment.cutout_inside": "",
    "--augment.spectral_std [0.3]": "",
    "--augment.spectral_band 0": "",
    "--data.split official": "",
    "--data.val_seed 3": "",
    "--data.val_stratified": "",
    "--optim.decay_biases": "--no-optim.decay_norms",
    "--body-lr 0.5": "--freeze all-but-head",
    "--max-restarts 3": "",
    "--tf32": "--precision bf16",
    "--schedule.every_epochs 6": "--schedule.kind step",
    "--schedule.milestones_epochs [9,30]": "--schedule.kind multistep",
    "--comm.sync_bn": "",
    "--comm.bucket_mb 5": "--procs 1",
    "--workers 2": "--pipeline resident",
}


@pytest.mark.parametrize("words", IDLE, ids=str)
def test_an_option_that_has_no_effect_beside_the_others_is_said(words):
    (note,) = options.parse(f"{words} {IDLE[words]}".split()).notes
    assert note.startswith(f"{words.split()[0]} has no effect here: it needs ")


def test_an_option_that_has_an_effect_is_not_said_to_have_none(tmp_path):
    words = "--augment.crop_pad_mode reflect --augment.hflip_p 0.3 --augment.cutout_inside --augment.cutout_px 8"
    words += " --data.val_images 20 --data.val_seed 3 --optim.decay_biases --body-lr 0.5 --freeze 1"
    words += " --procs 2 --max-restarts 1 --workers 2"
    assert options.parse(words.split()).notes == ()
    assert options.parse(["--tf32", "--precision", "fp32", "--gpus", "2"]).notes == ()
    words = ["--recipe", "fashion-mnist/wrn28_10", "--data.split", "official"]
    assert options.parse(words).notes == ()
    for words in ("step --schedule.every_epochs 5", "multistep --schedule.milestones_epochs [5,9]"):
        assert options.parse(f"--schedule.kind {words} --sync-bn --procs 2".split()).notes == ()
    request = options.parse([])
    (tmp_path / "all.yaml").write_text(options.dump_config(request.recipe, request.options))
    assert options.parse(["--config", str(tmp_path / "all.yaml")]).notes == ()  # it lists every value


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_how_ranks_exchange_gradients_has_an_effect_under_a_launcher(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    assert options.parse(["--comm.sync_bn"]).notes == ()
    monkeypatch.setenv(name, "1")
    assert len(options.parse(["--comm.sync_bn"]).notes) == 1
