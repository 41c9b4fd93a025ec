"""Plain values to typed configuration and back: checks every key, restores every type, saves and loads ``run.yaml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fm.config import registry
from fm.config.errors import ConfigError

Plain = dict[str, Any]
"""Nested dictionaries, lists, numbers, words, booleans and None: what YAML holds."""


def merge(cls: type, values: Mapping[str, Any]) -> DictConfig:
    """Plain values merged into the schema of a configuration dataclass; keys without a value stay ``???``.

    Raises:
        ConfigError: unknown key or wrong type.
    """
    checked = _check_section(cls, values, "")
    try:
        merged = OmegaConf.merge(_schema(cls, checked), checked)
    except OmegaConfBaseException as err:
        raise ConfigError(_type_line(cls, err)) from err
    assert isinstance(merged, DictConfig)
    return merged


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance of a configuration dataclass from plain values; absent keys take their defaults.

    Raises:
        ConfigError: unknown key, wrong type, a key without a value, or a value that the dataclass refuses.
    """
    merged = merge(cls, values)
    if missing := OmegaConf.missing_keys(merged):
        wanted = [f"{dotted}={key.type_name.upper()}" for dotted, key in registry.walk(cls) if dotted in missing]
        raise ConfigError(f"missing: give {', '.join(wanted or missing)}")
    try:
        job = OmegaConf.to_object(merged)
    except OmegaConfBaseException as err:
        raise ConfigError(_type_line(cls, err)) from err
    _restore_tuples(job, "")
    return job


def plain(value: Any) -> Any:
    """Plain values of a configuration dataclass: enums by their value, paths as text, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted leaf keys of nested plain values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def difference(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two configurations of one type, with both values."""
    old, new = dict(flatten(plain(before))), dict(flatten(plain(after)))
    names = dict.fromkeys([*old, *new])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def save(job: Any, path: Path, **facts: Any) -> None:
    """Write a job as YAML, in one step, with `facts` (verb, commit, dataset id, …) under ``about``."""
    text = yaml.safe_dump({"about": facts, **plain(job)}, sort_keys=False, allow_unicode=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> tuple[Plain, Plain]:
    """``(facts, values)`` of a file that :func:`save` wrote.

    Raises:
        ConfigError: the file cannot be read or is not such a file.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ConfigError(f"{path}: cannot be read as YAML ({type(err).__name__})") from err
    if not isinstance(values, dict) or not isinstance(facts := values.pop("about", None), dict):
        raise ConfigError(f"{path}: is no run.yaml of this program (it has no `about`)")
    return facts, values


def load(path: Path) -> Any:
    """The typed job that a ``run.yaml`` holds; ``about.verb`` says which job, ``kind`` which section types.

    Raises:
        ConfigError: the file cannot be read, names an unknown verb, or does not fit the schema.
    """
    from fm.config.root import JOBS

    facts, values = read(path)
    if facts.get("verb") not in JOBS:
        raise ConfigError(f"{path}: unknown verb {facts.get('verb')!r}; {registry.hint(str(facts.get('verb')), JOBS)}")
    return build(JOBS[facts["verb"]], values)


def _schema(cls: type, values: Mapping[str, Any]) -> DictConfig:
    """The structured schema with each section's variant chosen by its ``kind``."""
    schema = OmegaConf.structured(cls)
    for key in registry.keys(cls).values():
        if registry.is_section(key.type):
            section = values.get(key.name, {})
            schema[key.name] = _schema(_variant(key.type, section, key.name), section)
    assert isinstance(schema, DictConfig)
    return schema


def _variant(cls: type, values: Mapping[str, Any], where: str) -> type:
    if not registry.is_polymorphic(cls):
        return cls
    known = registry.kinds(cls)
    kind = values.get("kind")
    if kind is None and len(known) == 1:
        return next(iter(known.values()))
    if kind not in known:
        what = f"{where}.kind={kind}: unknown" if kind is not None else f"{where}: no kind chosen"
        raise ConfigError(f"{what}; {registry.hint(str(kind), known)}")
    return known[kind]


def _check_section(cls: type, values: Mapping[str, Any], prefix: str) -> Plain:
    """Values with unknown keys refused and enums made members; texts are escaped from interpolation."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')}={values}: is a section; give its keys, {prefix}KEY=VALUE")
    cls = _variant(cls, values, prefix.rstrip("."))
    known = registry.keys(cls)
    checked: Plain = {}
    for name, value in values.items():
        if name not in known:
            choices = [prefix + dotted for dotted, _ in registry.walk(cls)]
            raise ConfigError(f"unknown key {prefix}{name}; {registry.hint(f'{prefix}{name}', choices, 'see --help')}")
        checked[name] = _check_value(known[name].type, value, prefix + name)
    return checked


def _check_value(hint: Any, value: Any, where: str) -> Any:
    bare, optional = registry.unwrap_optional(hint)
    if value is None and optional:
        return None
    if registry.is_section(bare):
        return _check_section(bare, value, where + ".")
    origin, args = get_origin(bare), get_args(bare)
    if origin is dict and isinstance(value, Mapping):
        return {key: _check_value(args[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return [_check_value(args[0], entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if isinstance(bare, type) and issubclass(bare, Enum):
        return _member(bare, value, where)
    if isinstance(value, str):
        return value.replace("${", "\\${")
    return str(value) if bare is Path and value is not None else value


def _member(enum: type[Enum], value: Any, where: str) -> Enum:
    """The enum member with a value; YAML's own reading of ``off`` and ``on`` as booleans is undone."""
    if isinstance(value, enum):
        return value
    words = {str(member.value): member for member in enum}
    spelt = (
        {False: ("off", "no", "false"), True: ("on", "yes", "true")}.get(value, ()) if isinstance(value, bool) else ()
    )
    for word in (str(value), *spelt):
        if word in words:
            return words[word]
    raise ConfigError(f"{where}={value}: unknown value; {registry.hint(str(value), words)}")


def _type_line(cls: type, err: OmegaConfBaseException) -> str:
    """One line for OmegaConf's complaint: which key, which value, which type it wants."""
    dotted = str(getattr(err, "full_key", "") or "")
    known = dict(registry.walk(cls))
    key = known.get(dotted.split("[")[0])
    first = str(err).splitlines()[0]
    return f"{dotted}: {first}; it takes {key.type_name}" if key is not None else f"{dotted}: {first}"


def _restore_tuples(section: Any, prefix: str) -> None:
    """Turn lists into tuples where the dataclass says so, and check their length."""
    cls: type = type(section)
    for key in registry.keys(cls).values():
        value, where = getattr(section, key.name), prefix + key.name
        if dataclasses.is_dataclass(value):
            _restore_tuples(value, where + ".")
        elif isinstance(value, dict):
            for name, entry in value.items():
                if dataclasses.is_dataclass(entry):
                    _restore_tuples(entry, f"{where}.{name}.")
        elif isinstance(value, list) and get_origin(bare := registry.unwrap_optional(key.type)[0]) is tuple:
            args = get_args(bare)
            if args[-1] is not Ellipsis and len(args) != len(value):
                raise ConfigError(f"{where}={value}: give {len(args)} values, {key.type_name}")
            setattr(section, key.name, tuple(value))
