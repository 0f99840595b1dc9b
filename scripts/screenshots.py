"""Take the screenshots: TensorBoard with a run of the demo, the report of ``data check``, the page of ``clsgen serve``.

    python scripts/screenshots.py [--run runs/screenshots] [--only serve]

Trains the demo's recipe if the folder holds no run (4 minutes on 2 CPU cores), exports and calibrates it for the
server, opens the pages in headless Chromium (Debian packages chromium and chromium-driver) and writes
``tensorboard.png``, ``data_report.png`` and ``serve.png`` to ``docs/images``, with at most 256 colours so that each
stays below 200 kB.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

IMAGES = Path(__file__).resolve().parent.parent / "docs/images"
MAX_BYTES = 200_000
CURVES_DRAWN = """
const all = (root, selector) => [...root.querySelectorAll(selector)].concat(
  ...[...root.querySelectorAll("*")].filter(n => n.shadowRoot).map(n => all(n.shadowRoot, selector)));
return all(document, "path.line").filter(n => n.getClientRects().length && n.getAttribute("d")).length;
"""


TEXT = (
    "Size high, texture average, roughness low, contour high, depth average, pits high, symmetry average, spread low."
)
CLSGEN = [sys.executable, "-m", "clsgen_dist"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/screenshots"), help="folder of the run")
    parser.add_argument("--model", type=Path, help="a calibrated export to serve; default: that of the run")
    parser.add_argument("--only", choices=("tensorboard", "data_report", "serve"))
    own = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    if own.model is None and not (own.run / "tensorboard").is_dir():
        recipe = ["--config", "configs/demo.yaml", "--train.eval_every", "20", "--output_dir", str(own.run)]
        subprocess.run([*CLSGEN, "train", *recipe], check=True)
    with tempfile.TemporaryDirectory() as folder, browser(folder) as page:
        if own.only in (None, "tensorboard"):
            take_tensorboard(page, own.run)
        if own.only in (None, "data_report"):
            take_data_report(page, Path(folder))
        if own.only in (None, "serve"):
            take_serve(page, own.model or served_model(own.run))


def take_tensorboard(page: Any, run: Path) -> None:
    with tensorboard(run) as address:
        page.set_window_size(1040, 620)
        page.get(f"{address}#custom_scalars&_smoothingWeight=0.6")
        wait_for_curves(page)
        save(page, "tensorboard.png")


def take_data_report(page: Any, folder: Path) -> None:
    report = folder / "report.html"
    splits = ["train=demo:breast-cancer/train", "dev=demo:breast-cancer/dev", "test=demo:breast-cancer/test"]
    check = [*CLSGEN, "data", "check", *splits, "--config", "configs/demo.yaml", "--report", str(report)]
    subprocess.run(check, check=False)  # Status 1: the demo's splits share texts.
    page.set_window_size(1040, 900)
    page.get(report.as_uri())
    time.sleep(1)
    save(page, "data_report.png")


def served_model(run: Path) -> Path:
    """The run's export, calibrated with all that the page shows."""
    model = run / "model"
    if not model.is_dir():
        subprocess.run([*CLSGEN, "export", "--checkpoint", str(run), "--output", str(model)], check=True)
        options = ["--threshold", "recall=0.95", "--coverage", "0.9", "--hand_over", "risk=0.05", "--intervals", "true"]
        calibrate = ["calibrate", "--model", str(model), "--data", "demo:breast-cancer/dev"]
        subprocess.run([*CLSGEN, *calibrate, *options], check=True)
    return model


def take_serve(page: Any, model: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    process = subprocess.Popen([*CLSGEN, "serve", "--model", str(model), "--port", port, "--name", "Aspirates"])
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 1):
                break
            time.sleep(0.2)
        page.set_window_size(1120, 850)
        page.get(f"http://127.0.0.1:{port}/")
        page.find_element("id", "text").send_keys(TEXT)
        page.find_element("id", "decide").click()
        for _ in range(600):
            if page.find_element("id", "decide").get_attribute("aria-disabled") == "false":
                break
            time.sleep(0.2)
        save(page, "serve.png")
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def browser(profile: str) -> Iterator[Any]:
    """Headless Chromium without network, with a fresh profile."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        yield chrome
    finally:
        chrome.quit()


@contextmanager
def tensorboard(run: Path) -> Iterator[str]:
    """TensorBoard for the run, on a free port; yields its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if address := re.search(r"http://127\.0\.0\.1:\d+/", line):
                yield address[0]
                return
        raise RuntimeError(f"TensorBoard ended with status {process.wait()} before it printed its address")
    finally:
        process.terminate()
        process.wait(20)


def wait_for_curves(page: Any) -> None:
    """Wait until the two losses of train and dev are drawn, and the animation has ended."""
    deadline = time.monotonic() + 60
    while page.execute_script(CURVES_DRAWN) < 4:
        if time.monotonic() > deadline:
            raise RuntimeError("TensorBoard drew no curves within 60 s; does the run have two evaluations?")
        time.sleep(0.5)
    time.sleep(3)


def save(page: Any, name: str) -> None:
    """Save the visible part of the page as a palette PNG."""
    picture = (
        Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    )
    picture.save(IMAGES / name, optimize=True)
    size = (IMAGES / name).stat().st_size
    if size > MAX_BYTES:
        raise RuntimeError(f"{name} has {size} bytes, expected at most {MAX_BYTES}; make the window smaller")
    print(f"{IMAGES / name}: {size // 1000} kB")


if __name__ == "__main__":
    main()
