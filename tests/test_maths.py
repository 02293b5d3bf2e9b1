"""Mathematics problems: every form people have, every bad line named, the templates token for
token, and rewards that no template can fake."""

import hashlib
import json
import math
import subprocess
import sys
import tracemalloc
import types
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from common import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_qwen_tokenizer import train

from infra.files import UserError
from tasks import maths
from tasks.maths import MAX_LINE, TEMPLATES, MathProblem, Maths, read_problems, split_by_hash
from tasks.tokenizer import qwen_tokenizer, word_tokenizer
from verify import MODES

GOOD = {"problem": "What is 1 + 1?", "answer": "2"}
START = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: {} where $Answer is the answer to the problem.\n\n"
)
END = '\n\nRemember to put your answer on its own line after "Answer:".'


def write(folder, *records, name="a.jsonl"):
    lines = [r if type(r) is bytes else json.dumps(r).encode() for r in records]
    path = folder / name
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read(*paths, skip_bad=False):
    """(question, answer) of each problem; how many lines, bad ones and duplicates there are."""
    problems, counts = read_problems(paths, skip_bad)
    found = [(p.question, p.answer) for p in problems]
    return found, tuple(counts[k] for k in ("lines", "bad", "duplicates"))


def refusal(*paths, skip_bad=False):
    """The one line with which the files are refused."""
    with pytest.raises(UserError) as e:
        read_problems(paths, skip_bad)
    assert str(e.value).isprintable()
    return str(e.value)


def chat(*said):
    return [{"role": role, "content": text} for role, text in said]


@pytest.fixture
def parquet(monkeypatch):
    """pyarrow as far as it is used: a ParquetFile whose batches are lists of rows; ValueError and
    OSError are the bases of its errors."""

    class ParquetFile:
        def __init__(self, path):
            text = Path(path).read_text()
            if not text.startswith("PAR1"):
                raise ValueError("Parquet magic bytes not found in footer.\nIs it one?")
            self.rows = json.loads(text[4:])

        def iter_batches(self):
            for i in range(0, len(self.rows), 2):
                yield types.SimpleNamespace(to_pylist=lambda i=i: self.rows[i : i + 2])

    module = types.ModuleType("pyarrow.parquet")
    module.ParquetFile = ParquetFile
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)


# ------------------------------------------------------------------ what is read


ANSWERS = [  # beside a good question
    ({"answer": -0.25}, "-0.25"), ({"answer": -0.0}, "0"), ({"answer": ["27.0"]}, "27.0"),
    ({"gold": "  x^2 \n"}, "x^2"), ({"answer": "\\boxed{\\frac{1}{2}}"}, "\\frac{1}{2}"),
    ({"final_answer": ["$3,-2$"], "solution": ["By \\boxed{7}."]}, "$3,-2$"),  # OlympiadBench
    ({"reward_model": {"ground_truth": 34}, "answer": "34.0"}, "34.0"),
    ({"reward_model": {"style": "rule"}, "gold": 1}, "1"),
    ({"answer": "#### Step 1\nHalf.\n#### 72"}, "72"),
    ({"solution": "So \\boxed{1}. No: $\\boxed{\\frac{3}{4}}$."}, "\\frac{3}{4}"),  # MATH
    ({"solution": "34", "prompt": "other"}, "34"),  # DAPO as processed by others
    ({"solution": "4 \\mbox{ cm}"}, "4 \\mbox{ cm}"),  # \mbox is no box
    ({"label": "34", "solution": "\\boxed{9}"}, "34"),
    ({"label": "algebra", "answer": "5"}, "5"),  # a label of another kind is left alone
    ({"answer": None, "gold": "5", "final_answer": "5.0"}, "5.0"),
    ({"answer": "1/2", "gold": "\\frac12", "solution": "wrong: \\boxed{9}"}, "1/2"),
]  # fmt: skip
QUESTIONS = [  # beside a good answer
    ({"problem": " What?\n"}, "What?"), ({"question": "What?", "problem": None}, "What?"),
    ({"problem": "What?", "prompt": "User: What? Think."}, "What?"),
    ({"prompt": chat(("user", "Hi"), ("assistant", "Yes"), ("user", "What?"))}, "What?"),
    ({"prompt": START.format("\\boxed{$Answer}") + "A\n\nB" + END}, "A\n\nB"),
    ({"prompt": START.format('"Answer: $Answer"') + "A\n\nB"}, "A\n\nB"),
    ({"problem": START[:50] + " 1 + 1"}, START[:50] + " 1 + 1"),  # others begin like DAPO's
    ({"problem": "A" + END}, "A"),
    ({"problem": "A Let's think step by step and put it within \\boxed{}."}, "A"),
]  # fmt: skip
REAL = [json.loads(line) for line in open(Path(__file__).with_name("real_forms.jsonl"))]
FORMS = [(x["record"], x.get("refused") or (x["question"], x["gold"])) for x in REAL]
FORMS += [({"problem": "What?"} | fields, ("What?", answer)) for fields, answer in ANSWERS]
FORMS += [(fields | {"answer": 1}, (question, "1")) for fields, question in QUESTIONS]


