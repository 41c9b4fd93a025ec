"""Encoders of other libraries, read from local files and measured by the same suite as our own.

Each series gives the class token (where there is one), the mean and the maximum of all patch tokens; a study the mean
of its series' class tokens, and mean and maximum over all of its tokens, so that probes meet the same three summaries
as of our own encoder. Weights are safetensors: no pickle of others is opened, and no code that a folder names is run.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fm.data.volume import SeriesImage
from fm.models.encoder import EncoderError, Features, StudyFeatures
from fm.models.pool import mean_max

log = logging.getLogger(__name__)

SLICES = 24
"""Slices of a series that a 2D encoder looks at, evenly spread over the body."""
SLICE_BATCH = 8


class ForeignEncoder(ABC):
    """A network of another library behind the questions of an evaluation; it reads no text."""

    tokenizer = None
    texts_cut = 0
    text_tokens_cut = 0

    def __init__(self, network: nn.Module, config: dict[str, Any], anew: Callable[[], nn.Module]) -> None:
        """Freeze a network.

        Args:
            network: with its weights.
            config: what the report prints of it.
            anew: makes the same network with random weights.
        """
        network.train(False)
        self.network = network.requires_grad_(False)
        self.config = config
        self._anew = anew

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    @abstractmethod
    def tokens(self, image: SeriesImage) -> tuple[Tensor, Tensor]:
        """(n, D) class tokens and (T, D) patch tokens of one series; n is 0 where the network has no class token."""

    def untrained(self, seed: int) -> ForeignEncoder:
        """The same with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._anew()
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.network = network.to(self.device).train(False).requires_grad_(False)
        return twin

    def embed_text(self, text: str | Sequence[str]) -> Features:
        """Refused: it has no text side."""
        raise EncoderError("this encoder reads images only; texts need an export of fm")

    def encode_studies(self, studies: Sequence[Sequence[SeriesImage]]) -> StudyFeatures:
        """Features of a batch of studies; those of the space shared with texts have no columns."""
        rows = [(row, image) for row, images in enumerate(studies) for image in images]
        classes: list[Tensor] = []
        patches: list[Tensor] = []
        with torch.no_grad():
            for _, image in rows:
                class_nD, patch_TD = self.tokens(image)
                classes.append((class_nD if len(class_nD) else patch_TD).float().mean(0, keepdim=True).cpu())
                patches.append(patch_TD.float().cpu())
        study_S = torch.tensor([row for row, _ in rows], dtype=torch.int64)
        if not rows:
            width = 3 * self.width
            return _features(torch.zeros(len(studies), width), torch.zeros(0, width), study_S)
        own_T = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(p) for p in patches]))
        class_SD, patch_TD = torch.cat(classes), torch.cat(patches)
        series = torch.cat([class_SD, *mean_max(patch_TD, own_T, len(rows))], 1)
        class_BD, _ = mean_max(class_SD, study_S, len(studies))
        study = torch.cat([class_BD, *mean_max(patch_TD, study_S[own_T], len(studies))], 1)
        return _features(study, series, study_S)

    @property
    @abstractmethod
    def width(self) -> int:
        """D, of a token."""


