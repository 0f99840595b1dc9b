"""What the verbs on data share: the recipe's rows, tables in the terminal, figures without a display."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsgen_dist.data.checks.finding import visible
from clsgen_dist.errors import SettingsError

if TYPE_CHECKING:
    pass


def shortened(text: str, length: int = 40) -> str:
    """A stranger's text on one line: at most so many characters, what neither shows nor is harmless made visible."""
    line = visible(" ".join(text[: 8 * length].split()))
    return line if len(line) <= length else line[: length - 2] + " …"


def print_table(table: Sequence[Sequence[str]]) -> None:
    """A Markdown table, its first row the head."""
    widths = [max(len(row[c]) for row in table) for c in range(len(table[0]))]
    for number, row in enumerate(table):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def axes_of(rows: int, height: float) -> tuple[Any, Any]:
    """A figure of so many axes under each other, each ``height`` inches high."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, 1, figsize=(9, height * rows), squeeze=False, layout="constrained")
    return figure, axes[:, 0]


def require_writable(file: str | None, *, picture: bool = False) -> None:
    """SettingsError now, not after the work, if the file cannot be written or is no picture that we can draw."""
    if file is None:
        return
    path = Path(file)
    if picture:
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.get_supported_filetypes()
        if path.suffix and path.suffix[1:].lower() not in known:
            raise SettingsError(
                f"{path} cannot be written: {path.suffix} is none of {', '.join(sorted(known))}; use .png"
            )
    there = path.exists()
    with writing(path), path.open("a"):
        pass
    if not there:
        path.unlink()


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, making its folder."""
    import matplotlib.pyplot as plt

    with writing(path):
        figure.savefig(path, dpi=110)
    plt.close(figure)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; through a link or into a device, as the shell would."""
    with writing(path):
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        target = path.resolve()
        aside = target.with_name(f"{target.name}.tmp")
        aside.write_text(text, encoding="utf-8")
        aside.replace(target)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that is written inside; SettingsError where either cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, ValueError) as error:  # ValueError: an image format that matplotlib does not know
        raise SettingsError(f"{path} cannot be written ({error}); name another file") from error
