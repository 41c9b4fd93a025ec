"""Image encoders that others trained, as a start: names mapped, 2D inflated to 3D, patches resampled.

Covered by their names: DINOv2 and DINOv3 as published and in transformers, 3DINO (DINOv2 with 3D patches), MONAI's ViT,
and exports of this platform. Only safetensors are read.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fm.config.errors import UserError
from fm.models.config import FmConfig
from fm.models.model import FmModel
from fm.models.patch import LinearStem, Sizes, resample_weight

log = logging.getLogger(__name__)

_BLOCK = r"^(?:model\.|encoder\.)*(?:layer|layers|blocks)\.(?:\d+\.)?(\d+)\."
_WRAPPING = r"^(?:teacher\.|module\.|backbone\.)+"
"""What training checkpoints of DINOv2 and 3DINO put before a name."""
_RULES: tuple[tuple[str, str], ...] = (
    (_BLOCK + r"(norm[12])\.", r"blocks.\1.\2."),
    (_BLOCK + r"(?:attn|attention)\.qkv\.", r"blocks.\1.attention.qkv."),
    (_BLOCK + r"attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.", r"blocks.\1.attention.\2."),
    (_BLOCK + r"(?:attn\.(?:out_)?proj|attention\.output\.dense|attention\.o_proj)\.", r"blocks.\1.attention.out."),
    (_BLOCK + r"(?:ls|layer_scale)([12])\.(?:gamma|lambda1)$", r"blocks.\1.scale\2.scale"),
    (_BLOCK + r"mlp\.(?:fc1|linear1|w12|weights_in)\.", r"blocks.\1.mlp.up."),
    (_BLOCK + r"mlp\.(?:fc2|linear2|w3|weights_out|down_proj)\.", r"blocks.\1.mlp.down."),
    (_BLOCK + r"mlp\.gate_proj\.", r"blocks.\1.mlp.gate."),
    (_BLOCK + r"mlp\.up_proj\.", r"blocks.\1.mlp.up_proj."),
    (r"^(?:layer)?norm\.", "norm."),
    (r"^(?:embeddings\.|patch_embedding\.)?cls_token$", "class"),
    (r"^(?:embeddings\.)?(?:register|storage)_tokens$", "registers"),
    (r"^(?:embeddings\.position_embeddings|pos_embed)$", "class_position"),
    (
        r"^(?:embeddings\.patch_embeddings(?:\.projection)?|patch_embed\.proj|patch_embedding\.patch_embeddings(?:\.1)?)\.",
        "stem.linear.",
    ),
)
"""Their names to ours. Absolute positions of patches are left behind: ours are in millimetres."""


def load_image_weights(model: FmModel, path: str) -> list[str]:
    """Start the image encoder from a local safetensors file or folder.

    A 2D patch embedding is summed over its colours (a grey image is three equal ones) and spread over the slices, so
    that a patch of equal slices gives what the slice gave in 2D; then it is resampled to the model's patch size.

    Returns:
        Names in the file that were not used.

    Raises:
        UserError: nothing readable there, names of no known ViT, or another architecture than the model's.
    """
    stored = _read(Path(path), path)
    if "image.norm.weight" in stored:
        values = _own(stored, model, path)
        unused = [name for name in stored if not name.startswith("image.")]
    else:
        values, unused = _foreign(stored, model, path)
    state = model.image.state_dict()
    for name, value in values.items():
        if name not in state:
            raise UserError(f"model.init_from={path}: has {name}, which the configured model lacks; {_advice(name)}")
        if state[name].shape != value.shape:
            raise UserError(
                f"model.init_from={path}: {name} is {_shape(value)} there and {_shape(state[name])} in the model; "
                "set model.dim, heads, mlp, mlp_ratio and registers as they were"
            )
    if absent := [name for name in state if name not in values and name.startswith(("blocks.", "norm.", "stem."))]:
        rest = [name for name in absent if not re.search(r"\.[qk]_norm\.", name)]
        if rest:
            raise UserError(f"model.init_from={path}: lacks {rest[0]}; {_advice(rest[0])}")
    model.image.load_state_dict({**state, **values})
    log.info("image encoder starts from %s: %d tensors, %d of its own not used", path, len(values), len(unused))
    return unused


def _read(path: Path, told: str) -> dict[str, Tensor]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or any(file.suffix != ".safetensors" or not file.is_file() for file in files):
        raise UserError(f"model.init_from={told}: no safetensors there; other formats may run code and stay shut")
    try:
        return {name: value.float() for file in files for name, value in load_file(file).items()}
    except (OSError, SafetensorError) as err:
        raise UserError(f"model.init_from={told}: not readable ({type(err).__name__})") from err


def _own(stored: Mapping[str, Tensor], model: FmModel, path: str) -> dict[str, Tensor]:
    """The image tower of one of our exports, its patches resampled."""
    values = {name.removeprefix("image."): value for name, value in stored.items() if name.startswith("image.")}
    if "prefix" in values:
        values["prefix.tokens"] = values.pop("prefix")
    if isinstance(model.image.stem, LinearStem) and "stem.linear.weight" in values:
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        if not (folder / "config.json").is_file():
            raise UserError(f"model.init_from={path}: needs the config.json of its export beside it")
        d, h, w = FmConfig.from_pretrained(folder, local_files_only=True).patch_voxels
        if math.prod((d, h, w)) == values["stem.linear.weight"].shape[1]:
            weight = values["stem.linear.weight"]
            values["stem.linear.weight"] = resample_weight(weight, (d, h, w), model.image.stem.patch_voxels)
    return values


def _foreign(stored: Mapping[str, Tensor], model: FmModel, path: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of another ViT under our names, and what was left."""
    found, unused = {}, []
    for name, value in stored.items():
        bare = re.sub(_WRAPPING, "", name)
        ours = next((re.sub(rule, to, bare) for rule, to in _RULES if re.search(rule, bare)), None)
        if ours is None:
            unused.append(name)
        else:
            found[ours] = value
    if "norm.weight" not in found or "stem.linear.weight" not in found:
        raise UserError(f"model.init_from={path}: names of no ViT that is known here, e.g. {next(iter(stored), '-')}")
    if not isinstance(model.image.stem, LinearStem):
        raise UserError(f"model.init_from={path}: needs model.patch_stem=linear")
    found["stem.linear.weight"] = _stem(found["stem.linear.weight"], model.image.stem.patch_voxels, path)
    _fuse(found)
    _prefix(found, model, path)
    for name in model.image.state_dict():
        if name.endswith(("scale1.scale", "scale2.scale")) and name not in found:
            found[name] = torch.ones(model.config.dim)  # a ViT without LayerScale
    return found, unused


