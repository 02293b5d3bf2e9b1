"""Mathematics problems read from files, put by a template and graded by `verify.py`.

    python -m tasks.maths FILE... [--template NAME]   # what is in them, and what to do about it

One JSON object a line, a JSON array of them, or rows of parquet, in any of the usual forms:

    {"problem": "What is 1 + 1?", "answer": 2}                            DAPO, AIME, AMC
    {"question": "...", "answer": "48 / 2 = 24 ... #### 72"}              GSM8K
    {"problem": "...", "solution": "... it is $\\boxed{5}$."}             MATH, Minerva
    {"question": "...", "solution": ["..."], "final_answer": ["$3$"]}     OlympiadBench
    {"prompt": [{"role": "user", "content": "..."}], "reward_model": {"ground_truth": "34"}}   verl
    [{"from": "human", "value": "..."}, {"from": "assistant", "ground_truth": {"value": "5"}}]   ORZ
    {"Body": "Ann has 2.", "Question": "And half of it?", "Answer": 1.0}  SVAMP, ASDiv
    {"question": "...", "choices": ["2", "4"], "answer": 1}               MMLU, AQuA: the gold is B

Names are read in lower case.  The question is the first there is of QUESTIONS, after what stands in
BEFORE; choices follow as lettered lines.  The golds there are of ANSWERS must agree; without them
it is the first of OTHERWISE, then what `solution` or the last turn of a chat ends with.  What data
sets say around a question is taken off: the template says how to answer.  A line that is no problem
stops the reading or, with --skip-bad, is counted by what is wrong with it.
"""

import argparse
import hashlib
import json
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import verify
from infra import files
from infra.files import UserError, parse_json
from tasks.tokenizer import Tokenizer

MAX_LINE = 500_000  # bytes of a line; few problems have 10,000, and a 2 GB line is never held
BEFORE = ("instruction", "passage", "context", "body")
QUESTIONS = ("problem", "question", "prompt", "messages", "conversations", "input")
CHOICES = ("choices", "options")
ANSWERS = ("answer", "final_answer", "gold", "expected_answer", "ground_truth")
OTHERWISE = ("target", "label", "correct", "answerkey")  # may be of another kind beside an answer
NO_GOLD = ("", "nan", "none", "null", "n/a", "notfound", "proof")
LETTERS = "ABCDEFGHIJ"
LETTER = re.compile(r"\(?\b([A-Ja-j])\s?[).:](?:\s|$)|([A-Ja-j])$")  # (A), "B) 5", "c"
# what data sets say around a problem: DAPO's with `$Answer` or `\boxed{$Answer}`, verl's, PRIME's
START = re.compile(
    r"\ASolve the following math problem step by step\. The last line of your response should be of"
    r' the form "?Answer: [^\n]*\n\n'
)
END = re.compile(
    r'\n\nRemember to put your answer on its own line after "?Answer:[^\n]*\Z'
    r"|\s*(?:(?:Let['’]s think|Please (?:think|reason)) step by step[,.]?|Present the answer in"
    r" (?i:latex) format:)[^.\n]{0,60}(?:\\boxed\{[^{}]{0,20}\}|\"?####\"?)\.?\s*\Z"
)
PROOF = re.compile(r"(?im)^\W*proof\b")
WORDS = re.compile(r"\\(?:text\w*|math\w+|mbox)|[{}$\s]")


class Bad(ValueError):
    """A record that is no problem: what kind of thing is wrong, and what in it."""


@dataclass(frozen=True)
class MathProblem:
    question: str
    answer: str  # as it stands in the set, out of its `\boxed{}` or `####`
    source: str  # the set's name


@dataclass(frozen=True)
class Template:
    """How a problem is put, and its answer found."""

    text: str  # with `{problem}` in it
    eos: str  # the token that ends a text
    verifiers: tuple[str, ...]  # modes of `verify.grade` that find the answer, the usual one first
    thinks: bool = False  # thoughts come before the answer