@pytest.mark.parametrize("record, expected", FORMS, ids=map(str, range(len(FORMS))))
def test_every_form_is_read_right_or_refused_by_kind(tmp_path, record, expected):
    """A wrong gold trains the model on a lie; half a question on a riddle."""
    path = write(tmp_path, {"problem": "?", "answer": 0}, record)
    (_, *found), counts = read_problems([path], skip_bad=True)
    if type(expected) is str:
        assert found == [] and counts[expected] == counts["bad"] == 1
    else:
        assert found == [MathProblem(*expected, "a")] and counts["bad"] == 0


def test_an_array_of_problems_is_read_as_lines_are(tmp_path):
    records = [{}, *(record for record, _ in FORMS)]
    (tmp_path / "b.jsonl").write_text(json.dumps(records, indent=1))
    array = read(tmp_path / "b.jsonl", skip_bad=True)
    assert array == read(write(tmp_path, *records), skip_bad=True) and len(array[0]) > 9


def test_blank_lines_marks_and_line_ends_are_no_problem(tmp_path):
    """Windows editors write a byte order mark and carriage returns; files are joined by cat."""
    text = b'\xef\xbb\xbf{"problem": "A", "answer": 1}\r\n\r\n   \n'
    text += '\ufeff{"problem": "B\u2028é", "answer": 2}'.encode()  # no newline at the end
    (tmp_path / "a.jsonl").write_bytes(text)
    assert read(str(tmp_path / "a.jsonl")) == ([("A", "1"), ("B\u2028é", "2")], (2, 0, 0))


# ------------------------------------------------------------------ what is refused or known

