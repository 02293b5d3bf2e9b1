"""The small world's tokenizer: exact on every text, one token a word."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.countdown import Countdown
from tasks.tokenizer import word_tokenizer

WORLD = Countdown()
TOKENIZER = WORLD.tokenizer()


@settings(max_examples=500)
@given(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.text(st.sampled_from(" \t\n\r\x00\x0b\x1c\x85\u00a0\u2028.try8 ;()+é漢😀\u0301"))
    | st.lists(st.sampled_from([*TOKENIZER.words, "", " "])).map(" ".join)
)
@example("")
@example("  use")
@example("\x00\x7f\x80\ud7ff\ue000\uffff\U0010ffff")
@example("a" * 5000)
@example("<|endoftext|><|im_end|> 8</s>[EOS]<pad>")  # special-looking text is plain text
def test_decode_is_the_inverse_of_encode(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= i < TOKENIZER.n_vocab for i in ids)
    assert (TOKENIZER.eos in ids) <= ("." in text)


def test_all_256_bytes_are_tokens():
    """tiktoken panics on a byte that it does not know, and no `except Exception` catches that."""
    singles = {TOKENIZER.encoding.decode_single_token_bytes(i): i for i in range(256)}
    assert singles == {bytes([b]): b for b in range(256)}
    assert TOKENIZER.n_vocab == 256 + len(TOKENIZER.words)
    assert TOKENIZER.encoding.special_tokens_set == set()


def test_ids_that_are_no_text_decode_to_replacement_characters():
    assert TOKENIZER.decode([0xFF, 0xC3]) == "\ufffd\ufffd"
    assert TOKENIZER.token(0xFF) == "\ufffd"
    assert "\ufffd" in TOKENIZER.decode(TOKENIZER.encode("a lone surrogate \ud800 is no text"))


@pytest.mark.parametrize("world", (WORLD, Countdown(4, 12, "+-*/", 100)), ids=("3", "4"))
def test_one_token_per_word_and_number(world):
    tokenizer, rng = world.tokenizer(), random.Random(0)
    for problem in rng.sample(world.problems(), 600):
        trace = world.trace(problem, rng, skill=0.5)
        for text in (problem.prompt, trace, f"{problem.prompt} {trace}"):
            tokens = [tokenizer.token(i) for i in tokenizer.encode(text)]
            assert tokens == [f" {word}" for word in text.split()]
        # a response is what follows a prompt: the two are tokenized apart as they are together
        prompt, rest = tokenizer.encode(problem.prompt), tokenizer.encode(trace)
        assert prompt + rest == tokenizer.encode(f"{problem.prompt} {trace}")
        assert rest[-1] == tokenizer.eos and tokenizer.eos not in prompt + rest[:-1]
        assert tokenizer.decode(rest) == trace


def test_every_word_is_one_token_and_its_id_is_fixed_by_its_place():
    for place, word in enumerate(TOKENIZER.words):
        assert TOKENIZER.encode(word) == [256 + place]
        assert TOKENIZER.token(256 + place) == f" {word}"
    assert TOKENIZER.eos == 256 and TOKENIZER.token(TOKENIZER.eos) == " ."
    again, text = word_tokenizer(TOKENIZER.words), "use 8 4 3 goal 20 ; try 4 * 3 = 12"
    assert again.encode(text) == TOKENIZER.encode(text) and again.eos == TOKENIZER.eos
    assert TOKENIZER.encode_template("use {n}", n="8") == TOKENIZER.encode("use 8")


def test_a_number_outside_the_world_is_spelled_and_never_mistaken():
    (inside,) = TOKENIZER.encode("30")
    outside = TOKENIZER.encode("31")
    assert inside not in outside and len(outside) > 1
    assert TOKENIZER.decode(outside) == "31"
