from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    SiglipVisionConfig,
    ViTConfig,
)

from evals.embed import embed, shard_sources
from evals.foreign import SLICES, SliceEncoder, VolumeNetwork
from evals.frozen import fresh, load_frozen
from evals.suite import evaluate
from fm.config.suite import SuiteConfig, TaskConfig
from fm.data.volume import SeriesImage, read_nifti
from fm.models.encoder import Encoder, EncoderError

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SHAPE = (8, 32, 32)
MONAI_VIT: dict[str, Any] = {
    "img_size": SHAPE,
    "patch_size": [4, 8, 8],
    "hidden_size": 24,
    "mlp_dim": 32,
    "num_layers": 2,
    "num_heads": 2,
}


@pytest.fixture
def scan(tmp_path: Path) -> SeriesImage:
    import nibabel

    rng = np.random.default_rng(0)
    values = np.zeros((40, 30, 50), np.float32)
    values[4:36, 5:25, 3:47] = 100 + 20 * rng.random((32, 20, 44))
    affine = np.diag([1.0, 2.0, 4.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "scan.nii.gz")
    return read_nifti(tmp_path / "scan.nii.gz")


@pytest.fixture
def dinov2(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14, mlp_ratio=2)).save_pretrained(tmp_path / "dinov2")
    return tmp_path / "dinov2"


@pytest.fixture
def monai_vit(tmp_path: Path) -> Path:
    from monai.networks.nets.vit import ViT

    folder = tmp_path / "monai"
    folder.mkdir()
    torch.manual_seed(0)
    network = ViT(in_channels=1, **MONAI_VIT)
    save_file({f"module.{k}": v.contiguous() for k, v in network.state_dict().items()}, folder / "model.safetensors")
    told = {"kind": "monai_vit", "arguments": MONAI_VIT, "strip": "module."}
    (folder / "network.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def test_slices_are_of_the_body_square_in_millimetres_and_normalised(dinov2: Path, scan: SeriesImage) -> None:
    encoder = load_frozen(dinov2)
    assert isinstance(encoder, SliceEncoder)
    pixels = encoder.pixels(scan)
    d, h, w = (stop - start for start, stop in zip(*scan.foreground, strict=True))
    assert pixels.shape == (min(d, SLICES), 3, 28, 28)
    grey = pixels * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor([0.485, 0.456, 0.406]).view(
        3, 1, 1
    )
    assert torch.allclose(grey[:, 0], grey[:, 2], atol=1e-5) and grey.min() > -1e-5 and grey.max() < 1 + 1e-5
    filled = (grey[0, 0] > 1e-3).nonzero()
    tall, wide = (filled.max(0).values - filled.min(0).values + 1).tolist()
    assert tall / wide == pytest.approx(h * scan.spacing_mm[1] / (w * scan.spacing_mm[2]), rel=0.12)


def test_slice_features_are_those_of_the_model_itself(dinov2: Path, scan: SeriesImage) -> None:
    encoder = load_frozen(dinov2)
    assert isinstance(encoder, SliceEncoder)
    found = encoder.encode_studies([[scan], [], [scan, scan]])
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(dinov2)(pixel_values=encoder.pixels(scan)).last_hidden_state
    patches = hidden[:, 1:].flatten(0, 1)
    want = torch.cat([hidden[:, 0].mean(0), patches.mean(0), patches.max(0).values]).numpy()
    for row in (found.series[0], found.series[2], found.study[0], found.study[2]):
        assert row == pytest.approx(want, abs=1e-5)
    assert not found.study[1].any() and found.series_study.tolist() == [0, 2, 2]
    assert found.projected.shape == (3, 0) and found.series_projected.shape == (3, 0)


@pytest.mark.parametrize(
    ("config", "prefix"),
    [
        (Dinov2WithRegistersConfig(**SMALL, image_size=28, patch_size=14, mlp_ratio=2, num_register_tokens=4), 5),
        (ViTConfig(**SMALL, image_size=32, patch_size=16, num_channels=1), 1),
        (SiglipVisionConfig(**SMALL, image_size=32, patch_size=16), 0),
    ],
    ids=["registers", "one-channel", "siglip"],
)
def test_class_and_register_tokens_are_no_patches(config: Any, prefix: int, tmp_path: Path, scan: SeriesImage) -> None:
    AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    encoder = load_frozen(tmp_path / "model")
    slices = len(encoder.pixels(scan))  # type: ignore[attr-defined]
    with torch.no_grad():
        classes, patches = encoder.tokens(scan)  # type: ignore[attr-defined]
    assert (len(classes), len(patches)) == (slices * min(prefix, 1), slices * 4)


def test_the_image_side_of_a_clip_model_is_taken(tmp_path: Path, scan: SeriesImage) -> None:
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    text = {**SMALL, "vocab_size": 50, "max_position_embeddings": 16}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).save_pretrained(tmp_path / "clip")
    found = load_frozen(tmp_path / "clip").encode_studies([[scan]])
    assert found.study.shape == (1, 3 * 24) and np.isfinite(found.study).all()


