"""One-line answers to mistakes on the command line."""

from __future__ import annotations

import argparse
import ast
import difflib
import pkgutil
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from typing_extensions import override

__all__ = ["UsageError", "VerbParser", "explain", "explain_failure", "nearest"]


class UsageError(Exception):
    """A mistake on the command line, in one sentence."""


class VerbParser(argparse.ArgumentParser):
    """The options of a verb of our own, which takes what ``fit`` takes as well."""

    def split(self, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the verb's own options, and the arguments that are for ``fit``.

        Args:
            args: What follows the verb.

        Raises:
            UsageError: If an option of the verb's own is wrong or misspelt.
        """
        own, rest = self.parse_known_args(args)
        for word in (arg.partition("=")[0][2:] for arg in rest if arg.startswith("--")):
            if hint := nearest(word, vars(own), cutoff=0.8):
                raise UsageError(f"There is no argument {word!r}.{hint}")
        return own, rest

    @override
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}.")


def nearest(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the question whether a name was meant, with a space before it, or nothing if none is near.

    Args:
        name: What was written.
        names: What can have been meant.
        cutoff: How near a name must be, from 0 to 1.
    """
    by_lower = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""


def explain(message: str, options: Sequence[str]) -> str:
    """Return the parser's message as one sentence with the nearest right name.

    Args:
        message: What jsonargparse has to say, often several lines.
        options: Names of the parser's arguments, such as ``trainer.max_epochs``.
    """
    said_further_in = re.search(r"There is no .*|The argument '.*|A class is given by .*", message)
    if said_further_in:
        return said_further_in[0]
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return f"There is no class {found[1]!r}.{nearest(found[1].rpartition('.')[2], _classes(message))}"
    if found := re.search(
        r"(?:unrecognized arguments: --|[Oo]ption ')([^\s'=]+)(?:' is not accepted)?", message
    ):
        group = found[1].partition(".")[0]
        groups = {option.partition(".")[0] for option in options}
        hint = nearest(found[1], options, 0.8) or nearest(group, groups) or nearest(found[1], options)
        return f"There is no argument {found[1]!r}.{hint}"
    if "is abstract" in message:
        found = re.search(r"Given value: (\{.*\})", message)
        given = ast.literal_eval(found[1]) if found else {}
        for key in given.keys() - {"class_path", "init_args"} if "class_path" in given else ():
            return f"A class is given by 'class_path' and 'init_args', not by {key!r}."
        return "Name a method before its arguments: --msda MixUp --msda.alpha 0.2."
    if found := re.search(r'Parser key "([^"]+)":\s+Expected an? (.+)\. Got value: (.*)', message):
        return f"The argument {found[1]!r} cannot be {found[3]!r}: it must be {_spell(found[2])}."
    if found := re.search(r"Given value: (.*)", message):
        before = message.partition("Given value")[0]
        key = ".".join(re.findall(r'Parser key "([^"]+)"', before))
        kinds = re.findall(r"Expected an? (<class '[^']+'>|typing\.Literal\[[^]]+\])", before)
        wanted = " or ".join(dict.fromkeys(map(_spell, kinds)))
        return f"The argument {key!r} cannot be {found[1]!r}: it must be {wanted or 'what --help says'}."
    return " ".join(message.split())


def explain_failure(error: BaseException) -> str | None:
    """Return why a class of ours refused its arguments, or None if something else failed.

    Args:
        error: What instantiating the classes raised.
    """
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    frames = traceback.extract_tb(error.__traceback__)
    ours = frames and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])
    return str(error) if ours and isinstance(error, (ValueError, ModuleNotFoundError)) else None


def _spell(kind: str) -> str:
    """Return a type as people call it."""
    kind = re.sub(r"typing\.Literal\[(.*)\]", r"\1", kind).replace("', '", "' or '")
    return re.sub(r"<class '([^']+)'>", r"\1", kind).replace("NoneType", "null")


def _classes(message: str) -> Iterator[str]:
    """Return the names of the classes that a parser would have taken."""
    subtypes = re.search(r"Subtypes: \[(.*)\]", message)
    bases = subtypes[1] if subtypes else "torch.nn.Module"  # the parser does not always say
    waiting = [pkgutil.resolve_name(name) for name in re.findall(r"\w+(?:\.\w+)*\.[A-Z]\w*", bases)]
    while waiting:
        kind = waiting.pop()
        waiting.extend(getattr(kind, "__subclasses__", list)())
        yield kind.__name__
