"""Mathematics problems read from files, put by a template and graded by `verify.py`.

    python -m tasks.maths FILE... [--skip-bad]  # what is in the files, and the first problem

One JSON object a line (or a row of parquet) in any of the usual forms:

    {"problem": "What is 1 + 1?", "answer": 2}                            DAPO, AIME, AMC
    {"question": "...", "answer": "48 / 2 = 24 ... #### 72"}              GSM8K
    {"problem": "...", "solution": "... it is $\\boxed{5}$."}             MATH, Minerva
    {"question": "...", "solution": ["..."], "final_answer": ["$3$"]}     OlympiadBench
    {"prompt": [{"role": "user", "content": "..."}], "reward_model": {"ground_truth": "34"}}   verl

The question is the first there is of `problem`, `question` and `prompt`.  Those there are of
`answer`, `final_answer`, `gold` and `reward_model.ground_truth` must agree; without them it is
`label`, then what `solution` ends with (its last box).  Nothing is guessed: a line that is no
problem stops the reading or, with --skip-bad, is counted.
"""

import cmath
import hashlib
import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import verify
from infra.files import UserError, parse_json
from tasks.tokenizer import Tokenizer

MAX_LINE = 500_000  # bytes of a line; few problems have 10,000, and a 2 GB line is never held
QUESTIONS = ("problem", "question", "prompt")
ANSWERS = ("answer", "final_answer", "gold")
IDS = ("id", "index", "unique_id")
# what DAPO's files say around each problem, with `$Answer` or `\boxed{$Answer}`
DAPO_START = re.compile(
    r"Solve the following math problem step by step\. The last line of your response should be of"
    r' the form "?Answer: [^\n]*\n\n'
)
DAPO_END = re.compile(r'\n\nRemember to put your answer on its own line after "?Answer:[^\n]*\Z')


@dataclass(frozen=True)
class MathProblem:
    """`answer` as it stands in the file `source`, out of its `\\boxed{}` or `####`."""

    question: str
    answer: str
    source: str


@dataclass(frozen=True)
class Template:
    """What stands around the `{question}`, the token that ends a text, and the modes of
    `verify.grade` that find the answer asked for, the usual one first."""

    text: str
    eos: str
    verifiers: tuple[str, ...]

    @property
    def verifier(self) -> str:
        return self.verifiers[0]


BOXED = "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
CHAT = f"<|im_start|>user\n{BOXED}<|im_end|>\n<|im_start|>assistant\n"
LINE = (  # as DAPO asks for it: the answer alone on a line that its rule of strings can find
    "{question}\nPlease reason step by step, and end with a line of the form Answer: followed by "
    "nothing but your final answer."
)
TEMPLATES = {
    "boxed": Template(f"User:\n{BOXED}\n\nAssistant:\n", "<|endoftext|>", ("boxed", "auto")),
    "answer": Template(
        f"User:\n{LINE}\n\nAssistant:\n", "<|endoftext|>", ("answer", "dapo", "auto")
    ),
    # Qwen3's own markup; an empty thought is how it is told not to think
    "chat": Template(f"{CHAT}<think>\n\n</think>\n\n", "<|im_end|>", ("boxed", "auto")),
    "think": Template(CHAT, "<|im_end|>", ("boxed", "auto")),
}


