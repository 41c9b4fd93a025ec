"""Local models over reports: a token classifier that looks for names, a language model that answers about findings.

Both come from a folder, with safetensors; nothing is fetched, and no code of theirs is run. transformers is imported
when a model is first used: a preparation without one never loads torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from data_prep.reports.findings import Finding, Mention, State
from data_prep.reports.people import REMOVED
from fm.config.errors import UserError

_ANSWERS = (
    (State.PRESENT, " present"),
    (State.ABSENT, " absent"),
    (State.OPEN, " uncertain"),
    (None, " not mentioned"),
)
_STRIDE = 32
"""Tokens that neighbouring windows of a long text share."""


def remove_named(text: str, model: str, labels: Collection[str]) -> str:
    """Replace what a token classifier names by ``[removed]``.

    Args:
        text: a section of a report.
        model: folder of the model.
        labels: entities that count, without B- and I-; empty: all of them.
    """
    for start, end in reversed(_spans(text, model, labels)):
        text = text[:start] + REMOVED + text[end:]
    return text


def names_left(text: str, model: str, labels: Collection[str]) -> bool:
    """Whether the classifier names anything in a scrubbed text, but for what stands for what was removed."""
    return any(text[start:end].strip("[]. ") not in ("", "removed") for start, end in _spans(text, model, labels))


def answers(text: str, findings: Sequence[Finding], model: str) -> dict[str, Mention]:
    """What a causal language model says of each finding: the likeliest of four answers, none of them drawn.

    Args:
        text: findings and impression of a report.
        findings: what is asked for, one question each.
        model: folder of the model.
    """
    import torch

    tokenizer, network = _language_model(model)
    room = int(getattr(network.config, "max_position_embeddings", 2048))
    found: dict[str, Mention] = {}
    for finding in findings:
        question = f"\nIn this MRI report, {finding.words} is stated as present, absent, uncertain or not mentioned:"
        tail = tokenizer(question, add_special_tokens=False)["input_ids"]
        options = [tokenizer(words, add_special_tokens=False)["input_ids"] for _, words in _ANSWERS]
        space = room - len(tail) - max(len(option) for option in options)
        if space < 1:
            raise UserError(f"prepare.labeller_model={model}: its {room} positions hold no question; take another")
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"][:space] + tail
        scores = []
        with torch.inference_mode():
            for option in options:
                logits = network(torch.tensor([prompt + option])).logits[0, len(prompt) - 1 : -1]
                chosen = logits.log_softmax(-1).gather(1, torch.tensor(option)[:, None])
                scores.append(float(chosen.mean()))
        state = _ANSWERS[scores.index(max(scores))][0]
        if state is not None:
            found[finding.name] = Mention(state, "")
    return found


def _spans(text: str, model: str, labels: Collection[str]) -> list[tuple[int, int]]:
    """(start, end) of what the classifier names, joined where only spaces part it; long texts in windows."""
    import torch

    if not text.strip():
        return []
    tokenizer, network = _token_classifier(model)
    room = min(int(getattr(network.config, "max_position_embeddings", 512)), 512)
    windows = tokenizer(
        text,
        truncation=True,
        max_length=room,
        stride=min(_STRIDE, room // 4),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found: set[tuple[int, int]] = set()
    for ids, offsets in zip(windows["input_ids"], windows["offset_mapping"], strict=True):
        with torch.inference_mode():
            classes = network(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        for number, (start, end) in zip(classes, offsets, strict=True):
            entity = str(network.config.id2label[number]).removeprefix("B-").removeprefix("I-")
            if start < end and entity != "O" and (not labels or entity in labels):
                found.add((start, end))
    joined: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if joined and not text[joined[-1][1] : start].strip():
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


@lru_cache(maxsize=1)
def _token_classifier(folder: str) -> tuple[Any, Any]:
    from transformers import AutoModelForTokenClassification

    return _load(folder, AutoModelForTokenClassification, "ner_model")


@lru_cache(maxsize=1)
def _language_model(folder: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    return _load(folder, AutoModelForCausalLM, "labeller_model")


def _load(folder: str, kind: Any, key: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, **options)
        network = kind.from_pretrained(folder, use_safetensors=True, **options).eval()
    except (OSError, ValueError, KeyError) as err:
        raise UserError(
            f"prepare.{key}={folder}: no local model that transformers can load ({type(err).__name__}); it needs "
            "config.json, model.safetensors and tokenizer.json"
        ) from None
    return tokenizer, network