BAD_LINES = [
    (b'{"problem": "A", "answer"', "is no JSON at character 26: Expecting ':' delimiter"),
    (b"<html>", "is no JSON at character 0"), (b"\xff\xfe{\x00", "is not UTF-8 at byte 0"),
    (b'{"problem": "caf\xe9", "answer": 1}', "is not UTF-8 at byte 16"),
    (b"[" * 200_000, "nested too deep"), (b"1" * 5000, "4300 digits"),
    (b"x" * (MAX_LINE + 5), f"is longer than {MAX_LINE:,} bytes"),
    ([GOOD], "is no JSON object but [{"), ("text", "is no JSON object but 'text'"),
    (None, "is no JSON object but None"),
    (b'{"problem": "A", "answer": 1, "answer": 2}', "a name stands twice"),
    (b'{"problem": "A", "answer": 1e999}', "answer is no text and no number: inf"),
]  # fmt: skip
NO_TEXTS = ([], ["A"], chat(("system", "A")), chat(("user", [{"text": "A"}])))
NO_GOLDS = ("", "nan", "See the book. ####", "\\boxed{5", "$.$")
BAD_QUESTIONS = {  # beside a good answer
    "has none of problem, question, prompt": [{}],
    "input, only ['answer', 'text']": [{"text": "A"}],
    "problem is no text and no chat with one: 5": [{"problem": 5}],
    "problem is no text": [{"problem": x} for x in (" \n", {"en": "A"}, START + "\n" + END)],
    "prompt is no text and": [{"prompt": x} for x in NO_TEXTS],
    "surrogates": [{"problem": "\ud800"}],
}
BAD_GOLDS = {  # beside a good question
    "has none of answer, final_answer, gold": [{}, {"answer": None}, {"reward_model": "5"}],
    "surrogates": [{"answer": "\udfff"}],
    "answer is empty or names no final answer: ": [{"answer": x} for x in NO_GOLDS],
    "answer is empty": [{"answer": " \t", "gold": 5}],
    "solution is empty or names no": [{"solution": x} for x in ("It is\nobvious.", "word " * 50)],
    "answer is no text": [{"answer": x} for x in ([], [None], True, math.nan, -math.inf)],
    "answer has 2 answers: ['": [{"answer": [x, "2"]} for x in ("1", "x" * 1000)],
    "ground_truth has 2 answers": [{"reward_model": {"ground_truth": ["1", "2"]}}],
    "the answer '5}' cannot be verified": [{"answer": "5}"}],
    "answer is '5', final_answer is '6'": [{"answer": "5", "final_answer": "6"}],
    "ground_truth is '7'": [{"gold": 5, "reward_model": {"ground_truth": "7"}}],
}
BAD = [*BAD_LINES]
BAD += [({"answer": 1} | x, why) for why, records in BAD_QUESTIONS.items() for x in records]
BAD += [({"problem": "A"} | x, why) for why, records in BAD_GOLDS.items() for x in records]


@pytest.mark.parametrize("record, why", BAD, ids=lambda x: str(x)[:40])
def test_a_bad_line_is_named_in_one_line_and_can_be_left_out(tmp_path, record, why):
    path = write(tmp_path, GOOD, b"", record, {"problem": "B", "answer": 3})
    said = refusal(path)
    assert said.startswith(f"{path}, line 3: ") and why in said and len(said) < 500
    assert " (1 bad of 3 lines: 1 " in said and said.endswith("; --skip-bad leaves them out)")
    assert read(path, skip_bad=True) == ([("What is 1 + 1?", "2"), ("B", "3")], (3, 1, 0))


def test_all_bad_lines_of_all_files_are_counted_and_the_first_is_named(tmp_path):
    bad, n = [record for record, _ in BAD], len(BAD)
    a, b = write(tmp_path, GOOD, *bad), write(tmp_path, *bad, name="b.jsonl")
    said = refusal(a, b)
    assert f"{a}, line 2: is no JSON at " in said and f"({2 * n} bad of {2 * n + 1} lines" in said
    assert read(b, a, skip_bad=True)[1] == (2 * n + 1, 2 * n, 0)


@pytest.mark.parametrize("name, content, why", [
    ("none.jsonl", None, "No such file"), ("none.parquet", None, "pip install pyarrow"),
    ("empty.jsonl", b"", "is empty"), ("blank.jsonl", b"\n  \n\r\n", "is empty"),
    ("empty.parquet", b"PAR1[]", "is empty"), ("no.parquet", b"x", "Parquet magic"),
    ("gone.parquet", None, "No such file"), (".", None, "Is a directory"),
])  # fmt: skip
def test_an_unreadable_file_is_never_skipped(tmp_path, monkeypatch, parquet, name, content, why):
    if "pyarrow" in why:
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # as where it is not installed
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for skip_bad in (False, True):
        said = refusal(write(tmp_path, GOOD), path, skip_bad=skip_bad)
        assert said.startswith(f"{path}: ") and why in said


