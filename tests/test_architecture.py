"""Rules about the code as a whole: rooms, light imports, and no configuration key that nothing reads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import pytest
from mypy import build as mypy_build
from mypy import nodes, types
from mypy.modulefinder import BuildSource
from mypy.options import Options

from fm.config import registry
from fm.config.root import JOBS

CLONE = Path(__file__).resolve().parents[1]
ROOMS = ("fm", "data_prep", "evals", "launch")


class OnlyReads(ast.NodeTransformer):
    """Leaves out what is no use of a field: assignments from outside, and the checks in ``__post_init__``."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if node.name == "__post_init__":
            node.body = [ast.Pass()]
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        written = isinstance(node.ctx, ast.Store) and not (isinstance(node.value, ast.Name) and node.value.id == "self")
        return ast.Name("_", ast.Store()) if written else node


def owners(found: types.Type | None) -> set[str]:
    """Full names of the classes that an expression's type may be, base classes included."""
    proper = types.get_proper_type(found) if found is not None else None
    if isinstance(proper, types.UnionType):
        return {name for item in proper.items for name in owners(item)}
    return {base.fullname for base in proper.type.mro} if isinstance(proper, types.Instance) else set()


def reads(sources: list[BuildSource], folder: Path) -> set[tuple[str, str]]:
    """Every (configuration class, field) that the sources read, by the static type of the object.

    The sources are checked as copies in `folder`, with :class:`OnlyReads` applied.
    """
    options = Options()
    options.export_types = options.preserve_asts = True
    options.python_version = (3, 11)
    options.namespace_packages = options.explicit_package_bases = True
    options.mypy_path = [str(folder)]
    options.incremental = False
    copies = []
    for source in sources:
        tree = ast.parse(Path(str(source.path)).read_text(encoding="utf-8"))
        # Libraries do not read our classes, and checking them would take most of the time.
        skip = {"follow_imports": "skip", "follow_imports_for_stubs": True}
        options.per_module_options |= {f"{name}.*": skip for name in libraries(tree)}
        copy = folder.joinpath(*source.module.split("."), "__init__.py")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(ast.unparse(ast.fix_missing_locations(OnlyReads().visit(tree))), encoding="utf-8")
        copies.append(BuildSource(str(copy), source.module, None))
    types_of = mypy_build.build(copies, options).types
    accesses = [expression for expression in types_of if isinstance(expression, nodes.MemberExpr)]
    return {(name, access.name) for access in accesses for name in owners(types_of.get(access.expr))}


def libraries(tree: ast.Module) -> set[str]:
    """Top-level packages that a module imports beside our rooms and the standard library."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names} - {*ROOMS, *sys.stdlib_module_names}


def modules() -> list[BuildSource]:
    sources = []
    for room in ROOMS:
        for file in sorted((CLONE / room).rglob("*.py")):
            parts = file.relative_to(CLONE).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources.append(BuildSource(str(file), name, None))
    return sources


def config_classes() -> set[type]:
    """Every configuration dataclass that a job can hold, in sections and in open dictionaries."""
    found: set[type] = set()
    waiting: list[type] = list(JOBS.values())
    while waiting:
        cls = waiting.pop()
        if cls in found:
            continue
        found.add(cls)
        for key in registry.keys(cls).values():
            held = [key.type, *get_args(key.type)]
            for hint in held:
                if isinstance(hint, type) and is_dataclass(hint):
                    waiting += [hint, *registry.variants(hint)]
    return found


def unread(classes: set[type], sources: list[BuildSource], folder: Path) -> list[str]:
    """Fields of configuration classes that no source reads by their own type; ``kind`` is read by the composition."""
    found = reads(sources, folder)
    unread = []
    for cls in classes:
        own_and_bases = [f"{base.__module__}.{base.__name__}" for base in cls.__mro__ if is_dataclass(base)]
        names = [field.name for field in fields(cls) if field.name != "kind"]
        unread += [f"{cls.__name__}.{n}" for n in names if not any((owner, n) in found for owner in own_and_bases)]
    return sorted(unread)


def test_every_configuration_field_is_read_by_its_own_type(tmp_path: Path) -> None:
    assert unread(config_classes(), modules(), tmp_path) == []


def test_a_planted_dead_field_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text(
        """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Section:
    alive: int = 1
    dead: int = 2
    only_checked: int = 3
    only_written: int = 4
    only_in_another: int = 5

    def __post_init__(self) -> None:
        assert self.only_checked > 0

@dataclass
class Another:
    only_in_another: int = 6

@dataclass
class Holder:
    section: Section

def use(holder: Holder | None, another: Another) -> int:
    if holder is None:
        return another.only_in_another
    holder.section.only_written = 7
    return holder.section.alive
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import planted  # type: ignore[import-not-found]

    source = BuildSource(str(tmp_path / "planted.py"), "planted", None)
    assert unread({planted.Section}, [source], tmp_path / "copies") == [
        f"Section.{name}" for name in ("dead", "only_checked", "only_in_another", "only_written")
    ]


@pytest.mark.parametrize(
    "module",
    [
        "fm",
        "fm.config.root",
        "fm.config.compose",
        "fm.grid",
        "fm.data.sample",
        "fm.data.codec",
        "fm.data.index",
        "fm.data.verify",
    ],
)
def test_the_contract_and_the_configuration_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_parallel_uses_torch_distributed() -> None:
    imports = r"^\s*(?:import torch\.distributed|from torch\.distributed|from torch import distributed)"
    pattern = re.compile(imports + r"|(?<![\"'])torch\.distributed\.\w+")
    users = {
        source.module
        for source in modules()
        if source.path and any(pattern.search(line) for line in Path(source.path).read_text().splitlines())
    }
    assert {name for name in users if not name.startswith("fm.parallel")} == set()


def test_nothing_unpickles_data_or_trusts_remote_code() -> None:
    pattern = re.compile(r"\bpickle\.loads?\(|trust_remote_code=True|weights_only=False|allow_pickle=True")
    users = [s.module for s in modules() if s.path and pattern.search(Path(s.path).read_text())]
    assert users == []


def test_import_linter_lists_every_module_it_has_to_name() -> None:
    contracts = tomllib.loads((CLONE / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    by_name = {contract["id"]: contract for contract in contracts}
    data = {f"fm.data.{file.stem}" for file in (CLONE / "fm/data").glob("*.py")} - {"fm.data.__init__"}
    open_to_prep = {
        f"fm.data.{name}" for name in ("sample", "codec", "cache", "store", "table", "history", "index", "verify")
    }
    assert data - open_to_prep <= set(by_name["data-prep"]["forbidden_modules"])
    prep = {
        f"data_prep.{file.stem}" for file in (CLONE / "data_prep").iterdir() if file.suffix == ".py" or file.is_dir()
    }
    prep -= {"data_prep.__init__", "data_prep.__pycache__", "data_prep.phantom"}
    assert prep <= set(by_name["phantom-alone"]["forbidden_modules"])
    assert prep <= set(by_name["prepare-alone"]["source_modules"])
