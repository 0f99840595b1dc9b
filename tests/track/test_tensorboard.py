"""TensorBoard logs, read with TensorBoard's own reader and on its page in a real browser."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from clsgen_dist.track.reliability import Reliability, draw_reliability
from clsgen_dist.track.tensorboard import LOSS_CLASSIFICATION, LOSS_GENERATION, TensorBoardLog

NAN = float("nan")
RELIABILITY = Reliability(
    confidence_B=np.array([0.1, NAN, 0.5, 0.7, 0.95]),
    frequency_B=np.array([0.0, NAN, 0.75, 0.6, 1.0]),
    count_B=np.array([7, 0, 4, 10, 1]),
)


def read(log_dir: Path) -> EventAccumulator:
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(log_dir), size_guidance=everything).Reload()


def points(log_dir: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in read(log_dir).Scalars(tag)]


def test_scalars_are_read_back_under_their_tags(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path, settings_text="") as log:
        log.step(1, {LOSS_GENERATION: 2.5, "optim/lr": 1e-5})
        log.step(2, {LOSS_GENERATION: 2.25, "optim/lr": 2e-5})
        log.evaluation(2, {LOSS_GENERATION: 2.0, "auroc": 0.875}, None)
    assert set(read(tmp_path).Tags()["scalars"]) == {LOSS_GENERATION, "optim/lr", "dev/loss/generation", "dev/auroc"}
    assert points(tmp_path, LOSS_GENERATION) == [(1, 2.5), (2, 2.25)]
    assert points(tmp_path, "optim/lr") == [(1, 1e-5), (2, 2e-5)]
    assert points(tmp_path, "dev/auroc") == [(2, 0.875)]


def test_a_loss_without_rows_leaves_no_point(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path, settings_text="") as log:
        for step, value in enumerate([0.7, NAN, 0.6]):
            log.step(step, {LOSS_CLASSIFICATION: value, LOSS_GENERATION: 1.0})
        log.evaluation(2, {"auroc": NAN}, None)
    assert points(tmp_path, LOSS_CLASSIFICATION) == [(0, 0.7), (2, 0.6)]
    assert len(points(tmp_path, LOSS_GENERATION)) == 3
    assert "dev/auroc" not in read(tmp_path).Tags()["scalars"]


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path, settings_text="seed: 1") as killed:
        for step in range(6):
            killed.step(step, {LOSS_GENERATION: 10.0 + step})
        killed.step(5, {"only/before": 1.0})
    with TensorBoardLog(tmp_path, settings_text="seed: 1", first_step=4) as resumed:
        for step in range(4, 7):
            resumed.step(step, {LOSS_GENERATION: 20.0 + step})
    assert points(tmp_path, LOSS_GENERATION) == [(0, 10), (1, 11), (2, 12), (3, 13), (4, 24), (5, 25), (6, 26)]
    assert points(tmp_path, "only/before") == []


def test_a_run_that_starts_again_before_its_first_checkpoint_replaces_all_its_points(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with TensorBoardLog(tmp_path, settings_text="seed: 1") as log:
            for step in (0, 1, 2):
                log.step(step, {LOSS_GENERATION: value})
    assert points(tmp_path, LOSS_GENERATION) == [(0, 2), (1, 2), (2, 2)]
    assert points(tmp_path / "generation", "both_losses/train") == [(0, 2), (1, 2), (2, 2)]


def test_files_of_a_resumed_run_come_after_those_of_the_killed_one(tmp_path: Path, caplog) -> None:
    # The tenth log of a process in the same second would come before the ninth.
    TensorBoardLog(tmp_path, settings_text="").close()
    TensorBoardLog(tmp_path, settings_text="", first_step=4).close()
    names = [file.name for file in sorted(tmp_path.glob("events*"), key=lambda file: file.stat().st_mtime_ns)]
    assert names[-1] == max(names) and not caplog.records
    (tmp_path / f"events.out.tfevents.{int(time.time()) + 60}.other.1.0").touch()
    TensorBoardLog(tmp_path, settings_text="", first_step=4).close()
    assert re.search(r"this machine's clock is (59|6\d) s behind", caplog.records[0].getMessage())


def test_an_evaluation_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path, settings_text="")
    log.step(3, {LOSS_GENERATION: 1.0})
    log.evaluation(3, {"auroc": 0.5}, None)
    assert points(tmp_path, LOSS_GENERATION) == [(3, 1.0)]
    assert points(tmp_path, "dev/auroc") == [(3, 0.5)]
    log.close()


def test_settings_are_kept_as_a_markdown_code_block(tmp_path: Path) -> None:
    TensorBoardLog(tmp_path, settings_text="train:\n  lr: 1e-5  # ```not a fence```\n").close()
    (event,) = read(tmp_path).Tensors("settings/text_summary")
    assert event.tensor_proto.string_val[0].decode() == "    train:\n      lr: 1e-5  # ```not a fence```"


def test_both_losses_share_a_chart_and_the_dev_losses_another(tmp_path: Path) -> None:
    TensorBoardLog(tmp_path, settings_text="").close()
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category
    tags = [LOSS_GENERATION, "dev/loss/generation", "loss/total", "both_losses/train", "both_losses/dev"]
    drawn = {
        chart.title: [tag for tag in tags if any(re.search(pattern, tag) for pattern in chart.multiline.tag)]
        for chart in category.chart
    }
    assert category.title == "losses"
    assert drawn == {"generation and classification": tags[3:4], "generation and classification, dev": tags[4:]}


def test_the_reliability_diagram_is_read_back_unchanged(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path, settings_text="") as log:
        log.evaluation(5, {}, RELIABILITY)
    (event,) = read(tmp_path).Images("dev/reliability")
    image_HWC = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert event.step == 5
    np.testing.assert_array_equal(image_HWC, draw_reliability(RELIABILITY, "Reliability on dev, step 5"))


def test_the_diagram_depends_on_the_bins_and_survives_an_evaluation_without_rows() -> None:
    shifted = Reliability(RELIABILITY.confidence_B, 1 - RELIABILITY.frequency_B, RELIABILITY.count_B)
    empty = Reliability(np.full(5, NAN), np.full(5, NAN), np.zeros(5, dtype=int))
    images = [draw_reliability(reliability, "") for reliability in (RELIABILITY, shifted, empty)]
    assert {(image.dtype, image.ndim, image.shape[2]) for image in images} == {(np.dtype(np.uint8), 3, 3)}
    assert len({image.tobytes() for image in images}) == 3


def test_calibration_error_weighs_bins_by_their_rows() -> None:
    # Gaps 0.1, 0.25, 0.1, 0.05 on 7, 4, 10, 1 of 22 rows.
    assert RELIABILITY.expected_calibration_error == pytest.approx((0.7 + 1.0 + 1.0 + 0.05) / 22)


def test_bins_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry per bin"):
        Reliability(np.zeros(3), np.zeros(4), np.ones(3, dtype=int))
    with pytest.raises(ValueError, match="NaN"):
        Reliability(np.array([NAN]), np.array([0.5]), np.array([2]))


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with TensorBoardLog(None, settings_text="a: 1", first_step=3) as log:
        log.step(3, {LOSS_GENERATION: 1.0})
        log.evaluation(3, {"auroc": 0.5}, RELIABILITY)
    assert list(tmp_path.iterdir()) == []


# The page is built of nested shadow roots, which no selector crosses. Of the titled chart: its legend's toggle, the
# legend's lines that can be seen, and the paths of the curves that can be seen.
CHART_OF_TITLE = """
const all = (root, selector) => [...root.querySelectorAll(selector)].concat(
  ...[...root.querySelectorAll("*")].filter(n => n.shadowRoot).map(n => all(n.shadowRoot, selector)));
