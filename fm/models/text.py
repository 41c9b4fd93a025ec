"""The text encoder, mean-pooled: a BERT from sizes, whose tokens may first look at their neighbours, or a local one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fm.batch import TextBatch
from fm.config.errors import UserError
from fm.models.config import FmConfig


class Phrase(nn.Module):
    """Adds to each token what a window of its neighbours says: a one-layer convolution over word embeddings."""

    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        self.window = window
        # At unit size the words outweigh the position embeddings, which shuffled sentences make noise.
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(window * dim, dim)

    def forward(self, words_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """(B, L, D) word embeddings to (B, L, D); padding is zero to its neighbours."""
        words_BLD = self.norm(words_BLD) * mask_BL.unsqueeze(2)
        half, length = self.window // 2, words_BLD.shape[1]
        padded = F.pad(words_BLD, (0, 0, half, half))
        near = torch.cat([padded[:, i : i + length] for i in range(self.window)], dim=2)
        out: Tensor = words_BLD + F.gelu(self.mix(near))
        return out


class TextEncoder(nn.Module):
    """Token ids to one vector per text: the mean of the last layer over the text's own tokens."""

    def __init__(self, config: FmConfig) -> None:
        super().__init__()
        self.training_kind, self.lora_rank = config.text_training, config.lora_rank
        self.bert: PreTrainedModel = (
            _encoder(config.text_model)
            if config.text_model is not None
            else BertModel(
                BertConfig(
                    vocab_size=config.vocab_size,
                    hidden_size=config.text_dim,
                    num_hidden_layers=config.text_depth,
                    num_attention_heads=config.text_heads,
                    intermediate_size=4 * config.text_dim,
                    max_position_embeddings=config.text_max_tokens,
                    type_vocab_size=1,
                    hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0,
                ),
                add_pooling_layer=False,
            )
        )
        self.phrase = Phrase(config.text_dim, config.text_window) if config.text_window > 1 else None

    @property
    def dim(self) -> int:
        """Length of the vector of a text."""
        return int(self.bert.config.hidden_size)

    def choose_trained(self) -> None:
        """Freeze the encoder, or add low-rank maps to it, as configured; after its weights were drawn."""
        if self.training_kind == "full":
            return
        self.bert.requires_grad_(False)
        if self.training_kind == "lora":
            from peft import LoraConfig, inject_adapter_in_model

            rank = self.lora_rank
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), self.bert)

    def train(self, mode: bool = True) -> TextEncoder:
        """As of any module, but a frozen encoder draws no dropout."""
        super().train(mode)
        if self.training_kind == "frozen":
            self.bert.train(False)
        return self

    def load(self, folder: str) -> None:
        """Take the weights of a local folder, whatever low-rank maps are there already.

        Raises:
            UserError: no safetensors there, or not those of its configuration.
        """
        if not any(Path(folder).glob("*.safetensors")):
            raise UserError(f"model.text_from={folder}: no *.safetensors there; other formats may run code")
        try:
            theirs = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            ).state_dict()
        except Exception as err:  # safetensors, json and transformers report damage through many types
            raise UserError(f"model.text_from={folder}: not readable ({type(err).__name__})") from err
        with torch.no_grad():
            for name, parameter in self.bert.named_parameters():
                if "lora_" not in name:
                    parameter.copy_(theirs[name.replace(".base_layer.", ".")])

    def forward(self, text: TextBatch) -> Tensor:
        """(B, text_dim); a row without any token gives zeros."""
        mask = text.mask_BL.clone()
        mask[:, 0] = True
        if self.phrase is None:
            output = self.bert(input_ids=text.ids_BL, attention_mask=mask.long())
        else:
            words_BLD = self.phrase(self.bert.get_input_embeddings()(text.ids_BL), mask)
            output = self.bert(inputs_embeds=words_BLD, attention_mask=mask.long())
        hidden_BLD = output.last_hidden_state
        weight_BL1 = text.mask_BL.unsqueeze(2).to(hidden_BLD.dtype)
        pooled: Tensor = (hidden_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)
        return pooled


def read_text_config(folder: str, max_tokens: int, vocab_size: int) -> dict[str, Any]:
    """The configuration of the encoder in a local folder, without names and paths of where it came from.

    Args:
        folder: what ``model.text_from`` names.
        max_tokens: longest text that it will be given.
        vocab_size: entries of the tokenizer.

    Raises:
        UserError: nothing readable there, no encoder, or one for shorter texts or fewer tokens.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as err:  # as above
        raise UserError(
            f"model.text_from={folder}: no configuration there that this version of transformers knows "
            f"({type(err).__name__})"
        ) from err
    if config.is_encoder_decoder or config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(f"model.text_from={folder}: {config.model_type} is no bidirectional text encoder")
    if max_tokens > (longest := getattr(config, "max_position_embeddings", max_tokens)):
        raise UserError(f"model.text_max_tokens={max_tokens}: the encoder in {folder} reads at most {longest}")
    if vocab_size > config.vocab_size:
        raise UserError(
            f"model.text_from={folder}: its encoder knows {config.vocab_size} tokens, its tokenizer has {vocab_size}"
        )
    values: dict[str, Any] = config.to_dict()
    origin = {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}
    return {name: value for name, value in values.items() if name not in origin}


def _encoder(values: dict[str, Any]) -> PreTrainedModel:
    """An encoder of the library itself from its configuration, with random weights and without a pooler."""
    model: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(**values), dtype=torch.float32)
    if getattr(model, "pooler", None) is not None:
        model.register_module("pooler", None)  # its weights would never see a gradient
    return model
