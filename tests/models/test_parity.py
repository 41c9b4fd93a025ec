"""The packed ViT against other implementations of the same function: transformers' DINOv2, and a padded batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from fm.batch import PackedTokens
from fm.models import FmConfig
from fm.models.attention import Pack
from fm.models.position import rotary_table
from fm.models.vit import Attention, VisionTransformer

MakePack = Callable[..., PackedTokens]


def _theirs(swiglu: bool) -> Dinov2WithRegistersModel:
    torch.manual_seed(0)
    model = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            mlp_ratio=4,
            patch_size=4,
            image_size=20,
            num_channels=1,
            num_register_tokens=2,
            use_swiglu_ffn=swiglu,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.1)
        model.embeddings.position_embeddings.zero_()
    return model


def _config(swiglu: bool) -> FmConfig:
    return FmConfig(
        patch_voxels=[1, 4, 4],
        dim=48,
        depth=3,
        heads=4,
        mlp="swiglu" if swiglu else "gelu",
        registers=2,
        qk_norm=False,
        layer_scale=1.0,
        absolute_position=False,
    )


def _pairs(theirs: Dinov2WithRegistersModel, ours: VisionTransformer) -> list[tuple[Tensor, list[Tensor]]]:
    """Each of our parameters, and theirs that it is made of, end to end."""
    stem, found = theirs.embeddings.patch_embeddings.projection, []
    found.append((ours.stem.linear.weight, [stem.weight.flatten(1)]))
    found.append((ours.stem.linear.bias, [stem.bias]))
    found.append((ours.prefix.tokens, [theirs.embeddings.cls_token[0], theirs.embeddings.register_tokens[0]]))
    for layer, block in zip(theirs.encoder.layer, ours.blocks, strict=True):
        mlp = layer.mlp
        up, down = ([mlp.fc1], mlp.fc2) if hasattr(mlp, "fc1") else ([mlp.gate_proj, mlp.up_proj], mlp.down_proj)
        parts = [getattr(layer.attention, name) for name in ("q_proj", "k_proj", "v_proj")]
        for name in ("weight", "bias"):
            found.append((getattr(block.attention.qkv, name), [getattr(part, name) for part in parts]))
            for own, others in (
                (block.norm1, [layer.norm1]),
                (block.norm2, [layer.norm2]),
                (block.attention.out, [layer.attention.o_proj]),
                (block.mlp.up, up),
                (block.mlp.down, [down]),
            ):
                found.append((getattr(own, name), [getattr(other, name) for other in others]))
        found.append((block.scale1.scale, [layer.layer_scale1.lambda1]))
        found.append((block.scale2.scale, [layer.layer_scale2.lambda1]))
    found += [(getattr(ours.norm, n), [getattr(theirs.layernorm, n)]) for n in ("weight", "bias")]
    return found


@pytest.mark.parametrize("swiglu", [False, True])
def test_equals_dinov2_with_registers_in_outputs_and_gradients(swiglu: bool) -> None:
    """Once positions, QK norm and conditions are off; the two do their sums in another order, hence 1e-5."""
    theirs, ours = _theirs(swiglu), VisionTransformer(_config(swiglu))
    with torch.no_grad():
        for p in ours.condition.parameters():
            p.zero_()
        for own, other in _pairs(theirs, ours):
            own.copy_(torch.cat(other))
    images = torch.randn(2, 1, 20, 12)
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).reshape(2 * 15, 16)
    pack = PackedTokens(
        patches_TP=patches,
        position_T3=torch.zeros(30, 3),
        offsets_S1=torch.tensor([0, 15, 30]),
        contrast_S=torch.zeros(2, dtype=torch.int64),
        plane_S=torch.zeros(2, dtype=torch.int64),
        agent_S=torch.zeros(2, dtype=torch.int64),
        step_S33=torch.eye(3).repeat(2, 1, 1),
        study_S=torch.arange(2),
    )
    want, got = theirs(images).last_hidden_state, ours(pack)
    torch.testing.assert_close(got.class_SD, want[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.tokens_TD.view(2, 15, 48), want[:, 3:], rtol=1e-5, atol=1e-5)
    weight = torch.randn(2, 15, 48)
    (want[:, 0].sum() + (want[:, 3:] * weight).sum()).backward()
    (got.class_SD.sum() + (got.tokens_TD.view(2, 15, 48) * weight).sum()).backward()
    # _pairs flattens the convolution, so gradients are read from the parameters themselves.
    conv = theirs.embeddings.patch_embeddings.projection.weight
    assert conv.grad is not None
    close(ours.stem.linear.weight.grad, conv.grad.flatten(1))
    for own, other in _pairs(theirs, ours)[3:]:
        close(own.grad, torch.cat([p.grad for p in other]))
    tokens = theirs.embeddings.cls_token.grad[0], theirs.embeddings.register_tokens.grad[0]
    close(ours.prefix.tokens.grad, torch.cat(tokens))


def close(got: Tensor | None, want: Tensor) -> None:
    """Within 1e-5 of the largest entry."""
    assert got is not None
    assert (got - want).abs().max() <= 1e-5 * want.abs().max().clamp(min=1)


def padded(q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, pack: Pack) -> Tensor:
    """The same attention as a padded batch with a mask over keys."""
    longest = max(pack.lengths)
    batched = []
    for x in (q_THC, k_THC, v_THC):
        rows = [F.pad(part, (0, 0, 0, 0, 0, longest - len(part))) for part in x.split(pack.lengths)]
        batched.append(torch.stack(rows).transpose(1, 2))
    real = torch.arange(longest) < torch.tensor(pack.lengths).unsqueeze(1)
    out = F.scaled_dot_product_attention(*batched, attn_mask=real[:, None, None]).transpose(1, 2)
    return out[real]


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_packed_equals_padded_in_outputs_and_gradients(mlp: str, tiny_config: FmConfig, make_pack: MakePack) -> None:
    tiny_config.mlp = mlp
    torch.manual_seed(0)
    vit, pack = VisionTransformer(tiny_config), make_pack([7, 1, 12], [0, 0, 1])
    with torch.no_grad():
        for p in vit.parameters():
            p.normal_(std=0.1)
    weight, results = torch.randn(20, 48), []
    for attend in (vit.blocks[0].attention.attend, padded):
        for block in vit.blocks:
            block.attention.attend = attend
        out = vit(pack)
        loss = (out.tokens_TD * weight).sum() + out.class_SD.sum()
        results.append((out, torch.autograd.grad(loss, list(vit.parameters()))))
    (packed, grads), (batched, wanted) = results
    torch.testing.assert_close(packed.tokens_TD, batched.tokens_TD, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.class_SD, batched.class_SD, rtol=1e-5, atol=1e-5)
    for got, want in zip(grads, wanted, strict=True):
        close(got, want)


def test_attention_sees_differences_of_position_only() -> None:
    torch.manual_seed(0)
    layer, x = Attention(48, 2, qk_norm=True), torch.randn(9, 48)
    position, pack = 100 * torch.randn(9, 3), Pack.of([4, 5], torch.device("cpu"))

    def at(place: Tensor) -> Tensor:
        out: Tensor = layer(x, rotary_table(place, 24, 16.0, 800.0, torch.float32), pack)
        return out

    here = at(position)
    torch.testing.assert_close(at(position + torch.tensor([37.0, -12.5, 80.0])), here, rtol=1e-4, atol=1e-5)
    assert (at(1.1 * position) - here).abs().max() > 1e-3
    assert (layer(x, None, pack) - here).abs().max() > 1e-3