def test_monai_vit_reads_the_body_resampled_into_its_box(monai_vit: Path, scan: SeriesImage) -> None:
    from monai.networks.nets.vit import ViT

    encoder = load_frozen(monai_vit)
    assert isinstance(encoder, VolumeNetwork)
    found = encoder.encode_studies([[scan]]).series[0]
    torch.manual_seed(0)
    network = ViT(in_channels=1, **MONAI_VIT).eval()
    (d0, h0, w0), (d1, h1, w1) = scan.foreground
    body = torch.from_numpy(scan.values * scan.body)[d0:d1, h0:h1, w0:w1]
    box = torch.nn.functional.interpolate(body[None, None], SHAPE, mode="trilinear")
    with torch.no_grad():
        tokens = network(box.sub(scan.low).div(scan.high - scan.low).clamp(0, 1))[0][0]
    # Clipping after the resampling instead of before it moves a few voxels at the rim.
    assert found[24:48] == pytest.approx(tokens.mean(0).numpy(), abs=0.05)


def test_an_untrained_twin_has_other_weights_by_its_seed_alone(
    monai_vit: Path, dinov2: Path, scan: SeriesImage
) -> None:
    for folder in (monai_vit, dinov2):
        encoder = load_frozen(folder)
        own, a, again, b = (
            e.encode_studies([[scan]]).study for e in (encoder, fresh(encoder, 1), fresh(encoder, 1), fresh(encoder, 2))
        )
        assert (a == again).all() and not np.allclose(a, b) and not np.allclose(a, own)


def test_the_suite_and_fm_embed_take_them_like_our_own(
    dataset: str, dinov2: Path, monai_vit: Path, tmp_path: Path
) -> None:
    task = TaskConfig(question="Lesion?", label="lesion", positive=["1"], negative=["0"])
    suite = SuiteConfig(tasks={"lesion": task}, bootstrap_draws=50, folds=3, linear_c=[0.01, 1.0], neighbours=[5])
    for folder in (dinov2, monai_vit):
        results = evaluate(folder, dataset, tmp_path / folder.name, suite)
        systems = {score.system.value: score.auroc.value for score in results.tasks[0].scores}
        assert systems["encoder"] > 0.9 and 0.4 < systems["header"] < 0.6  # drawn lesions are bright
        assert results.encoder["text_parameters"] == 0 and results.encoder["image_parameters"] > 1000
        assert [entry.name for entry in results.skipped] == ["retrieval"]
        assert "report.html" in {path.name for path in (tmp_path / folder.name).iterdir()}
        written = embed(folder, shard_sources(dataset)[:3], tmp_path / f"{folder.name}.parquet")
        assert written.studies == 3


def test_an_export_of_our_own_stays_one(encoder_dir: Path) -> None:
    assert isinstance(load_frozen(encoder_dir), Encoder)


def test_bad_folders_give_one_line(dinov2: Path, monai_vit: Path, tmp_path: Path) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(EncoderError) as caught:
            load_frozen(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no encoder there" in message(tmp_path / "nowhere")
    description = monai_vit / "network.json"
    told = json.loads(description.read_text(encoding="utf-8"))
    description.write_text(json.dumps({**told, "kind": "os.system"}), encoding="utf-8")
    assert "'os.system' is not known; one of monai_vit" in message(monai_vit)
    description.write_text(json.dumps({**told, "strip": ""}), encoding="utf-8")
    assert "weights are missing" in message(monai_vit)
    description.write_text(json.dumps({"kind": "monai_vit"}), encoding="utf-8")
    assert "`arguments`" in message(monai_vit)
    (dinov2 / "model.safetensors").write_bytes(b"no weights")
    assert "not a vision model that transformers reads" in message(dinov2)
    bert = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = tmp_path / "bert"
    AutoModel.from_config(BertConfig(**bert, vocab_size=9)).save_pretrained(text)
    assert "bert model reads no images" in message(text)