class SliceEncoder(ForeignEncoder):
    """A 2D vision model of transformers, slice by slice along the acquired axis."""

    def __init__(
        self,
        network: nn.Module,
        config: dict[str, Any],
        anew: Callable[[], nn.Module],
        *,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Freeze a network.

        Args:
            network: takes ``pixel_values`` (n, C, H, W), gives ``last_hidden_state`` (n, tokens, D) or (n, D, h, w).
            config: what the report prints of it.
            anew: makes the same network with random weights.
            size: (H, W) of its input.
            mean: of each channel, for values between 0 and 1.
            std: of each channel.
        """
        super().__init__(network, config, anew)
        self._size = size
        self._mean = torch.tensor(mean).view(-1, 1, 1)
        self._std = torch.tensor(std).view(-1, 1, 1)
        settings: Any = network.config
        self._prefix = _prefix_tokens(settings)
        self._width = int(settings.hidden_sizes[-1] if hasattr(settings, "hidden_sizes") else settings.hidden_size)

    @property
    def width(self) -> int:
        """D."""
        return self._width

    def tokens(self, image: SeriesImage) -> tuple[Tensor, Tensor]:
        """Of the slices that hold body."""
        pixels = self.pixels(image).to(self.device)
        classes, patches = [], []
        for first in range(0, len(pixels), SLICE_BATCH):
            found = self.network(pixel_values=pixels[first : first + SLICE_BATCH]).last_hidden_state
            if found.ndim == 4:  # a convolutional backbone: (n, D, h, w)
                found = found.flatten(2).transpose(1, 2)
            classes.append(found[:, : min(1, self._prefix)].flatten(0, 1))
            patches.append(found[:, self._prefix :].flatten(0, 1))
        return torch.cat(classes), torch.cat(patches)

    def pixels(self, image: SeriesImage) -> Tensor:
        """(n, C, H, W): slices through the body, its box filled up to a square of the slice's own millimetres.

        Intensities run from 0 to 1 between the percentiles that the shards state, then as the network's own
        preprocessing has them; a grey value stands in every channel.
        """
        (d0, h0, w0), (d1, h1, w1) = image.foreground
        rows = np.flatnonzero(image.valid[d0:d1]) + d0
        if not len(rows):
            rows = np.arange(d0, d1)
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(SLICES, len(rows))).round().astype(int))]
        values = torch.from_numpy(_unit_range(image)[chosen, h0:h1, w0:w1])
        height, width = (h1 - h0) * image.spacing_mm[1], (w1 - w0) * image.spacing_mm[2]
        side = max(height, width)
        inner = (max(1, round(self._size[0] * height / side)), max(1, round(self._size[1] * width / side)))
        values = F.interpolate(values.unsqueeze(1), inner, mode="bilinear", antialias=True, align_corners=False)
        top, left = (self._size[0] - inner[0]) // 2, (self._size[1] - inner[1]) // 2
        values = F.pad(values, (left, self._size[1] - inner[1] - left, top, self._size[0] - inner[0] - top))
        return (values - self._mean) / self._std


class VolumeNetwork(ForeignEncoder):
    """A 3D network of another library on each series resampled into the box that it was trained on."""

    def __init__(
        self,
        network: nn.Module,
        config: dict[str, Any],
        anew: Callable[[], nn.Module],
        *,
        shape: tuple[int, int, int],
        width: int,
        classes: bool,
    ) -> None:
        """Freeze a network.

        Args:
            network: takes (1, 1, D, H, W), gives tokens (1, T, D) or a tuple whose first entry they are.
            config: what the report prints of it.
            anew: makes the same network with random weights.
            shape: (D, H, W) voxels of its box.
            width: of a token.
            classes: whether the first token is a class token.
        """
        super().__init__(network, config, anew)
        self._shape, self._width, self._classes = shape, width, int(classes)

    @property
    def width(self) -> int:
        """D."""
        return self._width

    def tokens(self, image: SeriesImage) -> tuple[Tensor, Tensor]:
        """Of the body's box, trilinearly resampled into the network's."""
        (d0, h0, w0), (d1, h1, w1) = image.foreground
        values = torch.from_numpy(_unit_range(image)[d0:d1, h0:h1, w0:w1]).to(self.device)
        box = F.interpolate(values[None, None], self._shape, mode="trilinear", align_corners=False)
        found = self.network(box)
        found = (found[0] if isinstance(found, tuple) else found)[0]
        return found[: self._classes], found[self._classes :]


def load_slicewise(path: Path) -> SliceEncoder:
    """A vision model that transformers wrote: ``config.json``, safetensors, and ``preprocessor_config.json`` if any.

    The image side of a CLIP-like model is taken.

    Raises:
        EncoderError: no such model, or one that is damaged or needs code of its own.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading takes a second, and the bars break our own progress line
    try:
        config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        whole, told = AutoModel.from_pretrained(
            str(path),
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as err:  # transformers reports damage through many types
        raise EncoderError(f"{path}: not a vision model that transformers reads ({_first_line(err)})") from err

    def image_side(model: nn.Module) -> nn.Module:
        side: nn.Module = getattr(model, "vision_model", model)
        return side

    network = image_side(whole)
    settings: Any = network.config
    if not (hasattr(settings, "image_size") or hasattr(settings, "num_channels")):
        raise EncoderError(f"{path}: a {config.model_type} model reads no images")
    missing = [name for name in told["missing_keys"] if not name.startswith("text_model") and "pooler" not in name]
    if missing:
        raise EncoderError(f"{path}: {len(missing)} weights are missing, {sorted(missing)[0]} among them")
    size, mean, std = _preprocessing(path, settings)
    shown = {"model": config.model_type, "image_size": list(size), "slices": SLICES}
    return SliceEncoder(
        network, shown, lambda: image_side(AutoModel.from_config(config)), size=size, mean=mean, std=std
    )


def load_volume_network(path: Path, description: Path) -> VolumeNetwork:
    """A 3D network that a JSON file beside its safetensors describes.

    The file names one of the known kinds, the arguments of its constructor, and how weights are called where the
    file's names differ: ``{"kind": "monai_vit", "arguments": {"img_size": [48, 224, 224], "patch_size": [8, 16, 16],
    "hidden_size": 384, "mlp_dim": 1536, "num_layers": 12, "num_heads": 6}, "strip": "module."}``.

    Raises:
        EncoderError: an unknown kind, arguments that it does not take, or weights that do not fit.
    """
    try:
        told = json.loads(description.read_text(encoding="utf-8"))
        kind, arguments = str(told["kind"]), dict(told["arguments"])
    except (ValueError, KeyError, TypeError) as err:
        raise EncoderError(f"{description}: needs `kind` and `arguments` ({_first_line(err)})") from err
    if kind not in _VOLUME_KINDS:
        raise EncoderError(f"{description}: kind {kind!r} is not known; one of {', '.join(_VOLUME_KINDS)}")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise EncoderError(f"{path}: no *.safetensors beside {description.name}")
    build = _VOLUME_KINDS[kind]
    try:
        network = build(arguments)
        weights = {k.removeprefix(told.get("strip", "")): v for file in files for k, v in load_file(file).items()}
        left = network.load_state_dict(weights, strict=False)
    except Exception as err:  # constructors and safetensors report misfits through many types
        raise EncoderError(f"{path}: does not fit its description ({_first_line(err)})") from err
    if left.missing_keys:
        raise EncoderError(f"{path}: {len(left.missing_keys)} weights are missing, {left.missing_keys[0]} among them")
    if left.unexpected_keys:
        log.warning("%s: %d weights of the file were not used (%s, …)", path, *_counted(left.unexpected_keys))
    shape = tuple(int(n) for n in arguments["img_size"])
    return VolumeNetwork(
        network,
        {"model": kind, **arguments},
        lambda: build(arguments),
        shape=(shape[0], shape[1], shape[2]),
        width=int(arguments.get("hidden_size", 768)),
        classes=bool(arguments.get("classification", False)),
    )


def _monai_vit(arguments: dict[str, Any]) -> nn.Module:
    from monai.networks.nets.vit import ViT

    network: nn.Module = ViT(in_channels=1, **arguments)
    return network


_VOLUME_KINDS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {"monai_vit": _monai_vit}
"""A closed list: nothing that a file names is imported."""


def _features(study: Tensor, series: Tensor, study_S: Tensor) -> StudyFeatures:
    return StudyFeatures(
        study=study.numpy().astype(np.float32),
        projected=np.zeros((len(study), 0), np.float32),
        series=series.numpy().astype(np.float32),
        series_projected=np.zeros((len(series), 0), np.float32),
        series_study=study_S.numpy(),
    )


def _unit_range(image: SeriesImage) -> Any:
    """(D, H, W) float32 from 0 to 1; air is 0."""
    values = np.clip((image.values - image.low) / (image.high - image.low), 0.0, 1.0)
    return np.where(image.body, values, 0.0).astype(np.float32)


def _preprocessing(path: Path, settings: Any) -> tuple[tuple[int, int], list[float], list[float]]:
    """Input size, mean and standard deviation: of ``preprocessor_config.json``, else the model's size and ImageNet."""
    file = path / "preprocessor_config.json"
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    size: Any = (told.get("crop_size") if told.get("do_center_crop") else None) or told.get("size")
    size = size or getattr(settings, "image_size", None) or 224
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge", 224)
    pair = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
    channels = int(getattr(settings, "num_channels", 3))
    usual = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if channels == 3 else ([0.5] * channels, [0.5] * channels)
    return pair, told.get("image_mean") or usual[0], told.get("image_std") or usual[1]


def _prefix_tokens(settings: Any) -> int:
    """Tokens before the patches: class token and registers; SigLIP and convolutional backbones have none."""
    if hasattr(settings, "hidden_sizes") or str(settings.model_type).startswith("siglip"):
        return 0
    return 1 + int(getattr(settings, "num_register_tokens", 0) or 0)


def _first_line(err: Exception) -> str:
    lines = str(err).splitlines()
    return f"{type(err).__name__}: {lines[0]}" if lines else type(err).__name__


def _counted(names: Sequence[str]) -> tuple[int, str]:
    return len(names), names[0]
