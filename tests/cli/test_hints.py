"""Messages that advise an option: the option must exist, and a value given with it must be accepted."""

import ast
import functools
import re
from pathlib import Path

import pytest

from imnet import ensemble, options
from imnet.cli import eval_main, predict_main, train_main
from imnet.parser import ALIASES, build_parser
from imnet.recipe_json import KINDS

ROOT = Path(__file__).resolve().parents[2]
# Left out: the report's CSS, whose variables begin with two dashes, and Slurm scripts, which have Slurm's options.
FILES = [
    p for part in ("imnet", "bench") for p in sorted((ROOT / part).rglob("*.py"))
    if p.parts[-2] != "report" and p.name != "sbatch.py"
]  # fmt: skip
FOREIGN = {"--porcelain", "--git-dir", "--work-tree", "--hard-dereference", "--no"}  # git's, tar's, and a prefix
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*(?:[ =](?:true|false|null|skip:3|\d[\d.]*)(?![\w.]))?")


def strings(path):
    """Yields every string in a file; in f-strings, a NUL stands for each value that is filled in. From bench, which
    starts programs with options of their own, only the ``hint`` arguments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if "bench" in path.relative_to(ROOT).parts:
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        hints = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "hint"]
        tree = ast.Module([ast.Expr(hint) for hint in hints], [])
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


@functools.cache
def named():
    """Returns (file, option with its value if it has one) of every option named in a string."""
    names = []
    for path in FILES:
        for text in strings(path):
            # Options whose names an f-string fills in, such as "--{flag}", cannot be checked here.
            for found in OPTION.findall(re.sub(r"--[\w.]*\0[\w.]*", "", text)):
                name = found.rstrip(".-:_").replace("--model_options.NAME", "--model_options")
                names.append((str(path.relative_to(ROOT)), name))
    return names


@functools.cache
def known_to_train():
    """Returns the options that imnet-train has with any kind of optimiser and schedule."""
    names = set(ALIASES)
    for part, kinds in KINDS.items():
        for kind in kinds:
            words = [f"--{part}.kind", kind, "--lr", "0.1", "--epochs", "200"]
            names |= {action.dest for action in build_parser(options.parse(words).recipe)._actions}
    return frozenset(names)


def known_to_others():
    """Returns the options that any of this project's parsers adds, read from the ``add_argument`` calls."""
    names = set()
    for path in [*FILES, ROOT / "kernels/imnet_kernels/build.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                names |= {a.value[2:] for a in node.args if isinstance(a, ast.Constant) and str(a.value)[:2] == "--"}
    return names


def test_every_option_that_a_message_names_is_one():
    known = {name.replace("-", "_") for name in known_to_train() | known_to_others()} | {"help"}
    unknown = []
    for path, words in named():
        name = re.split("[ =]", words)[0]
        plain = name[2:].replace("-", "_")
        if name not in FOREIGN and not {plain, plain.removeprefix("no_")} & known:
            unknown.append((path, words))
    assert not unknown


def test_every_value_that_a_message_gives_is_taken():
    train = known_to_train()
    given = {words.replace("=", " ") for path, words in named() if re.search("[ =]", words) and path[:5] != "bench"}
    for words in sorted(given):
        name, value = words.split(" ")
        dest = name[2:].replace("-", "_")
        if ALIASES.get(dest, dest) in train and dest not in ("list", "config"):
            options.parse([name, value])
    assert "--comm.static_graph true" in given


@pytest.mark.parametrize(("main", "words"), [(train_main, []), (predict_main, ["run", "a.png"]), (eval_main, ["run"])])
def test_a_gpu_by_its_number_is_told_how_it_is_chosen(main, words, capsys):
    """ "did you mean cuda?" would have taken another one, the first."""
    assert main([*words, "--device", "cuda:2"]) == 2
    assert capsys.readouterr().err.endswith("; give cuda, with CUDA_VISIBLE_DEVICES=2 in the environment\n")


def test_a_command_to_copy_has_a_folder_with_spaces_as_one_word(tmp_path, capsys):
    run, config = tmp_path / "my run", tmp_path / "my run" / "config.yaml"
    run.mkdir()
    (run / "run.json").write_text("{}")
    config.write_text("recipe: quickstart\n")
    assert train_main([str(run)]) == 2
    said = capsys.readouterr().err
    assert f"--config '{config}' goes on with the run" in said
    assert f"imnet-eval '{run}' evaluates it" in said
    assert train_main([str(config)]) == 2
    assert f"--config '{config}' reads it" in capsys.readouterr().err
    assert ensemble.closing(run, [0]).endswith(f"imnet-eval '{run}' fuses them")


def test_the_configuration_of_a_moved_or_copied_run_says_which_folder_is_used(tmp_path):
    old, new = tmp_path / "old", tmp_path / "my copy"
    for folder in (old, new):
        folder.mkdir()
        (folder / "run.json").write_text("{}")
        (folder / "config.yaml").write_text(f"recipe: quickstart\nout: {old}\n")
    (note,) = options.parse(["--config", str(new / "config.yaml")]).notes
    assert note.startswith(f"{new}/config.yaml lies in a run folder, but its out is {old}, which is used; ")
    assert note.endswith(f"--out '{new}' uses the other")
    assert options.parse(["--config", str(old / "config.yaml")]).notes == ()
    assert options.parse(["--config", str(new / "config.yaml"), "--out", str(new)]).notes == ()
