from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from fm.config.data import DataConfig
from fm.data.text import augment_text, text_batch
from fm.data.tokenizer import train_tokenizer

TEXT = "First finding, 3.5 mm. Second is normal.\nThird? Impression: fourth!"
SENTENCES = ["First finding, 3.5 mm.", "Second is normal.", "Third?", "Impression: fourth!"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([(f"p{i}", "no mass is seen") for i in range(5)], 1000, 5, 8)


def test_sentences_are_shuffled_and_dropped_but_never_changed() -> None:
    rng = np.random.default_rng(0)
    drawn = [augment_text(TEXT, DataConfig(sentence_dropout=0.5), rng) for _ in range(200)]
    assert len(set(drawn)) > 30
    for text in drawn:
        rest = text
        for sentence in SENTENCES:
            rest = rest.replace(sentence, "", 1)
        assert text and not rest.strip()
    kept = np.mean([sum(s in text for s in SENTENCES) for text in drawn])
    assert 1.8 < kept < 2.4


def test_without_augmentation_the_sentences_stay_in_order() -> None:
    plain = DataConfig(sentence_dropout=0.0, sentence_shuffle=False)
    assert augment_text(TEXT, plain, np.random.default_rng(0)) == " ".join(SENTENCES)
    assert augment_text("", DataConfig(), np.random.default_rng(0)) == ""


def test_absent_reports_are_padding_without_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = text_batch(["no mass", "", "no mass is seen no mass is seen"], tokenizer)
    assert batch.present_B.tolist() == [True, False, True]
    assert batch.mask_BL.sum(1).tolist() == [4, 0, 8]  # cut at model_max_length = 8
    assert batch.ids_BL[1].tolist() == [tokenizer.pad_token_id] * 8
    assert batch.ids_BL[0, :4].tolist() == tokenizer("no mass")["input_ids"]


def test_identity_is_that_of_the_report_before_augmentation(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = text_batch(["a", "b", "c", ""], tokenizer, ["same", "same", "other", ""])
    one, two, three, four = batch.identity_B.tolist()
    assert one == two != three and four == 0


def test_a_batch_without_any_report_has_a_column(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = text_batch(["", ""], tokenizer)
    assert batch.ids_BL.shape[0] == 2 and batch.ids_BL.shape[1] >= 1 and not batch.mask_BL.any()


def test_what_is_cut_is_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    longest = tokenizer.model_max_length
    words = ["mass " * n for n in (longest - 2, longest - 1, 5 * longest)]
    batch = text_batch(["", *words], tokenizer)
    assert batch.cut_B.tolist() == [0, 0, 1, 5 * longest - (longest - 2)]
    assert batch.ids_BL.shape == (4, longest)
    ids = [tokenizer(text, truncation=True)["input_ids"] for text in words]
    assert batch.ids_BL[1:].tolist() == ids, "what is read is what it always was"
