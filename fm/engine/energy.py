"""Energy counters: of a GPU through NVML, of the processor packages through RAPL; each says why where there is none."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")
"""A processor package, AMD's too; ``intel-rapl:0:0`` is a part of one and would be counted twice."""


class NoCounterError(Exception):
    """There is no energy counter to read; the message says why."""


class RaplCounter:
    """Joules of all processor packages of this machine since the counter was made, whoever used them.

    The kernel's registers count in µJ and start again at their range, after some twenty minutes of full load: read it
    more often than that.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        """Find the packages.

        Raises:
            NoCounterError: the machine has no such counters, or this user may not read them.
        """
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _PACKAGE.fullmatch(zone.name)]
        try:
            zones = [zone for zone in zones if _word(zone / "name").startswith("package")]
            self._ranges = {zone: int(_word(zone / "max_energy_range_uj")) for zone in zones}
            self._last = {zone: int(_word(zone / "energy_uj")) for zone in zones}
        except PermissionError as err:
            raise NoCounterError("only root may read the processor's energy counters here") from err
        except (OSError, ValueError) as err:
            raise NoCounterError(f"the processor's energy counters cannot be read: {err}") from err
        if not zones:
            raise NoCounterError("this machine shows no energy counters of its processor")
        self._total_uj = 0

    def joules(self) -> float:
        """Joules since the counter was made."""
        for zone, before in self._last.items():
            now = int(_word(zone / "energy_uj"))
            self._total_uj += now - before if now >= before else now + self._ranges[zone] - before
            self._last[zone] = now
        return self._total_uj / 1e6


class NvmlCounter:
    """Joules of one GPU since the counter was made, by the driver's own counter (Volta and later)."""

    def __init__(self, uuid: str, nvml: Any = None) -> None:
        """Find the GPU.

        Args:
            uuid: of the GPU as CUDA names it, with or without ``GPU-``.
            nvml: NVIDIA's module ``pynvml``; None imports it.

        Raises:
            NoCounterError: no package, no driver, or a GPU without the counter, such as a MIG slice.
        """
        if nvml is None:
            try:
                nvml = importlib.import_module("pynvml")
            except ImportError as err:
                raise NoCounterError("the package nvidia-ml-py is not installed") from err
        self._nvml = nvml
        try:
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
            self._begin_mj = int(nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except nvml.NVMLError as err:
            raise NoCounterError(f"NVML gives no energy of this GPU: {err}") from err

    def joules(self) -> float:
        """Joules since the counter was made."""
        return (int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) - self._begin_mj) / 1e3


def _word(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