BOXED = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
CHAT = f"<|im_start|>user\n{BOXED}<|im_end|>\n<|im_start|>assistant\n"
LINE = (  # as DAPO asks for it: the answer alone on a line that its rule of strings can find
    "{problem}\nPlease reason step by step, and end with a line of the form Answer: followed by "
    "nothing but your final answer."
)
BOXES, LINES = ("boxed", "auto"), ("answer", "dapo", "auto")
TEMPLATES = {
    "boxed": Template(f"User:\n{BOXED}\n\nAssistant:\n", "<|endoftext|>", BOXES),
    "answer": Template(f"User:\n{LINE}\n\nAssistant:\n", "<|endoftext|>", LINES),
    # Qwen3's own markup; an empty thought is how it is told not to think
    "chat": Template(f"{CHAT}<think>\n\n</think>\n\n", "<|im_end|>", BOXES),
    "think": Template(CHAT, "<|im_end|>", BOXES, thinks=True),
    # the 2507 models: Instruct never thinks, Thinking always does, and its prompt opens the thought
    "instruct": Template(CHAT, "<|im_end|>", BOXES),
    "thinking": Template(f"{CHAT}<think>\n", "<|im_end|>", BOXES, thinks=True),
}
FORMS = (*TEMPLATES, "FILE")  # what --template may be


@cache
def template_of(name: str, system: str = "") -> Template:
    """One of TEMPLATES, a chat with a system prompt, or a file with a whole conversation: in it
    `{problem}` and, where the model writes, `{response}` and the token that ends a text:

        Q: {problem} Put the answer in \\boxed{}.
        A: {response}<|endoftext|>
    """
    form = TEMPLATES.get(name) or template_in(Path(name))
    if not system:
        return form
    if not (name in TEMPLATES and form.text.startswith("<|im_start|>")):
        raise UserError(f"--template {name} has no place for a --system")
    return replace(form, text=f"<|im_start|>system\n{braced(system)}<|im_end|>\n{form.text}")


def template_in(path: Path) -> Template:
    """The template in a file.  UserError."""
    if not path.is_file():
        raise UserError(f"--template {path}: it is no file and none of {', '.join(TEMPLATES)}")
    text = files.read_bytes(path).decode(errors="replace").replace("\r\n", "\n")
    text, written, end = text.partition("{response}")
    eos = re.match(r"<[^<>\s]+>", end)
    if not written or not eos or text.count("{problem}") != 1:
        what = "{problem} once and then {response} with the token behind it that ends a text"
        raise UserError(f"{path}: a template has {what}, as {{response}}<|im_end|>")
    modes = BOXES if "boxed" in text else LINES[:1] if "Answer:" in text else ("auto",)
    text = braced(text).replace("{{problem}}", "{problem}")
    return Template(text, eos[0], modes, text.rstrip().endswith("<think>"))


def braced(text: str) -> str:
    """A text as it stands in a template."""
    return text.replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True)
