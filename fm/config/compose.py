"""Command-line words to one typed job: Hydra composes the groups, the schema checks every key.

Values of text, path and URL keys are taken as they stand and never reach Hydra's parser, which would read
``2026_11_21`` as a number, and ``~``, ``=``, braces and commas as syntax.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fm.config import registry
from fm.config.errors import ConfigError
from fm.config.load import Plain, build, merge
from fm.config.root import JOBS, filled_keys, group_options


@dataclass(frozen=True, slots=True)
class Override:
    """One ``key=value`` of the command line, parsed."""

    key: str
    value: Any
    """The value; for a group the option's name."""
    group: bool = False
    choices: tuple[Any, ...] | None = None
    """The values of a sweep."""

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks of one verb."""

    verb: str
    overrides: list[Override]
    config_dirs: list[Path] = field(default_factory=list)

    def chosen(self, key: str) -> Any:
        """The last value given for a key or group, or None."""
        return next((item.value for item in reversed(self.overrides) if item.key == key), None)


def parse(verb: str, words: Sequence[str], config_dirs: Sequence[Path] = ()) -> Request:
    """Parse and check the words of a command line against the verb's keys and groups.

    Raises:
        ConfigError: a word that is no ``key=value``, an unknown key, group or option, or a value that cannot be parsed.
    """
    for folder in config_dirs:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder}: no such folder")
        for file in folder.rglob("*.yaml"):
            if (registry.CONFIGS / (name := file.relative_to(folder))).is_file():
                raise ConfigError(f"--config-dir {folder}: {name} has the name of a shipped file; rename yours")
    return Request(verb, [_parse_word(verb, word, config_dirs) for word in words], list(config_dirs))


def compose_values(request: Request) -> Plain:
    """Plain values of a request: group files, then the experiment, then the overrides; only the verb's own keys."""
    groups = [item for item in request.overrides if item.group]
    primary = f"{request.verb}_input" if request.chosen("input") is not None else request.verb
    raw = _compose_groups(request.verb, primary, groups, request.config_dirs)
    _check_foreign(raw)
    root = registry.keys(JOBS[request.verb])
    # A key may have a group's name and be none: the `model` of fm predict is a folder.
    values = {
        name: value
        for name, value in raw.items()
        if name in root and (name not in registry.GROUPS or registry.is_section(root[name].type))
    }
    apply(values, [*request.overrides, *(Override(key, "") for key in filled_keys(JOBS[request.verb]))])
    return values


