"""Two `tiktoken.Encoding`s behind one small class: the small world's and Qwen3's.

The small world's: one token per word and per number, each with the space before it.  All 256 bytes
are tokens too: tiktoken panics on a byte it does not know, and that is no `Exception`.

Qwen3's: byte-level BPE, read from the published files.  Those list the merges in order; tiktoken
joins whichever two neighbours make the token of the lowest id.  `bpe_ranks` asserts that both are
one function.  The text is NFC-normalised first, as it was when the model was trained.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import tiktoken

from infra.files import UserError, need, read_bytes, read_json

QWEN_SPLIT = (  # BPE never joins across these pieces: words, single digits, punctuation, whitespace
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_BLANK = 900_000  # whitespace characters in a row; near 1,000,000 tiktoken's regex panics


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back.  Of the tokens in `added`, those in `special` (<|im_end|>) steer the
    model, the others (<think>) are ordinary text that happens to be one token."""

    encoding: tiktoken.Encoding
    eos: int  # the one of `stops` that a text is taught to end with
    prefix: str = ""  # put before a text so that its first word is whole
    words: tuple[str, ...] = ()  # `word_tokenizer(words)` makes this one again
    added: Mapping[str, int] = field(default_factory=dict, hash=False)  # matched before BPE
    special: frozenset[str] = frozenset()
    nfc: bool = False  # what is between added tokens is NFC-normalised
    stops: Mapping[str, int] = field(default_factory=dict, hash=False)  # all that end a text

    @property
    def n_vocab(self) -> int:
        """Ids are the numbers below this.  A model may have more rows (Qwen3: 151,936 for 151,669
        ids): logits from `n_vocab` on are padding, never sampled."""
        return self.encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        """Text -> ids; special tokens written in the text are plain text, so data cannot forge an
        end-of-text.  Raises ValueError, where `nfc`, for 900,000 whitespace characters in a row.

        Qwen's own code turns special tokens of the data into their ids; all else is equal, but for
        the hundred rare combining marks newer than Unicode 9, whose order Python's NFC knows.
        """
        ids = []
        for piece, token in self._cut(self.prefix + text, special=False):
            if self.nfc:
                piece = unicodedata.normalize("NFC", piece)
                blanks = re.findall(r"\s+", piece) if len(piece) >= MAX_BLANK else ()
                if any(len(blank) >= MAX_BLANK for blank in blanks):
                    raise ValueError(f"the text has {MAX_BLANK} whitespace characters in a row")
            ids += self.encoding.encode_ordinary(piece) + token
        return ids

    def encode_template(self, template: str, **data: str) -> list[int]:
        """`template.format(**data)` -> ids, where special tokens of the template become their ids
        and those in the data stay plain text.  Data and the template's text are one string to BPE.
        """
        ids = []
        for piece, token in self._cut(template, special=True):
            ids += self.encode(piece.format(**data)) + token
        return ids

    def decode(self, ids: list[int]) -> str:
        """Ids -> text, the exact inverse of `encode` (of the NFC form where `nfc`); bytes that are
        not UTF-8 become U+FFFD.  Raises KeyError for an id that is none."""
        return self.encoding.decode(ids).removeprefix(self.prefix)

    def token(self, i: int) -> str:
        """One token as text, for tables and traces."""
        return self.encoding.decode([i])

    @cached_property
    def _added(self) -> re.Pattern:
        longest_first = sorted(self.added, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _cut(self, text: str, special: bool) -> Iterator[tuple[str, list[int]]]:
        """The text before every special (or every other added) token with that token's id, then
        the rest.  Matched before NFC, which would join the > of <think> and a mark after it."""
        start = 0
        for found in self._added.finditer(text):
            if (found[0] in self.special) == special:
                yield text[start : found.start()], [self.added[found[0]]]
                start = found.end()
        yield text[start:], []


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """A tokenizer with a token " word" for every word; the first one ends a text."""
    ranks = {bytes([b]): b for b in range(256)}
    for word in words:
        ranks[f" {word}".encode()] = len(ranks)
    how = dict(pat_str=r" ?\w+| ?[^\w\s]|\s+", mergeable_ranks=ranks, special_tokens={})
    encoding = tiktoken.Encoding("words", **how)
    eos = ranks[f" {words[0]}".encode()]
    return Tokenizer(encoding, eos, prefix=" ", words=tuple(words), stops={words[0]: eos})


def qwen_tokenizer(folder: str | Path, eos: str | None = None) -> Tokenizer:
    """Qwen2's and Qwen3's tokenizer, from tokenizer.json, or where there is none from vocab.json,
    merges.txt and the added tokens of tokenizer_config.json.  Raises UserError for any that this
    one could not reproduce exactly.

    `eos` names the special token that ends a text; by default `eos_token` of tokenizer_config.json
    (<|endoftext|> for base models, <|im_end|> for chat models).  Both stop one, and so does what
    generation_config.json lists.
    """
    folder = Path(folder)
    one, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if one.exists():
        vocab_at = merges_at = added_at = one
        vocab, merges, entries = from_tokenizer_json(one)
    else:
        vocab_at, merges_at, added_at = folder / "vocab.json", folder / "merges.txt", config
        if not vocab_at.exists():
            raise UserError(f"{folder}: has neither tokenizer.json nor vocab.json")
        vocab = read_json(vocab_at)
        try:
            lines = read_bytes(merges_at).decode().replace("\r\n", "\n")
        except UnicodeDecodeError as e:
            raise UserError(f"{merges_at}: is not UTF-8 at byte {e.start}") from None
        lines = lines.removesuffix("\n").split("\n")
        merges = lines[1:] if lines[0].startswith("#version") else lines
        entries = added_in_config(config)
    need(type(vocab) is dict, vocab_at, "the vocabulary is no object")
    added, special = added_tokens(entries, added_at)
    for token, i in vocab.items():
        need(type(i) is int, vocab_at, f"the id of {token!r} is no integer")
        need(added.get(token, i) == i, added_at, f"{token!r} has two ids")
    ids = sorted((added | vocab).values())
    for i, found in enumerate(ids):  # so that `n_vocab` alone tells a sampler what is padding
        need(i == found, vocab_at, f"ids are not 0, 1, 2...: {found} where {i} should be")
    vocab = {token: i for token, i in vocab.items() if token not in added}
    ranks = bpe_ranks(vocab, merges, vocab_at, merges_at)
    if eos is None:
        eos = read_json(config).get("eos_token")
        eos = eos.get("content") if type(eos) is dict else eos
        need(type(eos) is str, config, "eos_token is missing or no string")
    need(eos in special, added_at, f"{eos!r}, to end a text, is no special token")
    how = dict(pat_str=QWEN_SPLIT, mergeable_ranks=ranks, special_tokens=added)
    encoding = tiktoken.Encoding("qwen", **how)
    stops = {t: added[t] for t in (eos, "<|im_end|>", "<|endoftext|>") if t in special}
    stops |= listed_stops(folder / "generation_config.json", added)
    return Tokenizer(encoding, added[eos], added=added, special=special, nfc=True, stops=stops)


def listed_stops(path: Path, added: dict[str, int]) -> dict[str, int]:
    """The tokens that a generation_config.json, if there is one, lists as ends of a text."""
    ids = read_json(path).get("eos_token_id") if path.exists() else None
    ids = ids if type(ids) is list else [] if ids is None else [ids]
    stops = {token: i for token, i in added.items() if i in ids}
    need(len(stops) == len({*ids}), path, f"eos_token_id {ids!r} is no added token")
    return stops


def bpe_ranks(
    vocab: dict[str, int], merges: list, vocab_at: Path, merges_at: Path
) -> dict[bytes, int]:
    """The bytes of every token -> its id, for tiktoken.  Raises UserError unless its rule, join the
    neighbours whose union has the lowest id, is the same function as the merges in their order."""
    table = byte_table()
    need(set().union(*vocab) <= table.keys(), vocab_at, "a token is not in GPT-2's byte alphabet")
    need(table.keys() <= vocab.keys(), vocab_at, "some of the 256 single bytes are no tokens")
    made_of: dict[int, tuple[int, int]] = {}
    names = {i: token for token, i in vocab.items()}
    last = -1
    for number, merge in enumerate(merges, 1):
        pair = merge.split(" ") if type(merge) is str else merge
        where = f"merge {number}, {str(merge)[:80]!r},"
        if type(pair) is not list or len(pair) != 2 or not all(type(p) is str for p in pair):
            raise UserError(f"{merges_at}: {where} is no pair of tokens")
        x, y, whole = vocab.get(pair[0]), vocab.get(pair[1]), vocab.get("".join(pair))
        if x is None or y is None or whole is None:
            raise UserError(f"{merges_at}: {where} has an unknown token")
        if not max(last, x, y) < whole:
            raise UserError(f"{merges_at}: {where} makes id {whole}: ids must follow merge order")
        made_of[whole], last = (x, y), whole
        # Undo the merges beside the seam of x and y, newest first. If two tokens that then met
        # there make one with an older id, they had been joined: x never stood beside y.
        while True:
            if x > y and x in made_of:
                bound, x = x, made_of[x][1]
            elif y in made_of:
                bound, y = y + 1, made_of[y][0]  # of equals the left pair is joined: across
            else:
                break
            if vocab.get(names[x] + names[y], bound) < bound:
                raise UserError(f"{merges_at}: {where} is never made: an older merge comes first")
    for token, i in vocab.items():
        need(i in made_of or token in table, merges_at, f"no merge makes {token!r}")
    return {bytes(map(table.__getitem__, token)): i for token, i in vocab.items()}


def byte_table() -> dict[str, int]:
    """GPT-2's alphabet, one printable character per byte: Latin-1's printable characters stand for
    themselves, U+0100 and on for the other 68 bytes in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def from_tokenizer_json(path: Path) -> tuple[dict, list, list]:
    """Vocabulary, merges and added tokens of a tokenizer.json.  Raises UserError unless its steps
    are Qwen's: NFC, the split, byte-level BPE, nothing added."""
    whole = read_json(path)
    model = whole.get("model")
    kind = model.get("type") if type(model) is dict else None
    need(kind == "BPE", path, f"the model is {kind!r}, not 'BPE'")
    for name in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        need(not model.get(name), path, f"BPE with {name} is not supported")
    need(whole.get("normalizer") == {"type": "NFC"}, path, "the normalizer is not NFC")
    split = dict(type="Split", pattern={"Regex": QWEN_SPLIT}, behavior="Isolated", invert=False)
    to_bytes = dict(type="ByteLevel", add_prefix_space=False, use_regex=False)
    qwens = [  # `trim_offsets` changes no id
        dict(type="Sequence", pretokenizers=[split, to_bytes | dict(trim_offsets=trim)])
        for trim in (False, True)
    ]
    same = whole.get("pre_tokenizer") in qwens
    need(same, path, "the pre_tokenizer is not Qwen2's split, then ByteLevel")
    after = whole.get("post_processor") or {"type": "ByteLevel"}
    after = after if type(after) is dict else {}
    text_alone = [{"Sequence": {"id": "A", "type_id": 0}}]  # a template that adds no token
    same = after.get("type") == "ByteLevel" or after.get("single") == text_alone
    need(same, path, "the post_processor adds tokens; Qwen's adds none")
    need(type(model.get("merges")) is list, path, "the merges are no list")
    return model.get("vocab"), model["merges"], whole.get("added_tokens")


def added_in_config(path: Path) -> list:
    """The added tokens of a tokenizer_config.json, in the form of tokenizer.json.  Raises
    UserError unless its class is Qwen's: vocab.json and merges.txt do not tell the split."""
    config = read_json(path)
    kind = config.get("tokenizer_class")
    same = kind in ("Qwen2Tokenizer", "Qwen2TokenizerFast") and not config.get("add_prefix_space")
    need(same, path, f"the tokenizer is {kind!r}, not 'Qwen2Tokenizer' without a prefix space")
    entries = config.get("added_tokens_decoder")
    need(type(entries) is dict, path, "added_tokens_decoder is missing or no object")
    for i, entry in entries.items():
        need(type(entry) is dict, path, f"added token {i!r} is no object")
        need(re.fullmatch("[0-9]{1,9}", i), path, f"added token {i!r} has no integer for id")
    return [entry | {"id": int(i)} for i, entry in entries.items()]


def added_tokens(entries: list, path: Path) -> tuple[dict[str, int], frozenset[str]]:
    """The added tokens' ids, and which are special.  Raises UserError for options that Qwen's do
    not use: each changes which text is matched."""
    added, special = {}, set()
    need(type(entries) is list, path, "added_tokens is missing or no list")
    for entry in entries:
        need(type(entry) is dict, path, "an added token is no object")
        text, i = entry.get("content"), entry.get("id")
        good = type(text) is str and text and text == text.encode(errors="ignore").decode()
        need(good, path, f"an added token has the content {text!r}")
        need(type(i) is int, path, f"the id of {text!r} is no integer")
        need(text not in added, path, f"{text!r} is added twice")
        need(type(entry.get("special")) is bool, path, f"{text!r} is neither special nor not")
        for flag in ("lstrip", "rstrip", "single_word", "normalized"):
            need(entry.get(flag) is False, path, f"{text!r} has {flag} other than false")
        added[text] = i
        special |= {text} if entry["special"] else set()
    return added, frozenset(special)
