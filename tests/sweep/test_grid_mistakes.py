"""Mistakes in grid files and in imnet-sweep's options: each gives one line that says where it is and what to do."""

import pytest

from imnet import loggers, sweep

MISTAKES = [
    ("not YAML", "grid: [", "not YAML"),
    ("a list", "- 1", "not a mapping"),
    ("unknown part", "gird: {optim.lr: [1]}", "did you mean grid?"),
    ("unknown option", "grid: {optim.lrr: [1]}", "did you mean --optim.lr?"),
    ("no list", "grid: {optim.lr: 0.1}", "not a list of values"),
    ("an empty list", "grid: {optim.lr: []}", "not a list of values"),
    ("wrong value", "grid: {optim.lr: [0.1, fast]}", "trial 2 (optim.lr fast)"),
    ("out of range", "grid: {optim.lr: [-1]}", "trial 1 (optim.lr -1)"),
    ("unknown recipe", "base: {recipe: fashion-mnist/wrn}", "did you mean"),
    ("twice", "{base: {lr: 0.1}, grid: {optim.lr: [1]}}", "optim.lr is given twice"),
    ("nested", "base: {optim: {lr: 0.1}}", "write optim.lr: VALUE"),
    ("nested under a short name", "base: {data: {train_images: 9}}", "write data.train_images: VALUE"),
    ("the folder", "base: {out: runs/x}", "--out of imnet-sweep"),
    ("the seed", "grid: {seed: [1, 2]}", "seeds: [1, 2, 3]"),
    ("seeds that are none", "seeds: [1.5]", "a seed is 1.5"),
    ("a range upside down", "random: {values: {optim.lr: {low: 1, high: 0.1}}}", "low < high"),
    ("a logarithm of zero", "random: {values: {optim.lr: {low: 0, high: 1, log: true}}}", "low > 0"),
    ("an unknown word of a range", "random: {values: {optim.lr: {min: 0, high: 1}}}", "got unknown key min"),
    ("draws of nothing", "random: {draws: 3}", "random.values is absent"),
    ("no draws", "random: {draws: 0, values: {optim.lr: [1]}}", "random.draws is 0"),
    ("what trains nothing", "base: {dry_run: true}", "dry"),
    ("a question", "base: {find-lr: true}", "got find_lr in base, which is no setting of a run"),
    ("too many", "grid: {lr: &a [1,2,3,4,5,6,7,8,9,10,11], epochs: *a, batch_size: *a, threads: *a}", "14,641"),
    ("nothing at all", "", "names nothing to train"),
    ("nothing but its name", "about: mine\ngrid: {}\nbase:", "names nothing to train"),
    ("a part twice", "grid: {lr: [0.1]}\ngrid: {lr: [0.2]}", "grid is given twice"),
    ("an axis twice", "grid: {optim.lr: [0.1], optim.lr: [0.2]}", "optim.lr is given twice"),
    ("an axis under two names", "grid: {lr: [0.1], optim.lr: [0.2]}", "optim.lr is given twice"),
    ("one in base twice", "base: {batch-size: 8, data.batch_images: 9}", "data.batch_images is given twice"),
    ("a width twice", "base: {model_options: {width: 4}, model_options.width: 8}", "width is given twice in base"),
    ("a width twice, once in an axis", "{base: {model_options.width: 4}, grid: {model_options: [{width: 8}]}}",
     "model_options.width is given twice"),
    ("a width twice in two axes", "grid: {model_options: [{width: 4}], model_options.width: [8]}",
     "make it an axis of its own: model_options.width: [...]"),
    ("no configuration", "grid: {threads: [1, 2]}", "no part of a run's configuration"),
    ("a folder's bands", "base: {recipe: spectral/alexnet_sub4}\ngrid: {bands: [all, '0,1']}", "no part of a run's"),
    ("the same with no", "grid: {no-compile: [true, false]}", "no part of a run's configuration"),
    ("drawn", "random: {values: {keep: [1, 2]}}", "no part of a run's configuration"),
    ("bytes", "grid: {lr: [!!binary aGk=]}", "not YAML of plain values"),
    ("a list in itself", "grid: {lr: &a [*a]}", "not YAML of plain values"),
    ("no number", "grid: {lr: [!!int x]}", "not YAML of plain values"),
    ("a date", "grid: {lr: [2026-13-45]}", "got --optim.lr 2026-13-45; allowed: a number"),
    ("a tab", "base:\n\tlr: 0.1", "not YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_file(tmp_path, text, said, capsys):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert sweep.main([str(path), "--dry-run", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("imnet-sweep: ")
    assert "wrong.yaml" in err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "got no grid"),
        (["fob-adam", "--dry-run"], "did you mean fob-adam"),
        (["fob-adamw", "--seeds", "0"], "got --seeds 0"),
        (["fashion-mnist", "--trial", "6"], "allowed: 1 to 5"),
        (["fob-adamw", "--job", "3"], "did you mean --jobs?"),
        (["fob-adamw", "--dry-run", "--", "--lr", "0.1"], "got --optim.lr for every trial"),
        (["fob-adamw", "--dry-run", "--", "--seed", "1"], "use --seeds N"),
        (["fob-adamw", "--dry-run", "--", "--help"], "got --help for every trial"),
        (["fob-adamw", "--dry-run", "--", "-h"], "got --help for every trial"),
        (["fob-adamw", "--dry-run", "--", "--out", "x"], "use --out of imnet-sweep"),
    ],
)
def test_a_mistake_of_the_command_is_one_line(argv, said, capsys):
    assert sweep.main(argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_log_that_cannot_be_kept_is_said_once_before_any_trial(tmp_path, monkeypatch, capsys):
    real = loggers.importlib.util.find_spec
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name))
    path = tmp_path / "mine.yaml"
    path.write_text("base: {recipe: quickstart, log: 'csv,wandb'}\nseeds: [1, 2]")
    assert sweep.main([str(path), "--out", str(tmp_path / "out")]) == 2
    assert (
        capsys.readouterr().err
        == "imnet-sweep: got --log wandb, but wandb is not installed; pip install 'imnet[track]'\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--dry-run"], []], ids=["planned", "run"])
