"""Progress: a bar on a terminal, a few plain lines in a file, nothing if disabled."""

from __future__ import annotations

import errno
import io
import logging
import os
import pty
import sys
import termios

import pytest

from clsgen_dist.io.log import setup_logging
from clsgen_dist.track.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def read_to_the_end(terminal: int) -> bytes:
    """All that was written to a pseudo-terminal whose other side is closed; one read may return a part of it."""
    read = b""
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        while True:
            try:
                part = screen.read(65536)
            except OSError as error:
                # Linux says "the other side is gone" where others say "end of file".
                if error.errno != errno.EIO:
                    raise
                return read
            if not part:
                return read
            read += part


def test_plain_lines_have_step_percentage_eta_and_losses() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(60, enabled=True, stream=stream, clock=clock)
    for _ in range(12):
        clock.now += 2
        progress.update(**{"loss/generation": 1.23449, "loss/classification": float("nan")})
    # The first update (2 s), then whenever 10 s have passed: 12 s and 22 s.
    assert lines_of(stream) == [
        "train 1/60 (1%) eta 1m58s  loss/generation 1.234  loss/classification -",
        "train 6/60 (10%) eta 1m48s  loss/generation 1.234  loss/classification -",
        "train 11/60 (18%) eta 1m38s  loss/generation 1.234  loss/classification -",
    ]


def test_the_last_update_is_always_printed() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(3, enabled=True, stream=stream, clock=clock, label="dev") as progress:
        for _ in range(3):
            clock.now += 1
            progress.update()
    assert lines_of(stream) == ["dev 1/3 (33%) eta 2s", "dev 3/3 (100%) done in 3s"]


def test_a_run_that_stops_early_prints_its_last_step() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(10, enabled=True, stream=stream, clock=Clock()) as progress:
        progress.update(n=2, loss=0.5)
        progress.update(n=2, loss=0.25)
        raise KeyboardInterrupt
    assert [line.split(" eta")[0] for line in lines_of(stream)] == ["train 2/10 (20%)", "train 4/10 (40%)"]
    assert lines_of(stream)[-1].endswith("loss 0.25")


def test_eta_of_a_resumed_run_counts_only_its_own_steps() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(100, start=90, enabled=True, stream=stream, clock=clock)
    clock.now = 7.0
    progress.update()
    assert lines_of(stream) == ["train 91/100 (91%) eta 1m03s"]


def test_units_done_before_say_nothing_of_the_speed() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(100, enabled=True, unit="row", label="predict", rate=True, stream=stream, clock=clock)
    progress.skip(60)
    clock.now = 10.0
    progress.update(5)
    assert lines_of(stream) == ["predict 60/100 (60%) eta ?", "predict 65/100 (65%) eta 1m10s  0.5 rows/s"]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_other_ranks_print_nothing(is_terminal: bool) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    with Progress(2, enabled=False, stream=stream) as progress:
        progress.update(loss=1.0)
        progress.update(loss=1.0)
    assert stream.getvalue() == ""
    assert progress.done == 2


def test_a_terminal_gets_one_bar_and_log_lines_above_it(monkeypatch) -> None:
    setup_logging()
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 120))
    with os.fdopen(writer, "w") as terminal, Progress(4, start=1, enabled=True, stream=terminal) as progress:
        progress.update(loss=2.5)
        monkeypatch.setattr(sys, "stderr", terminal)
        logging.getLogger("clsgen_dist.training").info("saved step 2")
        monkeypatch.undo()
        progress.update(n=2, loss=1.5)
    output = read_to_the_end(reader).decode()
    # What stays on screen: of each line, what was written after the last return to its start.
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in output.split("\n")]
    assert lines[0] == "saved step 2"
    assert lines[1].startswith("train: 100%|")
    assert "4/4" in lines[1] and "loss 1.5" in lines[1] and "step" in lines[1]
    assert lines[2:] == [""]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.6, "1m00s"), (92, "1m32s"), (3599.7, "1h00m"), (7530, "2h05m"), (3 * 86400 + 4 * 3600, "3d04h")],
)
def test_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text
