"""argparse made strict: clear errors, `-` and `_` alike, flags that can be switched off again.

A parser built from these pieces is the only table of options. What reads YAML files looks names,
types and choices up in it, so every type here reads both a command line's text and a YAML value.
"""
import argparse
import difflib
import json
import math
import re
import shutil
from typing import Any, Callable, Dict, FrozenSet, Sequence

from mobilenetv3.text import printable

_MOST = 1000  # characters of an error's message; an argument may have 131,072


def _refuse(expected: str, value: Any) -> None:
    is_json = value is None or isinstance(value, (bool, int, float, list, dict))
    try:
        shown = json.dumps(value, default=str) if is_json else repr(value)
    except (TypeError, ValueError):  # a key that JSON has not, or an int of thousands of digits
        shown = f"a {type(value).__name__}"
    raise argparse.ArgumentTypeError(f"expected {expected}, got {printable(shown, _MOST)}")


class Text:
    """Any text."""

    __name__ = "TEXT"  # what --help shows for the value

    def __call__(self, text: str) -> str:
        return text

    def from_yaml(self, value: Any) -> str:
        if not isinstance(value, str):
            _refuse("text (put it in quotes)", value)
        return self(value)


class Path(Text):
    """A file or a folder."""

    __name__ = "PATH"


class PathOrFlag(Path):
    """A file, or true or false."""

    def __call__(self, text: str):
        return {"true": True, "false": False}.get(text.lower(), text)

    def from_yaml(self, value: Any):
        return value if isinstance(value, bool) else super().from_yaml(value)


class Boolean:
    """true or false."""

    __name__ = "true|false"

    def __call__(self, text: str) -> bool:
        if text.lower() not in ("true", "false"):
            _refuse("true or false", text)
        return text.lower() == "true"

    def from_yaml(self, value: Any) -> bool:
        if not isinstance(value, bool):
            _refuse("true or false, without quotes", value)
        return value


class Choice(Text):
    """One of a few words."""

    def __init__(self, *words: str):
        self.words = words
        self.__name__ = "|".join(words)

    def __call__(self, text: str) -> str:
        if text not in self.words:
            _refuse(f"one of {', '.join(self.words)}", text)
        return text

    def from_yaml(self, value: Any) -> str:
        return self(value)


class Number:
    """A finite int or float within bounds.

    Args:
        expected: what a value must be, as an error says it.
        is_allowed: whether a number is within the bounds.
        word: a word that may stand in place of the number.
    """

    def __init__(self, kind: type, expected: str, is_allowed: Callable[[Any], bool],
                 word: str = ""):
        self.kind, self.expected, self.is_allowed, self.word = kind, expected, is_allowed, word
        self.__name__ = "N" if kind is int else "X"

    def __call__(self, text: str):
        return text if self.word and text == self.word else self._checked(text)

    def from_yaml(self, value: Any):
        # PyYAML takes 1e-3 for text (YAML 1.1 wants 1.0e-3), so text may be a float, but no int.
        if isinstance(value, str) and self.kind is float:
            return self(value)
        if isinstance(value, bool) or not isinstance(value, (int, self.kind)):
            _refuse(self.expected, value)
        return self._checked(value)

    def _checked(self, value: Any):
        try:
            number = self.kind(value)
            # Whatever takes a whole number takes one of 64 bits, and Python's may have any size.
            usable = abs(number) < 2 ** 63 if self.kind is int else math.isfinite(number)
        except (ValueError, OverflowError):
            usable = False
        if not usable or not self.is_allowed(number):
            _refuse(self.expected, value)
        return number


