# SPDX-License-Identifier: Apache-2.0
"""Text classification without a download: in which language is a word? From wordfreq's lists."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

__all__ = ["LANGUAGES", "LENGTH", "load_words"]

LANGUAGES = ("de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt", "sv")
LENGTH = 16  # characters of a word that count
NUM_WORDS = 6000  # of each language, the most frequent
ALPHABET = 1024  # ids of characters; 0 is padding


def load_words() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Characters int64 [N, LENGTH] and languages int64 [N], for training and for testing.

    A word of several languages belongs to the one in which it is most frequent. One word in five
    is for testing, by a checksum of its letters: the split is the same everywhere.

    Raises:
        ImportError: wordfreq is not installed.
    """
    try:
        from wordfreq import top_n_list, word_frequency
    except ImportError as error:
        raise ImportError("data='words' needs wordfreq: pip install wordfreq") from error
    languages: dict[str, tuple[float, int]] = {}
    for label, language in enumerate(LANGUAGES):
        for word in top_n_list(language, NUM_WORDS):
            if not word.isalpha() or len(word) < 3:
                continue
            frequency = word_frequency(word, language)
            if word not in languages or frequency > languages[word][0]:
                languages[word] = (frequency, label)
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for word, (_, label) in sorted(languages.items()):
        (test if zlib.crc32(word.encode()) % 5 == 0 else train).append((word, label))
    return _encoded(train), _encoded(test)


def _encoded(words: list[tuple[str, int]]) -> tuple[Tensor, Tensor]:
    letters = torch.zeros(len(words), LENGTH, dtype=torch.int64)
    for row, (word, _) in enumerate(words):
        codes = [ord(letter) % ALPHABET or 1 for letter in word[:LENGTH]]
        letters[row, : len(codes)] = torch.tensor(codes)
    return letters, torch.tensor([label for _, label in words])
