"""Weights of real models of transformers and MONAI, saved as safetensors, in our encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import ViT
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from fm.batch import PackedTokens
from fm.config.errors import UserError
from fm.models import FmConfig, FmModel
from fm.models.init import load_image_weights

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 4,
    "image_size": 20,
    "attn_implementation": "eager",
}


def _ours(**changes: Any) -> FmModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "patch_voxels": [1, 4, 4], "dim": 48, "depth": 2, "heads": 4, "registers": 2, "qk_norm": False,
        "absolute_position": False, "text_dim": 16, "text_depth": 1, "text_heads": 2, "embed_dim": 16,
        "vocab_size": 20,
    }  # fmt: skip
    return FmModel(FmConfig(**settings | changes)).eval()


def _random(model: nn.Module, *zero: str) -> nn.Module:
    """Every weight drawn, but those whose names hold one of `zero`: what a millimetre model has no place for."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.zeros(()) if any(part in name for part in zero) else 0.1 * torch.randn(p.shape, generator=g))
    return model.eval()


def _encode(model: FmModel, patches_TP: Tensor) -> Any:
    """One series without position and condition."""
    with torch.no_grad():
        for p in model.image.condition.parameters():
            p.zero_()
    zero = torch.zeros(1, dtype=torch.int64)
    pack = PackedTokens(
        patches_TP=patches_TP,
        position_T3=torch.zeros(len(patches_TP), 3),
        offsets_S1=torch.tensor([0, len(patches_TP)]),
        contrast_S=zero,
        plane_S=zero,
        agent_S=zero,
        step_S33=torch.eye(3)[None],
        study_S=zero,
    )
    return model.image(pack)


@pytest.mark.parametrize(("swiglu", "depth"), [(False, 1), (False, 4), (True, 4)])
def test_a_2d_dinov2_gives_on_equal_slices_what_it_gave_on_the_grey_picture(
    swiglu: bool, depth: int, tmp_path: Path
) -> None:
    config = Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2, use_swiglu_ffn=swiglu)
    theirs = _random(Dinov2WithRegistersModel(config), "position_embeddings")
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    model = _ours(patch_voxels=[depth, 4, 4], mlp="swiglu" if swiglu else "gelu")
    unused = load_image_weights(model, str(tmp_path))
    assert unused == [name for name in unused if "mask_token" in name]
    picture = torch.randn(1, 1, 20, 12)
    want = theirs(picture.expand(1, 3, 20, 12)).last_hidden_state[0]
    slices = picture[0].unfold(1, 4, 4).unfold(2, 4, 4).reshape(15, 1, 16).expand(15, depth, 16).flatten(1)
    got = _encode(model, slices)
    torch.testing.assert_close(got.class_SD[0], want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.tokens_TD, want[3:], rtol=1e-5, atol=1e-5)


def _as_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Dinov2Model of transformers under the names of DINOv2's own repository: queries, keys and values in one."""
    out, layers = {}, {name.split(".")[2] for name in state if name.startswith("encoder.layer.")}
    for layer in layers:
        a, b = f"encoder.layer.{layer}.", f"blocks.0.{layer}."  # as its training checkpoints, in chunks of blocks
        parts = [[n for n in state if n.startswith(a) and f".{part}" in n] for part in ("query", "key", "value")]
        for kind in ("weight", "bias"):
            out[f"{b}attn.qkv.{kind}"] = torch.cat([state[next(n for n in p if n.endswith(kind))] for p in parts])
            out[f"{b}attn.proj.{kind}"] = state[f"{a}attention.output.dense.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{b}{name}.{kind}"] = state[f"{a}{name}.{kind}"]
        out[f"{b}ls1.gamma"], out[f"{b}ls2.gamma"] = (state[f"{a}layer_scale{i}.lambda1"] for i in (1, 2))
    out |= {f"norm.{kind}": state[f"layernorm.{kind}"] for kind in ("weight", "bias")}
    out |= {f"patch_embed.proj.{k}": state[f"embeddings.patch_embeddings.projection.{k}"] for k in ("weight", "bias")}
    names = {"cls_token": "cls_token", "pos_embed": "position_embeddings", "mask_token": "mask_token"}
    return out | {name: state[f"embeddings.{other}"] for name, other in names.items()}


def test_published_names_give_the_same_and_the_class_token_keeps_its_position(tmp_path: Path) -> None:
    theirs = _random(Dinov2Model(Dinov2Config(**SIZES)))
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    state = load_file(tmp_path / "model.safetensors")
    save_file(_as_published(state), tmp_path / "published.safetensors")
    one, two = _ours(), _ours()
    load_image_weights(one, str(tmp_path / "model.safetensors"))
    assert load_image_weights(two, str(tmp_path / "published.safetensors")) == ["mask_token"]
    for (name, a), b in zip(one.image.named_parameters(), two.image.parameters(), strict=True):
        assert torch.equal(a, b), name
    want = state["embeddings.cls_token"][0, 0] + state["embeddings.position_embeddings"][0, 0]
    assert torch.equal(one.image.prefix.tokens[0], want)
    assert torch.equal(one.image.prefix.tokens[1:], _ours().image.prefix.tokens[1:]), "it has no registers"


