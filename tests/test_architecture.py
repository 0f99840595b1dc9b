"""The layers of the package: imports go downward, in no circle, and docs/architecture.md lists them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import import_layers  # noqa: E402

LONG_FUNCTIONS = {
    "kernels/clsgen_kernels/triton_forward.py:forward_kernel",  # one Triton kernel
    "kernels/clsgen_kernels/triton_backward.py:gradient_kernel",  # one Triton kernel
    "kernels/clsgen_kernels/triton_classes.py:class_head",  # a branch of one
    "tests/slurm/conftest.py:slurm",  # one configuration file
}


def test_no_package_imports_from_a_higher_layer():
    assert import_layers.upward() == []


def test_no_module_imports_itself_through_others_inside_packages_either():
    assert import_layers.cycle() == []
    assert len(import_layers.imports()["clsgen_dist.data.tables.build"]) > 3  # sub-packages are read


def test_settings_files_hold_settings_only_and_need_nothing_above_rows():
    imported = import_layers.imports()
    for name in imported:
        if import_layers.package_of(name) == "settings":
            assert {import_layers.package_of(i) for i in imported[name]} <= {"data", "io"}, name
            tree = ast.parse(import_layers.modules()[name].read_text())
            assert not any(isinstance(node, ast.FunctionDef) for node in tree.body), name


def test_every_package_has_a_layer_and_documents_its_inputs_and_outputs():
    for init in (ROOT / "clsgen_dist").glob("*/__init__.py"):
        assert any(init.parent.name in layer for layer in import_layers.LAYERS), init
        text = ast.get_docstring(ast.parse(init.read_text())) or ""
        assert "In: " in text and "Out: " in text, init


def test_the_layer_table_in_the_docs_is_up_to_date():
    assert import_layers.table() in import_layers.DOC.read_text(), "run: python scripts/import_layers.py --write"


def test_files_and_functions_are_short_except_those_listed():
    long_files = {str(p.relative_to(ROOT)) for p in _sources() if p.read_text().count("\n") > 400}
    assert not long_files
    long = {f"{p.relative_to(ROOT)}:{f.name}" for p in _sources() for f in _functions(p) if _lines(f) > 70}
    assert long == LONG_FUNCTIONS


def _sources():
    return [p for top in ("clsgen_dist", "kernels", "scripts", "tests") for p in (ROOT / top).rglob("*.py")]


def _functions(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def _lines(function):
    """Lines of a function without its docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if documented else 0)
