"""Every command and Python snippet of the documentation runs, on a tiny model where the text means a large one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from clsgen_dist.data.demos.breast_cancer import demo_file

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
GENERATED = ROOT / "docs/reference/settings.md"
"""Written by each build of the site."""
LONG = (
    "docs/curriculum.md",
    "docs/howto/export_and_serve.md",
    "docs/howto/resume.md",
    "docs/kernel.md",
    "docs/labels.md",
    "docs/plan.md",
    "docs/your_rows.md",
    *(f"examples/{name}/README.md" for name in ("moderation", "credit_risk", "contract_review", "triage")),
    *(f"docs/fields/{name}.md" for name in ("medicine", "finance", "moderation", "law")),
)
"""Pages whose commands other tests run too, or that differ from another page in their rows only."""
ON_SHARED_DATA = ("docs/fields/moderation.md", "docs/fields/law.md")
"""Pages whose rows come from ../shared/data."""
TINY_PYTHON = """
import clsgen_dist

full_size = clsgen_dist.load_settings
clsgen_dist.load_settings = lambda recipe, changes=None: full_size(recipe, {**(changes or {}), **TINY})
"""
TINY = [
    "--train.max_steps",
    "1",
    "--train.batch_size",
    "4",
    "--train.micro_batch_tokens",
    "512",
    "--data.max_prompt_length",
    "128",
]


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The lines of the page's bash blocks, continued lines joined, comments dropped."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s#.*$", "", line).strip()
            if line:
                found.append(line)
    return found


def test_pages_have_commands_and_no_dead_links():
    assert sum(len(commands(page)) for page in PAGES) >= 15
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            linked = (page.parent / target).resolve()
            assert linked.exists() or linked == GENERATED, f"{page.relative_to(ROOT)} links to {target}: no such file"


def test_the_settings_page_describes_every_setting():
    sys.path.insert(0, str(ROOT / "scripts"))
    import settings_page

    from clsgen_dist.config import Settings
    from clsgen_dist.parser import add_settings, new_parser

    parser = new_parser("x")
    add_settings(parser, Settings)
    flags = {flag.removeprefix("--") for action in parser._actions for flag in action.option_strings}
    others = {"-h", "help", "config", "print_config", "curriculum.stages.help"}
    names = {
        name for name in flags - others if name[-1] != "+" and not any(f.startswith(f"{name}.") for f in flags - others)
    }

    rows = dict(re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", settings_page.page(), re.MULTILINE))
    assert len(names) > 60 and names <= set(rows)
    assert all(rows.values()), "a setting has no docstring"


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs mkdocs-material and mkdocstrings[python]")
    pytest.importorskip("mkdocstrings_handlers.python")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_screenshots_are_small():
    for name in ("tensorboard", "data_report"):
        assert 10_000 < (ROOT / f"docs/images/{name}.png").stat().st_size <= 200_000


def _page(page: Path) -> Any:
    """A page with commands; those of LONG in `make test-long`."""
    name = str(page.relative_to(ROOT))
    return pytest.param(page, id=name, marks=[pytest.mark.long] if name in LONG else [])


@pytest.fixture
def workspace(tmp_path, tiny_backbone):
    """A folder as the pages assume it: the checkout's files, someone's rows, and few of the demo's."""
    (tmp_path / "few").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / f"few/{split}.jsonl").write_text("".join(demo_file(split).open().readlines()[:24]))
    for name in ("train.py", "configs", "ds_configs", "benchmarks", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")  # tables are built next to the rows
    labels = ["odd", "fine"]
    (tmp_path / "rows").mkdir()
    for name in ("rows/train", "rows/dev", "rows/test", "rows/new"):
        rows = [
            {
                "id": str(i),
                # The file's name: a text that is in two files is a leak, which `clsgen data check` refuses.
                "text": f"Statement number {i} of {name} is {'strange' if i % 2 == 0 else 'plain'}.",
                "label": labels[i % 2],
            }
            for i in range(24)
        ]
        for row in rows[::3]:
            row["explanation"] = "Because it is so."
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("page", [_page(page) for page in PAGES if commands(page) or blocks(page, "python")])
def test_every_command_of_the_page_works(page, workspace, tiny_backbone, run_command, ranks, request):
    if str(page.relative_to(ROOT)) in ON_SHARED_DATA:
        request.getfixturevalue("shared_data")
    for command in commands(page):
        words = shlex.split(_on_few_rows(command))
        if words[0] == "make":
            assert run_command("make", "-n", words[1]).stdout
        elif words[0] == "source":
            assert words[1] == ".venv/bin/activate"  # what scripts/setup.sh makes
        elif words[0] == "tensorboard":
            _tensorboard_starts(words, workspace)
        elif words[0] == "deepspeed":
            assert (
                words[:2] == ["deepspeed", "--num_gpus"] and words[3] == "train.py"
            )  # what tests/dist/test_resume.py starts
            tiny = [*TINY, "--model.backbone", str(tiny_backbone), "--model.top_layers", "2"]
            done = ranks([*words[4:], *tiny], ranks=1, cwd=str(workspace), timeout=120)
            assert done.status == [0], done.text
        elif words[0] == "python":
            environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            subprocess.run([sys.executable, *words[1:]], cwd=workspace, env=environment, check=True)
        elif words[0] == "clsgen":
            run_command(*words, cwd=workspace)
        else:
            pytest.fail(f"{page.name} has a command that no test runs: {command}")
    for snippet in blocks(page, "python"):
        _run_python(_on_few_rows(snippet), workspace, tiny_backbone)


def _on_few_rows(text: str) -> str:
    """A command or snippet that reads 24 of the demo's rows instead of all."""
    return re.sub(r"demo:breast-cancer/(\w+)", r"few/\1.jsonl", text)


def _run_python(snippet: str, folder: Path, backbone: Path) -> None:
    """Run a snippet with tiny settings, after the page's commands."""
    tiny = {name.removeprefix("--"): int(value) for name, value in zip(TINY[::2], TINY[1::2], strict=True)}
    settings = {**tiny, "model.backbone": str(backbone), "model.top_layers": 2}
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    code = f"TINY = {settings!r}\n{TINY_PYTHON}\n{snippet}"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{snippet}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def _tensorboard_starts(words: list[str], folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words[1:], "--port", "0", "--host", "127.0.0.1"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        assert process.stderr is not None
        for line in process.stderr:
            if "http://127.0.0.1" in line:
                return
            assert time.monotonic() < deadline
        pytest.fail("tensorboard printed no address")
    finally:
        process.terminate()
        process.wait(timeout=20)
