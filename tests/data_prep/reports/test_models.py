"""Local models over reports: tiny ones, made here, through the very code that loads real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from data_prep.ledger import QuarantineError, Reason
from data_prep.reports.findings import State, read_findings
from data_prep.reports.labeller import report_labels
from data_prep.reports.models import answers, names_left, remove_named
from data_prep.reports.text import clean_report
from fm.config.errors import ConfigError, UserError
from fm.config.prepare import Labeller, PrepareConfig
from fm.data.sample import Report

from ..test_deid import NOBODY

WORDS = [
    *("[PAD]", "[UNK]", "zebulon", "quux", "normal", "brain", "seen", "by", ".", "[", "]", "removed", "present"),
    *("absent", "uncertain", "not", "mentioned", "mass", "stated", "as", "in", "this", "MRI", "report", "or", ":", ","),
]


def tokenizer(folder: Path) -> None:
    """A word-level tokenizer of few words."""
    found = Tokenizer(WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    found.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=found, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def ner(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A token classifier that calls 'zebulon' a person, 'quux' a place, and nothing else anything."""
    folder = tmp_path_factory.mktemp("ner")
    tokenizer(folder)
    torch.manual_seed(0)
    labels = {0: "O", 1: "B-PER", 2: "I-LOC"}
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, id2label=labels, label2id={name: k for k, name in labels.items()},
    )  # fmt: skip
    model = BertForTokenClassification(config).eval()
    with torch.no_grad():
        for name, part in model.bert.encoder.named_parameters():
            if name.endswith("dense.weight"):
                part.zero_()  # attention and the feed-forward part add nothing: each token keeps its own embedding
        model.bert.embeddings.position_embeddings.weight.zero_()
        model.bert.embeddings.token_type_embeddings.weight.zero_()
        ids = torch.tensor([[WORDS.index("zebulon"), WORDS.index("quux")]])
        hidden = model.bert(ids).last_hidden_state[0]
        model.classifier.weight.zero_()
        model.classifier.weight[1:] = hidden
        model.classifier.bias.copy_(torch.tensor([0.9 * float((hidden**2).sum(1).min()), 0.0, 0.0]))
    model.save_pretrained(folder)
    return str(folder)


def test_what_the_classifier_names_is_removed(ner: str) -> None:
    text = "normal brain seen by zebulon zebulon . quux . " + "normal brain . " * 30 + "zebulon ."
    wanted = text.replace("zebulon zebulon", "[removed]").replace("zebulon", "[removed]").replace("quux", "[removed]")
    assert remove_named(text, ner, ()) == wanted, "a long text is read in windows to its end"
    assert remove_named("quux by zebulon", ner, ("PER",)) == "quux by [removed]"
    assert names_left("quux", ner, ()) and not names_left("quux", ner, ("PER",))
    assert not names_left("normal brain [removed] .", ner, ())


def test_reports_go_through_the_classifier_after_the_rules(ner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "FINDINGS: normal brain, zebulon."
    assert clean_report(text, [NOBODY], 1000).findings == "normal brain, zebulon."
    assert clean_report(text, [NOBODY], 1000, ner_model=ner).findings == "normal brain, [removed]."
    monkeypatch.setattr("data_prep.reports.text.remove_named", lambda body, *_: body)
    with pytest.raises(QuarantineError) as caught:
        clean_report(text, [NOBODY], 1000, ner_model=ner)
    assert caught.value.reason is Reason.REPORT_RESIDUAL


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A causal model whose bias makes 'absent' the likeliest next word, whatever was said."""
    folder = tmp_path_factory.mktemp("lm")
    tokenizer(folder)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(WORDS), n_positions=64, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=False)
    )
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[WORDS.index("absent")] = 1.0
    model.save_pretrained(folder)
    return str(folder)


def test_a_language_model_answers_about_every_finding(language_model: str) -> None:
    findings = read_findings("")
    found = answers("normal brain . " * 100, findings, language_model)
    assert {name: mention.state for name, mention in found.items()} == {f.name: State.ABSENT for f in findings}
    config = PrepareConfig(labeller=Labeller.model, labeller_model=language_model)
    labels = report_labels(Report(findings="normal brain ."), "knee", config)
    assert labels == {f"report_{f.name}": 0 for f in findings if f.region == "knee"}
    assert report_labels(None, "knee", config) == report_labels(Report(findings="x"), "knee", PrepareConfig()) == {}


def test_models_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"prepare.ner_model=.*no local model") as caught:
        remove_named("x", str(tmp_path), ())
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"needs prepare.labeller_model=DIR"):
        PrepareConfig(labeller=Labeller.model)
