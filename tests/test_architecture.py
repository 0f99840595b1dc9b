"""The layers of the package: imports go downward, and docs/architecture.md shows them as they are."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import rooms  # noqa: E402

LONG_FILES = {
    "tests/data/checks/test_check.py",
    "tests/data/reading/test_ingest.py",
}
LONG_FUNCTIONS: set[str] = set()


def test_no_room_imports_upward():
    assert rooms.upward() == []


def test_every_room_has_a_layer_and_a_docstring_that_says_what_goes_in_and_out():
    for init in (ROOT / "clsgen_dist").glob("*/__init__.py"):
        assert any(init.parent.name in layer for layer in rooms.LAYERS), init
        text = ast.get_docstring(ast.parse(init.read_text())) or ""
        assert "In: " in text and "Out: " in text, init


def test_the_table_in_the_docs_is_that_of_the_code():
    assert rooms.table() in rooms.DOC.read_text(), "run: python scripts/rooms.py --write"
