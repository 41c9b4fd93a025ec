"""The labels that a study's report gives: by rules, or by a local language model."""

from __future__ import annotations

from data_prep.reports.findings import Mention, as_labels, findings_of, mentions, read_findings
from data_prep.reports.models import answers
from fm.config.prepare import Labeller, PrepareConfig
from fm.data.sample import LabelValue, Report


def report_labels(report: Report | None, region: str, config: PrepareConfig) -> dict[str, LabelValue]:
    """``report_FINDING`` to 1 (stated) or 0 (denied) for what findings and impression mention; {} without a labeller.

    Args:
        report: de-identified.
        region: body region of the study, whose findings are sought.
        config: which labeller.

    Raises:
        UserError: the findings file or the model cannot be used.
    """
    if report is None or config.labeller == Labeller.none:
        return {}
    findings = findings_of(read_findings(config.findings_file), region)
    found: dict[str, Mention]
    if config.labeller == Labeller.model:
        found = answers(report.diagnostic, findings, config.labeller_model)
    else:
        found = mentions(report.diagnostic, findings)
    return dict(as_labels(found))
