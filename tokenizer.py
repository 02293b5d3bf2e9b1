"""Two `tiktoken.Encoding`s behind one small class.

The small world's: one token per word and per number, each carrying the space before it, so that a
trace of 60 words is 60 tokens.  All 256 single bytes are in the vocabulary too: any input encodes,
none can crash it (tiktoken panics on a byte it does not know, and a Rust panic is not an
`Exception`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tiktoken


@dataclass(frozen=True)
class Tokenizer:
    """An encoding, the id that ends a text, and `prefix`, put before a text so that its first word
    is whole. `words` rebuilds a word tokenizer: `word_tokenizer(words)`."""

    encoding: tiktoken.Encoding
    eos: int
    prefix: str = ""
    words: tuple[str, ...] = ()

    @property
    def n_vocab(self) -> int:
        return self.encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        """Text -> ids; special tokens written in the text are plain text, so data cannot forge an
        end-of-text."""
        return self.encoding.encode_ordinary(self.prefix + text)

    def decode(self, ids: list[int]) -> str:
        """Ids -> text, the exact inverse of `encode`; bytes that are not UTF-8 become U+FFFD."""
        return self.encoding.decode(ids).removeprefix(self.prefix)

    def token(self, i: int) -> str:
        """One token as text, for tables and traces."""
        return self.encoding.decode([i])


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """A tokenizer whose whole-word tokens are " word" for every word; the first word ends a
    text."""
    ranks = {bytes([b]): b for b in range(256)}
    for word in words:
        ranks[f" {word}".encode()] = len(ranks)
    encoding = tiktoken.Encoding(
        "words",
        pat_str=r" ?\w+| ?[^\w\s]|\s+",
        mergeable_ranks=ranks,
        special_tokens={},
        explicit_n_vocab=len(ranks),
    )
    return Tokenizer(encoding, ranks[f" {words[0]}".encode()], prefix=" ", words=tuple(words))