const seen = n => n.getClientRects().length > 0 && getComputedStyle(n).visibility === "visible"
  && n.getBoundingClientRect().width > 0;
const card = all(document, "tf-custom-scalar-multi-line-chart-card").find(
  card => all(card.shadowRoot, "tf-card-heading").some(heading => heading.displayName === arguments[0]));
if (!card) return null;
return {
  toggle: card.shadowRoot.querySelector(".toggle-matches-button"),
  legend: all(card.shadowRoot, ".match-list-entry").filter(seen).map(n => n.innerText.trim().replace(/\\s+/g, " ")),
  curves: all(card.shadowRoot, "path.line").filter(seen).filter(n => getComputedStyle(n).stroke !== "none")
    .map(n => n.getAttribute("d")),
  colours: all(card.shadowRoot, "path.line").filter(seen).map(n => getComputedStyle(n).stroke)
    .filter(stroke => stroke !== "none"),
};
"""


@pytest.fixture(scope="module")
def run_folder(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of six steps, with two evaluations."""
    output = tmp_path_factory.mktemp("run") / "run"
    train(output, ranks=1, data__dev="few", train__max_steps=6, train__eval_every=3)
    return output


@pytest.fixture
def tensorboard_url(tmp_path: Path, run_folder: Path) -> Iterator[str]:
    """The address of a real TensorBoard on the log of a real run; it picks its own free port."""
    log_file = tmp_path / "tensorboard.txt"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run_folder)]
    with log_file.open("w") as output:
        server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", "0"], stdout=output, stderr=output)
    try:
        give_up = time.monotonic() + 60
        while not (match := re.search(r"http://127\.0\.0\.1:\d+/", log_file.read_text())):
            assert server.poll() is None and time.monotonic() < give_up, f"no TensorBoard:\n{log_file.read_text()}"
            time.sleep(0.1)
        yield match.group()
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def vertices(path: str) -> np.ndarray:
    """The corners of an SVG path of straight lines, ``(points, 2)`` pixels."""
    return np.array([[float(x) for x in corner.split(",")] for corner in re.split("[ML]", path) if corner])


