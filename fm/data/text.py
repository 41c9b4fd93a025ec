"""Reports to token batches; in training, sentences are shuffled and some left out."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from fm.batch import TextBatch
from fm.config.data import DataConfig
from fm.data.phrases import PhraseTable
from fm.data.plan import stable_hash

_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")


def augment_text(text: str, data: DataConfig, rng: np.random.Generator) -> str:
    """The text with its sentences shuffled and some dropped, by configuration; never empty where `text` is not."""
    sentences = [s.strip() for s in _SENTENCE.split(text) if s.strip()]
    if not sentences:
        return text
    kept = [s for s in sentences if rng.random() >= data.sentence_dropout] or [
        sentences[int(rng.integers(len(sentences)))]
    ]
    if data.sentence_shuffle:
        kept = [kept[i] for i in rng.permutation(len(kept))]
    return " ".join(kept)


def text_batch(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    originals: Sequence[str] | None = None,
    phrases: PhraseTable | None = None,
) -> TextBatch:
    """Tokenise texts, right-padded to the longest; an empty text is an absent one.

    Args:
        texts: what the encoder reads.
        tokenizer: cuts at its ``model_max_length``.
        originals: the same reports before augmentation, for ``identity_B`` and ``phrases_BK``; `texts` where None.
        phrases: what to look for in the originals; nothing where None.
    """
    encoded, cut = truncated(texts, tokenizer)
    length = max((len(ids) for ids in encoded), default=1)
    ids = torch.full((len(texts), max(length, 1)), int(tokenizer.pad_token_id or 0), dtype=torch.int64)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (tokens, text) in enumerate(zip(encoded, texts, strict=True)):
        if text:
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
    whole = texts if originals is None else originals
    hits = torch.zeros(len(texts), len(phrases.phrases) if phrases else 0, dtype=torch.bool)
    if phrases is not None and hits.numel():
        for row, ids_of in enumerate(tokenizer(list(whole), truncation=True, add_special_tokens=False)["input_ids"]):
            hits[row] = torch.from_numpy(phrases.hits(ids_of))
    return TextBatch(
        ids_BL=ids,
        mask_BL=mask,
        present_B=torch.tensor([bool(text) for text in texts], dtype=torch.bool),
        identity_B=torch.tensor([stable_hash(text) if text else 0 for text in whole], dtype=torch.int64),
        phrases_BK=hits,
        cut_B=torch.tensor(cut, dtype=torch.int64),
    )


def truncated(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> tuple[list[list[int]], list[int]]:
    """Token ids of each text, cut at the tokenizer's ``model_max_length``, and how many tokens that left out."""
    if not texts:
        return [], []
    found = tokenizer(list(texts), truncation=True, padding=False, return_overflowing_tokens=True)
    encoded: list[list[int]] = []
    cut: list[int] = []
    special = tokenizer.num_special_tokens_to_add()
    for ids, row in zip(found["input_ids"], found["overflow_to_sample_mapping"], strict=True):
        if row == len(encoded):
            encoded.append(ids)
            cut.append(0)
        else:  # what was left out comes behind, in pieces
            cut[row] += len(ids) - special
    return encoded, cut
