"""Programs of the user's own that turn one NIfTI file into another: brain extraction, defacing."""

from __future__ import annotations

import errno
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from data_prep.ledger import QuarantineError, Reason
from data_prep.nifti import read_nifti
from fm.config.errors import UserError


def run_program(
    command: str, values: NDArray[np.float32], affine: NDArray[np.float64], timeout_s: float, failed: Reason
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Give a volume to a program and read what it makes of it: three axes, and (4, 4) axes to RAS+ mm.

    The program sees a file without names or text in a folder of its own, and no shell. What it says is not kept: it
    may name paths.

    Args:
        command: words with ``{input}`` and ``{output}``, both ``.nii.gz``.
        values: (column, row, slice).
        affine: (4, 4) array axes to RAS+ mm.
        timeout_s: longest run.
        failed: why a series is quarantined for which it fails.

    Raises:
        QuarantineError: it ends with an error, takes too long, or leaves no readable volume.
        UserError: there is no such program.
        OSError: no space left for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="fm-program-") as folder:
        source, target = Path(folder, "input.nii.gz"), Path(folder, "output.nii.gz")
        nibabel.Nifti1Image(values, affine).to_filename(source)
        words = [word.format(input=source, output=target) for word in shlex.split(command)]
        program = shutil.which(words[0])
        if program is None:
            raise UserError(f"{words[0]}: no such program; mend prepare.deface_command or prepare.brain_mask_command")
        try:
            done = subprocess.run(
                [program, *words[1:]],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise QuarantineError(failed) from None
        except OSError as err:
            if err.errno == errno.ENOSPC:
                raise
            raise QuarantineError(failed) from None
        if done.returncode != 0:
            raise QuarantineError(failed)
        try:
            found, placed = read_nifti(str(target))
        except QuarantineError:
            raise QuarantineError(failed) from None
        if found.shape[3] != 1:
            raise QuarantineError(failed)
        return found[..., 0], placed
