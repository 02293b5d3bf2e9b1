"""A config is one dataclass; it is the command line, its --help and its checks.

    class Config:
        rho: float = flag(0.2, "share of tokens kept", "(0, 1]", needs="keep top bottom random")

gives `--rho`, refuses `--rho 2` with the range, and `--keep all --rho 0.1` because nothing would
read it.  What is wrong with a command line is a UserError of one line.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import Field, field, fields
from typing import Any, NoReturn

from infra.files import UserError, read_config

KINDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def flag(
    default: Any,
    text: str,
    allowed: str = "",
    *,
    maths: Any = None,
    group: str = "",
    needs: str = "",
    free: bool | str = False,
) -> Any:
    """A config field: its default and its line of --help.

    `allowed`: the words it may be, "adamw sgd" (FILE among them: any other), or the interval it is
    in, "(0, 1]"; "auto [1, inf)" may be 0 as well, typed `auto`.  `maths`: the default where --data
    is given.  `group`: the heading of it and of the fields after it.  `needs`: who reads it, "data"
    (only if --data is given), "no data", or "keep top bottom" (only if --keep is one of these).
    `free`: it cannot change what is learned, or not in a run with "pool minibatch", which may
    therefore go on with another value.
    """
    maths = default if maths is None else maths
    about = dict(text=text, allowed=allowed, maths=maths, group=group, needs=needs, free=free)
    return field(default=default, metadata=about)


def defaults(kind: type, maths: bool) -> dict:
    """By field name, those with --data if `maths`."""
    return {f.name: f.metadata["maths"] if maths else f.default for f in fields(kind)}


def free(config: Any) -> set[str]:
    """The fields that a run of this config may go on with another value of."""

    def may(where: bool | str) -> bool:
        name, *words = where.split() if type(where) is str else ("",)
        return str(getattr(config, name)) in words if words else bool(where)

    return {f.name for f in fields(config) if may(f.metadata["free"])}


def filled(kind: type, given: dict) -> Any:
    """A checked dataclass of the flags given and the defaults.  With `resume`, those of the run in
    that folder are the defaults; UserError for one that would change what is learned there."""
    if folder := given.get("resume"):
        saved = read_config(folder, kind) | dict(out=folder)
        fixed = {k for k in given if given[k] != saved.get(k)} - free(kind(**saved)) - {"resume"}
        if fixed:
            raise UserError(f"{option(min(fixed))} cannot change in a run that has begun, {folder}")
        given = saved | given
    config = kind(**defaults(kind, bool(given.get("data"))) | given)
    check(config)
    return config


def taken(config: Any) -> str:
    """What a config has by default and would not have with, or without, --data."""
    usual, other = (defaults(type(config), x) for x in (bool(config.data), not config.data))
    same = {k: v for k, v in usual.items() if v != other[k] and getattr(config, k) == v}
    world = "for --data" if config.data else "of the small world"
    return f"defaults {world}: {' '.join(typed(same))}"


def option(name: str) -> str:
    """A field's name as it stands on the command line."""
    return "--" + name.replace("_", "-")


def typed(given: dict) -> list[str]:
    """Flags by field name as they are typed."""
    return [option(k) if v is True else f"{option(k)}={v}" for k, v in given.items()]


def rule(f: Field) -> str:
    """What the field's value must be beside its type, in words; "" for anything."""
    allowed = f.metadata["allowed"]
    if type(f.default) is str:
        words = ", ".join(allowed.removesuffix(" FILE").split())
        return f"one of {words}" + " or a file" * allowed.endswith(" FILE") if allowed else ""
    allowed = re.sub(r"\[(\S+), inf\)", r"at least \1", allowed.replace("auto ", "auto or "))
    allowed = re.sub(r"\((\S+), inf\)", r"above \1", allowed)
    return re.sub(r"(?=[(\[])", "in ", allowed)


