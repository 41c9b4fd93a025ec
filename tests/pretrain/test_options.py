"""A run with the model's options on: another's text encoder with LoRA, another's image weights, study attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model

import fm
from fm.data.tokenizer import train_tokenizer
from fm.models import FmModel


@pytest.mark.full
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_from_others_weights_trains_what_it_should_and_is_exported(
    stage: int,
    tmp_path: Path,
    dataset: str,
    new_run: Callable[..., Path],
    scenarios: Callable[..., str],
    rows: Callable[[Path], list[dict[str, Any]]],
) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([(f"p{i}", "bright mass in the left hemisphere") for i in range(5)], 700, 5, 40)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text, image = tmp_path / "text", tmp_path / "image"
    BertModel(BertConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=40)).save_pretrained(text)
    tokenizer.save_pretrained(text)
    vit = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=14, image_size=28)
    Dinov2Model(vit).save_pretrained(image)
    run = new_run(
        tmp_path / "run", dataset, "max_steps=3", "launch.processes=1", "trainer.precision=fp32",
        f"trainer.stage={stage}",
        "model.patch_stem=linear", "model.layer_scale=1e-5", "model.study_encoder=attention", "model.drop_path=0.2",
        "model.checkpoint_blocks=true", f"model.init_from={image}", f"model.text_from={text}",
        "model.text_training=lora", "model.lora_rank=2", "model.text_window=1",
        "data.sentence_dropout=0",
    )  # fmt: skip
    scenarios(1, f"plain={run}")
    losses = [row["loss"] for row in rows(run)]
    assert len(losses) == 3 and len(set(losses)) == 3
    told = [(row["reports_cut"], row["report_tokens_cut"]) for row in rows(run)]
    assert [cut for cut, _ in told] == [8, 16, 24], "no report fits into 24 tokens, and that is told"
    assert [lost // 8 > 0 for _, lost in told] == [True] * 3 and told == sorted(told)
    exported = FmModel.from_pretrained(run / "export").state_dict()
    words = load_file(text / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(exported["text.bert.embeddings.word_embeddings.weight"], words)
    added = [value for name, value in exported.items() if "lora_B" in name]
    assert added and all(value.any() for value in added)
    encoder = fm.load_encoder(run / "export", patch_voxels=(4, 8, 8))
    assert encoder.embed_text("bright mass").shape == (16,)
    assert encoder.tokenizer is not None and encoder.tokenizer.model_max_length == 24
