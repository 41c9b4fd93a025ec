"""The text encoder: a BERT from configuration, mean-pooled."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import BertConfig, BertModel

from fm.batch import TextBatch
from fm.models.config import FmConfig


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

    def forward(self, text: TextBatch) -> Tensor:
        """(B, text_dim); a row without any token gives zeros."""
        mask = text.mask_BL.clone()
        mask[:, 0] = True
        hidden_BLD = self.bert(input_ids=text.ids_BL, attention_mask=mask.long()).last_hidden_state
        weight_BL1 = text.mask_BL.unsqueeze(2).to(hidden_BLD.dtype)
        pooled: Tensor = (hidden_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)
        return pooled