class Maths:
    """A world as countdown.py's: problems put by a template to a model of this tokenizer, graded by
    `verify`.  Raises UserError where they do not fit: every reward would be 0."""

    vocabulary: Tokenizer
    template: str = "boxed"  # one of TEMPLATES or a file
    verifier: str = ""  # a mode of `verify.grade`, by default the template's
    system: str = ""  # a chat template's system prompt

    def __post_init__(self) -> None:
        form, added = self.form, self.vocabulary.added
        if self.verifier not in ("", *form.verifiers):
            fitting = ", ".join(form.verifiers)
            raise UserError(
                f"--verifier {self.verifier} cannot find the answers that --template "
                f"{self.template} asks for: all rewards would be 0; take one of {fitting}"
            )
        for token in [*re.findall(r"<\|[^<>\s]+\|>|</?think>", form.text), form.eos]:
            if token not in added:
                raise UserError(f"--template {self.template}: the tokenizer has no {token}")
        if added[form.eos] != self.vocabulary.eos:
            raise UserError(f"--template {self.template}: the tokenizer's eos is not {form.eos}")

    @property
    def form(self) -> Template:
        return template_of(self.template, self.system)

    def tokenizer(self) -> Tokenizer:
        return self.vocabulary

    def generation(self, temperature: float) -> dict:
        """A generation_config.json: where a text ends, and that tokens are drawn from the whole
        distribution."""
        ends = dict.fromkeys([self.vocabulary.eos, *self.vocabulary.stops.values()])
        whole = dict(temperature=temperature, top_p=1.0, top_k=0)
        return dict(eos_token_id=[*ends], do_sample=True) | whole

    def encode(self, problem: MathProblem) -> list[int]:
        return self.vocabulary.encode_template(self.form.text, problem=problem.question)

    def name(self, problem: MathProblem) -> str:
        return f"{problem.source}:{_hash(problem.question)[:12]}"

    def cluster(self, problem: MathProblem) -> str:
        return problem.question  # nothing that a file says is hard or easy as another

    def asked(self, problem: MathProblem) -> tuple[str, str]:
        return problem.question, problem.answer

    def statements(self, text: str) -> list[bool]:
        return []  # nothing in free text can be checked one by one

    kinds = None  # no grammar tells the decisions of free text from its wording

    def reward(self, problem: MathProblem, text: str) -> float:
        """1.0 when the response's final answer equals the problem's, else 0.0.  Never raises."""
        return float(verify.grade(self._said(text), problem.answer, self._mode()))

    def answer(self, problem: MathProblem, text: str) -> str | None:
        """The response's final answer as it is written, or None: which are equal says `same`."""
        said, mode = self._said(text), self._mode()
        found = verify.extract(said, mode)
        if found is None and verify.grade(said, said, mode):
            found = said.strip()  # `auto` takes a response of one short line for the answer itself
        return verify.dapo_normalize(found) if found and mode == "dapo" else found

    def same(self, a: str, b: str) -> bool:
        """Whether two answers are one vote: 1/2 and 0.5 are, and so are 5, x = 5 and 5 cm."""
        return a == b if self._mode() == "dapo" else _equal(a, b)

    def _mode(self) -> str:
        return self.verifier or self.form.verifiers[0]

    def _said(self, text: str) -> str:
        """A response without its end-of-text token, and after its thoughts; "" before their end."""
        ends = "|".join(map(re.escape, self.vocabulary.stops))
        text = re.sub(f"(?:{ends})\\Z", "", text)
        if not self.form.thinks:
            return text
        _, ended, said = text.rpartition("</think>")
        return said if ended and "<think>" not in said else ""


def normal(question: str) -> str:
    """What makes two questions one: NFC, and each run of whitespace a single space."""
    return " ".join(unicodedata.normalize("NFC", question).split())


def _hash(question: str) -> str:
    return hashlib.sha256(normal(question).encode()).hexdigest()


def _equal(a: str, b: str, how: Callable = all) -> bool:
    """Whether the grader takes each of two answers for the other; `any`: one for the other."""
    return a == b or how(verify.grade(f"\\boxed{{{x}}}", y) for x, y in ((a, b), (b, a)))


def _value(gold: str) -> bool:
    """Whether the grader reads a gold as a value, not as words."""
    value = verify.read(gold)
    return isinstance(value, verify.Scalar) or value.kind != "text"


def only_text(gold: str) -> bool:
    """Whether nothing but a gold's own spelling is right: no words, and no value to the grader."""
    words = re.fullmatch(r"[^\W\d_]+(?:[-'., ]+[^\W\d_]+)*\.?", WORDS.sub("", gold))
    return not words and not _value(gold)


# ---------------------------------------------------------------------- from files to problems


def set_name(path: str | Path) -> str:
    """What a file's problems are called: its name, or of NAME/test.jsonl its folder's."""
    path = Path(path)
    plain = path.stem in ("test", "train", "val", "valid", "validation", "dev", "eval", "data")
    return path.resolve().parent.name if plain else path.stem


def read_problems(
    paths: Iterable[str | Path], skip_bad: bool = False
) -> tuple[list[MathProblem], dict[str, int]]:
    """Problems of files, each question once, and counts: "lines", "bad", "duplicates", and the bad
    ones by kind.  Raises UserError for a file that cannot be read or is empty and, unless
    `skip_bad`, for bad lines: what is no problem, an answer that `verify.grade` does not accept for
    itself, and an earlier question with another answer."""
    problems, counts, bad = _read(paths)
    if bad and not skip_bad:
        kinds = told({kind: counts[kind] for kind in bad})
        many = f"{counts['bad']} bad of {counts['lines']} lines: {kinds}"
        raise UserError(f"{next(iter(bad.values()))} ({many}; --skip-bad leaves them out)")
    return problems, counts


