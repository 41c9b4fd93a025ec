from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fm.data.tokenizer import TokenizerError, load_tokenizer, train_tokenizer

COMMON = "No acute infarct. Ventricles are normal, 12 mm lesion in the left frontal lobe."


def _reports() -> list[tuple[str, str]]:
    shared = [(f"p{i}", COMMON) for i in range(8)]
    # One patient's name, many times over; four patients share another word.
    return [*shared, *[("p0", "Zebulon Quartermain reviewed. " * 30)], *[(f"p{i}", "xanthoma") for i in range(4)]]


def test_only_words_of_enough_patients_enter_the_vocabulary() -> None:
    tokenizer = train_tokenizer(_reports(), vocab_size=2000, min_patients=5, max_tokens=64)
    vocabulary = set(tokenizer.get_vocab())
    assert {"infarct", "ventricles", "lesion"} <= vocabulary
    spelt = {token.removeprefix("##") for token in vocabulary}
    for secret in ("zebulon", "quartermain", "xanthoma", "reviewed"):
        pieces = {secret[i:j] for i in range(len(secret)) for j in range(i + 3, len(secret) + 1)}
        allowed = {piece for piece in pieces if piece in COMMON.lower()}
        assert not (pieces - allowed) & spelt
    loose = train_tokenizer(_reports(), vocab_size=2000, min_patients=4, max_tokens=64)
    assert "xanthoma" in loose.get_vocab() and "quartermain" not in loose.get_vocab()


def test_anything_can_be_spelt_and_digits_stand_alone() -> None:
    tokenizer = train_tokenizer(_reports(), vocab_size=2000, min_patients=5, max_tokens=64)
    pieces = tokenizer.tokenize("Müller-Østergård")
    assert "".join(piece.removeprefix("##") for piece in pieces) == "müller-østergård"
    assert tokenizer.tokenize("lesion 347mm") == ["lesion", "3", "4", "7", "mm"]
    assert tokenizer.unk_token not in tokenizer.tokenize("Zebulon: 9.5 x 3,2 (≥?) [no] {mass}".replace("≥", ">"))
    ids = tokenizer("no mass")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


def test_vocabulary_size_is_an_upper_bound_and_training_is_repeatable() -> None:
    small = train_tokenizer(_reports(), vocab_size=400, min_patients=5, max_tokens=64)
    assert len(small) <= 400
    assert train_tokenizer(reversed(_reports()), 400, 5, 64).get_vocab() == small.get_vocab()


def test_saved_and_loaded_it_gives_the_same_ids(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(_reports(), vocab_size=2000, min_patients=5, max_tokens=10)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded(COMMON, truncation=True)["input_ids"] == tokenizer(COMMON, truncation=True)["input_ids"]
    assert len(loaded(COMMON, truncation=True)["input_ids"]) == 10
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="no tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_no_report_at_all_still_gives_a_tokenizer() -> None:
    tokenizer = train_tokenizer([], vocab_size=2000, min_patients=5, max_tokens=16)
    assert tokenizer.tokenize("mass") == ["m", "##a", "##s", "##s"]


def test_equal_reports_give_equal_vocabularies_in_every_process() -> None:
    """The trainer's hash map is seeded anew in each process; ties between merges must not follow it."""
    script = """
import hashlib, random
from fm.data.tokenizer import train_tokenizer
rng = random.Random(0)
words = ["".join(rng.choices("abcdefgh", k=rng.randint(3, 9))) for _ in range(300)]
reports = [(f"p{i}", " ".join(words)) for i in range(5)]
tokenizer = train_tokenizer(reports, 1200, 5, 64)
print(hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest())
"""
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in range(3)
    ]
    assert len({run.stdout for run in runs}) == 1
