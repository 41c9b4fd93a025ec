"""Text encoders from a local folder: real ones of transformers, saved by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2Model, RobertaConfig, RobertaModel

from fm.batch import TextBatch
from fm.config.data import DataConfig
from fm.config.errors import ConfigError, UserError
from fm.config.model import TextTraining, VitTextConfig
from fm.models import FmModel, build_model

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    BertModel(BertConfig(**SMALL, max_position_embeddings=40)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def _model(folder: Path, training: TextTraining = TextTraining.full, vocabulary: int = 50) -> FmModel:
    torch.manual_seed(0)
    shape = VitTextConfig(
        patch_voxels=[2, 4, 4], dim=24, depth=1, heads=2, embed_dim=16, text_max_tokens=32, text_from=str(folder),
        text_training=training, lora_rank=3,
    )  # fmt: skip
    return build_model(shape, DataConfig(), vocabulary)


def _text() -> TextBatch:
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    return TextBatch(
        ids_BL=torch.randint(5, 40, (2, 6), generator=torch.Generator().manual_seed(1)) * mask,
        mask_BL=mask,
        present_B=torch.ones(2, dtype=torch.bool),
        identity_B=torch.arange(2),
        phrases_BK=torch.zeros(2, 0, dtype=torch.bool),
    )


@pytest.mark.parametrize("training", list(TextTraining))
def test_a_text_is_the_mean_of_the_encoders_last_layer_before_training(bert: Path, training: TextTraining) -> None:
    model, text = _model(bert, training).eval(), _text()
    theirs = AutoModel.from_pretrained(bert).eval()
    want = theirs(input_ids=text.ids_BL, attention_mask=text.mask_BL.long()).last_hidden_state
    mean = torch.stack([want[0].mean(0), want[1, :3].mean(0)])
    torch.testing.assert_close(model.text(text), mean, rtol=1e-5, atol=1e-5)
    assert model.text_projection.in_features == 24


def test_what_is_trained_is_what_was_asked_for(bert: Path) -> None:
    trained = {
        kind: [name for name, p in _model(bert, kind).text.named_parameters() if p.requires_grad]
        for kind in TextTraining
    }
    assert trained[TextTraining.frozen] == []
    assert trained[TextTraining.lora] and all(".lora_" in name for name in trained[TextTraining.lora])
    assert "bert.embeddings.word_embeddings.weight" in trained[TextTraining.full]
    assert not any("pooler" in name for name in trained[TextTraining.full])
    frozen, text = _model(bert, TextTraining.frozen).train(), _text()
    assert torch.equal(frozen.text(text), frozen.text(text))  # no dropout: the encoder stays in eval mode
    lora = _model(bert, TextTraining.lora).train(False)
    out = lora.encode_text(text).sum()
    grads = torch.autograd.grad(out, [p for n, p in lora.text.named_parameters() if "lora_B" in n])
    assert all(grad.any() for grad in grads)


@pytest.mark.parametrize("training", list(TextTraining))
def test_an_export_needs_the_folder_no_more_and_does_not_name_it(
    bert: Path, training: TextTraining, tmp_path: Path
) -> None:
    model, text = _model(bert, training).eval(), _text()
    with torch.no_grad():
        for p in model.text.parameters():
            p.add_(0.01 * torch.randn_like(p))
    model.save_pretrained(tmp_path / "export")
    assert str(tmp_path) not in (tmp_path / "export" / "config.json").read_text()
    for file in bert.iterdir():
        file.unlink()
    loaded = AutoModel.from_pretrained(tmp_path / "export").eval()
    assert torch.equal(loaded.encode_text(text), model.encode_text(text))


def test_an_encoder_of_another_family_works_too(tmp_path: Path) -> None:
    torch.manual_seed(5)
    RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=40)).save_pretrained(tmp_path)
    model, text = _model(tmp_path).eval(), _text()
    want = AutoModel.from_pretrained(tmp_path).eval()(input_ids=text.ids_BL[:1]).last_hidden_state[0].mean(0)
    torch.testing.assert_close(model.text(text)[0], want, rtol=1e-5, atol=1e-5)


def test_what_is_no_local_safetensors_encoder_is_refused(bert: Path, tmp_path: Path) -> None:
    GPT2Model(GPT2Config(n_embd=24, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(tmp_path / "gpt")
    with pytest.raises(UserError, match="gpt2 is no bidirectional text encoder"):
        _model(tmp_path / "gpt")
    with pytest.raises(UserError, match="no configuration there"):
        _model(tmp_path / "absent")
    with pytest.raises(UserError, match="knows 50 tokens, its tokenizer has 60"):
        _model(bert, vocabulary=60)
    with pytest.raises(UserError, match="reads at most 40"):
        build_model(VitTextConfig(text_from=str(bert), text_max_tokens=64), DataConfig(), 50)
    weights = bert / "model.safetensors"
    weights.rename(bert / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*\.safetensors there") as refused:
        _model(bert)
    assert "\n" not in str(refused.value)
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}')
    (remote / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="no configuration there"):
        _model(remote)
    with pytest.raises(ConfigError, match=r"without model\.text_from"):
        VitTextConfig(text_training=TextTraining.frozen)
    with pytest.raises(ConfigError, match="belongs to the BERT"):
        VitTextConfig(text_from="somewhere", text_window=3)