@pytest.mark.dist
@pytest.mark.browser
def test_a_browser_draws_both_losses_of_a_run_on_one_chart_in_two_colours(
    browser: Any, tensorboard_url: str, run_folder: Path, tmp_path: Path
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    def chart_with_two(title: str, what: str) -> dict[str, Any]:
        """The chart once it shows two curves, or two lines of legend, and has come to rest."""
        before: list[str] = []

        def look(_: Any) -> Any:
            chart = browser.execute_script(CHART_OF_TITLE, title)
            now = chart[what] if chart else []
            at_rest = len(now) >= 2 and now == before
            before[:] = now
            return chart if at_rest else None

        return WebDriverWait(browser, 30, poll_frequency=0.2).until(look, f"the chart does not show two {what}")

    browser.get(f"{tensorboard_url}#custom_scalars&_smoothingWeight=0")
    for title, prefix in (("generation and classification", ""), ("generation and classification, dev", "dev/")):
        try:
            chart = chart_with_two(title, "curves")
            chart["toggle"].click()
            legend = chart_with_two(title, "legend")["legend"]
        finally:
            browser.save_screenshot(str(tmp_path / "custom_scalars.png"))
        assert {run for line in legend for run in ("generation", "classification") if f"/{run}" in f"/{line}"} == {
            "generation",
            "classification",
        }
        assert len(set(chart["colours"])) == 2, "the curves have the same colour"
        logged = [points(run_folder / "tensorboard", prefix + tag) for tag in (LOSS_GENERATION, LOSS_CLASSIFICATION)]
        curves = [vertices(path) for path in chart["curves"]]
        assert sorted(map(len, curves)) == sorted(map(len, logged))
        # One chart has one y axis: a single straight line takes the values of both losses to the pixels of both curves.
        values = np.concatenate([[value.expected for _, value in curve] for curve in logged])
        fits = []
        for order in (curves, curves[::-1]):
            pixels = np.concatenate([curve[:, 1] for curve in order])
            slope, offset = np.polyfit(values, pixels, 1)
            fits.append((np.abs(slope * values + offset - pixels).max(), slope))
        worst, slope = min(fits)
        assert worst < 0.1 and -slope * np.ptp(values) > 20, "pixels count from the top; the chart is over 20 high"