def _read(paths: Iterable[str | Path]) -> tuple[list[MathProblem], dict[str, int], dict[str, str]]:
    """Problems, counts, and of each kind of bad line the first, in their order."""
    counts, kinds, bad = dict(lines=0, bad=0, duplicates=0), Counter(), {}
    seen: dict[str, tuple[MathProblem, str]] = {}  # normal question -> the problem and its place
    for path in map(Path, paths):
        before = counts["lines"]
        for where, row in _rows(path):
            counts["lines"] += 1
            try:
                record = _record(row)
                problem = MathProblem(_question(record), _answer(record), set_name(path))
                answer, key = _short(problem.answer), normal(problem.question)
                if key not in seen:
                    if not verify.grade(f"\\boxed{{{problem.answer}}}", problem.answer):
                        raise Bad("unverifiable", f"the answer {answer} cannot be verified")
                    seen[key] = problem, where
                    continue
                same, there = seen[key]
                if not _equal(problem.answer, same.answer, any):
                    other = f"{there} has the same question with {_short(same.answer)}"
                    raise Bad("contradictions", f"the answer {answer}, but {other}")
                counts["duplicates"] += 1
            except (ValueError, RecursionError) as e:
                kind, why = e.args if isinstance(e, Bad) else ("unreadable", e)
                kinds[kind] += 1
                bad.setdefault(kind, f"{where}: {why}")
        if counts["lines"] == before:
            raise UserError(f"{path}: is empty")
    counts["bad"] = kinds.total()
    return [problem for problem, _ in seen.values()], counts | dict(kinds), bad


def read_sets(paths: str, skip_bad: bool = False) -> dict[str, list[MathProblem]]:
    """The problems of some files, named by commas, under the names of their sets.  UserError for
    two files of one name."""
    sets, named = {}, [(set_name(path), path) for path in paths.split(",") if paths]
    for i, (name, path) in enumerate(named):
        if not path or name in ("train", "val", "test", "average", *dict(named[:i])):
            raise UserError(f"{path!r} in {paths}: a set needs a name of its own, not {name!r}")
    for name, path in named:
        sets[name], counts = read_problems([path], skip_bad)
        print(f"{path}: {told(counts)}")
    return sets


def told(counts: dict[str, int]) -> str:
    """Counts in words."""
    return ", ".join(f"{n:,} {what}" for what, n in counts.items())


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """What stands in a file, each with its place: a parquet file's rows, a JSON array's items, or
    the lines that are not blank, of which at most the start is held."""
    if path.suffix == ".parquet":
        yield from ((f"{path}, row {i}", row) for i, row in enumerate(_parquet(path), 1))
        return
    try:
        with open(path, "rb") as file:
            start = file.read(200).lstrip(b"\xef\xbb\xbf \t\r\n")
        if start.startswith(files.POINTER):
            files.read_bytes(path)  # says so
        if start.startswith(b"[") and path.stat().st_size <= files.SIZE_LIMIT:
            with suppress(ValueError):  # where every line is a chat, together they are no JSON
                for i, item in enumerate(parse_json(path.read_bytes()), 1):
                    yield f"{path}, item {i}", item
                return
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if line.strip():
                    yield f"{path}, line {number}", line
                while len(line) > MAX_LINE and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE + 1) or b"\n"
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None


