"""Imports run one way: each room imports from the rooms that docs/design.md lists for it, and from no others."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
DESIGN = (ROOT / "docs" / "design.md").read_text()
ROWS = {
    room: set(re.findall(r"`(\w+)`", imports)) if imports.strip() != "all" else None
    for room, imports in re.findall(r"^\| `(\w+)` \|[^|]*\|([^|\n]*)\|$", DESIGN, flags=re.MULTILINE)
}
FOLDERS = {"pipelines": ROOT / "pipelines", "training": ROOT / "training"}


def modules(room: str) -> list[Path]:
    folder = FOLDERS.get(room, ROOT / "diffusers_cg" / room)
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported_rooms(file: Path) -> set[str]:
    """Rooms that a module imports from, wherever in it; for type checkers alone does not count."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {
        "cli" if name.startswith("diffusers_cg_cli") else (name.split(".") + ["diffusers_cg"])[1]
        for name in names
        if name.split(".")[0] in ("diffusers_cg", "diffusers_cg_cli")
    }


@pytest.mark.parametrize("room", ROWS)
def test_a_room_imports_what_the_page_says(room):
    for file in modules(room):
        allowed = ROWS[room]
        if allowed is not None:
            assert imported_rooms(file) <= {*allowed, room}, file


def test_the_page_draws_the_whole_tree():
    folders = {path.name for path in (ROOT / "diffusers_cg").iterdir() if (path / "__init__.py").is_file()}
    assert set(ROWS) == folders | {"errors", "pipelines", "training"}


def test_low_rooms_come_first():
    """So no two rooms import each other."""
    seen = []
    for room, imports in ROWS.items():
        assert imports is None or imports <= set(seen), room
        seen.append(room)
