"""The account of what a run cost: one file per attempt, ``cost/attempt-A.json``, and their sum.

What could not be measured on a machine is null there, with the reason: nothing is estimated.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

COST = "cost"
COST_FILE = "cost.json"
"""The account of the whole run, in an export."""


@dataclass(kw_only=True, slots=True)
class AttemptCost:
    """The account of one attempt."""

    attempt: str
    unit: str
    """What `devices` counts: ``GPU``, or ``CPU core`` where there is none."""
    devices: int
    wall_s: float = 0.0
    """From the start of rank 0's process to the last write."""
    device_hours: float = 0.0
    """Devices held times hours, idle or not."""
    first_step: int = 0
    step: int = 0
    """The first and the last step that were logged; 0: none was."""
    cpu_hours: float | None = None
    """Processor time that was used, all ranks and their loaders."""
    gpu_kwh: float | None = None
    package_kwh: float | None = None
    """Of the processors of all machines, whatever else ran on them."""
    peak_host_gb: float | None = None
    """Of the rank that held most."""
    peak_device_gb: float | None = None
    not_measured: dict[str, str] = field(default_factory=dict)
    """Field → why it is null."""


def read_cost(run_dir: Path) -> dict[str, Any]:
    """The account of a run: ``attempts`` (one :class:`AttemptCost` each, in order) and their ``total``.

    A sum is over the attempts that could measure it, null where none could; ``not_measured`` says which did not, and
    why. Empty for a run without any account.
    """
    found = []
    for path in (run_dir / COST).glob("attempt-*.json"):
        try:
            found.append(AttemptCost(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue
    if not found:
        return {}
    found.sort(key=lambda cost: (len(cost.attempt), cost.attempt))
    total: dict[str, Any] = {
        "attempts": len(found),
        "wall_s": sum(cost.wall_s for cost in found),
        "device_hours": {
            unit: sum(cost.device_hours for cost in found if cost.unit == unit)
            for unit in sorted({cost.unit for cost in found})
        },
    }
    missing: dict[str, str] = {}
    for name, combine in (
        ("cpu_hours", sum),
        ("gpu_kwh", sum),
        ("package_kwh", sum),
        ("peak_host_gb", max),
        ("peak_device_gb", max),
    ):
        values = [getattr(cost, name) for cost in found]
        without = [cost for cost in found if getattr(cost, name) is None]
        known = [value for value in values if value is not None]
        total[name] = combine(known) if known else None
        if without:
            where = "" if len(without) == len(found) else f" (attempt {', '.join(cost.attempt for cost in without)})"
            missing[name] = without[0].not_measured.get(name, "not recorded") + where
    total["not_measured"] = missing
    return {"attempts": [asdict(cost) for cost in found], "total": total}


def money(total: dict[str, Any], *, gpu_hour: float = 0.0, kwh: float = 0.0) -> float:
    """What the ``total`` of :func:`read_cost` comes to, in the currency of the prices.

    Hours of processor cores have no price; energy that was not measured adds nothing.

    Args:
        total: sum over the attempts.
        gpu_hour: price of one GPU for one hour.
        kwh: price of one kWh, of GPUs and processors.
    """
    energy = sum(total[name] or 0.0 for name in ("gpu_kwh", "package_kwh"))
    return float(total["device_hours"].get("GPU", 0.0) * gpu_hour + energy * kwh)
