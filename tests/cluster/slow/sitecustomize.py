"""Makes the saves of any process that finds this on its path last ``SLOW_SAVE_S`` seconds longer."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

SNAPSHOT = "fm.engine.snapshot"


class SlowSnapshot(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != SNAPSHOT:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        run: Any = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            write = module.Snapshot.write

            def slowly(snapshot: Any, folder: Path) -> None:
                time.sleep(float(os.environ["SLOW_SAVE_S"]))
                write(snapshot, folder)

            module.Snapshot.write = slowly

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, SlowSnapshot())