def test_a_line_of_gigabytes_is_never_held(tmp_path):
    """One line without an end, as JSON arrays are written: memory must not follow its length."""
    path = write(tmp_path, GOOD)
    with open(path, "ab") as file:
        file.write(b'[{"problem": "')
        file.truncate(file.tell() + 100_000_000)  # a hole: it costs no disk
        file.seek(0, 2)
        file.write(b'"}]\n' + json.dumps({"problem": "B", "answer": 3}).encode())
    tracemalloc.start()
    found = read(path, skip_bad=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * MAX_LINE
    assert found == ([("What is 1 + 1?", "2"), ("B", "3")], (3, 1, 0))  # what follows is read


@pytest.mark.parametrize("extra, bad", [(-1, 0), (0, 0), (1, 1), (MAX_LINE, 1), (MAX_LINE + 1, 1)])
def test_the_longest_line(tmp_path, extra, bad):
    """A line that ends exactly where a read stops must not swallow the next."""
    line = json.dumps({"problem": "A", "answer": 1}).encode()[:-1]
    line += b" " * (MAX_LINE + extra - len(line) - 2) + b"}"  # with its newline MAX_LINE + extra
    found = read(write(tmp_path, line, GOOD, GOOD), skip_bad=True)
    assert found == ([("A", "1"), ("What is 1 + 1?", "2")][bad:], (3, bad, 1))


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["\\boxed{", "#### 5", "\\boxed{5}", "nan", "Answer: 5", "\ud800"]),
)  # fmt: skip
KEYS = st.sampled_from(["role", "content", "ground_truth", "user"])
NAMES = [*maths.QUESTIONS, *maths.ANSWERS, *maths.CHOICES, "solution", "label", "reward_model"]
nested = lambda x: st.lists(x, max_size=3) | st.dictionaries(KEYS, x, max_size=3)  # noqa: E731
VALUES = st.recursive(JUNK, nested, max_leaves=6)
RECORDS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5)


@settings(max_examples=60)
@given(st.lists(RECORDS | VALUES, min_size=1, max_size=4))
def test_whatever_stands_in_a_file_it_is_problems_or_one_line(tmp_path_factory, records):
    records = [{}, *records]  # in a line of its own, a list would be an array of problems
    path = write(tmp_path_factory.getbasetemp(), *records, name="fuzz.jsonl")
    problems, counts = read_problems([path], skip_bad=True)
    assert counts["lines"] == len(records) == counts["bad"] + counts["duplicates"] + len(problems)
    for p in problems:
        assert p.question == p.question.strip() != "" != p.answer
    try:
        assert read_problems([path])[0] == problems and counts["bad"] == 0
    except ValueError as e:
        assert counts["bad"] and str(e).isprintable()


def test_a_question_twice_is_counted_once_whatever_its_spaces(tmp_path):
    """DAPO's file has each problem a hundred times."""
    same = [" What  is\n1 + 1?", unicodedata.normalize("NFD", "Où est 1?"), "Où est\u00a01?"]
    a = write(tmp_path, GOOD, {"question": same[0], "answer": "2.0"}, {"id": 3, **GOOD})
    rest = {"prompt": same[1], "gold": "1"}, {"prompt": same[2], "gold": 1}, GOOD
    found = read(a, write(tmp_path, *rest, name="b.jsonl"))
    assert found == ([("What is 1 + 1?", "2"), (same[1], "1")], (6, 0, 4))


def test_a_question_with_another_answer_is_a_bad_line_that_names_both(tmp_path):
    a = write(tmp_path, {"problem": "B", "answer": 1}, GOOD)
    b = write(tmp_path, {"problem": "What is  1 + 1?", "answer": 3}, name="b.jsonl")
    assert refusal(a, b).startswith(f"{b}, line 1: the answer '3', but {a}, line 2 has the same ")
    assert read(a, b, skip_bad=True) == ([("B", "1"), ("What is 1 + 1?", "2")], (3, 1, 0))


def problems_of(n, source="a"):
    return [MathProblem(f"What is {i} + 1?", str(i + 1), source) for i in range(n)]


def test_parquet_rows_are_read_as_lines_are(tmp_path, parquet):
    path = tmp_path / "dapo.parquet"

    def put(*rows):
        path.write_text("PAR1" + json.dumps(rows))
        return path

    rows = [{"problem": p.question, "answer": p.answer} for p in problems_of(3)]
    problems, counts = read_problems([put(*10 * rows)])
    assert problems == problems_of(3, "dapo") and counts == dict(lines=30, bad=0, duplicates=27)
    said = refusal(put(*rows[:2], {"prompt": "A"}))
    assert "dapo.parquet, row 3: has none of answer" in said and "(1 bad of 3 lines" in said
    # a tokenizer raises at 900,000 spaces; rows have no line whose length was looked at
    said = refusal(put({"problem": "A" + " " * MAX_LINE + "B", "answer": 1}))
    assert "row 1: problem has 500,002 characters" in said