def compose(verb: str, overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Any:
    """The typed job of a verb.

    Args:
        verb: ``pretrain``, ``prepare``, …
        overrides: ``key=value`` words.
        config_dirs: folders of one's own configuration files, beside the shipped ones.

    Raises:
        ConfigError: anything that cannot be composed; the message names the nearest thing that exists.
    """
    return build(JOBS[verb], compose_values(parse(verb, overrides, config_dirs)))


def composed_yaml(request: Request) -> str:
    """What ``--cfg job`` prints: the whole job as YAML, keys without a value as ``???``."""
    return OmegaConf.to_yaml(merge(JOBS[request.verb], compose_values(request)))


def apply(values: Plain, overrides: Iterable[Override]) -> None:
    """Set the value overrides in nested plain values, in order."""
    for item in overrides:
        if item.group:
            continue
        section, *names = values, *item.key.split(".")
        for name in names[:-1]:
            nested = section.get(name)
            if not isinstance(nested, dict):
                nested = section[name] = {}
            section = nested
        section[names[-1]] = item.value


def expand(request: Request) -> list[Request]:
    """The jobs of a sweep: every combination of the swept values, later keys varying fastest."""
    choices = [item.choices if item.choices is not None else (item.value,) for item in request.overrides]
    jobs = []
    for values in itertools.product(*choices):
        overrides = [
            Override(item.key, value, item.group) for item, value in zip(request.overrides, values, strict=True)
        ]
        jobs.append(Request(request.verb, overrides, request.config_dirs))
    return jobs


def _parse_word(verb: str, word: str, config_dirs: Sequence[Path]) -> Override:
    bare = word.lstrip("+~")
    key, equals, text = bare.partition("=")
    leaves = dict(registry.walk(JOBS[verb]))
    groups = group_options(verb, config_dirs)
    if bare != word:
        found = key if key in leaves or key in groups else registry.nearest(key, [*leaves, *groups])
        advice = f"write {found}=VALUE" if found else "write key=value"
        raise ConfigError(f"{word}: there is no + or ~ form; {advice}")
    parent = _parent(key, leaves)
    if not equals and (key in groups or parent is not None):
        raise ConfigError(f"{word}: needs a value; write {word}=VALUE")
    if key in groups:
        return _parse_group(key, text, groups[key])
    if key in filled_keys(JOBS[verb]):
        raise ConfigError(f"{key}: fm {verb} sets this itself; leave it out")
    if parent is None:
        raise ConfigError(f"unknown key {key} of fm {verb}; {_advice(verb, key, [*leaves, *groups])}")
    return _parse_value(key, text, leaves[parent], exact=parent == key)


def _advice(verb: str, key: str, known: Sequence[str]) -> str:
    """What to write instead of an unknown key: the verb that has it, or the nearest."""
    if elsewhere := [f"fm {other}" for other, job in JOBS.items() if key in dict(registry.walk(job))]:
        return f"it belongs to {', '.join(elsewhere)}"
    found = registry.nearest(key, known)
    return f"did you mean {found}?" if found else f"see fm {verb} --help"


def _parent(key: str, leaves: Mapping[str, registry.Key]) -> str | None:
    """The schema key that a dotted key sets: itself, or the open dictionary it lies in."""
    if key in leaves:
        return key
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        if name in leaves and leaves[name].type_name.startswith("{"):
            return name
    return None


def _parse_group(key: str, text: str, known: Sequence[str]) -> Override:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise ConfigError(f"{key}={name}: no such {key}; {registry.hint(name, known, f'see configs/{key}/')}")
    return Override(key, text, group=True, choices=tuple(names) if len(names) > 1 else None)


def _parse_value(key: str, text: str, leaf: registry.Key, exact: bool) -> Override:
    if exact and registry.is_text(leaf.type):
        optional = registry.unwrap_optional(leaf.type)[1]
        return Override(key, None if optional and text == "null" else text)
    try:
        parsed = OverridesParser.create().parse_override(f"key={text}")
    except HydraException as err:
        raise ConfigError(f"{key}={text}: cannot be parsed; it takes {leaf.type_name}") from err
    if parsed.is_sweep_override():
        if not parsed.is_discrete_sweep():
            raise ConfigError(f"{key}={text}: an interval cannot be swept; give a list or range()")
        return Override(key, text, choices=tuple(parsed.sweep_iterator()))
    return Override(key, parsed.value())


def _compose_groups(verb: str, primary: str, groups: Iterable[Override], config_dirs: Sequence[Path]) -> Plain:
    """Hydra's composition of a verb's defaults with the chosen group options, interpolations resolved.

    The defaults are those of ``configs/<primary>.yaml`` (``<verb>_input`` where an input is given), else the base's.
    """
    primary = primary if (registry.CONFIGS / f"{primary}.yaml").is_file() else "base"
    words = [f"{item.key}={item.value}" for item in groups]
    if config_dirs:
        places = (_quoted(f"file://{folder.resolve()}") for folder in config_dirs)
        words.append(f"hydra.searchpath=[{','.join(places)}]")
    try:
        with initialize_config_dir(config_dir=str(registry.CONFIGS), version_base="1.3"):
            composed = hydra_compose(config_name=primary, overrides=words)
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as err:
        raise ConfigError(f"cannot compose fm {verb}: {' '.join(str(err).split())}") from err
    finally:
        GlobalHydra.instance().clear()
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _check_foreign(values: Mapping[str, Any]) -> None:
    """Refuse what no verb knows: an experiment may speak to several verbs, but not to none."""
    known = {name for job in JOBS.values() for name in registry.keys(job)}
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown key {name} in the configuration files; {registry.hint(name, sorted(known))}")
