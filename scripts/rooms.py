"""The layers of the package: which room imports which, read from the code, and imports that violate the layers.

    python scripts/rooms.py            print the table of docs/architecture.md, and upward imports
    python scripts/rooms.py --write    write the table into docs/architecture.md

A room is a package or module directly under ``clsgen_dist``. A room may import only rooms of lower layers. The
``settings.py`` of any room holds only dataclasses and belongs to the layer ``settings``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    ("__main__",),
    ("cli",),
    ("commands",),
    ("__init__",),
    ("plan", "preflight", "inference"),
    ("training",),
    ("hf_export",),
    ("config",),
    ("parser",),
    ("resilience",),
    ("checkpoint",),
    ("track",),
    ("engine",),
    ("objectives",),
    ("model",),
    ("evaluation", "calibration"),
    ("settings",),
    ("data",),
    ("io",),
    ("errors",),
    ("clsgen_kernels",),
]
DOC, BEGIN, END = ROOT / "docs/architecture.md", "<!-- rooms -->", "<!-- /rooms -->"


def room_of(module: str) -> str:
    """The room of a dotted module name."""
    parts = module.split(".")
    if parts[0] == "clsgen_kernels":
        return "clsgen_kernels"
    return "settings" if parts[-1] == "settings" else parts[1] if len(parts) > 1 else "__init__"


def imports() -> Iterator[tuple[str, str, str]]:
    """Every import between rooms: file, importing room, imported room."""
    for path in sorted((ROOT / "clsgen_dist").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        room = room_of(module.removesuffix(".__init__") if module != "clsgen_dist.__init__" else "clsgen_dist")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{a.name}" if node.module == "clsgen_dist" else node.module for a in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] in ("clsgen_dist", "clsgen_kernels") and room_of(name) != room:
                    yield str(path.relative_to(ROOT)), room, room_of(name)


def upward() -> list[str]:
    """Imports that violate the layers: the imported room is not in a lower layer."""
    layer = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
    return sorted({f"{file}: {a} imports {b}" for file, a, b in imports() if layer[b] <= layer[a]})


def table() -> str:
    """Markdown table of the rooms from the top down, with the rooms that each imports."""
    found: dict[str, set[str]] = {}
    for _, importing, imported in imports():
        found.setdefault(importing, set()).add(imported)
    order = [room for rooms in LAYERS for room in rooms]
    lines = ["| room | imports |", "|---|---|"]
    for room in order:
        below = sorted(found.get(room, ()), key=order.index)
        lines.append(f"| `{room}` | {', '.join(below) or '-'} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into the docs."""
    if sys.argv[1:] == ["--write"]:
        text = DOC.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        DOC.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
    else:
        print(table())
    print("\n".join(upward()), file=sys.stderr)


if __name__ == "__main__":
    main()
