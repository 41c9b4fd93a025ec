"""The phantom: simulated studies with known truth, written as the DICOM and reports that hospitals send."""

from __future__ import annotations

from data_prep.phantom.driver import PhantomError, PhantomSummary, simulate

__all__ = ["PhantomError", "PhantomSummary", "simulate"]
