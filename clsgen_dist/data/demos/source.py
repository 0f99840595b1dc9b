"""Embedded datasets by name: ``demo:breast-cancer/train``."""

from __future__ import annotations

from clsgen_dist.errors import DataError

_DEMO = "demo:"


def is_demo(source: str) -> bool:
    """Whether a source is named as an embedded dataset."""
    return source.startswith(_DEMO)


def resolve_demo(source: str) -> str:
    """The file of ``demo:NAME/SPLIT``; any other source unchanged. DataError if there is no such dataset or split."""
    if not is_demo(source):
        return source
    from clsgen_dist.data.demos import breast_cancer

    name, _, split = source.removeprefix(_DEMO).partition("/")
    if name != breast_cancer.NAME:
        raise DataError(f"{source!r} is not a demo dataset; the only one is {_DEMO}{breast_cancer.NAME}/SPLIT")
    split, _, seed = split.partition("?seed=")
    return str(breast_cancer.demo_file(split, int(seed or 0)))
