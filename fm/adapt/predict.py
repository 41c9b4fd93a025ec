"""A fine-tuned model as its users meet it: studies in, predictions out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from fm.adapt.network import VIEW, AdaptedNetwork
from fm.adapt.targets import Scheme
from fm.config.task import Mode
from fm.data.volume import SeriesImage
from fm.models.encoder import EncoderError, load_encoder

HEAD_FILE = "head.safetensors"
TASK_FILE = "task.json"


class Predictor:
    """Encoder, head and how its outputs are read."""

    def __init__(self, network: AdaptedNetwork, scheme: Scheme) -> None:
        self.network = network.requires_grad_(False).eval()
        self.scheme = scheme

    @torch.no_grad()
    def predict(self, studies: Sequence[Sequence[SeriesImage]]) -> list[dict[str, Any]]:
        """For each study ``prediction`` (a class, or a number in the label's unit) and ``p_<class>`` of each class."""
        pack = self.network.fm.pack_series(studies)
        out_BK = self.network({VIEW: pack}, len(studies)).logits[VIEW].double()
        if not self.scheme.classes:
            values = out_BK[:, 0] * self.scheme.scale + self.scheme.mean
            return [{"prediction": float(value)} for value in values]
        rows = []
        for shares_K in out_BK.softmax(1).cpu().numpy():
            classes = self.scheme.classes
            each = {f"p_{word}": float(share) for word, share in zip(classes, shares_K, strict=True)}
            rows.append({"prediction": classes[int(np.argmax(shares_K))], **each})
        return rows


def load_predictor(folder: str | Path) -> Predictor:
    """What fm finetune exported.

    Raises:
        EncoderError: no such export there, or a damaged one.
    """
    path = Path(folder)
    if not (path / TASK_FILE).is_file() or not (path / HEAD_FILE).is_file():
        raise EncoderError(f"{folder}: no fine-tuned model there ({TASK_FILE} and {HEAD_FILE}); see fm finetune")
    fm = load_encoder(path).model
    try:
        values = json.loads((path / TASK_FILE).read_text(encoding="utf-8"))
        values.pop("step")
        scheme = Scheme(**values)
        network = AdaptedNetwork(fm, scheme.outputs, Mode.frozen)
        head = {name.removeprefix("head."): value for name, value in load_file(path / HEAD_FILE).items()}
        network.head.load_state_dict(head)
    except Exception as err:  # safetensors, json and torch report damage through many types
        raise EncoderError(f"{folder}: not a readable fine-tuned model ({type(err).__name__})") from err
    return Predictor(network, scheme)