COUNT = Number(int, "an integer of 0 or more", lambda n: n >= 0)
POSITIVE_INT = Number(int, "a positive integer", lambda n: n > 0)
NOT_NEGATIVE = Number(float, "a number of 0 or more", lambda x: x >= 0)
POSITIVE = Number(float, "a positive number", lambda x: x > 0)
SHARE = Number(float, "a number from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_ONE = Number(float, "a number of 0 or more, below 1", lambda x: 0 <= x < 1)
ABOVE_ZERO = Number(float, "a number above 0, up to 1", lambda x: 0 < x <= 1)
TEXT, PATH, PATH_OR_FLAG = Text(), Path(), PathOrFlag()


class Flag(argparse.Action):
    """A switch: `--name` or `--name=true`, and `--no_name` or `--name=false` to take it back."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str,
                 default: bool = False):
        self.off = [_off(option) for option in option_strings if option.startswith("--")]
        super().__init__(
            [*option_strings, *self.off], dest, nargs=0, default=default, type=Boolean(), help=help
        )

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, option_string not in self.off)


class Several(argparse.Action):
    """One value or more; where the option stands again, its values are added to the others."""

    def __init__(self, option_strings: Sequence[str], dest: str, type: Callable, metavar: str,
                 help: str):
        super().__init__(
            option_strings, dest, nargs="+", type=type, default=[], metavar=metavar, help=help
        )

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(before if isinstance(before, list) else []), *values])


def _off(option: str) -> str:
    return "--no_" + option[2:]


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.MetavarTypeHelpFormatter):
    """Every spelling once, its value once, the default where there is one."""

    def __init__(self, prog: str):
        width = min(100, shutil.get_terminal_size().columns)
        super().__init__(prog, max_help_position=28, width=width)

    def _format_action_invocation(self, action):
        if not action.option_strings:
            return super()._format_action_invocation(action)
        shown = [name for name in action.option_strings if name not in getattr(action, "off", ())]
        names = ", ".join(sorted(shown, key=lambda name: name.startswith("--")))
        if action.nargs == 0:
            return names
        return f"{names} {self._format_args(action, action.type.__name__)}"

    def _get_help_string(self, action):
        default = action.default
        if default is None or default is False or default in ("", [], argparse.SUPPRESS):
            return action.help
        values = default if isinstance(default, list) else [default]
        shown = " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
        return f"{action.help} (default: {shown})"

    def _split_lines(self, text, width):
        # A default stays on one line.
        kept = re.sub(r"\(default: [^()]{,24}\)$", lambda m: m.group().replace(" ", "\xa0"), text)
        return [line.replace("\xa0", " ") for line in super()._split_lines(kept, width)]


class PlainParser(argparse.ArgumentParser):
    """argparse's, with errors that only show what was typed; for commands of few options."""

    def error(self, message: str) -> None:
        super().error(printable(message, 2 * _MOST))


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, and which knows what was typed and what was not.

    Args:
        trains: whether the command trains; what options mean together depends on it.

    `skipped` holds names that a YAML file may have for another command; this one passes over them.
    """

    skipped: FrozenSet[str] = frozenset()

    def __init__(self, prog: str, description: str, epilog: str, trains: bool):
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=HelpFormatter,
            usage=f"{prog} [DATA] [options]   (see {prog} --help)", allow_abbrev=False,
            add_help=False,
        )
        self.trains = trains

    def defaults(self) -> Dict[str, Any]:
        """Every option's default by its name (dest), in the order of --help."""
        return {
            action.dest: action.default
            for action in self._actions if action.default is not argparse.SUPPRESS
        }

    def names(self) -> Dict[str, argparse.Action]:
        """Every long spelling, with underscores and without dashes before it, of every option."""
        return {
            option[2:]: action
            for option, action in self._option_string_actions.items()
            if option.startswith("--") and option not in getattr(action, "off", ("--help",))
        }

    def typed(self, argv: Sequence[str]) -> Dict[str, Any]:
        """The options that stand on a command line, and no others.

        Raises:
            ValueError: for an option or an argument that this parser does not have.
        """
        end = argv.index("--") if "--" in argv else len(argv)
        argv = [*map(self._normal, argv[:end]), *argv[end:]]
        nothing = object()
        values, extra = self.parse_known_args(
            argv, argparse.Namespace(**dict.fromkeys(self.defaults(), nothing))
        )
        if extra:
            is_option = extra[0].startswith("-")
            raise ValueError(
                self.unknown_option(extra[0]) if is_option else f"unexpected argument {extra[0]!r}"
            )
        return {name: value for name, value in vars(values).items() if value is not nothing}

    def unknown_option(self, option: str) -> str:
        """What to say of an option that does not exist."""
        name = option.lstrip("-").split("=")[0].replace("-", "_")
        if name in self.skipped:
            return f"{option} is an option of training; {self.prog} has none of that name"
        return f"unknown option {option}{self.did_you_mean(name, '--')}"

    def did_you_mean(self, name: str, dashes: str = "") -> str:
        """The end of a sentence about a name that does not exist: the nearest one that does."""
        names = self.names()
        near = difflib.get_close_matches(name, names, n=1)
        if name.startswith("no_") and name[3:] in names:
            near = [name[3:]]
        return f"; did you mean {dashes}{near[0]}?" if near else ""

    def error(self, message: str) -> None:
        # argparse names all spellings of an option; its first is the one that --help leads with.
        message = re.sub(r"^argument (--\w+)[^:]*: ", r"\1: ", message)
        super().error(printable(message, 2 * _MOST))

    def _normal(self, word: str) -> str:
        """A long option as it is registered; any other word as it is."""
        if not word.startswith("--"):
            return word
        name, equals, value = word.partition("=")
        option = "--" + name[2:].replace("-", "_")
        action = self._option_string_actions.get(option)
        if action is None:
            raise ValueError(self.unknown_option(name))
        if not equals or not isinstance(action, Flag):
            return option + equals + value
        if option in action.off:
            raise ValueError(f"{option} takes no value, got {value!r}")
        try:
            return option if action.type(value) else _off(option)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{option}: {error}") from None
