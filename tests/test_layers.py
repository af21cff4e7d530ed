"""Guards the layers: which group of modules ("room") may import which. Run as a script, this file prints the table that
CONTRIBUTING.md shows; the size limit of files is tested here too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Room -> (its modules, the rooms that they may import besides their own), from the lowest layer up.
ROOMS = {
    "kernels": ("imnet_kernels", ""),
    "ground": ("errors files locks fields command yaml_file augmentation scores resources", ""),
    "recipes": ("recipe optimisers schedules recipes recipe_json run_options", "ground"),
    "machine": ("device environment meeting launch ranks", "ground recipes"),
    "data": ("data", "ground kernels"),
    "models": ("models", "ground kernels"),
    "step": (
        "step capture half_weights optim foreach adamcpr parallel mixing defaults watch",
        "ground recipes machine models kernels",
    ),
    "folder": ("runfolder checkpoint metrics loggers report", "ground recipes"),
    "run": (
        "run_state change hubs weights fits from_recipe evaluate verdicts announce resume saver console trainer "
        "ensemble start find",
        "ground recipes machine data models step folder kernels",
    ),
    "ask": (
        "run tencrop fusion fused classifier predict judge judge_ensemble export own doctor prescribed dryrun listing "
        "bandsheet",
        "ground recipes machine data models folder run kernels",
    ),
    "words": ("cli options base_recipe place parser sweep", "ground recipes machine data models folder run ask"),
    "bench": ("imnet_bench", "ground recipes machine data models step folder run kernels"),
}
ROOM_OF = {module: room for room, (modules, _) in ROOMS.items() for module in modules.split()}
# Modules that may import neither torch nor numpy, because commands read them before they import torch.
WITHOUT_TORCH = (
    "schedules.py",
    "optimisers.py",
    "recipe.py",
    "augmentation.py",
    "fields.py",
    "command.py",
    "run_options.py",
    "recipe_json.py",
    "errors.py",
    "recipes",
)
FILES = [p for folder in ("imnet", "kernels", "bench") for p in sorted((ROOT / folder).rglob("*.py"))]


def picture():
    """Returns the table in the form in which CONTRIBUTING.md shows it."""
    lines = [f"{room:<8} {modules}" + (f"\n         ▶ {allowed}" if allowed else "") for room, (modules, allowed) in
             reversed(ROOMS.items())]  # fmt: skip
    return "\n".join(lines)


def imports(path):
    """Yields the absolute name of every import in a file, those inside functions included."""
    package = list(path.relative_to(ROOT / "kernels" if "imnet_kernels" in path.parts else ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from ([f"{name}.{alias.name}" for alias in node.names] if name == "imnet" else [name])


def module_of(name):
    """Returns the module in ROOMS to which an absolute name belongs, or None if it is not one of this project's."""
    first, *rest = name.split(".")
    if first in ("imnet_kernels", "bench", "imnet_bench"):
        return "imnet_kernels" if first == "imnet_kernels" else "imnet_bench"
    return rest[0] if first == "imnet" and rest else None


def home(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] != "imnet":
        return {"kernels": "kernels", "bench": "bench"}[parts[0]]
    return ROOM_OF.get(Path(parts[1]).stem)


def rooms_imported(path):
    modules = {module_of(name) for name in imports(path)}
    return {ROOM_OF[module] for module in modules if module in ROOM_OF}


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != ROOT / "imnet" or p.name != "__init__.py"],
                         ids=lambda p: str(p.relative_to(ROOT)))  # fmt: skip
def test_imports_follow_the_arrows(path):
    room = home(path)
    assert room is not None, f"{path.stem} is in no room: add it to ROOMS"
    allowed = {room, *ROOMS[room][1].split()}
    assert rooms_imported(path) <= allowed


def test_arrows_point_down_and_none_is_idle():
    names = list(ROOMS)
    used = {room: set() for room in ROOMS}
    for path in FILES:
        if home(path) is not None:
            used[home(path)] |= rooms_imported(path) - {home(path)}
    for room, (_, allowed) in ROOMS.items():
        assert all(names.index(a) < names.index(room) for a in allowed.split()), room
        assert used[room] == set(allowed.split()), room


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_is_read_before_torch_imports_the_standard_library_alone(name):
    path = ROOT / "imnet" / name
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        found = [n for n in imports(file) if n.split(".")[0] in ("torch", "numpy", "imnet_kernels")]
        assert not found, file


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_fit_on_a_few_screens(path):
    assert len(path.read_text().splitlines()) <= 300


def test_a_path_that_cannot_be_looked_at_is_not_taken_for_absent():
    """pathlib's exists, is_dir and is_file answer False there since Python 3.14; those of imnet/files.py raise."""
    for path in sorted((ROOT / "imnet").rglob("*.py")):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call) and not n.args]
        methods = [f for f in calls if isinstance(f, ast.Attribute) and f.attr in ("exists", "is_dir", "is_file")]
        # The entries of os.scandir have methods of these names, which raise in every version.
        assert [f.lineno for f in methods if ast.unparse(f.value) != "entry"] == [], path


def test_contributing_shows_this_table():
    assert picture() in (ROOT / "CONTRIBUTING.md").read_text(), f"put this into CONTRIBUTING.md:\n{picture()}"


def test_the_rule_sees_a_forbidden_import():
    """Otherwise the import test could pass whatever is imported: here a data module would import a model."""
    assert ROOM_OF[module_of("imnet.models.wrn")] not in {"data", *ROOMS["data"][1].split()}
    assert module_of("imnet_kernels.augment") == "imnet_kernels"
    assert module_of("torch.nn") is None


if __name__ == "__main__":
    print(picture())
