"""Options from a YAML file: one flat mapping, bounded in size, checked against a parser."""
import argparse
import os
import re
import stat
from typing import Any, Dict, Iterator, List, Tuple

import yaml

from mobilenetv3.arguments import Parser

MOST_BYTES = 100_000
"""Of a configuration; one with every option has 3,000, and PyYAML reads 100,000 in a second."""
MOST_BRACKETS = 1000
"""Of a configuration, too: for nested ones PyYAML's time grows with their square."""


def read(parser: Parser, path: str) -> Dict[str, Any]:
    """The options that a YAML file gives, by name, checked against the parser.

    Raises:
        ValueError: naming the file, the line and the key, what stands there and what should.
    """
    options, lines, given = parser.names(), {}, {}
    for key, value, line in _entries(path):
        where, name = f"{path}, line {line}", str(key).replace("-", "_")
        if name in parser.skipped:
            continue
        action = options.get(name)
        if action is None:
            raise ValueError(f"{where}: unknown key {key!r}{parser.did_you_mean(name)}")
        if action.dest == "config":
            raise ValueError(f"{where}: {key}: a configuration file cannot name another")
        if action.dest in lines:
            first, at = lines[action.dest]
            raise ValueError(f"{where}: {key}: given before, as {first} in line {at}; keep one")
        lines[action.dest] = key, line
        try:
            given[action.dest] = _converted(action, value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{where}: {key}: {error}") from None
    return given


def _converted(action: argparse.Action, value: Any) -> Any:
    """A YAML value as the option's type has it."""
    if value is None and action.default is None:
        return None
    if not isinstance(action.nargs, int) or action.nargs == 0:
        return action.type.from_yaml(value)
    if not isinstance(value, list) or len(value) != action.nargs:
        raise argparse.ArgumentTypeError(f"expected a list of {action.nargs}, got {value!r}")
    return [action.type.from_yaml(item) for item in value]


def _entries(path: str) -> Iterator[Tuple[Any, Any, int]]:
    """Key, value and line of every entry of a file that is one flat YAML mapping."""
    try:
        loader = yaml.SafeLoader(_content(path).decode("utf-8-sig"))
        root = loader.get_single_node()
        if root is None or root.tag == "tag:yaml.org,2002:null":
            return
        if not isinstance(root, yaml.MappingNode):
            raise ValueError(f"{path}: expected lines of NAME: VALUE, found a {root.id}")
        for key, value in root.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{path}, line {line}: expected NAME: VALUE, found a {key.id} in "
                                 "the place of the name")
            yield _value(loader, key, path), _value(loader, value, path), line
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}: {error.reason})") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid here: it is nested without end") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise ValueError(f"{path}{where}: not valid YAML: {problem}") from None


def _content(path: str) -> bytes:
    """What is in a file that can be a configuration: a pipe or a device might never end."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder, `open` says it
        raise ValueError(f"cannot read the configuration {path}: expected a file, and this is a "
                         "pipe or a device")
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"cannot read the configuration {path}: expected at most {MOST_BYTES:,} "
                         "bytes, so much is no list of options")
    if content.count(b"[") + content.count(b"{") > MOST_BRACKETS:
        raise ValueError(f"cannot read the configuration {path}: expected lines of NAME: VALUE, "
                         f"found more than {MOST_BRACKETS:,} brackets")
    return content


_DECIMAL = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "tag:yaml.org,2002:float": re.compile(r"[^:]*"),
}


def _value(loader: yaml.SafeLoader, node: yaml.Node, path: str) -> Any:
    where = f"{path}, line {node.start_mark.line + 1}"
    for part in _nodes(node, where):
        # YAML 1.1 reads 010 as 8 and 1:30 as 90, which is not what people mean by them.
        decimal = _DECIMAL.get(part.tag)
        if decimal and isinstance(part, yaml.ScalarNode) and not decimal.fullmatch(part.value):
            raise ValueError(f"{where}: expected a number in decimal digits, got {part.value!r}")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError:
        raise
    except ValueError as error:  # a date that no calendar has
        raise ValueError(f"{where}: not valid YAML: {error}") from None
    except Exception:  # PyYAML's constructors fail in any way where a tag does not fit its text
        raise ValueError(f"{where}: not valid YAML: the value is no "
                         f"{node.tag.rpartition(':')[2]}") from None


def _nodes(node: yaml.Node, where: str) -> List[yaml.Node]:
    """A node and those in it, each as often as it is met: aliases may repeat each other.

    Raises:
        ValueError: there are more of them than any option's value has.
    """
    found, level = [], [node]
    for _ in range(20):
        found += level
        level = [item for part in level if not isinstance(part, yaml.ScalarNode)
                 for child in part.value
                 for item in (child if isinstance(child, tuple) else (child,))]
        if not level:
            return found
        if len(found) + len(level) > 1000:
            break
    raise ValueError(f"{where}: expected the value of an option, got one that is too large or "
                     "nested without end")