def _parquet(path: Path) -> Iterator[dict]:
    """The rows of a parquet file."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: to read parquet: pip install pyarrow, or use JSONL") from None
    try:
        yield from (row for batch in ParquetFile(path).iter_batches() for row in batch.to_pylist())
    except (OSError, ValueError) as e:  # pyarrow's own errors are both of these
        raise UserError(f"{path}: {' '.join(str(e).split())[:200]}") from None


def _record(row: Any) -> dict:
    """A line of JSON, or what was one, by lower-case names; a chat alone is its `messages`.  Raises
    ValueError unless it is an object of at most MAX_LINE bytes."""
    if type(row) is bytes:
        if len(row) > MAX_LINE:
            raise ValueError(f"is longer than {MAX_LINE:,} bytes; one problem a line is needed")
        row = parse_json(row)
    if type(row) is list and row and all(type(m) is dict and {"from", "role"} & {*m} for m in row):
        row = dict(messages=row)
    if type(row) is not dict:
        raise ValueError(f"is no JSON object but {_short(row)}; one problem a line is needed")
    return {k.lower(): v for k, v in row.items()} | row


def _turns(chat: Any, *who: str) -> list[dict]:
    """The turns of some in a chat, of either spelling, each with its `text`."""
    turns = [m for m in chat if type(m) is dict] if type(chat) is list else []
    said = [m | dict(text=m.get("content", m.get("value"))) for m in turns]
    return [m for m in said if m.get("role", m.get("from")) in who]


def _question(record: dict) -> str:
    """A record's whole question, without what a data set says around it.  Raises ValueError."""
    name = next((name for name in QUESTIONS if record.get(name) is not None), None)
    if name is None:
        has = f"has none of {', '.join(QUESTIONS)}, only {_short(list(record))}"
        raise Bad("without a question", has)
    text = record[name]
    if type(text) is list:
        users = _turns(text, "user", "human")
        text = users[-1]["text"] if users else None
    text = START.sub("", text.strip()) if type(text) is str else ""
    text = (text[:-400] + END.sub("", text[-400:])).strip()  # of endless spaces only these
    if not text:
        why = f"{name} is no text and no chat with one: {_short(record[name])}"
        raise Bad("without a question", why)
    if "<|im_start|>" in text:
        raise Bad("in a template", f"{name} is in a chat template already: give the bare question")
    for other in BEFORE[::-1]:
        if (start := record.get(other)) and other != name:
            if type(start) is not str:
                raise Bad("without a question", f"{other} is no text: {_short(start)}")
            text = f"{start.strip()}\n{text}"
    for letter, choice in zip(LETTERS, _choices(record), strict=False):
        text += f"\n{letter}) {choice}"
    if len(text) > MAX_LINE:
        raise Bad("without a question", f"{name} has {len(text):,} characters")
    text.encode()  # half of a surrogate pair is a UnicodeEncodeError, which is a ValueError
    return text


def _choices(record: dict) -> list[str | float]:
    """A record's choices, texts or numbers, if it has any, without letters.  Raises ValueError."""
    name = next((name for name in CHOICES if record.get(name)), None)
    given = record.get(name)
    if type(given) is dict and "".join(given).upper() == LETTERS[: len(given)]:
        given = list(given.values())
    good = type(given) is list and 2 <= len(given) <= len(LETTERS)
    if name and not (good and all(type(x) in (str, int, float) for x in given)):
        raise Bad("with odd choices", f"{name} is no list of choices: {_short(record[name])}")
    texts = [x.strip() if type(x) is str else x for x in given or []]
    lead = [(rf"\A\(?{letter}[).:]\s*", x) for letter, x in zip(LETTERS, texts, strict=False)]
    lettered = all(type(x) is str and re.match(r, x) for r, x in lead)
    return [re.sub(r, "", x) for r, x in lead] if lettered else texts


def _answer(record: dict) -> str:
    """A record's answer.  Raises ValueError for one that is missing, and for two that differ."""
    model = record.get("reward_model")
    model = model if type(model) is dict else {}
    chats = [record[n] for n in QUESTIONS[2:5] if type(record.get(n)) is list]
    ends = [turn for chat in chats for turn in _turns(chat[-1:], "assistant", "gpt")]
    given = [(name, record.get(name)) for name in ANSWERS]
    given += [("reward_model.ground_truth", model.get("ground_truth"))]
    given += [("ground_truth of a turn", turn.get("ground_truth")) for turn in ends]
    others = [(name, record.get(name)) for name in (*OTHERWISE, "solution")]
    others += [("chat", turn["text"]) for turn in ends[:1]]
    found = {name: value for name, value in given if value is not None}
    found = found or dict([x for x in others if x[1] is not None][:1])
    if not found:
        names = ", ".join((*ANSWERS, "reward_model.ground_truth", *OTHERWISE, "solution"))
        raise Bad("without a gold", f"has none of {names}, only {_short(list(record))}")
    choices = _choices(record)
    (name, answer), *more = [(name, _gold(name, value, choices)) for name, value in found.items()]
    for other, value in more:
        if not _equal(answer, value, any):
            raise Bad("contradictions", f"{name} is {_short(answer)}, {other} is {_short(value)}")
    return answer


