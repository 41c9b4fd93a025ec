from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from fm.batch import PackedTokens, concat
from fm.models import FmConfig
from fm.models.vit import VisionTransformer

MakePack = Callable[..., PackedTokens]


def _vit(config: FmConfig) -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(config)
    with torch.no_grad():
        for p in vit.parameters():
            p.normal_(std=0.2)
    return vit


def _one(pack: PackedTokens, s: int) -> PackedTokens:
    a, b = int(pack.offsets_S1[s]), int(pack.offsets_S1[s + 1])
    names = ("contrast_S", "plane_S", "agent_S", "step_S33", "study_S")
    return replace(
        pack,
        patches_TP=pack.patches_TP[a:b],
        position_T3=pack.position_T3[a:b],
        offsets_S1=torch.tensor([0, b - a]),
        **{name: getattr(pack, name)[s : s + 1] for name in names},
    )


def test_packed_equals_one_by_one_in_outputs_and_gradients(tiny_config: FmConfig, make_pack: MakePack) -> None:
    vit, pack = _vit(tiny_config), make_pack([7, 1, 12], [0, 0, 1])
    together = vit(pack)
    alone = [vit(_one(pack, s)) for s in range(3)]
    tokens = torch.cat([o.tokens_TD for o in alone])
    classes = torch.cat([o.class_SD for o in alone])
    torch.testing.assert_close(together.tokens_TD, tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.class_SD, classes, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(tokens)
    parameters = list(vit.parameters())
    got = torch.autograd.grad((together.tokens_TD * weight).sum() + together.class_SD.sum(), parameters)
    want = torch.autograd.grad((tokens * weight).sum() + classes.sum(), parameters)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_order_of_sequences_and_of_patches_changes_nothing(tiny_config: FmConfig, make_pack: MakePack) -> None:
    vit, pack = _vit(tiny_config), make_pack([7, 1, 12], [0, 0, 1])
    reference = vit(pack)
    shuffled = vit(concat([_one(pack, s) for s in (2, 0, 1)]))
    torch.testing.assert_close(shuffled.class_SD, reference.class_SD[[2, 0, 1]], rtol=1e-5, atol=1e-5)
    order = torch.randperm(12)
    last = _one(pack, 2)
    turned = replace(last, patches_TP=last.patches_TP[order], position_T3=last.position_T3[order])
    torch.testing.assert_close(vit(turned).tokens_TD, reference.tokens_TD[8:][order], rtol=1e-5, atol=1e-5)


def test_a_left_right_mirrored_scan_is_another_scan(tiny_config: FmConfig, make_pack: MakePack) -> None:
    vit, pack = _vit(tiny_config), make_pack([9], [0])
    mirrored = replace(pack, position_T3=pack.position_T3 * torch.tensor([-1.0, 1.0, 1.0]))
    assert (vit(pack).class_SD - vit(mirrored).class_SD).abs().max() > 1e-2


def test_every_condition_reaches_the_class_token(tiny_config: FmConfig, make_pack: MakePack) -> None:
    vit, pack = _vit(tiny_config), make_pack([4], [0])
    before = vit(pack).class_SD
    for change in (
        {"contrast_S": pack.contrast_S + 1},
        {"plane_S": (pack.plane_S + 1) % 3},
        {"agent_S": (pack.agent_S + 1) % 3},
        {"step_S33": pack.step_S33 * 1.5},
    ):
        assert (vit(replace(pack, **change)).class_SD - before).abs().max() > 1e-3, change


def test_equals_dinov2_with_registers_with_copied_weights() -> None:
    """Same blocks as transformers' Dinov2WithRegistersModel once positions, QK norm and conditions are off."""
    torch.manual_seed(0)
    theirs = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            mlp_ratio=4,
            patch_size=4,
            image_size=20,
            num_channels=1,
            num_register_tokens=2,
            attn_implementation="eager",
        )
    ).eval()
    config = FmConfig(
        patch_voxels=[1, 4, 4],
        dim=48,
        depth=3,
        heads=4,
        registers=2,
        qk_norm=False,
        layer_scale=1.0,
        absolute_position=False,
    )
    ours = VisionTransformer(config)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.15)
        theirs.embeddings.position_embeddings.zero_()
        for p in ours.condition.parameters():
            p.zero_()
        _copy_dinov2(theirs, ours)
    image = torch.randn(2, 1, 20, 12)
    patches = image.unfold(2, 4, 4).unfold(3, 4, 4).reshape(2 * 15, 16)
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
    want = theirs(image).last_hidden_state
    got = ours(pack)
    torch.testing.assert_close(got.class_SD, want[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.tokens_TD.view(2, 15, 48), want[:, 3:], rtol=1e-4, atol=1e-4)


def _copy_dinov2(theirs: Dinov2WithRegistersModel, ours: VisionTransformer) -> None:
    embeddings = theirs.embeddings
    ours.prefix.tokens.copy_(torch.cat([embeddings.cls_token[0], embeddings.register_tokens[0]]))
    ours.stem.linear.weight.copy_(embeddings.patch_embeddings.projection.weight.flatten(1))
    ours.stem.linear.bias.copy_(embeddings.patch_embeddings.projection.bias)
    ours.norm.load_state_dict(theirs.layernorm.state_dict())
    for layer, block in zip(theirs.encoder.layer, ours.blocks, strict=True):
        inner = layer.attention
        for name in ("weight", "bias"):
            parts = [getattr(getattr(inner, part), name) for part in ("q_proj", "k_proj", "v_proj")]
            getattr(block.attention.qkv, name).copy_(torch.cat(parts))
        block.attention.out.load_state_dict(inner.o_proj.state_dict())
        block.norm1.load_state_dict(layer.norm1.state_dict())
        block.norm2.load_state_dict(layer.norm2.state_dict())
        block.mlp.up.load_state_dict(layer.mlp.fc1.state_dict())
        block.mlp.down.load_state_dict(layer.mlp.fc2.state_dict())
        block.scale1.scale.copy_(layer.layer_scale1.lambda1)
        block.scale2.scale.copy_(layer.layer_scale2.lambda1)
