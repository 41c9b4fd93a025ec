"""Writes ``docs/configuration.md``, the reference of every verb, group and key, from the dataclasses themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args

from fm.config import registry
from fm.config.root import JOBS, plain_form

PAGE = registry.CONFIGS.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Written by `make docs` from `fm/config/`; a test fails where it is out of date.

`fm VERB key=value …` sets single keys; `group=name` takes a whole file of values, `configs/<group>/<name>.yaml`. Files
hold only what differs from the defaults below. Order: group files, then the experiment, then the command line.
"""


def render() -> str:
    """The whole page."""
    parts = [HEAD, "## Verbs\n"]
    for verb, job in JOBS.items():
        own = {name: key for name, key in registry.keys(job).items() if not registry.is_section(key.type)}
        sections = [f"`{name}`" for name, key in registry.keys(job).items() if registry.is_section(key.type)]
        parts += [f"### fm {verb}\n\n{registry.summary(job)}\n\n```\n{plain_form(job)}\n```\n", _table(own.values())]
        parts += [f"Groups: {', '.join(sections)}\n"] if sections else []
    parts.append("## Groups\n")
    for group in registry.GROUPS:
        options = ", ".join(f"`{name}`" for name in registry.options(group))
        found = _section(group)
        if group == "experiment" and options:
            parts.append(f"### experiment\n\nSeveral groups and keys at once.\n\nOptions: {options}\n")
        elif found is not None:
            parts.append(f"### {group}\n\nOptions: {options}\n")
            for cls in registry.variants(found):
                parts += list(_class(cls))
    return "\n".join(parts)


def main() -> int:
    """Write the page; returns the exit code."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")
    return 0


def _section(group: str) -> type | None:
    for job in JOBS.values():
        key = registry.keys(job).get(group)
        if key is not None and registry.is_section(key.type):
            cls: type = key.type
            return cls
    return None


def _class(cls: type) -> Iterator[str]:
    """A dataclass as a table, then its sections and the dataclasses that its open dictionaries hold."""
    yield f"**{cls.__name__}**: {registry.summary(cls)}\n"
    yield _table(key for key in registry.keys(cls).values() if not registry.is_section(key.type))
    for key in registry.keys(cls).values():
        if registry.is_section(key.type):
            yield from _class(key.type)
        for held in get_args(key.type):
            if isinstance(held, type) and is_dataclass(held):
                yield from _class(held)


def _table(keys: Iterable[registry.Key]) -> str:
    rows = ["| key | type | default | |", "| --- | --- | --- | --- |"]
    rows += [
        "| "
        + " | ".join(cell.replace("|", "\\|") for cell in (f"`{key.name}`", key.type_name, _default(key), key.doc))
        + " |"
        for key in keys
    ]
    return "\n".join(rows) + "\n"


def _default(key: registry.Key) -> str:
    return "required" if key.required else f"`{key.default_text}`"


if __name__ == "__main__":
    sys.exit(main())
