"""What ``--help`` prints, read from the dataclasses and the folders of values."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path

import yaml

from fm.config import registry
from fm.config.root import JOBS, group_options, plain_form

FLAGS = {
    "--cfg job": "print the whole configuration as it would be composed, and stop",
    "-m": "sweep: run every combination of comma-separated values, one folder each below run=DIR",
    "--config-dir DIR": "look here too for your own DIR/<group>/<name>.yaml; beside the shipped ones",
    "--help": "this page",
}
NAME_WIDTH = 34


def overview(verbs: Iterable[str]) -> str:
    """The page of ``fm --help``."""
    lines = ["fm: from MRI studies and their reports to a pretrained 3D encoder and a report on how good it is.", ""]
    lines += ["  fm VERB key=value …        do it", "  fm VERB --help             every key of a verb", ""]
    lines += ["Verbs, in the order of the work:"]
    for verb in verbs:
        lines += _row(verb, registry.summary(JOBS[verb]), 12)
    lines += _row("completion", 'Print completion for a shell: eval "$(fm completion bash)", or zsh.', 12)
    return "\n".join([*lines, "", "New here? fm demo run=runs/demo shows the whole way on simulated studies."])


def verb_help(verb: str, config_dirs: Iterable[Path] = ()) -> str:
    """The page of ``fm VERB --help``: plain form, every key with default and meaning, groups, flags."""
    job = JOBS[verb]
    lines = [registry.summary(job), "", f"  {plain_form(job)}", "", "Keys"]
    for key in registry.keys(job).values():
        if not registry.is_section(key.type):
            lines += _key(key.name, key)
    defaults = default_options(verb)
    if groups := group_options(verb, config_dirs):
        lines += ["", "Groups: group=name takes a whole file of values, configs/<group>/<name>.yaml"]
        for name, options in groups.items():
            chosen = f"  (default: {defaults[name]})" if defaults.get(name) else ""
            lines += _row(f"{name}=NAME", ", ".join(options) + chosen, NAME_WIDTH)
    for key in registry.keys(job).values():
        if registry.is_section(key.type):
            for variant in registry.variants(key.type):
                lines += ["", f"{key.name}: {registry.summary(variant)}"]
                for leaf, value in registry.walk(variant):
                    lines += _key(f"{key.name}.{leaf}", value)
    lines += ["", "Flags"]
    for flag, text in FLAGS.items():
        lines += _row(flag, text, NAME_WIDTH)
    return "\n".join(lines)


def default_options(verb: str) -> dict[str, str | None]:
    """The option that each group has where the command line chooses none."""
    chosen: dict[str, str | None] = {}
    for name in ("base", verb):
        file = registry.CONFIGS / f"{name}.yaml"
        for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["defaults"] if file.is_file() else []:
            if isinstance(entry, dict):
                chosen |= {key.removeprefix("override "): value for key, value in entry.items()}
    return chosen


def _key(name: str, key: registry.Key) -> list[str]:
    value = "REQUIRED" if key.required else key.default_text
    meaning = f"{key.doc} ({key.type_name})" if key.doc else f"({key.type_name})"
    return _row(f"{name}={value}", meaning, NAME_WIDTH)


def _row(name: str, text: str, width: int) -> list[str]:
    """``name`` and a wrapped text beside it, or below it where the name is too long."""
    columns = max(60, min(shutil.get_terminal_size((110, 24)).columns, 130))
    wrapped = textwrap.wrap(text, columns - width - 4) or [""]
    rows = [f"  {'':{width}}  {line}".rstrip() for line in wrapped]
    if len(name) > width:
        return [f"  {name}", *rows]
    return [f"  {name:{width}}  {wrapped[0]}".rstrip(), *rows[1:]]
