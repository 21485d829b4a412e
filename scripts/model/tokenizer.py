"""A vocabulary with byte fallback, encoded the way llama.cpp's SPM tokenizer does it.

llama.cpp starts from characters and joins, again and again, the neighbours whose joined text scores highest;
a character that is not listed becomes its bytes. No piece holds a space except in front, nor letters next to
anything else, so every word can be encoded by itself.
"""

import re
from collections import Counter
from itertools import pairwise

SPECIAL = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
UNK, BOS, EOS, SYSTEM, USER, ASSISTANT, END = range(len(SPECIAL))
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = "▁"
WORDS = re.compile(rf"{SPACE}?[^\W\d_]+|{SPACE}(?={SPACE})|{SPACE}?.", re.DOTALL)


class Tokenizer:
    """Text to token ids."""

    def __init__(self, characters: list[str], merges: list[str]) -> None:
        self.tokens = [*SPECIAL, *BYTES, *merges, *characters]
        self.scores = [0.0] * len(SPECIAL + BYTES) + [-float(i) for i in range(len(merges + characters))]
        self._ids = {piece: i for i, piece in enumerate(self.tokens) if i >= len(SPECIAL + BYTES)}
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def train(cls, text: str, size: int, unlisted: str) -> "Tokenizer":
        """Byte-pair merges of the text, up to `size` entries in all."""
        characters = sorted(({chr(c) for c in range(33, 127)} | set(text) | {SPACE}) - set(unlisted + " \n"))
        words = {tuple(word): n for word, n in Counter(WORDS.findall(_spaced(text))).items()}
        merges: list[str] = []
        while len(SPECIAL + BYTES + characters + merges) < size:
            merges.append(_best_pair(words, unlisted))
            words = {_joined(word, merges[-1]): n for word, n in words.items()}
        return cls(characters, merges)

    def encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        return [token for word in WORDS.findall(_spaced(text)) for token in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        if word not in self._cache:
            pieces = self._merge(list(word))
            self._cache[word] = [token for piece in pieces for token in self._fallback(piece)]
        return self._cache[word]

    def _merge(self, pieces: list[str]) -> list[str]:
        while True:
            known = [(self._ids[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in self._ids]
            if not known:
                return pieces
            _, i = min(known)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]

    def _fallback(self, piece: str) -> list[int]:
        if piece in self._ids:
            return [self._ids[piece]]
        return [len(SPECIAL) + byte for byte in piece.encode(errors="replace")]


def _spaced(text: str) -> str:
    return text.replace(" ", SPACE)


def _best_pair(words: dict[tuple[str, ...], int], unlisted: str) -> str:
    pairs: Counter[str] = Counter()
    for word, n in words.items():
        for a, b in pairwise(word):
            if not set(a + b) & set(unlisted):
                pairs[a + b] += n
    return max(pairs, key=lambda pair: (pairs[pair], pair))


def _joined(word: tuple[str, ...], merge: str) -> tuple[str, ...]:
    pieces = list(word)
    i = 0
    while i < len(pieces) - 1:
        if pieces[i] + pieces[i + 1] == merge:
            pieces[i : i + 2] = [merge]
        i += 1
    return tuple(pieces)
