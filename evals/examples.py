"""Retrieval examples: studies with a finding, from the best found to the worst, beside the texts they brought up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evals.cohort import Cohort, word
from evals.matching import Gallery, MatchData
from evals.results import Example, Match
from fm.config.suite import SuiteConfig
from fm.probes.retrieval import worst_ranks

TOP = 3


def choose_gallery(galleries: Sequence[Gallery], region: str) -> Gallery | None:
    """The region's own gallery with normals; else the first one; None where there is none."""
    whole = [g for g in galleries if g.normals]
    own = [g for g in whole if g.region == region]
    return next(iter([*own, *whole]), None)


def make_examples(gallery: Gallery, data: MatchData, cohort: Cohort, suite: SuiteConfig) -> list[Example]:
    """Queries at even steps through the studies with a lesion, by rank; through all where none is labelled so."""
    scores = np.asarray(data.image_NE[gallery.rows] @ data.text_NE[gallery.rows].T)
    ranks = worst_ranks(scores, gallery.relevant)
    lesion = [word(cohort.studies[i].labels.get(suite.lesion_label)) for i in gallery.rows]
    queries = [q for q, value in enumerate(lesion) if value not in (None, "0")] or list(range(len(gallery.rows)))
    queries.sort(key=lambda q: (int(ranks[q]), q))
    count = min(suite.examples, len(queries))
    chosen = [queries[round(i * (len(queries) - 1) / max(count - 1, 1))] for i in range(count)]
    examples = []
    for query in dict.fromkeys(chosen):
        study = cohort.studies[gallery.rows[query]]
        best = np.argsort(-scores[query], kind="stable")[:TOP]
        examples.append(
            Example(
                key=study.key,
                region=study.region,
                gallery_size=len(gallery.rows),
                rank=int(ranks[query]),
                relevant=int(gallery.relevant[query].sum()),
                own_text=data.texts[gallery.rows[query]],
                matches=[
                    Match(
                        key=cohort.studies[gallery.rows[g]].key,
                        text=data.texts[gallery.rows[g]],
                        hit=bool(gallery.relevant[query, g]),
                    )
                    for g in best
                ],
            )
        )
    return examples
