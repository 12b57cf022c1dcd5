"""The one-way law between the packages: `multimodal` <- `vision` and `speech` <- `scripts`.

Names in strings, such as the table of modalities that `multimodal` looks up when asked, are no imports.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "multimodal": {"vision", "speech", "scripts"},
    "vision": {"speech", "scripts"},
    "speech": {"vision", "scripts"},
}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every import in `source`, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_one_way(package: str) -> None:
    folder = ROOT / package
    if not folder.is_dir():
        pytest.skip(f"there is no package {package}")
    files = sorted(folder.rglob("*.py"))
    assert files
    broken = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files
        for line, name in imported(file.read_text())
        if name in FORBIDDEN[package]
    ]
    assert not broken


def test_every_form_of_import_is_seen_and_no_string() -> None:
    source = (
        "import os, vision.tiling as t\n"
        "from speech import x\n"
        "from . import vision\n"
        "TABLE = {'image': 'vision.image_modality:ImageModality'}\n"
        "def f():\n"
        "    from scripts.demo import main\n"
    )
    assert sorted(imported(source)) == [(1, "os"), (1, "vision"), (2, "speech"), (6, "scripts")]