def _gold(name: str, value: Any, choices: list[str]) -> str:
    """The answer in one field: a text, a number, or a list of one of these, also one written as
    JSON; where there are choices, a letter."""
    if type(value) is dict and [*value] == ["value"]:
        value = value["value"]
    if type(value) is str and re.match(r'\s*\["', value):
        with suppress(ValueError):  # no list after all
            value = json.loads(value)
    if type(value) is list and len(value) > 1:
        raise Bad("with several golds", f"{name} has {len(value)} answers: {_short(value)}")
    if type(value) is list and value:
        value = value[0]
    if type(value) is float and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # the 27.0 of a table is 27 to a verifier of strings
    if choices and type(value) in (int, float):
        return _letter(name, value, choices)
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        value = str(value)
    elif type(value) is not str:
        raise Bad("without a gold", f"{name} is no text and no number: {_short(value)}")
    value.encode()
    text, whole = value.strip(), name in ("solution", "chat")
    if whole and (proof := PROOF.search(text)):
        text = text[: proof.start()]
    if "####" in text:
        text = text.rpartition("####")[2].strip()
    elif re.search(r"\\(?:boxed|fbox)\b", text):
        parts = (verify._joined_boxes(text) or verify.extract(text, "boxed") or "").split(" ; ")
        differ = [x for i, x in enumerate(parts) if not any(_equal(x, y) for y in parts[:i])]
        text = " ; ".join(differ)  # the last boxes, where they were joined a list
    elif whole:
        text = (verify.extract(text) or (text if _value(text) else "")).strip("$ ")
    if WORDS.sub("", text).strip(".").lower() in NO_GOLD or PROOF.match(text):
        raise Bad("without a gold", f"{name} is empty or names no final answer: {_short(value)}")
    return _letter(name, text, choices) if choices else text


def _letter(name: str, value: str | float, choices: list) -> str:
    """The letter of the choice that is meant: by its text, its letter, or its number from 0."""
    meant = {i for i, x in enumerate(choices) if x == value}
    letter = LETTER.match(value) if type(value) is str else None
    if letter and not meant:
        meant = {LETTERS.index((letter[1] or letter[2]).upper())}
    elif re.fullmatch(r"\d", str(value)) and (type(value) is int or not meant):
        meant |= {int(value)}
    if len(meant) != 1 or max(meant) >= len(choices):
        which = "may be several" if len(meant) > 1 else "is none"
        raise Bad("with odd choices", f"{name} {_short(value)} {which} of {len(choices)} choices")
    return LETTERS[meant.pop()]


def _short(value: Any) -> str:
    """A value of a file in one short line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def split_by_hash(problems: Sequence[MathProblem], holdout: float) -> dict[str, list[MathProblem]]:
    """Disjoint "train", "val" and "test", the last two of the share `holdout` each; a problem's
    place is a function of its question alone."""
    out: dict[str, list[MathProblem]] = {"train": [], "val": [], "test": []}
    for problem in problems:
        lot = int(_hash(problem.question)[:12], 16) / 16**12  # uniform in [0, 1)
        out["val" if lot < holdout else "test" if lot < 2 * holdout else "train"].append(problem)
    return out


def main(argv: list[str]) -> int:
    """The command line: what is in the files, the first problem as it is put, what to do."""
    parser = argparse.ArgumentParser(prog="python -m tasks.maths", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--template", default="boxed", help="as fork_gpt.py's")
    asked = parser.parse_args(argv)
    form, (problems, counts, bad) = template_of(asked.template), _read(asked.files)
    splits = {k: len(p) for k, p in split_by_hash(problems, 0.02).items()}
    print(f"{told(counts)}: {len(problems):,} problems; at --holdout 0.02 {told(splits)}")
    for kind, first in bad.items():
        print(f"  {counts[kind]:,} {kind}, as {first}")
    spelled = [p.answer for p in problems if only_text(p.answer)]
    if spelled:
        share = f"{len(spelled):,} golds ({len(spelled) / len(problems):.1%})"
        print(f"  {share} only equal their own spelling, as {', '.join(map(_short, spelled[:3]))}")
        print("  leave their problems out: a right answer that is spelled otherwise earns nothing")
    for p in problems[:1]:
        print(f"\nthe first, as it is put:\n{form.text.format(problem=p.question)}")
        print(f"(gold: {p.answer}; from {p.source})\n")
    if splits["test"] < 50:
        print("few are held out: --holdout 0.1, or measure another set by --eval-data FILE")
    flags = f"--model FOLDER --data {','.join(asked.files)}" + " --skip-bad" * bool(bad)
    print(f"train:    python fork_gpt.py {flags}\nevaluate: python fork_gpt.py --eval {flags}")
    return 0


if __name__ == "__main__":
    sys.exit(files.command("-m tasks.maths", main, sys.argv[1:]))
