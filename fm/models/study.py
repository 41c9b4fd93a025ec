"""The attention study encoder: the series of a study read one another, knowing what each of them is.

Shape legend: S series views, T patch tokens, G groups (studies, or each series alone), D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fm.batch import PackedTokens
from fm.models.attention import Pack
from fm.models.config import FmConfig
from fm.models.pool import GatedPool
from fm.models.vit import Block, Condition, Prefix


class StudyTransformer(nn.Module):
    """Tokens of any number of series to one vector per study, in two levels as in HLIP (arXiv 2505.21862).

    The tokens of each series are pooled apart (:class:`GatedPool`) and joined with its class token and with what its
    headers say (contrast, plane, contrast agent, spacing); a transformer without positions over the study's own token
    and its series follows. Cost grows with the tokens, not with their square. The order of the series has no meaning,
    and a missing one is absent.
    """

    def __init__(self, config: FmConfig) -> None:
        super().__init__()
        self.token = Prefix(0, config.dim)
        self.condition = Condition(config.dim)
        self.summary = GatedPool(config.dim, config.pool_heads)
        self.merge = nn.Linear(2 * config.dim, config.dim)
        # No LayerScale: starting near zero, it would hide the series from the study's token.
        self.blocks = nn.ModuleList(Block(config, layer_scale=False) for _ in range(config.study_depth))
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)

    def forward(self, class_SD: Tensor, tokens_TD: Tensor, views: PackedTokens, group_S: Tensor, groups: int) -> Tensor:
        """Class tokens, patch tokens and the group of each series to (G, D); zeros for a group without series."""
        series, device = class_SD.shape[0], class_SD.device
        own_T = torch.arange(series, device=device).repeat_interleave(
            views.offsets_S1.diff(), output_size=tokens_TD.shape[0]
        )
        summary_SD = self.summary(tokens_TD, own_T, series)
        series_SD = self.merge(torch.cat([class_SD, summary_SD], 1)) + self.condition(views)
        count_G = torch.bincount(group_S, minlength=groups)
        present = count_G.nonzero().squeeze(1)
        pack = Pack.of((count_G[present] + 1).tolist(), device)
        first = pack.offsets_S1[:-1].long()
        order = group_S.argsort(stable=True)
        slot_G = (count_G > 0).long().cumsum(0)
        row = torch.arange(series, device=device) + slot_G.index_select(0, group_S.index_select(0, order))
        token = self.token(series_SD.new_zeros(len(present), series_SD.shape[1])).flatten(0, 1)
        x_ND = series_SD.new_zeros(series + len(present), series_SD.shape[1])
        x_ND = x_ND.index_copy(0, row, series_SD.index_select(0, order)).index_copy(0, first, token)
        for block in self.blocks:
            x_ND = block(x_ND, None, pack)
        study = self.norm(x_ND.index_select(0, first))
        out: Tensor = study.new_zeros(groups, study.shape[1]).index_copy(0, present, study)
        return out
