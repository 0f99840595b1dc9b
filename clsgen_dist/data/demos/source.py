"""The embedded sets by name."""

from __future__ import annotations

from clsgen_dist.errors import DataError

_DEMO = "demo:"


def row_source(source: str) -> str:
    """The file behind ``demo:NAME/SPLIT``; any other source as it is."""
    if not source.startswith(_DEMO):
        return source
    from clsgen_dist.data.demos import breast_cancer

    name, _, split = source.removeprefix(_DEMO).partition("/")
    if name != breast_cancer.NAME:
        raise DataError(f"{source!r} is no demo set; there is {_DEMO}{breast_cancer.NAME}/SPLIT")
    split, _, seed = split.partition("?seed=")
    return str(breast_cancer.demo_file(split, int(seed or 0)))
