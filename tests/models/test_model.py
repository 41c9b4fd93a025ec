from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from fm.batch import PackedTokens, TextBatch
from fm.models import FmConfig, FmModel
from fm.models.patch import ConvStem
from fm.models.text import Phrase

MakePack = Callable[..., PackedTokens]


def _text(ids: list[list[int]]) -> TextBatch:
    length = max(map(len, ids))
    table = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in ids])
    return TextBatch(
        ids_BL=table,
        mask_BL=mask,
        present_B=torch.tensor([bool(row) for row in ids]),
        identity_B=torch.arange(len(ids)),
        phrases_BK=torch.zeros(len(ids), 0, dtype=torch.bool),
    )


def test_initialisation_reaches_every_parameter(tiny_config: FmConfig) -> None:
    """Built on meta and filled with NaN first: a forgotten parameter would stay NaN."""
    with torch.device("meta"):
        model = FmModel(tiny_config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    torch.manual_seed(0)
    model.init_weights()
    bad = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    assert not bad
    assert model.image.blocks[0].scale1.scale.eq(tiny_config.layer_scale).all()
    scale, bias = model.contrast_scale()
    assert abs(scale.item() - 1 / tiny_config.initial_temperature) < 1e-3 and bias.item() == 0


def test_weights_start_as_the_docstring_says(tiny_config: FmConfig) -> None:
    """Measured, not believed: transformers skips modules that hold no parameters of their own."""
    tiny_config.cell_channels, tiny_config.absolute_position = 64, True
    torch.manual_seed(0)
    image = FmModel(tiny_config).image
    stem, absolute = image.stem, image.absolute
    assert isinstance(stem, ConvStem) and absolute is not None
    for weight, std in (
        (stem.film.weight, tiny_config.initializer_range),
        (stem.place.linear.weight, stem.place.linear.in_features**-0.5),
        (absolute.linear.weight, absolute.linear.in_features**-0.5),
        (image.condition.spacing.weight, 3**-0.5),
        (image.condition.contrast.weight, tiny_config.initializer_range),
        (stem.mix.weight, stem.mix.in_features**-0.5),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.15)


def test_the_same_seed_gives_the_same_model(tiny_config: FmConfig, tiny_model: FmModel) -> None:
    torch.manual_seed(0)
    again = FmModel(tiny_config)
    for (name, a), b in zip(tiny_model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_automodel_loads_what_was_saved(tiny_model: FmModel, make_pack: MakePack, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, FmModel)
    assert loaded.lattice == tiny_model.lattice
    pack = make_pack([5, 8], [0, 1])
    assert torch.equal(loaded.embed_study(pack, 2), tiny_model.embed_study(pack, 2))


def test_study_rows_belong_to_their_study_and_a_hole_is_zero(tiny_model: FmModel, make_pack: MakePack) -> None:
    pack = make_pack([5, 8, 3], [0, 0, 2])
    both = tiny_model.embed_study(pack, 3)
    torch.testing.assert_close(both[[0, 2]].norm(dim=1), torch.ones(2))
    assert torch.equal(both[1], torch.zeros(16))
    features = tiny_model(pack)
    assert features.study_BD.shape == (3, 48)
    torch.testing.assert_close(features.study_BD[2], features.series_SD[2])
    assert (features.study_BD[0] - features.series_SD[0]).abs().max() > 1e-4


@pytest.mark.parametrize("window", [1, 3, 5])
def test_padding_and_neighbours_do_not_reach_a_text(tiny_config: FmConfig, window: int) -> None:
    torch.manual_seed(0)
    tiny_config.text_window = window
    tiny_model = FmModel(tiny_config).eval()
    rows = [[2, 7, 9, 3], [2, 11, 3, 8, 8, 9, 3]]
    together = tiny_model.encode_text(_text([*rows, []]))
    assert together.isfinite().all()
    for i, row in enumerate(rows):
        torch.testing.assert_close(tiny_model.encode_text(_text([row]))[0], together[i], rtol=1e-5, atol=1e-5)


def test_a_window_of_words_is_a_convolution() -> None:
    torch.manual_seed(0)
    phrase, words, mask = Phrase(6, 3), torch.randn(2, 9, 6), torch.ones(2, 9, dtype=torch.bool)
    normed = phrase.norm(words)
    kernel = phrase.mix.weight.view(6, 3, 6).transpose(1, 2)  # (out, in, window)
    near = F.conv1d(normed.transpose(1, 2), kernel, phrase.mix.bias, padding=1).transpose(1, 2)
    torch.testing.assert_close(phrase(words, mask), normed + F.gelu(near), rtol=1e-5, atol=1e-5)


def test_bf16_weights_stay_near_float32(tiny_config: FmConfig, tiny_model: FmModel, make_pack: MakePack) -> None:
    pack = make_pack([30, 41], [0, 1])
    exact = tiny_model.embed_study(pack, 2)
    rounded = tiny_model.to(torch.bfloat16).embed_study(pack, 2)
    assert rounded.dtype is torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.999