@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_3dino_names_and_patches_of_three_axes(prefix: str, tmp_path: Path) -> None:
    """DINOv2's own names, a patch embedding of 3D convolution, the wrapping of a training checkpoint."""
    theirs = _random(Dinov2Model(Dinov2Config(**SIZES)))
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    published = _as_published(load_file(tmp_path / "model.safetensors"))
    kernel = torch.randn(48, 1, 4, 4, 4)
    published |= {"patch_embed.proj.weight": kernel, "pos_embed": torch.zeros(1, 28, 48)}
    head = {"dino_head.mlp.0.weight": torch.zeros(3, 3)} if prefix else {}
    save_file({prefix + name: value for name, value in published.items()} | head, tmp_path / "3dino.safetensors")
    model = _ours(patch_voxels=[4, 4, 4])
    unused = load_image_weights(model, str(tmp_path / "3dino.safetensors"))
    assert unused == [*head, prefix + "mask_token"]
    volume = torch.randn(1, 1, 8, 12, 4)
    want = nn.functional.conv3d(volume, kernel, published["patch_embed.proj.bias"], stride=4)[0].flatten(1).T
    patches = volume[0, 0].unfold(0, 4, 4).unfold(1, 4, 4).unfold(2, 4, 4).reshape(6, 64)
    torch.testing.assert_close(model.image.stem.linear(patches), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.image.blocks[1].mlp.up.weight, published["blocks.0.1.mlp.fc1.weight"])


@pytest.mark.parametrize("projection", ["conv", "perceptron"])
@pytest.mark.parametrize("layer_scale", [0.0, 1e-5])
def test_a_monai_vit_is_the_same_function(projection: str, layer_scale: float, tmp_path: Path) -> None:
    theirs = _random(
        ViT(
            in_channels=1, img_size=(8, 12, 8), patch_size=4, hidden_size=48, mlp_dim=192, num_layers=2, num_heads=4,
            proj_type=projection, classification=True,
        ),
        "position_embeddings",
    )  # fmt: skip
    save_file(theirs.state_dict(), tmp_path / "monai.safetensors")
    model = _ours(patch_voxels=[4, 4, 4], layer_scale=layer_scale)
    unused = load_image_weights(model, str(tmp_path / "monai.safetensors"))
    assert all("position" in name or "cross_attn" in name or "classification_head" in name for name in unused)
    volume = torch.randn(1, 1, 8, 12, 8)
    tokens = theirs.patch_embedding(volume)
    tokens = torch.cat([theirs.cls_token, tokens], 1)
    for block in theirs.blocks:
        tokens = block(tokens)
    want = theirs.norm(tokens)[0]
    patches = volume[0, 0].unfold(0, 4, 4).unfold(1, 4, 4).unfold(2, 4, 4).reshape(12, 64)
    with torch.no_grad():
        model.image.prefix.tokens[1:] = 0
    got = _bare(model, patches)
    assert (got - want).abs().max() < 1e-4


def _bare(model: FmModel, patches_TP: Tensor) -> Tensor:
    """Class and patch tokens without registers, which MONAI's ViT does not have."""
    vit = FmModel(FmConfig(**{**model.config.to_dict(), "registers": 0}))
    state = model.image.state_dict()
    vit.image.load_state_dict({**state, "prefix.tokens": state["prefix.tokens"][:1]})
    out = _encode(vit, patches_TP)
    return torch.cat([out.class_SD, out.tokens_TD])


def test_our_own_export_starts_a_model_of_another_patch_size(tmp_path: Path, make_pack: Callable[..., Any]) -> None:
    source = _ours(patch_voxels=[2, 4, 4], qk_norm=True, absolute_position=True)
    source.save_pretrained(tmp_path)
    same, other = (_ours(patch_voxels=p, qk_norm=True, absolute_position=True) for p in ([2, 4, 4], [2, 8, 8]))
    with torch.no_grad():
        other.image.norm.weight.fill_(7.0)
    assert all(not name.startswith("image.") for name in load_image_weights(same, str(tmp_path)))
    load_image_weights(other, str(tmp_path))
    pack = make_pack([5, 3], [0, 1])
    assert torch.equal(same.image(pack).tokens_TD, source.image(pack).tokens_TD)
    big = pack.patches_TP.view(8, 1, 2, 4, 4)
    pack.patches_TP = nn.functional.interpolate(big, size=(2, 8, 8), mode="trilinear").flatten(1)
    torch.testing.assert_close(other.image(pack).tokens_TD, same.image(make_pack([5, 3], [0, 1])).tokens_TD)


def test_a_mismatch_names_the_key_to_set(tmp_path: Path) -> None:
    _random(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES))).save_pretrained(tmp_path)  # type: ignore[operator]
    path = str(tmp_path)
    for model, message in (
        (_ours(), r"set model\.registers=4"),
        (_ours(registers=4, depth=3), r"lacks blocks\.2\..*set model\.depth"),
        (_ours(registers=4, depth=1), r"has blocks\.1\..*set model\.depth"),
        (_ours(registers=4, layer_scale=0.0), r"set model\.layer_scale"),
        (_ours(registers=4, dim=24), r"tokens of 48 channels, model\.dim=24"),
        (_ours(registers=4, mlp_ratio=2.0), r"mlp\.up.* is 192.* there and 96"),
        (_ours(registers=4, patch_stem="conv", cell_voxels=[1, 2, 2]), r"needs model\.patch_stem=linear"),
    ):
        before = [p.clone() for p in model.image.parameters()]
        with pytest.raises(UserError, match=message) as refused:
            load_image_weights(model, path)
        assert "\n" not in str(refused.value) and str(refused.value).startswith("model.init_from=")
        assert all(torch.equal(a, b) for a, b in zip(before, model.image.parameters(), strict=True))
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="names of no ViT"):
        load_image_weights(_ours(), str(tmp_path / "other.safetensors"))
    (tmp_path / "weights.pt").write_bytes(b"pickle")
    with pytest.raises(UserError, match="no safetensors there"):
        load_image_weights(_ours(), str(tmp_path / "weights.pt"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(UserError, match="not readable"):
        load_image_weights(_ours(), str(tmp_path / "cut.safetensors"))
