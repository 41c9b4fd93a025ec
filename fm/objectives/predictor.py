"""A light network that answers for hidden patches from what the encoder made of the visible ones.

Shape legend: S sequences, V visible patches of the pack, M hidden ones, C = S + V rows of context, D channels of the
encoder, E channels in here, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fm.config.masking import PredictorConfig
from fm.models.attention import Pack, cross_attention
from fm.models.config import FmConfig
from fm.models.position import FourierPosition, rotary_table, rotate
from fm.models.vit import Mlp, Prefix


@dataclass(kw_only=True, slots=True)
class Places:
    """Where visible and hidden patches lie, in mm, and how many of them each sequence has."""

    visible_V3: Tensor
    hidden_M3: Tensor
    visible_S: list[int]
    hidden_S: list[int]


class CrossBlock(nn.Module):
    """Cross-attention to the context and an MLP, both pre-norm with a residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4.0)

    def forward(
        self, x_ME: Tensor, context_CE: Tensor, tables: tuple[Tensor, Tensor], packs: tuple[Pack, Pack]
    ) -> Tensor:
        """(M, E) to (M, E); rotary tables and packs of queries and of context."""
        q_MHC = rotate(self.query(self.norm1(x_ME)).unflatten(1, (self.heads, -1)), tables[0])
        k_CHC, v_CHC = self.key_value(context_CE).unflatten(1, (2, self.heads, -1)).unbind(1)
        found = cross_attention(q_MHC, rotate(k_CHC, tables[1]), v_CHC.contiguous(), *packs)
        x_ME = x_ME + self.out(found.flatten(1))
        out: Tensor = x_ME + self.mlp(self.norm2(x_ME))
        return out


class Predictor(nn.Module):
    """Hidden patches as queries (a learnt token and their position in mm) to class token and visible patches."""

    def __init__(self, config: PredictorConfig, encoder: FmConfig, outputs: int) -> None:
        super().__init__()
        self.config = config
        self.periods_mm = encoder.rope_min_period_mm, encoder.rope_max_period_mm
        self.token = Prefix(0, config.dim)
        self.place = FourierPosition(config.dim, *self.periods_mm)
        self.enter = nn.Linear(encoder.dim, config.dim)
        self.context_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.blocks = nn.ModuleList(CrossBlock(config.dim, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.leave = nn.Linear(config.dim, outputs)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Truncated normal of standard deviation 1/√fan-in, as the prototype heads; the token N(0, 0.02²)."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=part.in_features**-0.5)
                nn.init.zeros_(part.bias)
        nn.init.normal_(self.token.tokens, std=0.02)

    def forward(self, class_SD: Tensor, visible_VD: Tensor, places: Places) -> Tensor:
        """(S, D) class tokens and (V, D) visible patches to (M, O) answers for the hidden patches."""
        device = class_SD.device
        lengths = [n + 1 for n in places.visible_S]
        packs = Pack.of(places.hidden_S, device), Pack.of(lengths, device)
        first_S = packs[1].offsets_S1[:-1].long()
        rows = torch.ones(sum(lengths), dtype=torch.bool, device=device)
        rows[first_S] = False
        row_V = rows.nonzero().squeeze(1)
        context_CD = class_SD.new_zeros(len(rows), class_SD.shape[1])
        context_CD = context_CD.index_copy(0, first_S, class_SD).index_copy(0, row_V, visible_VD)
        position_C3 = places.visible_V3.new_zeros(len(rows), 3).index_copy(0, row_V, places.visible_V3)
        context_CE = self.context_norm(self.enter(context_CD))
        x_ME = self.token(self.place(places.hidden_M3)).squeeze(1)
        tables = self._table(places.hidden_M3, x_ME), self._table(position_C3, x_ME)
        for block in self.blocks:
            x_ME = block(x_ME, context_CE, tables, packs)
        out: Tensor = self.leave(self.norm(x_ME))
        return out

    def _table(self, position_T3: Tensor, like: Tensor) -> Tensor:
        dtype = like.dtype if like.is_cuda else torch.float32
        return rotary_table(position_T3, self.config.dim // self.config.heads, *self.periods_mm, dtype)


class MaskToken(nn.Module):
    """The learnt token that stands in place of hidden patches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = Prefix(0, dim)
        nn.init.normal_(self.token.tokens, std=0.02)

    def forward(self, x_TD: Tensor, mask_T: Tensor) -> Tensor:
        """(T, D) tokens with those of the mask replaced."""
        rows = mask_T.nonzero().squeeze(1)
        token_MD = self.token(x_TD.new_zeros(len(rows), x_TD.shape[1])).squeeze(1)
        return x_TD.index_copy(0, rows, token_MD.to(x_TD.dtype))
