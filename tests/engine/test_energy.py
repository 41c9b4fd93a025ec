from __future__ import annotations

import os
from pathlib import Path

import pynvml
import pytest

from fm.engine.energy import NoCounterError, NvmlCounter, RaplCounter


def zone(root: Path, name: str, label: str, micro_joules: int) -> Path:
    """A power zone as Linux shows it, see Documentation/power/powercap."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(label + "\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    (folder / "energy_uj").write_text(f"{micro_joules}\n")
    return folder


def test_packages_are_added_up_without_their_parts_and_over_the_counters_end(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 262_143_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    platform = zone(tmp_path, "intel-rapl:2", "psys", 0)
    counter = RaplCounter(tmp_path)
    assert counter.joules() == 0.0
    (second / "energy_uj").write_text("7500000\n")
    (core / "energy_uj").write_text("999000000\n")
    (platform / "energy_uj").write_text("999000000\n")
    assert counter.joules() == pytest.approx(2.5)
    (first / "energy_uj").write_text("671150\n")  # past the range of 262143.32885 J
    assert counter.joules() == pytest.approx(2.5 + 1.0)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoCounterError, match="no energy counters"):
        RaplCounter(tmp_path / "absent")
    zone(tmp_path, "intel-rapl:0", "psys", 1)
    with pytest.raises(NoCounterError, match="no energy counters"):
        RaplCounter(tmp_path)
    (zone(tmp_path, "intel-rapl:1", "package-0", 1) / "energy_uj").write_text("broken\n")
    with pytest.raises(NoCounterError, match="cannot be read"):
        RaplCounter(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_counters_that_only_root_may_read(tmp_path: Path) -> None:
    (zone(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj").chmod(0)
    with pytest.raises(NoCounterError, match="only root"):
        RaplCounter(tmp_path)


class Driver:
    """NVML's calls as NVIDIA documents them: energy in mJ since the driver was loaded."""

    NVMLError = pynvml.NVMLError

    def __init__(self, *energy: int | pynvml.NVMLError) -> None:
        self.energy = list(energy)
        self.asked: list[str] = []

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        answer = self.energy.pop(0)
        if isinstance(answer, pynvml.NVMLError):
            raise answer
        return answer


def test_a_gpu_counts_from_where_it_stood_at_the_start() -> None:
    driver = Driver(7_000_000, 7_250_500)
    counter = NvmlCounter("1b2c-3d4e", driver)
    assert driver.asked == ["GPU-1b2c-3d4e"]
    assert counter.joules() == pytest.approx(250.5)


def test_a_gpu_without_a_counter_says_why() -> None:
    driver = Driver(pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))
    with pytest.raises(NoCounterError, match="Not Supported"):
        NvmlCounter("MIG-5f", driver)
    assert driver.asked == ["MIG-5f"]


def test_nvidias_own_module_without_a_driver_says_so() -> None:
    """The calls by their real names, in the real module."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(NoCounterError, match="NVML gives no energy"):
            NvmlCounter("0")
    else:
        pytest.skip("this machine has NVIDIA's driver")
    for name in ("nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"):
        assert callable(getattr(pynvml, name))
