"""The regression gate: its rule on made-up scores, its input files, and real builds, equal and slowed ones."""

import json
import sys
from pathlib import Path

import pytest

from bench import gate
from bench.case import find_recipe
from bench.cli import main
from bench.machine import differences, fingerprint
from imnet.errors import UsageError

SLOWED = Path(__file__).with_name("slowed_probe.py")
# On a busy machine, loader scores of the same build have differed by half between processes.
MARGIN = 0.35


def scripted(*takes):
    """Returns a measurement that gives the next of ``takes`` at each call, and a list of the names asked for."""
    asked, left = [], list(takes)

    def measure(names):
        asked.append(None if names is None else sorted(names))
        return left.pop(0)

    return measure, asked


def test_a_score_that_is_low_by_chance_is_measured_again_and_passes():
    measure, asked = scripted({"a": 0.90, "b": 1.0}, {"a": 1.0, "b": 0.2})
    a, b = gate.judge({"a": [1.0], "b": [1.0]}, measure, 0.97)
    assert (a.passed, a.attempts, a.ratio) == (True, 2, 1.0)
    assert (b.passed, b.attempts, b.new) == (True, 1, 1.0)  # a score that has passed is not measured again
    assert asked == [None, ["a"]]


def test_a_score_that_is_always_low_fails_after_every_attempt():
    measure, asked = scripted(*[{"a": value} for value in (0.90, 0.91, 0.89, 0.90)])
    (verdict,) = gate.judge({"a": [1.0, 0.99, 1.01]}, measure, 0.97)
    assert not verdict.passed
    assert verdict.attempts == len(asked) == gate.ATTEMPTS
    assert verdict.ratio == pytest.approx(0.91)


def test_the_line_is_a_share_of_the_median_but_never_above_the_second_lowest_kept():
    assert gate.line([1.0, 1.01, 0.99, 1.0, 1.02], 0.97) == pytest.approx(0.97)
    assert gate.line([1.0, 0.5, 0.9, 1.1, 1.2], 0.97) == pytest.approx(0.9)
    assert gate.line([2.0], 0.5) == pytest.approx(1.0)


def test_only_names_in_both_are_compared():
    measure, _ = scripted({"a": 1.0, "new": 3.0})
    assert [v.name for v in gate.judge({"gone": [1.0], "a": [1.0]}, measure, 0.97)] == ["a"]


def kept(folder, scores, **changes):
    """Write a file as --save does, with this machine's fingerprint except for ``changes``; returns both."""
    machine = fingerprint("fp32") | changes
    gate = {name: {"score": value, "of": [value]} for name, value in scores.items()}
    path = folder / "base.json"
    path.write_text(json.dumps({"fingerprint": machine, "gate": gate}))
    return path, fingerprint("fp32")


def test_another_machine_is_refused_and_compared_by_force(tmp_path):
    path, today = kept(tmp_path, {"a": 1.0}, cpu="Z80", threads=64)
    with pytest.raises(UsageError, match=r"cpu was Z80, is .*threads was 64.*--force"):
        gate.against(path, today, lambda names: {"a": 1.0}, 0.97, force=False)
    table, passed = gate.against(path, today, lambda names: {"a": 1.0}, 0.97, force=True)
    assert passed
    assert "compared by force: cpu was Z80" in table


@pytest.mark.parametrize(("score", "passed"), [(1.0, True), (0.98, True), (0.96, False)])
def test_the_table_says_old_new_ratio_and_the_verdict(tmp_path, score, passed):
    path, today = kept(tmp_path, {"a": 2.0})
    table, got = gate.against(path, today, lambda names: {"a": 2.0 * score}, 0.97, force=False)
    assert got is passed
    assert f"{score:.3f}" in table
    assert ("SLOWER" in table) is not passed


def test_no_common_name_is_a_mistake(tmp_path):
    path, today = kept(tmp_path, {"a": 2.0})
    with pytest.raises(UsageError, match="no name is in both"):
        gate.against(path, today, lambda names: {"b": 1.0}, 0.97, force=False)


def test_what_is_kept_and_no_longer_measured_is_named(tmp_path):
    path, today = kept(tmp_path, {"a": 1.0, "gone": 1.0})
    table, passed = gate.against(path, today, lambda names: {"a": 1.0}, 0.97, force=False)
    assert passed
    assert table.startswith("kept and not measured today: gone\n")


@pytest.mark.parametrize("of", [[], ["x"], [0], [float("nan")], 3, None])
def test_damaged_scores_are_said_before_anything_is_measured(tmp_path, capsys, of):
    path, _ = kept(tmp_path, {"a": 1.0})
    found = json.loads(path.read_text())
    for damaged in (found | {"gate": {"a": {"of": of}}}, found | {"gate": of}, found | {"fingerprint": of}):
        path.write_text(json.dumps(damaged))
        assert main(["all", "--compare", str(path)]) == 65
        told = capsys.readouterr()
        assert (told.out, told.err.count("\n")) == ("", 1)


