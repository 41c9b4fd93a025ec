"""A tokenizer from the training reports that cannot hold a name.

A word enters the vocabulary only when the reports of several patients hold it; everything else is spelt in letters.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import NFKC, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Digits, Punctuation, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fm.config.errors import UserError
from fm.data.index import Manifest

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = [chr(c) for c in range(0x21, 0x7F) if not chr(c).isupper()]
_LETTERS += [chr(c) for c in range(0xA1, 0x180) if chr(c).lower() == chr(c) and chr(c).isprintable()]
"""Lower-case ASCII and Latin letters, digits and signs: what any word can be spelt in."""


class TokenizerError(UserError):
    """A tokenizer that cannot be made or read."""


def train_tokenizer(
    reports: Iterable[tuple[str, str]], vocab_size: int, min_patients: int, max_tokens: int
) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer; digits stand alone.

    Args:
        reports: (patient, text) pairs of the *training* split.
        vocab_size: entries at most, special tokens and letters included.
        min_patients: patients whose reports must hold a word before it, or a piece of it, may become an entry.
        max_tokens: length that texts are cut to.
    """
    words = _common_words(_empty_tokenizer(), reports, min_patients)
    letters = sorted({piece for letter in _LETTERS for piece in (letter, f"##{letter}")})
    # The trainer numbers continuation letters as it meets them in a hash map, whose order changes from process to
    # process, and breaks ties between merges by those numbers. Named as special tokens, letters have fixed numbers.
    trainer = WordPieceTrainer(
        vocab_size=max(vocab_size, len(SPECIAL) + len(letters) + 1),
        special_tokens=[*SPECIAL, *letters],
        show_progress=False,
    )
    learner = _empty_tokenizer()
    learner.train_from_iterator((" ".join([word] * count) for word, count in sorted(words.items())), trainer)
    learnt = learner.get_vocab()
    vocabulary: dict[str, int] = {}
    for token in [*SPECIAL, *letters, *sorted(learnt, key=learnt.__getitem__)]:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = _empty_tokenizer()
    tokenizer.model = WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=200)
    tokenizer.add_special_tokens(list(SPECIAL))
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_tokens,
    )


def _empty_tokenizer() -> Tokenizer:
    """Splits and lower-cases; knows no word yet."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]", max_input_chars_per_word=200))
    tokenizer.normalizer = Normalizers([NFKC(), Lowercase()])
    tokenizer.pre_tokenizer = PreTokenizers([WhitespaceSplit(), Punctuation(), Digits(individual_digits=True)])
    return tokenizer


def training_reports(manifest: Manifest) -> Iterable[tuple[str, str]]:
    """(patient, diagnostic text) of every study of an opened dataset that has a report."""
    for sample in manifest.samples:
        report = manifest.study(sample.key).report
        if report is not None and report.diagnostic:
            yield sample.patient, report.diagnostic


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in a local folder.

    Raises:
        TokenizerError: none there, or a damaged one.
    """
    if not Path(folder, "tokenizer.json").is_file():
        raise TokenizerError(f"{folder}: no tokenizer.json there")
    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as err:  # tokenizers raises bare Exception on damage
        raise TokenizerError(f"{folder}/tokenizer.json: not readable ({type(err).__name__})") from err
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise TokenizerError(f"{folder}: a {type(loaded).__name__} is no fast tokenizer")
    return loaded


def _common_words(tokenizer: Tokenizer, reports: Iterable[tuple[str, str]], min_patients: int) -> dict[str, int]:
    count: Counter[str] = Counter()
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for patient, text in reports:
        normal = tokenizer.normalizer.normalize_str(text)
        words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
        count.update(words)
        for word in words:
            patients[word].add(patient)
    return {word: n for word, n in count.items() if len(patients[word]) >= min_patients and re.search(r"\w", word)}
