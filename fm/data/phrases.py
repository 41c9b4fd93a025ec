"""Phrases of the training reports that an image can be asked for: words and pairs of words that many reports hold.

Whether "left maxillary" or "no lesion" stands in a report is a question with an answer for each study alone, so it
teaches from the first step, where contrast between studies first has to learn which words matter (visual n-grams, Li
et al., arXiv 1612.09161). Phrases are token ids of a vocabulary that holds no name, and each stands in many reports.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from fm.config.errors import UserError

Phrase = tuple[int, ...]

_ENOUGH = 20_000
"""Reports that are counted at most: shares of a few per cent are known well from far fewer."""


@dataclass(slots=True)
class PhraseTable:
    """K phrases in a fixed order."""

    phrases: list[Phrase]
    """Token ids: one token, or two that follow each other."""
    shares: list[float]
    """Share of the training reports that hold each."""
    _column: dict[Phrase, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Index the phrases."""
        self._column = {phrase: column for column, phrase in enumerate(self.phrases)}

    def hits(self, ids: Sequence[int]) -> NDArray[np.bool_]:
        """(K,) which phrases a text holds, given its token ids."""
        found = np.zeros(len(self.phrases), dtype=bool)
        columns = [self._column[phrase] for phrase in _phrases(ids) if phrase in self._column]
        found[columns] = True
        return found

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps({"phrases": self.phrases, "shares": self.shares}), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> PhraseTable:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: not there, or damaged.
        """
        try:
            table = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls([tuple(map(int, phrase)) for phrase in table["phrases"]], [float(x) for x in table["shares"]])
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise UserError(f"{path}: no readable table of phrases ({type(err).__name__}); start the run anew") from err


def common_phrases(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, min_share: float, max_share: float
) -> PhraseTable:
    """Tokens and pairs of tokens that at least `min_share` and at most `max_share` of the texts hold.

    Rarer ones are noise to a small data set, commoner ones say nothing.
    """
    count: Counter[Phrase] = Counter()
    total = 0
    for text in islice(texts, _ENOUGH):
        count.update(_phrases(tokenizer(text, truncation=True, add_special_tokens=False)["input_ids"]))
        total += 1
    kept = sorted(phrase for phrase, n in count.items() if min_share * total <= n <= max_share * total)
    return PhraseTable(kept, [count[phrase] / total for phrase in kept])


def _phrases(ids: Sequence[int]) -> set[Phrase]:
    return {(a,) for a in ids} | set(pairwise(ids))
