"""Every numeric option has a range: a number outside of it gives one line and exit code 2, whichever the option."""

import typing

import pytest

from imnet import cli, recipes
from imnet.fields import about
from imnet.parser import FIXED, leaves
from imnet.recipe import replace
from imnet.recipe_json import KINDS
from imnet.run_options import RunOptions


def numeric():
    """Returns {dotted name: (types, words that select the kinds it belongs to)} of every numeric option."""
    found = {}
    base = recipes["quickstart"]
    for part, kinds in KINDS.items():
        for kind, cls in kinds.items():
            more = [f"--{part}.kind", kind, "--lr", "0.1", "--epochs", "200"]
            given = {"lr": 0.1} if part == "optim" else {}
            for value in (RunOptions(), replace(base, **{part: cls(**given)}, epochs=200)):
                for name, hint, _, _ in leaves(value):
                    types = {
                        kind for member in (hint, *typing.get_args(hint)) for kind in (member, *typing.get_args(member))
                    }
                    if types & {int, float} and name.split(".")[0] not in FIXED:
                        found.setdefault(name, (types, more))
    return found


NUMERIC = numeric()


def cases():
    """Yields (name, number). What is not finite is tried with floats, and what is too large with whole numbers, which
    refuse anything else as no whole number: those cases are slow."""
    for name, (types, _) in NUMERIC.items():
        chosen = ("-1", "1e400", "nan") if float in types else ("-1", "100000000000000000000")
        for number in ("-1", "1e400", "nan", "100000000000000000000"):
            yield pytest.param(name, number, marks=[] if number in chosen else pytest.mark.slow)


def test_there_are_many():
    assert len(NUMERIC) > 50
    assert {"threads", "epochs", "optim.beta1", "schedule.every_epochs", "augment.std", "comm.bucket_mb"} <= set(
        NUMERIC
    )
    assert about("x")["range"] is None


@pytest.mark.parametrize("in_file", [False, True], ids=["word", "file"])
@pytest.mark.parametrize("name", ["epochs", "optim.lr", "optim.momentum", "data.batch_images", "ema_decay", "seed"])
def test_a_whole_number_too_large_for_a_float_is_one_line(name, in_file, tmp_path, capsys):
    part, dot, field = name.rpartition(".")
    number = "1" + 400 * "0"
    (tmp_path / "c.yaml").write_text(f"{part}:\n  {field}: {number}\n" if dot else f"{field}: {number}\n")
    words = ["--config", str(tmp_path / "c.yaml")] if in_file else [f"--{name}={number}"]
    code = cli.train_main(["--recipe", "quickstart", "--data", "synthetic", *words, "--print-config"])
    _, err = capsys.readouterr()
    assert code == 2
    assert err.count("\n") == 1
    assert "too large" in err or field in err.replace("-", "_")


@pytest.mark.parametrize(("name", "number"), list(cases()))
def test_a_number_that_cannot_be_is_one_line(name, number, capsys):
    kinds, more = NUMERIC[name]
    more = [] if name in ("epochs", "optim.lr") else more
    text = f"[{number}]" if tuple in map(typing.get_origin, kinds) else number
    code = cli.train_main([*more, f"--{name}={text}", "--print-config"])
    out, err = capsys.readouterr()
    if number == "100000000000000000000" and code == 0:
        assert float in kinds  # a float may be that large; a count may not
        return
    if number == "-1" and code == 0:
        assert name == "augment.mean"
        return
    assert code == 2, out
    assert err.count("\n") == 1
    assert name.rpartition(".")[2] in err.replace("-", "_")
