"""The layers of the package: which package imports which, read from the code, and the imports that violate them.

    python scripts/import_layers.py            print the table of docs/architecture.md, and violations
    python scripts/import_layers.py --write    write the table into docs/architecture.md

Between packages (and single modules) directly under ``clsgen_dist``, an import must lead to a lower layer. The
``settings.py`` of all packages form one layer, ``settings``, but for that of ``objectives``, which joins the settings
that each term has in its own file. Inside a package there are no layers, but no module may
import itself through others, in whatever package: ``cycle`` checks all modules. Imports inside functions count.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    ("__main__",),
    ("cli",),
    ("commands",),
    ("review",),
    ("serving",),
    ("__init__",),
    ("self_training",),
    ("clients", "teacher"),
    ("plan", "preflight", "inference"),
    ("training",),
    ("hf_export",),
    ("decoding",),
    ("config",),
    ("parser",),
    ("resilience",),
    ("checkpoint",),
    ("track", "report"),
    ("engine",),
    ("objectives",),
    ("calibration",),
    ("model",),
    ("curation",),
    ("explanations",),
    ("evaluation",),
    ("settings",),
    ("data",),
    ("io",),
    ("errors",),
    ("clsgen_kernels",),
]
DOC, BEGIN, END = ROOT / "docs/architecture.md", "<!-- layers -->", "<!-- /layers -->"


def package_of(module: str) -> str:
    """The package, as it is named in LAYERS, of a dotted module name."""
    parts = module.split(".")
    if parts[0] == "clsgen_kernels":
        return "clsgen_kernels"
    if parts[-1] == "settings" and parts[1] != "objectives":
        return "settings"
    return parts[1] if len(parts) > 1 else "__init__"


def modules() -> dict[str, Path]:
    """Every module by dotted name; a package is named without ``__init__``."""
    files = [p for root in ("clsgen_dist", "kernels/clsgen_kernels") for p in sorted((ROOT / root).rglob("*.py"))]
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removeprefix("kernels.") for p in files]
    return dict(zip((name.removesuffix(".__init__") for name in names), files, strict=True))


def imports() -> dict[str, set[str]]:
    """The modules of this project that each module imports."""
    known = modules()
    return {name: set(_imported(path, known)) - {name} for name, path in known.items()}


def _imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def upward() -> list[str]:
    """Imports that violate the layers: the imported package is not in a lower layer."""
    layer = {package: number for number, packages in enumerate(LAYERS) for package in packages}
    return [
        f"{importing} imports {imported}"
        for importing, targets in imports().items()
        for imported in sorted(targets)
        if package_of(importing) != package_of(imported) and layer[package_of(imported)] <= layer[package_of(importing)]
    ]


def cycle() -> list[str]:
    """Modules that import one another in a circle; empty if there are none."""
    try:
        graphlib.TopologicalSorter(imports()).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def table() -> str:
    """Markdown table of the packages from the top down, with the packages that each imports."""
    found: dict[str, set[str]] = {}
    for importing, targets in imports().items():
        found.setdefault(package_of(importing), set()).update(map(package_of, targets))
    order = [package for packages in LAYERS for package in packages]
    lines = ["| package | imports |", "|---|---|"]
    for package in order:
        below = sorted(found[package] - {package}, key=order.index)
        lines.append(f"| `{package}` | {', '.join(below) or '-'} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into the docs."""
    if sys.argv[1:] == ["--write"]:
        text = DOC.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        DOC.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
    else:
        print(table())
    print("\n".join([*upward(), *cycle()]), file=sys.stderr)


if __name__ == "__main__":
    main()
