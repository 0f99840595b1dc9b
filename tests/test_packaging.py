"""What `pip install` takes along."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [".".join(f.parent.relative_to(ROOT).parts) for f in ROOT.glob("clsgen_dist/**/__init__.py")]
    found += [".".join(f.parent.relative_to(ROOT / "kernels").parts) for f in ROOT.glob("kernels/*/**/__init__.py")]
    assert sorted(listed) == sorted(found)
    bare = {f.parent for f in ROOT.glob("clsgen_dist/**/*.py") if not (f.parent / "__init__.py").exists()}
    assert not bare