def test_another_machine_is_refused_before_anything_is_measured(tmp_path, capsys):
    """Precision and threads are not known yet at that point, so this early refusal must not compare them."""
    path, _ = kept(tmp_path, {"a": 1.0}, cpu="Z80", threads=64, precision="fp8")
    assert main(["all", "--compare", str(path)]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert "cpu was Z80" in told.err
    assert "threads" not in told.err
    assert "fp8" not in told.err


@pytest.mark.parametrize("option", ["--save", "--json"])
def test_the_file_that_is_compared_is_not_written(tmp_path, capsys, option):
    """Otherwise the kept scores would be lost, and the code would from then on be compared with itself."""
    path, _ = kept(tmp_path, {"a": 1.0})
    before = path.read_bytes()
    path.with_name("link.json").symlink_to(path)
    for out in (path, path.with_name("link.json")):
        path.write_bytes(before.replace(b"{", b'{"benchmark": "all", ', 1))
        assert main(["all", "--compare", str(path), option, str(out)]) == 2
        assert f"got one file for {option} and --compare" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--fail-under", "0.9"], ["--force"]])
def test_a_gate_without_a_file_is_a_mistake(capsys, words):
    assert main(["all", *words]) == 2
    assert f"got {words[0]} without --compare" in capsys.readouterr().err


def test_versions_of_torch_may_differ_in_their_last_part_only():
    old = fingerprint("fp32")
    major, minor = old["versions"]["torch"].split(".")[:2]
    patched = old | {"versions": old["versions"] | {"torch": f"{major}.{minor}.99"}, "date": "x", "git_sha": "y"}
    assert differences(old, patched) == []
    other = old | {"versions": old["versions"] | {"torch": f"{major}.{int(minor) + 1}.0"}}
    assert differences(old, other) == [f"torch was {major}.{minor}, is {major}.{int(minor) + 1}"]
    assert differences(old, old | {"precision": "bf16"}) == ["precision was fp32, is bf16"]


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (None, 74, "cannot be read"),
        ("{", 65, "not JSON"),
        *((text, 65, "no scores in it") for text in ("{}", "[]", '{"gate": {}, "fingerprint": {}}')),
    ],
)
def test_a_file_that_is_none_of_ours_is_one_line_before_anything_is_measured(tmp_path, capsys, text, code, says):
    path = tmp_path / "base.json"
    if text is not None:
        path.write_text(text)
    assert main(["throughput", "--compare", str(path)]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert says in lines[0]


@pytest.mark.parametrize("words", [{"recipe": "quickstart", "model": None}, {"recipe": None, "model": "timm:resnet18"}])
def test_a_probe_measures_the_recipe_that_was_measured(words):
    """Also the plain one of a network that no recipe has, whose name is no word of a command."""
    recipe = find_recipe(**words, batch_images=8)
    assert gate.asked(gate.words_of(recipe, ("model",))) == (recipe, ["model"], gate.ROUNDS)


def test_networks_without_scores_are_refused_before_they_are_measured(tmp_path, capsys):
    words = ["--against", "RTX 3090", "--models", "resnet18", "--save", str(tmp_path / "base.json")]
    assert main(["throughput", *words]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "got --save for networks without a recipe" in told.err


def scores(*, slowed=None, monkeypatch=None, parts="loader,model", rounds=8):
    """Returns the scores of one real measurement in a process of its own."""
    if slowed is not None:
        monkeypatch.setenv("SLOWED_BY", str(slowed))
    start = [sys.executable, *(["-m", "bench.gate"] if slowed is None else [str(SLOWED)])]
    more = ["--recipe", "quickstart", "--batch-size", "64", "--parts", parts, "--rounds", str(rounds)]
    return gate.scores_of([*start, *more])


@pytest.mark.slow
def test_real_scores_pass_the_same_build_and_fail_a_slow_loader_and_a_slow_step(monkeypatch):
    """The margin is wide because other tests run at the same time; the test below uses the default one."""
    base = {name: [score] for name, score in scores().items()}
    same = gate.judge(base, lambda names: scores(), MARGIN)
    assert [v.passed for v in same] == [True, True], same
    slow = scores(slowed=4, monkeypatch=monkeypatch, parts="model")
    assert [v.passed for v in gate.judge(base, lambda names: slow, MARGIN)] == [False]
    monkeypatch.setenv("IMNET_KERNELS", "reference")
    slow = scores(parts="loader")
    assert [v.passed for v in gate.judge(base, lambda names: slow, MARGIN)] == [False]


@pytest.mark.slow
def test_the_same_build_passes_ten_times_of_ten_and_ten_percent_more_work_fails(monkeypatch):
    """With the default threshold of 0.97; this takes minutes."""
    taken = [scores(rounds=gate.ROUNDS) for _ in range(gate.SAVE_ATTEMPTS)]
    base = {name: [one[name] for one in taken] for name in taken[0]}
    for _ in range(10):
        verdicts = gate.judge(base, lambda names: scores(rounds=gate.ROUNDS), 0.97)
        assert all(v.passed for v in verdicts), verdicts
    slow = gate.judge(
        {name: kept for name, kept in base.items() if name.startswith("model")},
        lambda names: scores(slowed=0.1, monkeypatch=monkeypatch, parts="model", rounds=gate.ROUNDS),
        0.97,
    )
    assert [v.passed for v in slow] == [False], slow