def check_value(f: Field, value: Any) -> None:
    """UserError unless the field may have this value."""
    kind, allowed = type(f.default), f.metadata["allowed"]
    good = type(value) is kind
    if good and allowed and kind is str:
        good = value in (*allowed.split(), f.default) or allowed.endswith(" FILE")
    elif good and allowed and not (value == 0 and allowed.startswith("auto ")):
        allowed = allowed.removeprefix("auto ")
        low, high = map(float, allowed[1:-1].split(","))
        good = value > low if allowed[0] == "(" else value >= low
        good = good and (value < high if allowed[-1] == ")" else value <= high)
    if not good:
        must = ", ".join(filter(None, (KINDS[kind], rule(f))))
        raise UserError(f"{option(f.name)} {value!r}: it must be {must}")


def unread(config: Any, f: Field) -> str:
    """Why nothing reads a field beside the others, "" where something does."""
    if not f.metadata["needs"]:
        return ""
    name, *words = f.metadata["needs"].split()
    if name == "no":
        return f"{option(words[0])} is given" if getattr(config, words[0]) else ""
    read = getattr(config, name) in words if words else bool(getattr(config, name))
    return "" if read else f"it needs {option(name)} {' or '.join(words)}".rstrip()


def check(config: Any) -> None:
    """UserError for a value that its field may not have (a config.json is read without `parse`),
    and for one that was changed where nothing would read it."""
    usual = defaults(type(config), bool(getattr(config, "data", "")))
    for f in fields(config):
        check_value(f, value := getattr(config, f.name))
        if value != usual[f.name] and (why := unread(config, f)):
            raise UserError(f"{option(f.name)} would be ignored: {why}")


def readable(kind: type, given: dict, own: dict) -> dict:
    """Those of the flags `given` that something reads where the flags `own` are set, too."""
    config = kind(**given | own)
    ignored = {f.name for f in fields(kind) if unread(config, f)}
    return {name: value for name, value in given.items() if name not in ignored}


def check_rules(config: Any, rules: list[tuple[str, bool, str]]) -> None:
    """UserError for the first (field, is it good, what it must be) that is not good."""
    for name, good, text in rules:
        if not good:
            raise UserError(f"{option(name)} {getattr(config, name)!r}: it must be {text}")


def parse(kinds: Sequence[type], argv: Sequence[str], program: str, doc: str) -> dict:
    """The flags of these dataclasses that were given, by field name.  UserError for an unknown flag
    or a value that its field may not have.  --help prints them all and exits."""
    if {"-h", "--help"} & set(argv):
        print(help_text(kinds, doc), flush=True)
        raise SystemExit
    parser = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)

    def fail(message: str) -> NoReturn:
        raise UserError(f"{message}; python {program} --help lists the flags")

    parser.error = fail
    known = {f.name: f for kind in kinds for f in fields(kind)}
    for name, f in known.items():
        bare = dict(action="store_const", const=True) if type(f.default) is bool else {}
        parser.add_argument(option(name), **bare)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    for name, text in given.items():
        auto = text == "auto" and known[name].metadata["allowed"].startswith("auto ")
        try:
            given[name] = type(known[name].default)(0 if auto else text)
        except ValueError:
            pass  # the text itself is refused now
        check_value(known[name], given[name])
    return given


def take(kind: type, given: dict) -> Any:
    """A dataclass of those flags that are its own; they leave `given`.  UserError as by `check`."""
    config = kind(**{f.name: given.pop(f.name) for f in fields(kind) if f.name in given})
    check(config)
    return config


def shown(f: Field, maths: bool) -> str:
    """A field's default as it is typed, "" for none."""
    value = f.metadata["maths"] if maths else f.default
    if value == 0 and f.metadata["allowed"].startswith("auto "):
        return "auto"
    return {True: "yes", False: ""}[value] if type(value) is bool else f"{value}"


def help_text(kinds: Sequence[type], doc: str) -> str:
    """Every flag with its default, the one with --data where that is another, its line and what it
    may be, by group."""
    lines = [doc.strip(), f"{'':20} {'default':9} --data"]
    for f in (f for kind in kinds for f in fields(kind)):
        if f.metadata["group"]:
            lines.append(f"{f.metadata['group']}:")
        usual, maths = shown(f, False), shown(f, True)
        text = "; ".join(filter(None, (f.metadata["text"], rule(f).removeprefix("one of "))))
        name = option(f.name) + " *" * bool(f.metadata["free"])
        start = f"{name:18} {usual:9} {maths if maths != usual else '':8}"
        lines.append(f"  {start} {text}")
    return "\n".join(lines)
