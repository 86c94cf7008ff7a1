"""What docs/architecture.md says of who imports whom is so."""

import ast
import re
from pathlib import Path

HOME = Path(__file__).parents[1]
COMMON = {"errors", "files", "arrays", "hardware", "kernels"}


def imported(path: Path) -> set[str]:
    """Rooms and modules of Tony's own that a file imports, at its beginning or within a function."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {parts[1] for parts in (name.split(".") for name in names) if parts[0] == "tony" and len(parts) > 1}


def test_rooms_import_what_the_table_says():
    rows = re.findall(r"^\| `(\w+)/` \| ([^|]+) \|", (HOME / "docs" / "architecture.md").read_text(), re.M)
    assert {room for room, _ in rows} == {path.parent.name for path in HOME.glob("tony/*/__init__.py")} - {"kernels"}
    for room, told in rows:
        found = set().union(*map(imported, (HOME / "tony" / room).rglob("*.py"))) - {room, *COMMON}
        assert found == set(re.findall(r"`(\w+)(?:\.py)?`", told)), room