@dataclass(frozen=True)
class Maths:
    """Problems put by a template of TEMPLATES to a model of this tokenizer, graded by `verify`.

    `verifier` is a mode of `verify.grade`, by default the template's.  Raises UserError where the
    two do not fit (every reward would be 0) or the tokenizer lacks a token of the template.
    """

    vocabulary: Tokenizer
    template: str = "boxed"
    verifier: str = ""

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise UserError(f"template {self.template!r} is none of {', '.join(TEMPLATES)}")
        form, added = TEMPLATES[self.template], self.vocabulary.added
        if self.verifier not in ("", *form.verifiers):
            fitting = ", ".join(form.verifiers)
            raise UserError(
                f"verifier {self.verifier!r} cannot find the answers that template "
                f"{self.template!r} asks for: all rewards would be 0; take one of {fitting}"
            )
        for token in [*re.findall(r"<[^<>\s]+>", form.text), form.eos]:
            if token not in added:
                raise UserError(f"template {self.template!r}: the tokenizer has no {token}")
        if added[form.eos] != self.vocabulary.eos:
            raise UserError(f"template {self.template!r}: the tokenizer's eos is not {form.eos}")

    def tokenizer(self) -> Tokenizer:
        return self.vocabulary

    def encode(self, problem: MathProblem) -> list[int]:
        """The prompt's ids; special tokens that the question spells out stay plain text."""
        return self.vocabulary.encode_template(
            TEMPLATES[self.template].text, question=problem.question
        )

    def name(self, problem: MathProblem) -> str:
        """What tells this problem from all others: its file and 12 digits of its question's
        hash."""
        return f"{problem.source}:{_hash(problem.question)[:12]}"

    def cluster(self, problem: MathProblem) -> str:
        """What problems share that are hard or easy together: nothing that a file says."""
        return problem.question

    def asked(self, problem: MathProblem) -> tuple[str, str]:
        """The question and the right answer, as text."""
        return problem.question, problem.answer

    def statements(self, text: str) -> list[bool]:
        """Nothing in free text can be checked statement by statement."""
        return []

    kinds = None  # no grammar tells the decisions of free text from its wording

    def reward(self, problem: MathProblem, text: str) -> float:
        """1.0 when the response's final answer equals the problem's, else 0.0.  Never raises."""
        return float(verify.grade(self._said(text), problem.answer, self._mode()))

    def answer(self, problem: MathProblem, text: str) -> str | None:
        """The response's final answer in a form that equal answers share, or None: 1/2 and 0.5 are
        one, and so are 5, x = 5 and 5 cm, since the grader lets name and unit be away."""
        said, mode = self._said(text), self._mode()
        found = verify.extract(said, mode)
        if found is None and verify.grade(said, said, mode):
            found = said  # `auto` takes a response of one short line for the answer itself
        if found is None:
            return None
        if mode == "dapo":
            return verify.dapo_normalize(found)
        return _key(verify.read(found)) or None

    def _mode(self) -> str:
        return self.verifier or TEMPLATES[self.template].verifier

    def _said(self, text: str) -> str:
        """A response without its end-of-text token, and after its thoughts; "" before their end."""
        text = text.removesuffix(TEMPLATES[self.template].eos)
        if self.template != "think":
            return text
        _, ended, said = text.rpartition("</think>")
        return said if ended and "<think>" not in said else ""


def _key(value: verify.Value) -> str:
    """A string that equal values share, the same in every process."""
    if isinstance(value, verify.Scalar):
        at = [_digits(x) for x in value.at]
        return ", ".join(at if len({*at}) > 1 else at[:1])
    if value.kind == "text":
        return value.items[0]
    items = [_key(item) for item in value.items]
    if value.kind in ("list", "set", "∪"):
        return " ; ".join(sorted(items))
    return f"{value.kind} {' ; '.join(items)}"


def _digits(x: Fraction | complex) -> str:
    """A fraction as it is, a double as the simple one beside it or to 9 digits: sqrt(4) is 2."""
    if isinstance(x, Fraction) or not cmath.isfinite(x):
        return str(x)
    simple = [Fraction(part).limit_denominator(1000) for part in (x.real, x.imag)]
    pairs = zip(simple, (x.real, x.imag), strict=True)
    real, imag = [str(s) if abs(s - d) <= 1e-12 * abs(x) else f"{d:.9g}" for s, d in pairs]
    return real if imag == "0" else f"{real} + {imag} i"


def _normal(question: str) -> str:
    """What makes two questions one: NFC, and each run of whitespace a single space."""
    return " ".join(unicodedata.normalize("NFC", question).split())


def _hash(question: str) -> str:
    return hashlib.sha256(_normal(question).encode()).hexdigest()


