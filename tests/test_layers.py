"""The house's one rule: which part may import which."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "imnet").rglob("*.py")) + sorted((ROOT / "kernels").rglob("*.py"))


def imports(path):
    """Absolute names that a file imports, anywhere in it."""
    package = list(path.relative_to(ROOT if "imnet_kernels" not in path.parts else ROOT / "kernels").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def part(path):
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "imnet" else "kernels"


def forbidden(path):
    """Prefixes that the file must not import."""
    name = part(path)
    if name == "kernels":
        return ["imnet."]
    rules = ["imnet.cli"] if name != "cli.py" else []
    if name == "recipe.py":  # standard library and the other leaf
        others = sorted(p.stem for p in (ROOT / "imnet").iterdir() if p.stem not in ("recipe", "augmentation"))
        return ["torch", "numpy", *(f"imnet.{other}" for other in others)]
    if name == "augmentation.py":
        return ["imnet", "torch", "numpy"]
    if name in ("run_options.py", "recipe_json.py", "recipes", "errors.py"):
        return [*rules, "torch", "numpy", "imnet.start", "imnet.data", "imnet.models"]
    if name == "data":
        return [*rules, "imnet.models", "imnet.start", "imnet.trainer", "imnet.step", "imnet.recipes"]
    if name == "models":
        return [*rules, "imnet.data", "imnet.start", "imnet.trainer", "imnet.step", "imnet.recipe"]
    return rules


def crosses(name, prefix):
    return name == prefix.rstrip(".") or name.startswith(prefix.rstrip(".") + ".")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    wrong = [name for name in imports(path) for prefix in forbidden(path) if crosses(name, prefix)]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_fit_on_a_few_screens(path):
    assert len(path.read_text().splitlines()) <= 300


def test_the_rule_sees_a_forbidden_import(tmp_path):
    """The test can fail: a data module that reads a model."""
    assert any(crosses(n, p) for n in ["imnet.models.wrn"] for p in forbidden(ROOT / "imnet" / "data" / "x.py"))
    assert not any(crosses(n, p) for n in ["imnet_kernels"] for p in forbidden(ROOT / "imnet" / "data" / "x.py"))
