"""The code that a job runs: a copy of the tracked files as they stood, so that later edits change no queued job."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from fm.config import registry
from launch.cluster.spec import SOURCE

COMMIT = "COMMIT"
PATCH = "changes.patch"


def pack(folder: Path, commit: str) -> Path:
    """Copy the clone's tracked files into ``folder/source``; what differs from the commit is kept as a patch beside it.

    Args:
        folder: the job's folder; a copy that it holds already is left as it is.
        commit: what the clone is at, kept in the copy, which has no history.

    Returns:
        The copy; where the program was not started from a clone, the place that it was started from.
    """
    clone = registry.CONFIGS.parent
    copy = folder / SOURCE
    if (copy / COMMIT).is_file():
        return copy
    try:
        listed = _git(clone, "ls-files", "-z").split("\0")
        patch = _git(clone, "diff", "HEAD", "--binary")
    except (OSError, subprocess.SubprocessError):
        return clone
    for name in filter(None, listed):
        if (source := clone / name).is_file():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    if patch:
        (folder / PATCH).write_text(patch, encoding="utf-8")
    (copy / COMMIT).write_text(commit, encoding="utf-8")
    return copy


def _git(clone: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(clone), *words], capture_output=True, text=True, timeout=60, check=True
    ).stdout
