from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from fm.config.errors import UserError
from fm.data.phrases import PhraseTable, common_phrases
from fm.data.text import text_batch
from fm.data.tokenizer import train_tokenizer

TEXTS = ["Left sinus opaque."] * 3 + ["Right sinus opaque."] * 2 + ["Sinus normal."] * 5


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([(f"p{i}", text) for i, text in enumerate(TEXTS)], 1000, 2, 32)


def _words(table: PhraseTable, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    names = [" ".join(tokenizer.convert_ids_to_tokens(list(phrase))) for phrase in table.phrases]
    return dict(zip(names, table.shares, strict=True))


def test_phrases_between_two_shares_are_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    found = _words(common_phrases(TEXTS, tokenizer, 0.25, 0.5), tokenizer)
    assert found == {
        "left": 0.3, "left sinus": 0.3, "opaque": 0.5, "opaque .": 0.5, "sinus opaque": 0.5,
        "normal": 0.5, "normal .": 0.5, "sinus normal": 0.5,
    }  # fmt: skip
    assert "right sinus" in _words(common_phrases(TEXTS, tokenizer, 0.2, 0.2), tokenizer)


def test_a_batch_says_which_phrases_the_whole_report_holds(tokenizer: PreTrainedTokenizerFast) -> None:
    table = common_phrases(TEXTS, tokenizer, 0.2, 0.5)
    batch = text_batch(["Left.", "", "normal"], tokenizer, ["No left sinus", "", "Sinus normal."], table)
    names = list(_words(table, tokenizer))
    held = [{names[k] for k in row.nonzero().flatten().tolist()} for row in batch.phrases_BK]
    assert held == [{"left", "left sinus"}, set(), {"normal", "normal .", "sinus normal"}]
    assert text_batch(["a", "b"], tokenizer).phrases_BK.shape == (2, 0)


def test_a_table_survives_the_disk_and_damage_is_one_line(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    table, path = common_phrases(TEXTS, tokenizer, 0.2, 0.5), tmp_path / "phrases.json"
    table.save(path)
    assert PhraseTable.load(path) == table
    path.write_text(path.read_text()[:-9])
    with pytest.raises(UserError, match=r"phrases\.json: no readable table of phrases"):
        PhraseTable.load(path)
    assert common_phrases([], tokenizer, 0.1, 0.5).phrases == []