def read_problems(
    paths: Iterable[str | Path], skip_bad: bool = False
) -> tuple[list[MathProblem], dict[str, int]]:
    """Problems of JSONL and parquet files, each question once, and the counts "lines", "bad" and
    "duplicates".

    Raises UserError, one line with the file, the line and what is wrong, for a file that cannot be
    read or is empty and, unless `skip_bad`, for bad lines: the first of them, and how many there
    are.  Bad is what is no problem, an answer that `verify.grade` does not accept for itself, an
    earlier question with another answer, and an id that an earlier problem of the file has.
    """
    counts, first_bad = dict(lines=0, bad=0, duplicates=0), ""
    seen: dict[str, tuple[MathProblem, str]] = {}  # normal question -> the problem and its place
    for path in map(Path, paths):
        kind, rows = ("row", _parquet) if path.suffix == ".parquet" else ("line", _lines)
        before, ids = counts["lines"], {}  # ids of this file: two files may both count from 0
        for number, row in rows(path):
            counts["lines"] += 1
            where = f"{path}, {kind} {number}"
            try:
                record = _record(row) if isinstance(row, bytes) else row
                problem = MathProblem(_question(record), _answer(record), path.name)
                key = _normal(problem.question)
                if key in seen:
                    same, there = seen[key]
                    if not _agree(problem.answer, same.answer):
                        raise ValueError(
                            f"the answer {_short(problem.answer)}, but {there} has the same "
                            f"question with {_short(same.answer)}"
                        )
                    counts["duplicates"] += 1
                    continue
                if not verify.grade(f"\\boxed{{{problem.answer}}}", problem.answer):
                    raise ValueError(f"the answer {_short(problem.answer)} cannot be verified")
                for name in IDS:
                    if record.get(name) is not None:
                        mark = (name, repr(record[name]))
                        if mark in ids:
                            raise ValueError(f"{name} {_short(record[name])} is {ids[mark]}'s too")
                        ids[mark] = where
            except (ValueError, RecursionError) as e:
                counts["bad"] += 1
                first_bad = first_bad or f"{where}: {e}"
                continue
            seen[key] = problem, where
        if counts["lines"] == before:
            raise UserError(f"{path}: is empty")
    if first_bad and not skip_bad:
        many = f" ({counts['bad']} bad of {counts['lines']} lines; --skip-bad leaves them out)"
        raise UserError(first_bad + many)
    return [problem for problem, _ in seen.values()], counts


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers; of one over MAX_LINE only the
    start, so that memory stays bounded whatever the file."""
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if line.strip():
                    yield number, line
                while len(line) > MAX_LINE and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE + 1) or b"\n"
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None


def _parquet(path: Path) -> Iterator[tuple[int, dict]]:
    """The rows of a parquet file with their numbers."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: to read parquet: pip install pyarrow, or use JSONL") from None
    try:
        batches = ParquetFile(path).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, 1)
    except (OSError, ValueError) as e:  # pyarrow's own errors are both of these
        raise UserError(f"{path}: {' '.join(str(e).split())[:200]}") from None


def _record(line: bytes) -> dict:
    """One line of JSON.  Raises ValueError unless it is an object of at most MAX_LINE bytes, in
    UTF-8, without a name twice."""
    if len(line) > MAX_LINE:
        raise ValueError(f"is longer than {MAX_LINE:,} bytes; one problem a line is needed")

    record = parse_json(line)  # a byte order mark is no part of the text
    if type(record) is not dict:
        raise ValueError(f"is no JSON object but {_short(record)}; one problem a line is needed")
    return record


def _question(record: dict) -> str:
    """A record's question, out of a chat and out of DAPO's prompt.  Raises ValueError."""
    name = next((name for name in QUESTIONS if record.get(name) is not None), None)
    if name is None:
        raise ValueError(f"has none of {', '.join(QUESTIONS)}, only {_short(list(record))}")
    text = record[name]
    if type(text) is list:  # a chat
        said = [m.get("content") for m in text if type(m) is dict and m.get("role") == "user"]
        text = said[-1] if said else None
    text = text.strip() if type(text) is str else ""
    if wrapped := DAPO_START.match(text):
        text = DAPO_END.sub("", text[wrapped.end() :]).strip()
    if not text:
        raise ValueError(f"{name} is no text and no chat with one: {_short(record[name])}")
    if len(text) > MAX_LINE:
        raise ValueError(f"{name} has {len(text):,} characters")
    text.encode()  # half of a surrogate pair is a UnicodeEncodeError, which is a ValueError
    return text


