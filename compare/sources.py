"""The source files that a cell's numbers depend on, and their hash."""

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent


@cache
def source_files(start: str = "compare/worker.py") -> tuple[Path, ...]:
    """The files of this project that `start` imports, directly or not, inside functions too; sorted."""
    found: set[Path] = set()
    waiting = [ROOT / start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                place = ROOT.joinpath(*name.split("."))
                waiting += [p for p in (place.with_suffix(".py"), place / "__init__.py") if p.exists()]
    return tuple(sorted(found))


@cache
def source_hash() -> str:
    """SHA-256 of `source_files`, their names included."""
    total = hashlib.sha256()
    for path in source_files():
        total.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()
