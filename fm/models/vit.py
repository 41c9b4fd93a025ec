"""The packed 3D vision transformer.

Shape legend: T patch tokens of the pack, N all tokens (class token and registers included), S sequences, D channels,
H heads, C channels per head, R registers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fm.batch import PackedTokens
from fm.config.errors import UserError
from fm.data.sample import Agent, Contrast, Plane
from fm.models.attention import Pack, packed_attention
from fm.models.names import load_former_name
from fm.models.patch import ConvStem, LinearStem
from fm.models.position import FourierPosition, rotary_table, rotate

if TYPE_CHECKING:  # the benchmark on a bare GPU machine has torch alone, no transformers
    from fm.models.config import FmConfig


@dataclass(kw_only=True)  # no slots: DeepSpeed's ZeRO-3 hooks look for tensors in vars() of what a module returns
class VitOutput:
    """Features of a pack: class tokens and patch tokens, before and after the last norm."""

    class_SD: Tensor
    tokens_TD: Tensor
    stream_class_SD: Tensor
    """Before the last norm, which takes from a token how strongly it speaks; pooling over tokens needs it."""
    stream_tokens_TD: Tensor


Branch = Callable[[Tensor, "Tensor | None", Pack], Tensor]
"""The attention or the MLP of a block, its norm and scale included."""


class Attention(nn.Module):
    """Multi-head self-attention within each sequence, rotary positions, optional LayerNorm of queries and keys."""

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.attend = packed_attention

    def forward(self, x_ND: Tensor, table: Tensor | None, pack: Pack) -> Tensor:
        """(N, D) to (N, D); without a table, tokens have no position."""
        q_NHC, k_NHC, v_NHC = self.qkv(x_ND).unflatten(1, (3, self.heads, -1)).unbind(1)
        q_NHC, k_NHC = self.q_norm(q_NHC), self.k_norm(k_NHC)
        if table is not None:
            q_NHC, k_NHC = rotate(q_NHC, table), rotate(k_NHC, table)
        out: Tensor = self.out(self.attend(q_NHC, k_NHC, v_NHC, pack).flatten(1))
        return out


class Mlp(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.up = nn.Linear(dim, int(dim * ratio))
        self.down = nn.Linear(int(dim * ratio), dim)

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) to (N, D)."""
        out: Tensor = self.down(F.gelu(self.up(x_ND)))
        return out


class SwiGlu(nn.Module):
    """A gated MLP (arXiv 2002.05202), two thirds as wide and rounded up to a multiple of 8, as in DINOv2."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = (int(int(dim * ratio) * 2 / 3) + 7) // 8 * 8
        self.up = nn.Linear(dim, 2 * hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) to (N, D)."""
        gate, value = self.up(x_ND).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * value)
        return out


class LayerScale(nn.Module):
    """A learnt factor per channel (CaiT, arXiv 2103.17239)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) to (N, D)."""
        return x_ND * self.scale


class Block(nn.Module):
    """A pre-norm transformer block.

    In training, stochastic depth (arXiv 1603.09382) leaves whole sequences out of a branch: they are not computed, as
    in DINOv2's efficient form, and the branch of the others is scaled up so that its expectation stays.
    """

    def __init__(self, config: FmConfig, *, layer_scale: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6)
        self.attention = Attention(config.dim, config.heads, config.qk_norm)
        self.scale1 = LayerScale(config.dim) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6)
        self.mlp = (SwiGlu if config.mlp == "swiglu" else Mlp)(config.dim, config.mlp_ratio)
        self.scale2 = LayerScale(config.dim) if layer_scale else nn.Identity()

    def forward(self, x_ND: Tensor, table: Tensor | None, pack: Pack) -> Tensor:
        """(N, D) to (N, D)."""
        if self.training and self.drop_path > 0:
            return self._some(self._some(x_ND, table, pack, self._attend), table, pack, self._feed)
        x_ND = x_ND + self._attend(x_ND, table, pack)
        return x_ND + self._feed(x_ND, table, pack)

    def _attend(self, x_ND: Tensor, table: Tensor | None, pack: Pack) -> Tensor:
        out: Tensor = self.scale1(self.attention(self.norm1(x_ND), table, pack))
        return out

    def _feed(self, x_ND: Tensor, table: Tensor | None, pack: Pack) -> Tensor:
        out: Tensor = self.scale2(self.mlp(self.norm2(x_ND)))
        return out

    def _some(self, x_ND: Tensor, table: Tensor | None, pack: Pack, branch: Branch) -> Tensor:
        """Add the branch to a random choice of sequences, at least one."""
        count = len(pack.lengths)
        kept = min(count, max(1, round(count * (1 - self.drop_path))))
        if kept == count:
            return x_ND + branch(x_ND, table, pack)
        part, rows = pack.part(sorted(torch.randperm(count)[:kept].tolist()))
        own = table.index_select(1, rows) if table is not None else None
        return x_ND.index_add(0, rows, branch(x_ND.index_select(0, rows), own, part), alpha=count / kept)


