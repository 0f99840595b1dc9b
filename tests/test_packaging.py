"""What `pip install` installs: the wheel works without a checkout."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_installed():
    listed = [n for n in PROJECT["tool"]["setuptools"]["packages"] if not n.startswith("clsgen_dist.shipped.")]
    found = [".".join(f.parent.relative_to(ROOT).parts) for f in ROOT.glob("clsgen_dist/**/__init__.py")]
    found += [".".join(f.parent.relative_to(ROOT / "kernels").parts) for f in ROOT.glob("kernels/*/**/__init__.py")]
    assert sorted(listed) == sorted(found)
    bare = {f.parent for f in ROOT.glob("clsgen_dist/**/*.py") if not (f.parent / "__init__.py").exists()}
    assert not bare


def test_every_import_is_declared():
    def plain(name):
        return re.split(r"[\[<>=;! ]", name, maxsplit=1)[0].lower().replace("_", "-")

    extras = PROJECT["project"]["optional-dependencies"]
    optional = [*extras["lm-eval"], *extras["serve"], *extras["teacher"]]
    declared = {plain(name) for name in [*PROJECT["project"]["dependencies"], *optional]} | {"clsgen-dist"}
    owners = packages_distributions()
    missing = {}
    for file in [*ROOT.glob("clsgen_dist/**/*.py"), *ROOT.glob("kernels/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"clsgen_dist"}:
                if top != "clsgen_kernels" and not declared & {plain(owner) for owner in owners.get(top, [top])}:
                    missing.setdefault(top, str(file.relative_to(ROOT)))
    assert missing == {}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """``run(*arguments)``: ``python -m clsgen_dist`` in an environment that has the wheel, in an empty folder.

    Other packages are those of this environment; the checkout is not on the path.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    # A source distribution, and the wheel made from that, as `make wheel` does.
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (packages,) = folder.glob("venv/lib/python*/site-packages")
    # A .pth file inside a folder that a .pth file names is not read: the editable install stays out of sight.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(packages), str(wheel)], check=True)
    shutil.rmtree(source)
    empty = folder / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def run(*arguments, module="clsgen_dist"):
        command = [str(folder / "venv/bin/python"), "-m", module, *map(str, arguments)]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    run.folder = empty
    return run


def test_the_wheel_contains_recipes_and_scripts(installed):
    first = installed("init", "--to", "mine")
    mine = installed.folder / "mine"
    copied = {str(path.relative_to(mine)) for path in mine.rglob("*") if path.is_file()}
    tracked = subprocess.run(
        ["git", "ls-files", "configs", "ds_configs", "slurm"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert copied == set(tracked)
    assert os.access(installed.folder / "mine/slurm/train_70b.sh", os.R_OK)
    assert "left alone" in installed("init", "--to", "mine") and "left alone" not in first
    settings = installed("train", "--config", "configs/recipe.yaml", "--data.train", "x.jsonl", "--print_config")
    assert "ds_configs/zero3.json" in settings


@pytest.mark.long
@pytest.mark.dist
def test_the_wheel_trains_exports_and_predicts_without_the_checkout(installed, tiny_backbone):
    rows = [{"text": f"size {i}", "label": ("no", "yes")[i % 2], "explanation": "as seen"} for i in range(24)]
    (installed.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = ["--config", "configs/recipe.yaml", "--data.train", "rows.jsonl", "--data.max_prompt_length", "96"]
    recipe += ["--model.backbone", tiny_backbone, "--output_dir", "run", "--train.max_steps", "2"]
    recipe += ["--data.max_explanation_length", "32", "--train.micro_batch_tokens", "512"]
    launcher = ["--num_gpus", "2", "--module", "clsgen_dist", "train"]
    installed(*launcher, *recipe, module="deepspeed.launcher.runner")
    installed("export", "--checkpoint", "run", "--output", "model")
    answer = json.loads(installed("predict", "--model", "model", "--text", "size 3", "--max_new_tokens", "3"))
    assert set(answer["probabilities"]) == {"no", "yes"}