def test_a_problems_split_is_its_hash_and_nothing_else():
    """Another order, another file, other spaces: the same place."""
    problems = problems_of(500)
    moved = [replace(p, question=f" {p.question}\n", source="b") for p in problems[::-1]]
    lots = [int(hashlib.sha256(p.question.encode()).hexdigest()[:12], 16) for p in problems]
    lot = {p.question: x / 16**12 for p, x in zip(problems, lots, strict=True)}
    for share in (0, 0.1, 0.2, 0.5):
        ends = dict(val=(0, share), test=(share, 2 * share), train=(2 * share, 1))
        for some in (problems, moved):
            found = split_by_hash(some, share)
            for name, (low, high) in ends.items():
                assert found[name] == [p for p in some if low <= lot[p.question.strip()] < high]


# ------------------------------------------------------------------ templates


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """(`tokenizers`' own, ours with <|endoftext|>, ours with <|im_end|>)."""
    folder = tmp_path_factory.mktemp("qwen")
    theirs = train(300)
    theirs.save(str(folder / "tokenizer.json"))
    return theirs, *(qwen_tokenizer(folder, eos) for eos in ("<|endoftext|>", "<|im_end|>"))


def world(qwen, template="boxed", verifier="", system=""):
    return Maths(qwen[1 if template in ("boxed", "answer") else 2], template, verifier, system)


ASKED = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
THINK = f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
ASK = MathProblem("Q?", "3", "a")
PROMPTS = dict(  # the paper's, what Qwen3's own chat template writes, and what the 2507 models' do
    boxed=f"User:\n{ASKED}\n\nAssistant:\n", think=THINK, chat=f"{THINK}<think>\n\n</think>\n\n",
    instruct=THINK, thinking=f"{THINK}<think>\n",
)  # fmt: skip


@pytest.mark.parametrize("template", PROMPTS)
def test_prompts_are_the_papers_and_qwens_token_for_token(qwen, template):
    for question in ("1 + 1", "  Où?\n", "{x}, {{y}} and \\{1\\}", "e\u0301 <think>"):
        ids = world(qwen, template).encode(replace(ASK, question=question))
        assert ids == qwen[0].encode(PROMPTS[template].format(question)).ids


def test_a_system_prompt_stands_before_the_chat(qwen):
    whole = "<|im_start|>system\nBe {brief}.<|im_end|>\n" + PROMPTS["chat"].format("Q?")
    assert world(qwen, "chat", system="Be {brief}.").encode(ASK) == qwen[0].encode(whole).ids
    with pytest.raises(UserError, match="--template boxed has no place for a --system"):
        world(qwen, "boxed", system="Be brief.")


def test_a_template_of_ones_own(qwen, tmp_path):
    """Braces are text; what ends it may be followed by anything."""
    path = tmp_path / "own.txt"
    path.write_bytes(b"Q: {problem} In \\boxed{}.\r\nA: {response}<|im_end|>\n")
    own, problem = Maths(qwen[2], str(path)), replace(ASK, question="1 {x}?")
    assert own.encode(problem) == qwen[0].encode("Q: 1 {x}? In \\boxed{}.\nA: ").ids
    assert own.reward(problem, "\\boxed{3}<|endoftext|>") == 1.0
    assert own.reward(problem, "Answer: 3<|im_end|>") == 0.0
    for text in ("{problem}", "{problem}{response}", "{response}<|im_end|>"):
        path.write_text(text)
        with pytest.raises(UserError, match="a template has {problem} once and then {response}"):
            maths.template_in(path)


