"""Every command in README and docs is run, on a tiny model where the text means a big one."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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


def commands(page: Path) -> list[str]:
    """The lines of the page's bash blocks, continued lines joined, comments dropped."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s#.*$", "", line).strip()
            if line:
                found.append(line)
    return found


def test_pages_have_commands_and_no_dead_links():
    assert sum(len(commands(page)) for page in PAGES) >= 15
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def _page(page: Path) -> Any:
    """README and the pages for users always; those whose commands other tests run too in `make test-long`."""
    often = page.name not in ("curriculum.md", "kernel.md", "plan.md")
    return pytest.param(page, id=page.name, marks=[] if often else [pytest.mark.long])


@pytest.fixture
def workspace(tmp_path, tiny_backbone):
    """A folder as the pages assume it: the checkout's files, and someone's rows."""
    for name in ("train.py", "configs", "ds_configs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    labels = ["odd", "fine"]
    (tmp_path / "rows").mkdir()
    for name in ("dev", "test", "rows/train", "rows/dev", "rows/test", "rows/new"):
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
@pytest.mark.parametrize("page", [_page(page) for page in PAGES])
def test_every_command_of_the_page_works(page, workspace, tiny_backbone, run_command, ranks):
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "make":
            assert run_command("make", "-n", words[1]).stdout
        elif words[0] == "echo":
            subprocess.run(command, shell=True, cwd=workspace, check=True)
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
        pytest.fail("tensorboard did not come up")
    finally:
        process.terminate()
        process.wait(timeout=20)
