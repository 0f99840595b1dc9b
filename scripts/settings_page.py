"""The settings reference as a Markdown page, from the dataclasses of ``clsgen_dist.config`` and their docstrings.

    python scripts/settings_page.py > settings.md

``mkdocs.yml`` uses this file as a hook: each build generates the page ``reference/settings.md``, so it is never stale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_type_hints

from docstring_parser import parse_from_object

from clsgen_dist.config import Settings
from clsgen_dist.data.curriculum.stages import Stage

PAGE = "reference/settings.md"
INTRODUCTION = """# Settings

A recipe is a YAML file with these fields; `--section.field=value` overrides one on the command line. `clsgen train
--print_config` prints the complete tree. For an unknown name, the error suggests the closest known one.
"""


def page() -> str:
    """The Markdown page: one table per section, one row per setting."""
    parts = [INTRODUCTION, *_tables(Settings, "")]
    parts += ["## Stages of `curriculum.stages`\n", *_tables(Stage, "")]
    return "\n".join(parts)


def _tables(cls: Any, section: str) -> Iterator[str]:
    described = parse_from_object(cls)
    bases = [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    help_of = {p.arg_name: p.description or "" for base in bases for p in parse_from_object(base).params}
    kinds = get_type_hints(cls)
    sections = [field for field in dataclasses.fields(cls) if dataclasses.is_dataclass(kinds[field.name])]
    settings = [field for field in dataclasses.fields(cls) if field not in sections]
    if cls is not Stage:
        yield f"## {section or 'Run'}\n"
    yield f"{described.short_description}\n"
    yield "| setting | type | default | meaning |\n|---|---|---|---|"
    prefix = f"{section}." if section else ""
    for field in settings:
        text = " ".join(help_of[field.name].split()).replace("|", "\\|")
        yield f"| `{prefix}{field.name}` | `{_kind(kinds[field.name])}` | {_default(field)} | {text} |"
    yield ""
    for field in sections:
        yield from _tables(kinds[field.name], f"{prefix}{field.name}")


def _kind(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return name.replace("typing.", "").replace(" | ", " or ")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    return "none" if value is None else f"`{value}`"


def on_files(files: Any, config: Any) -> Any:
    """MkDocs hook: add the page to the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))
    return files


if __name__ == "__main__":
    print(page())