def _answer(record: dict) -> str:
    """A record's answer.  Raises ValueError where it is missing, no text or number, or where two
    fields disagree."""
    found = {name: record[name] for name in ANSWERS if record.get(name) is not None}
    model = record.get("reward_model")
    if type(model) is dict and model.get("ground_truth") is not None:
        found["ground_truth"] = model["ground_truth"]
    for name in ("label", "solution"):  # a label may be of another kind, a solution a second one
        if not found and record.get(name) is not None:
            found[name] = record[name]
    if not found:
        names = ", ".join((*ANSWERS, "reward_model.ground_truth", "label", "solution"))
        raise ValueError(f"has none of {names}, only {_short(list(record))}")
    answers = {name: _gold(name, value) for name, value in found.items()}
    (name, answer), *others = answers.items()
    for other, value in others:
        if not _agree(answer, value):
            raise ValueError(f"{name} is {_short(answer)}, {other} is {_short(value)}")
    return answer


def _gold(name: str, value: Any) -> str:
    """The answer in one field: a text, a number, or a list of one of these."""
    if type(value) is list and len(value) == 1:
        value = value[0]
    if type(value) is float and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # the 27.0 of a table is 27 to a verifier of strings
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return str(value)
    if type(value) is not str:
        raise ValueError(f"{name} is no text and no number: {_short(value)}")
    value.encode()
    text = value.strip()
    if "####" in text:
        text = text.rpartition("####")[2].strip()
    elif re.search(r"\\(?:boxed|fbox)\b", text):
        text = verify.extract(text, "boxed") or ""
    elif name == "solution":
        short = text if "\n" not in text and len(text) <= 200 else ""
        text = (verify.extract(text) or short).strip("$ ")  # "The answer is $7$." leaves one
    if text.lower() in ("", "nan"):
        raise ValueError(f"{name} is empty or names no final answer: {_short(value)}")
    return text


def _agree(a: str, b: str) -> bool:
    return a == b or verify.grade(f"\\boxed{{{a}}}", b) or verify.grade(f"\\boxed{{{b}}}", a)


def _short(value: Any) -> str:
    """A value of a file in one short line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def split_by_hash(problems: Sequence[MathProblem], holdout: float) -> dict[str, list[MathProblem]]:
    """Disjoint "train", "val" and "test", each problem's place a function of its question alone:
    the same in every file, order and machine.  val and test get the share `holdout` each."""
    out: dict[str, list[MathProblem]] = {"train": [], "val": [], "test": []}
    for problem in problems:
        lot = int(_hash(problem.question)[:12], 16) / 16**12  # uniform in [0, 1)
        out["val" if lot < holdout else "test" if lot < 2 * holdout else "train"].append(problem)
    return out


def main(argv: list[str]) -> int:
    """The command line: what is in the files, how it is split, and the first problem."""
    try:
        paths = [a for a in argv if a != "--skip-bad"]
        if not paths:
            raise UserError("name a file: python -m tasks.maths FILE... [--skip-bad]")
        problems, counts = read_problems(paths, "--skip-bad" in argv)
    except UserError as e:
        print(f"tasks: {e}", file=sys.stderr)
        return 2
    print(", ".join(f"{n} {what}" for what, n in counts.items()) + f"; {len(problems)} problems")
    splits = split_by_hash(problems, 0.02)
    print("at --holdout 0.02: " + ", ".join(f"{len(p)} {name}" for name, p in splits.items()))
    for problem in problems[:1]:
        print("\n" + TEMPLATES["boxed"].text.format(question=problem.question), end="")
        print(f"\n(answer: {problem.answer}; from {problem.source})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