@pytest.mark.parametrize("out", ["file", "file/sweep", "/proc/sweep", "n" * 300])
def test_a_place_where_no_trial_can_be_written_is_refused_first(out, more, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine.yaml").write_text("base: {recipe: quickstart}\nseeds: [1, 2]")
    assert sweep.main(["mine.yaml", "--out", out, *more]) == 74
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert not told.out
    assert {p.name for p in tmp_path.iterdir()} == {"file", "mine.yaml"}


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"code": "0"}', '{"code": 1.5}', "\udcff"])
def test_a_damaged_trial_json_is_one_line(tmp_path, text, capsys):
    path, out = tmp_path / "mine.yaml", tmp_path / "out"
    path.write_text("base: {recipe: quickstart}\nseeds: [1, 2]")
    trial = sweep.trials(sweep.read(path), None, [])[0][0]
    (out / trial.name).mkdir(parents=True)
    (out / trial.name / "trial.json").write_bytes(text.encode(errors="surrogateescape"))
    assert sweep.main([str(path), "--out", str(out), "--dry-run"]) == 65
    err = capsys.readouterr().err
    assert "trial.json: cannot be read: " in err
    assert err.endswith("; remove it\n")
    assert err.count("\n") == 1


def test_an_option_of_the_trials_that_has_no_effect_is_said_once(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("grid: {augment.cutout_inside: [true, false]}")
    assert sweep.main([str(path), "--out", str(tmp_path / "out"), "--seeds", "3", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("note       --augment.cutout_inside has no effect here: it needs --augment.cutout_px\n") == 1


def test_a_trial_that_ended_without_a_word_is_said_to(tmp_path):
    (tmp_path / "trial.log").touch()
    assert sweep.jobs._last_words(tmp_path / "trial.log", 75) == "exit code 75: nothing said"
