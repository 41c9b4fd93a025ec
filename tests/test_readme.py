"""README's lines, as printed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fm.config.compose import compose
from launch.verbs.main import main, read

CLONE = Path(__file__).resolve().parents[1]
README = (CLONE / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=["encoder", "transformers", "webdataset"])
def test_python_lines_run(code: str, miniature_demo: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(miniature_demo)
    values = np.random.default_rng(0).gamma(4.0, 100.0, (64, 64, 16)).astype(np.float32)
    nib.Nifti1Image(values, np.diag([3.0, 3.0, 5.0, 1.0])).to_filename(tmp_path / "scan.nii.gz")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"similarity -?0\.\d|torch\.Size\(\[1, \d+\]\)|'t1w'", done.stdout)


def test_fm_lines_compose() -> None:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines() if line.startswith("fm ")]
    assert len(lines) == 7
    for line in lines:
        found = read(shlex.split(line)[1:])
        assert found.verb is not None
        if found.verb == "submit":
            assert main(["submit", *found.words, "dry_run=true"]) == 0
        else:
            compose(found.verb, found.words)


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (CLONE / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "test-full", "lint", "bench", "install", "docs"} <= set(targets)
    assert set(re.findall(r"(?:^|`)make (?:PYTHON=\S+ )?([a-z-]+)", README, re.MULTILINE)) <= set(targets)
