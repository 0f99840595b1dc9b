"""``clsgen data review FILE…``: people decide on rows, in a browser.

Exit status 0; 2 if files or settings are wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.io.value_ranges import ClosedUnitInterval, Port


def run(
    files: list[str],
    store: str = "review.sqlite",
    reviewer: str | None = None,
    labels: list[str] | None = None,
    label_space: Literal["auto", "single", "multilabel", "ordinal"] = "auto",
    columns: Columns | None = None,
    format: str = "rows",
    second_reading: ClosedUnitInterval = 0.0,
    export: str | None = None,
    export_format: str = "rows",
    host: str = "127.0.0.1",
    port: Port = 8100,
    tokens_file: str | None = None,
    without_tokens: bool = False,
) -> None:
    """Accept, mend, reject or relabel rows in a browser, the most doubtful first; or write what was decided.

    The store is one SQLite file. Every decision is in it before the page says so.

    Args:
        files: Rows to review; without any, those that the store has.
        store: SQLite file of rows and decisions; made if it does not exist. Rows that it has keep their decisions.
        reviewer: Who reviews; can be changed on the page.
        labels: Classes to choose from, beside those that the rows have.
        label_space: How labels are read, as in a recipe: `single`, `multilabel`, `ordinal`; `auto` finds out.
        columns: How your columns are called.
        format: What the files are: `rows`, or JSON of `label-studio` or `argilla`.
        second_reading: Share of rows that two reviewers read, neither seeing the other's decision; a third settles disputes.
        export: File to write the rows to, with what was decided; no page is served then.
        export_format: What to write: `rows` (JSON lines that training reads), `label-studio` or `argilla`.
        host: Address to listen on; others than this machine need tokens.
        port: Port to listen on.
        tokens_file: File of access tokens, one a line; others in the environment variable CLSGEN_TOKENS, divided by commas.
        without_tokens: Let anybody in who reaches the address.
    """  # noqa: E501
    from clsgen_dist.errors import SettingsError
    from clsgen_dist.review.run import ReviewOptions, fill, require_layout, serve, write

    require_layout("format", format)
    require_layout("export_format", export_format)
    options = ReviewOptions(
        store=store,
        reviewer=reviewer,
        labels=labels,
        space=label_space,
        columns=columns,
        second_reading=second_reading,
        layout=format,
    )
    opened = fill(files, options)
    if export is not None:
        print(write(opened, export, export_format))
        return
    try:
        serve(
            opened,
            reviewer=reviewer,
            host=host,
            port=port,
            tokens_file=tokens_file,
            without_tokens=without_tokens,
        )
    except ImportError as error:
        raise SettingsError(
            f"clsgen data review needs {error.name}; install it with: pip install 'clsgen-dist[serve]'"
        ) from None