def _stem(weight: Tensor, patch: Sizes, path: str) -> Tensor:
    """(D, P) weights for our patch from (D, C, h, w), (D, C, d, h, w) or (D, P) ones."""
    if weight.ndim in (4, 5):
        sizes = weight.shape[2:] if weight.ndim == 5 else (1, *weight.shape[2:])
        return resample_weight(weight.sum(1).flatten(1), (sizes[0], sizes[1], sizes[2]), patch)
    voxels = weight.shape[1]
    edge = round(voxels ** (1 / 3))
    if voxels != math.prod(patch) and edge**3 != voxels:
        raise UserError(f"model.init_from={path}: its {voxels} voxels are no cube; set model.patch_voxels to its patch")
    return resample_weight(weight, patch if voxels == math.prod(patch) else (edge, edge, edge), patch)


def _fuse(found: dict[str, Tensor]) -> None:
    """Join separate queries, keys and values, and separate gates; a map without bias has a bias of zero."""
    for name in [name for name in found if name.endswith(".attention.q.weight")]:
        stem = name.removesuffix("q.weight")
        weights = [found.pop(f"{stem}{part}.weight") for part in "qkv"]
        biases = [found.pop(f"{stem}{part}.bias", weights[0].new_zeros(len(weights[0]))) for part in "qkv"]
        found[f"{stem}qkv.weight"], found[f"{stem}qkv.bias"] = torch.cat(weights), torch.cat(biases)
    for name in [name for name in found if name.endswith(".mlp.up_proj.weight") or name.endswith(".mlp.up_proj.bias")]:
        gate = found.pop(name.replace(".up_proj.", ".gate."), None)
        value = found.pop(name)
        found[name.replace(".up_proj.", ".up.")] = value if gate is None else torch.cat([gate, value])
    for name in [name for name in found if name.endswith(".attention.qkv.weight")]:
        found.setdefault(name.replace(".weight", ".bias"), found[name].new_zeros(len(found[name])))


def _prefix(found: dict[str, Tensor], model: FmModel, path: str) -> None:
    """Class token, with the position it always had, and registers; those that are not there stay random."""
    tokens = model.image.prefix.tokens.detach().clone()
    position = found.pop("class_position", None)
    if (token := found.pop("class", None)) is not None:
        token = token.reshape(-1)
        if token.shape != tokens[0].shape:
            raise UserError(f"model.init_from={path}: tokens of {len(token)} channels, model.dim={model.config.dim}")
        tokens[0] = token if position is None else token + position.reshape(-1, len(token))[0]
    if (registers := found.pop("registers", None)) is not None:
        registers = registers.flatten(0, -2)
        if len(registers) > len(tokens) - 1:
            raise UserError(f"model.init_from={path}: set model.registers={len(registers)}, as many as it has")
        tokens[1 : 1 + len(registers)] = registers
    found["prefix.tokens"] = tokens


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape))


def _advice(name: str) -> str:
    if "scale" in name:
        return "set model.layer_scale=1e-5, or 0 where the weights have none"
    if "_norm" in name:
        return "set model.qk_norm=true"
    return "set model.depth, patch_stem, mlp and absolute_position as they were"