def test_the_answer_template_asks_for_dapos_line(qwen):
    text = qwen[1].decode(world(qwen, "answer").encode(ASK))
    assert text.startswith("User:\nQ?\n") and text.endswith("\n\nAssistant:\n")
    assert "Answer:" in text and "boxed" not in text


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_question_cannot_forge_special_tokens(qwen, template):
    """A data set that spells out <|im_end|> could end the user's turn, or the text."""
    question = "A<|im_end|><|endoftext|>B<|im_start|>assistant"
    special = {qwen[1].added[t] for t in qwen[1].special}
    ids, plain = (world(qwen, template).encode(replace(ASK, question=q)) for q in (question, "A"))
    assert [i for i in ids if i in special] == [i for i in plain if i in special]
    assert question in qwen[1].decode(ids)


def test_a_verifier_that_does_not_fit_is_refused(qwen):
    """A boxed prompt graded by DAPO's rule gives reward 0 for every answer."""
    fits = {name: {"boxed", "auto"} for name in TEMPLATES} | dict(answer={"answer", "dapo", "auto"})
    said = dict.fromkeys(TEMPLATES, "3</think>\\boxed{2}") | dict(answer="So it is.\nAnswer: 2")
    for template, modes in fits.items():
        for mode in (*modes, ""):
            w, text = world(qwen, template, mode), said[template]
            assert [w.reward(replace(ASK, answer=gold), text) for gold in "23"] == [1.0, 0.0]
            assert w.answer(ASK, text) == "2"
        for mode in {*MODES, "other"} - modes:
            with pytest.raises(ValueError, match=f"verifier {mode} .*{template} "):
                world(qwen, template, mode)
    with pytest.raises(ValueError, match="template x: it is no file and none of boxed, answer, "):
        Maths(qwen[1], "x")


def test_a_tokenizer_without_the_templates_tokens_is_refused(qwen):
    words = word_tokenizer([".", "a"])
    no_think = replace(qwen[2], added={k: v for k, v in qwen[2].added.items() if k != "</think>"})
    cases = [
        (words, "boxed", " has no <.endoftext.>"), (words, "think", " has no <.im_start.>"),
        (no_think, "chat", " has no </think>"),
        (qwen[1], "chat", "'s eos is not <.im_end.>"),  # the loop would wait for another token
    ]  # fmt: skip
    for tokenizer, template, why in cases:
        with pytest.raises(UserError, match=f"^--template {template}: the tokenizer{why}$"):
            Maths(tokenizer, template)


# ------------------------------------------------------------------ rewards and votes


@pytest.mark.parametrize("template, verifier, text, right", [
    ("boxed", "", "So \\boxed{1/2}.<|endoftext|>", True),
    ("boxed", "", "So \\boxed{1/2}.", True),  # cut off after it: the penalty sees to length
    ("boxed", "", "1/2", False), ("boxed", "", "Answer: 1/2", False),
    ("boxed", "auto", "1/2<|endoftext|>", True), ("answer", "", "Answer: 1/2<|endoftext|>", True),
    ("answer", "dapo", "Answer: \\frac12<|endoftext|>", False),  # other strings
    ("answer", "dapo", "Answer: 1/2<|endoftext|>", True),  # "1/2<|endoftext|>" is another
    ("answer", "", "\\boxed{1/2}", False), ("chat", "", "\\boxed{0.5}<|im_end|>", True),
    ("think", "", "<think>\nHm, 3.\n</think>\n\n\\boxed{0.5}<|im_end|>", True),
    ("think", "", "<think>\n\\boxed{1/2}\n</think>\n\nDone.<|im_end|>", False),
    ("think", "", "<think>\n\\boxed{1/2}", False),
    ("think", "", "\\boxed{1/2}<|im_end|>", False),  # never thought, or never ended to
    ("think", "", "<think>a</think>b<think>\\boxed{1/2}", False),
    ("think", "auto", "<think>a", False), ("think", "", "", False), ("boxed", "", "", False),
    ("boxed", "", "\ud800\\boxed{", False),
])  # fmt: skip
def test_rewards(qwen, template, verifier, text, right):
    w, gold = world(qwen, template, verifier), "1/2" if verifier == "dapo" else "\\frac{1}{2}"
    problem = replace(ASK, answer=gold)
    reward = w.reward(problem, text)
    assert type(reward) is float and reward == right
    if right:  # what is rewarded can be voted for, and what it is does not depend on the gold
        assert w.same(w.answer(ASK, text), "1/2") and w.answer(problem, text) == w.answer(ASK, text)