class Condition(nn.Module):
    """What the headers say of a series (contrast, plane, contrast agent, spacing), as one vector per sequence."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.contrast = nn.Embedding(len(Contrast), dim)
        self.plane = nn.Embedding(len(Plane), dim)
        self.agent = nn.Embedding(len(Agent), dim)
        self.spacing = nn.Linear(3, dim)

    def forward(self, views: PackedTokens) -> Tensor:
        """(S, D)."""
        log_mm = views.spacing_S3.log().to(self.spacing.weight.dtype)
        words = self.contrast(views.contrast_S) + self.plane(views.plane_S) + self.agent(views.agent_S)
        out: Tensor = words + self.spacing(log_mm)
        return out


class Prefix(nn.Module):
    """Class token and registers, a module of their own: ZeRO-3 gathers weights where a leaf module's forward runs."""

    def __init__(self, registers: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(1 + registers, dim))

    def forward(self, condition_SD: Tensor) -> Tensor:
        """(S, D) conditions to (S, 1 + R, D): the class token first, each with its sequence's condition added."""
        return self.tokens + condition_SD.unsqueeze(1)


class VisionTransformer(nn.Module):
    """Patches in millimetres to one class token per series view and one token per patch.

    A sequence is [class token, registers, patches]; class token and registers sit at the origin, the centre of the
    foreground box. The result of a sequence depends on nothing else in the pack.
    """

    def __init__(self, config: FmConfig) -> None:
        super().__init__()
        self.config = config
        self.prefix = Prefix(config.registers, config.dim)
        load_former_name(self, "prefix", "prefix.tokens")
        patch = _triple(config.patch_voxels)
        longest, shortest = config.rope_max_period_mm, config.rope_min_period_mm
        if config.patch_stem == "conv":
            self.stem: nn.Module = ConvStem(
                patch, _triple(config.cell_voxels), config.cell_channels, config.dim, (shortest, longest)
            )
        else:
            self.stem = LinearStem(patch, config.dim)
        self.absolute = FourierPosition(config.dim, shortest, longest) if config.absolute_position else None
        self.condition = Condition(config.dim)
        scaled = config.layer_scale > 0
        self.blocks = nn.ModuleList(
            Block(config, layer_scale=scaled, drop_path=config.drop_path) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.checkpoint_blocks = False
        """Keep only what enters a block, and compute the block again in the backward pass."""
        self.compiled = False

    def forward(self, views: PackedTokens, replace: Callable[[Tensor], Tensor] | None = None) -> VitOutput:
        """Encode every sequence of a pack.

        Args:
            views: the pack.
            replace: puts other (T, D) tokens in the place of what the stem made of some patches, before any position.
        """
        lengths = views.lengths
        sequences, device = len(lengths), views.patches_TP.device
        sequence_T = torch.repeat_interleave(
            torch.arange(sequences, device=device), views.offsets_S1.diff(), output_size=views.patches_TP.shape[0]
        )
        condition_SD = self.condition(views)
        x_TD = self._embed(views, sequence_T, condition_SD, replace)
        prefix_length = 1 + self.config.registers
        patch_row_T = torch.arange(x_TD.shape[0], device=device) + prefix_length * (sequence_T + 1)
        first_S = views.offsets_S1[:-1] + prefix_length * torch.arange(sequences, device=device)
        prefix_row = (first_S.unsqueeze(1) + torch.arange(prefix_length, device=device)).flatten()
        prefix_SRD = self.prefix(condition_SD)

        rows = x_TD.shape[0] + prefix_row.shape[0]
        if sequences > 1:
            # Autocast promotes neither copy in place.
            wide = torch.promote_types(x_TD.dtype, prefix_SRD.dtype)
            x_ND = x_TD.new_zeros(rows, self.config.dim, dtype=wide).index_copy_(0, patch_row_T, x_TD.to(wide))
            x_ND = x_ND.index_copy_(0, prefix_row, prefix_SRD.flatten(0, 1).to(wide))
        else:  # the same, without going row by row forward and backward
            x_ND = torch.cat([prefix_SRD.flatten(0, 1), x_TD])
        position_N3 = views.position_T3.new_zeros(rows, 3).index_copy(0, patch_row_T, views.position_T3)
        table = rotary_table(
            position_N3,
            self.config.dim // self.config.heads,
            self.config.rope_min_period_mm,
            self.config.rope_max_period_mm,
            x_ND.dtype if x_ND.is_cuda else torch.float32,
        )
        pack = Pack.of([n + prefix_length for n in lengths], device)
        for block in self.blocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x_ND = checkpoint(block, x_ND, table, pack, use_reentrant=False)
            else:
                x_ND = block(x_ND, table, pack)
        normed_ND = self.norm(x_ND)
        if sequences == 1:
            first, patches = slice(0, 1), slice(prefix_length, None)
            return VitOutput(
                class_SD=normed_ND[first],
                tokens_TD=normed_ND[patches],
                stream_class_SD=x_ND[first],
                stream_tokens_TD=x_ND[patches],
            )
        return VitOutput(
            class_SD=normed_ND.index_select(0, first_S),
            tokens_TD=normed_ND.index_select(0, patch_row_T),
            stream_class_SD=x_ND.index_select(0, first_S),
            stream_tokens_TD=x_ND.index_select(0, patch_row_T),
        )

    def _embed(
        self,
        views: PackedTokens,
        sequence_T: Tensor,
        condition_SD: Tensor,
        replace: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """(T, D) patches as the blocks take them: stem, what replaces it, absolute position, condition."""
        x_TD: Tensor = self.stem(views.patches_TP.to(self.prefix.tokens.dtype), views, sequence_T)
        if replace is not None:
            x_TD = replace(x_TD)
        if self.absolute is not None:
            x_TD = x_TD + self.absolute(views.position_T3)
        # The gradient of a gather is a sum over tokens: float32, or bf16 would round it away. One row is broadcast.
        condition_TD = condition_SD.float()
        if len(condition_SD) != 1:
            condition_TD = condition_TD.index_select(0, sequence_T)
        return x_TD + condition_TD.to(x_TD.dtype)

    def compile_blocks(self) -> None:
        """Let torch.compile build each block around its attention; call on the device that trains.

        The attention itself loops over sequences whose number changes with every batch, so it stays as it is.

        Raises:
            UserError: the machine has no compiler to do it with.
        """
        require_compiler()
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention.attend = torch.compiler.disable(packed_attention)
            block.compile(dynamic=True)
        self.compiled = True


def require_compiler() -> None:
    """Refuse torch.compile where it could only fail at the first step.

    Raises:
        UserError: neither CUDA with triton nor a C++ compiler is there.
    """
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as err:
        raise UserError(
            "model.compile_blocks=true needs a C++ compiler on a CPU and this machine has none: "
            "install g++ (or name one in CXX), or set model.compile_blocks=false"
        ) from err


def _triple(sizes: list[int] | tuple[int, ...]) -> tuple[int, int, int]:
    d, h, w = sizes
    return d, h, w
