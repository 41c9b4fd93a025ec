"""The text encoder: a BERT from configuration, mean-pooled, over tokens that may first look at their neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from fm.batch import TextBatch
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
        self.bert = BertModel(
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
        self.phrase = Phrase(config.text_dim, config.text_window) if config.text_window > 1 else None

    def forward(self, text: TextBatch) -> Tensor:
        """(B, text_dim); a row without any token gives zeros."""
        mask = text.mask_BL.clone()
        mask[:, 0] = True
        if self.phrase is None:
            output = self.bert(input_ids=text.ids_BL, attention_mask=mask.long())
        else:
            words_BLD = self.phrase(self.bert.embeddings.word_embeddings(text.ids_BL), mask)
            output = self.bert(inputs_embeds=words_BLD, attention_mask=mask.long())
        hidden_BLD = output.last_hidden_state
        weight_BL1 = text.mask_BL.unsqueeze(2).to(hidden_BLD.dtype)
        pooled: Tensor = (hidden_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)
        return pooled