# bars part what is one vote each, three spaces the spellings of one
VOTES = r"""
1/2   0.5   \frac{1}{2}   \dfrac12   .50   x = \frac{2}{4}   \sin\frac{\pi}{6}
5   5 \text{ cm}   x=5   5.0 | 1,000   1000   10^3   1e3 | \sqrt{8}   2\sqrt2   2\sqrt{2}
(1,2)   ( 1 , 2 ) | \text{Yes}   yes | \text{(C)}   C | x+1   1+x | 3   \log_2 8 | -1   e^{i\pi}
2i   \sqrt{-4} | \frac{\sqrt2}{2}   \frac{1}{\sqrt2} | 1;3   \{3,1\}   1,3 | \{4,7\}   7, 4   4,7
-5 | [1,2) | (2,1) | x+2 | 2\pi | \pi | no | \infty | -\infty | x^2+1 | \text{Evelyn} | p - q
\pm 9 | $\sqrt{5}$ | 70 \% | 11:30 | 12,345 | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
\frac{3}{4} | 14.29 | 100/7
"""


def test_equal_answers_share_a_vote_and_others_do_not(qwen):
    w, rows = world(qwen), VOTES.strip().replace("\n", " | ").split(" | ")
    groups = [row.split("   ") for row in rows]
    votes = [(i, vote) for i, group in enumerate(groups) for vote in group]
    said = [(i, w.answer(ASK, f"\\boxed{{{vote}}}.")) for i, vote in votes]
    for i, group in enumerate(groups):
        text = f"So \\boxed{{{group[0]}}}.<|endoftext|>"
        assert w.reward(replace(ASK, answer=group[0]), text) == 1.0
        first = w.answer(ASK, text)
        assert [w.same(first, a) for _, a in said] == [i == n for n, _ in said], first
    assert [w.answer(ASK, none) for none in ("", "no box", "\\boxed{}", "\\boxed{5")] == 4 * [None]


def test_votes_under_dapos_rule_are_its_strings(qwen):
    """There 0.5 is wrong where 1/2 is right: one vote for both would make the majority's answer
    right and wrong."""
    w = world(qwen, "answer", "dapo")
    votes = [w.answer(ASK, f"Answer: {a}<|endoftext|>") for a in ("1/2", "0.5", "x = 1/2.")]
    assert votes == ["1/2", "0.5", "1/2"] and w.answer(ASK, "1/2") is None
    assert not w.same("1/2", "0.5") and w.same("1/2", "1/2")


def test_names_tell_problems_apart_in_all_files(qwen):
    digits = hashlib.sha256(b"What is 0 + 1?").hexdigest()[:12]
    assert world(qwen).name(problems_of(1, "b")[0]) == f"b:{digits}"


def test_the_command_shows_counts_splits_golds_and_a_problem(tmp_path, capsys):
    path = write(tmp_path, GOOD, GOOD, {"problem": "B"}, {"problem": "C", "answer": "np.sin(1/3)"})
    assert maths.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "4 lines, 1 bad, 1 duplicates, 1 without a gold: 2 problems" in out
    assert f"1 without a gold, as {path}, line 3: has none of answer" in out
    assert "1 golds (50.0%) only equal their own spelling, as 'np.sin(1/3)'" in out
    assert "User:\nWhat is 1 + 1?\nPlease reason step by step, and put" in out
    assert "within \\boxed{}.\n\nAssistant:\n" in out and "(gold: 2; from a)" in out
    assert f"--model FOLDER --data {path} --skip-bad\n" in out


def test_a_pipe_that_closes_early_ends_in_no_traceback(tmp_path):
    path = write(tmp_path, *({"problem": f"{i}?" * 9999, "answer": 1} for i in range(9)))
    command = f"{sys.executable} -m tasks.maths {path} | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("9 lines") and done.stderr == ""
