"""Start a review: rows into the store, the application, uvicorn. Or write what was decided, and end."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.cells import class_name
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.review.exchange import Format, write_as_rows
from clsgen_dist.review.export import export
from clsgen_dist.review.import_rows import beside, import_rows, remember
from clsgen_dist.review.store import Store, checked_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReviewOptions:
    """How a review is run."""

    store: str
    reviewer: str | None = None
    labels: Sequence[str] | None = None
    columns: Columns | None = None
    second_reading: float = 0.0
    """Share of rows that two reviewers read."""
    space: Space = "auto"
    """How label cells are read."""
    layout: str = Format.ROWS
    """Of the files with rows."""


def fill(files: Sequence[str], options: ReviewOptions) -> Store:
    """The store with the rows of all files; those that it has stay as they are.

    Raises:
        DataError: a file cannot be read, or there is no row at all.
    """
    path = Path(options.store).expanduser()
    if not files and not path.exists():
        raise DataError(f"{path} does not exist, and no file of rows is named; name one: clsgen data review FILE")
    are_rows = options.layout == Format.ROWS
    store, columns = Store(path), (options.columns or Columns()) if are_rows else Columns()
    if files:
        remember(store, columns, None if options.labels is None else [class_name(name) for name in options.labels])
    for file in files:
        source = file
        if not are_rows:
            converted = beside(store, f"{Path(file).stem}.jsonl")
            write_as_rows(Path(file), Format(options.layout), converted, options.space)
            source = str(converted)
        _remember_source(store, file)
        logger.info("%s: %s", file, import_rows(store, source, columns, options.second_reading, options.space))
    return store


def write(store: Store, path: str, layout: str) -> str:
    """Write the rows with what was decided; how many have which status, in words."""
    if str(Path(path).resolve()) in _sources(store):
        raise SettingsError(
            f"--export is {path}, which the rows were read from; name another file, so that rows that could not be "
            "read are not lost"
        )
    counts = export(store, Path(path), Format(layout))
    return f"{path}: {counts.total()} rows, " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))


def _sources(store: Store) -> list[str]:
    sources: list[str] = json.loads(store.facts().get("sources", "[]"))
    return sources


def _remember_source(store: Store, file: str) -> None:
    known = _sources(store)
    if (path := str(Path(file).resolve())) not in known:
        store.set_fact("sources", json.dumps([*known, path]))


def serve(
    store: Store,
    *,
    reviewer: str | None,
    host: str = "127.0.0.1",
    port: int = 8100,
    tokens_file: str | None = None,
    without_tokens: bool = False,
) -> None:
    """Serve a store's pages until TERM or Ctrl-C.

    Raises:
        SettingsError: others could reach the pages without a token, or the port is taken.
    """
    import uvicorn

    from clsgen_dist.review.app import create_app
    from clsgen_dist.serving.access import Access, allowed_hosts, read_tokens, require_free, require_guarded
    from clsgen_dist.serving.guards import PatientProtocol

    access = Access(host=host, port=port, tokens_file=tokens_file, without_tokens=without_tokens)
    tokens = read_tokens(access)
    require_guarded(access, tokens)
    require_free(host, port)
    name = None if reviewer is None else checked_name(reviewer)
    app = create_app(store, reviewer=name, tokens=tokens, hosts=allowed_hosts(access, tokens))
    logger.info("review of %s on http://%s:%d (Ctrl-C ends it; decisions are in the file)", store.path, host, port)
    uvicorn.run(
        app,
        host=host,
        port=port,
        http=PatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def require_layout(name: str, value: str) -> None:
    """SettingsError for a layout that is not known."""
    if value not in list(Format):
        raise SettingsError(f"--{name} is {value!r}, expected one of {', '.join(Format)}")
