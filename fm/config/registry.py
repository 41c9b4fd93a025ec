"""What can be configured: verbs, groups, and every key with its type, default and one line of documentation.

All of it is read from the dataclasses themselves, so help, completion, reference and errors cannot disagree with them.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
import types
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""Folder of the shipped values; the platform runs from its clone."""

GROUPS = (
    "experiment",
    "model",
    "data",
    "objective",
    "optim",
    "trainer",
    "tracker",
    "launch",
    "prepare",
    "phantom",
    "suite",
    "task",
)
REQUIRED = "???"
"""Value of a key that has no default; OmegaConf's mark."""


@dataclass(frozen=True, slots=True)
class Key:
    """One configuration key of a dataclass."""

    name: str
    type: Any
    default: Any
    """The default, or :data:`REQUIRED`."""
    doc: str

    @property
    def type_name(self) -> str:
        """The type in words: ``int``, ``text``, ``off|offline|online``, ``[int, int, int]``."""
        return describe_type(self.type)

    @property
    def default_text(self) -> str:
        """The default as one would write it on the command line."""
        if isinstance(self.default, bool) or self.default is None:
            return {True: "true", False: "false", None: "null"}[self.default]
        if isinstance(self.default, list | tuple):
            return "[" + ", ".join(str(entry) for entry in self.default) + "]"
        return '""' if self.default == "" else str(self.default)

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return isinstance(self.default, str) and self.default == REQUIRED


def describe_type(hint: Any) -> str:
    """A type hint in the words of the help."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else describe_type(arg) for arg in get_args(hint))
    origin, args = get_origin(hint), get_args(hint)
    if origin in (list, tuple):
        if origin is list or args[-1] is Ellipsis:
            return f"[{describe_type(args[0])}, …]"
        return "[" + ", ".join(describe_type(arg) for arg in args) + "]"
    if origin is dict:
        return f"{{{describe_type(args[0])}: {describe_type(args[1])}}}"
    if isinstance(hint, type):
        if issubclass(hint, Enum):
            return "|".join(str(member.value) for member in hint)
        return {str: "text", Path: "path", int: "int", float: "float", bool: "true|false"}.get(hint, hint.__name__)
    return str(hint)


def unwrap_optional(hint: Any) -> tuple[Any, bool]:
    """``(T, True)`` for ``T | None``, else ``(hint, False)``."""
    if get_origin(hint) in (Union, types.UnionType):
        rest = [arg for arg in get_args(hint) if arg is not type(None)]
        if len(rest) < len(get_args(hint)):
            return (rest[0] if len(rest) == 1 else Union[tuple(rest)]), True  # noqa: UP007 - built at run time
    return hint, False


def is_text(hint: Any) -> bool:
    """Whether a key holds text, a path or a URL, whose value is taken as it stands, never parsed."""
    bare, _ = unwrap_optional(hint)
    return bare is str or bare is Path


@cache
def keys(cls: type) -> dict[str, Key]:
    """The keys of a configuration dataclass, base classes first."""
    hints, docs = get_type_hints(cls), _docs(cls)
    found = {}
    for field in fields(cls):
        if field.default is not MISSING:
            default = field.default
        elif field.default_factory is not MISSING:
            default = field.default_factory()
        else:
            default = REQUIRED
        found[field.name] = Key(field.name, hints[field.name], default, docs.get(field.name, ""))
    return found


def _docs(cls: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for entry, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(entry, ast.AnnAssign)
                and isinstance(entry.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                docs[entry.target.id] = " ".join(after.value.value.split())
    return docs


def summary(cls: type) -> str:
    """First paragraph of a dataclass's docstring, on one line."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def is_section(hint: Any) -> bool:
    """Whether a key holds a nested configuration dataclass."""
    return isinstance(hint, type) and is_dataclass(hint)


def is_polymorphic(cls: type) -> bool:
    """Whether a dataclass is the base of a group whose ``kind`` picks a subclass."""
    return "kind" in keys(cls) and bool(cls.__subclasses__())


def kinds(base: type) -> dict[str, type]:
    """The concrete subclasses of a polymorphic base, at any depth, by the value of their ``kind``."""
    found: dict[str, type] = {}
    subclasses: list[type] = base.__subclasses__()
    for sub in subclasses:
        # With slots, a dataclass is made twice; the first class lives on among the subclasses for a while.
        kind = str(keys(sub)["kind"].default)
        found |= kinds(sub) if kind == REQUIRED else {kind: sub}
    return found


def variants(cls: type) -> list[type]:
    """The dataclasses that a section may hold: the subclasses of a polymorphic base, else the class itself."""
    return list(kinds(cls).values()) if is_polymorphic(cls) else [cls]


def walk(cls: type, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Every dotted leaf key below a dataclass, through all kinds of its polymorphic sections."""
    seen: set[str] = set()
    for key in keys(cls).values():
        if not is_section(key.type):
            yield prefix + key.name, key
            continue
        for variant in variants(key.type):
            for dotted, leaf in walk(variant, f"{prefix}{key.name}."):
                if dotted not in seen:
                    seen.add(dotted)
                    yield dotted, leaf


def options(group: str, config_dirs: Iterable[Path] = ()) -> list[str]:
    """Names of the files that a group offers, from the shipped folder and from `config_dirs`."""
    folders = [*config_dirs, CONFIGS]
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The most similar known word, or None where nothing resembles it.

    A dotted key is sought in its own section first, by its last part or by its initials (``optim.lr`` finds
    ``optim.learning_rate``); a bare key also among the last parts of dotted ones.
    """
    choices = list(dict.fromkeys(known))
    section, dot, last = word.rpartition(".")
    own = {choice[len(section) + 1 :]: choice for choice in choices if dot and choice.startswith(section + ".")}
    if found := difflib.get_close_matches(last, own, n=1, cutoff=0.6) or _by_initials(last, own):
        return own[found[0]]
    if found := difflib.get_close_matches(word, choices, n=1, cutoff=0.75 if dot else 0.6):
        return found[0]
    by_last = {choice.rsplit(".", 1)[-1]: choice for choice in reversed(choices)}
    found = difflib.get_close_matches(last, by_last, n=1, cutoff=0.6) or _by_initials(last, by_last)
    return by_last[found[0]] if found else None


def _by_initials(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if "_" in name and word == "".join(part[:1] for part in name.split("_"))]


def hint(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The second half of an error line: the nearest word, or all of them where they are few."""
    choices = list(dict.fromkeys(known))
    if (found := nearest(word, choices)) is not None:
        return f"did you mean {found}?"
    return "choose from " + ", ".join(choices) if 0 < len(choices) <= 12 else otherwise
