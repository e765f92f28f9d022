"""The commands that README and docs show: found in the pages, and what becomes of each in a test.

A command is a line of a ```bash block, a line after "$ " or "    " (an indented block), and a piece
of text between backticks that begins like one. SHORTER says what is appended to commands that would
take long, EXCEPTIONS which are not run, each with its reason. There is no rule for anything
else: a command of a new kind fails the tests until it gets one.
"""
import re
import shlex
from pathlib import Path
from typing import Iterator, List, NamedTuple, Tuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
         if not page.name.endswith(".zh-CN.md")]

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
COMMAND = re.compile(r"(?:\S*python3?|bash|torchrun|pip3?|docker|source|atc) \S")


def commands(page: Path) -> List[str]:
    """The commands of a page in their order, without comments, in one line each."""
    return [command for _, command in sorted(_found(page.read_text(encoding="utf-8")))]


def _found(text: str) -> Iterator[Tuple[int, str]]:
    """(place in the text, command)."""
    rest = list(text)
    for fence in FENCE.finditer(text):
        rest[fence.start():fence.end()] = ["\n"] * (fence.end() - fence.start())
        language, body = fence.group(2), fence.group(3)
        offset = fence.start(3)
        joined = re.sub(r"\\\n", lambda found: " " * len(found.group()), body)
        for line in re.finditer(r"^(.*)$", joined, re.M):
            shown = line.group(1).strip()
            if shown.startswith("$ "):
                shown = shown[2:]
            elif language not in ("bash", "sh", "shell", "console"):
                continue
            words = shlex.split(shown, comments=True)
            if words:
                yield offset + line.start(), _joined(words)
    rest = "".join(rest)
    for line in re.finditer(r"(?:^|\n\n)((?:    .*\n)+)", rest):
        for row in re.finditer(r"^    (.*)$", line.group(1), re.M):
            if COMMAND.match(row.group(1)):
                yield line.start(1) + row.start(), _joined(shlex.split(row.group(1), comments=True))
    for span in re.finditer(r"(?<!`)`([^`]+)`(?!`)", rest):
        shown = re.sub(r"\s+", " ", span.group(1)).strip()
        if COMMAND.match(shown):
            yield span.start(), _joined(shlex.split(shown))


def _joined(words: List[str]) -> str:
    return " ".join(map(shlex.quote, words))


class NotRun(NamedTuple):
    """A command that is not run: those that the pattern matches from their start on, and why."""

    pattern: str
    reason: str
    check: str  # what is looked at in place of running it: a name of test_docs_commands.py's CHECKS


EXCEPTIONS = [
    NotRun(r"(\S*python -m )?pip ", "needs a package index", "pip"),
    NotRun(r"python -m venv ", "the environment would have to be filled", "words"),
    NotRun(r"\.venv/bin/python -m ruff ", "lint, not a test; CI runs it", "words"),
    NotRun(r"bash test/run_tests.sh --stack=", "needs another Python; CI runs it", "words"),
    NotRun(r"docker ", "needs docker", "words"),
    NotRun(r"source ", "needs CANN", "words"),
    NotRun(r"python -m pytest ", "the suite runs these tests itself", "pytest"),
    NotRun(r"python benchmarks/", "takes minutes; test_benchmarks.py and test_accuracy.py have "
           "short forms", "parser"),
    NotRun(r"torchrun .*benchmarks/ddp.py", "takes minutes; test_benchmarks.py runs it",
               "parser"),
    NotRun(r"python test/fuzz/", "takes minutes; test_fuzz.py and test_fuzz_images.py run a "
               "short form", "parser"),
    NotRun(r"python docs/refresh.py", "writes the README anew; test_docs_results.py has what it "
           "would write", "parser"),
    NotRun(r"python test/unit/chromium.py", "needs Chromium; test_report_page.py has it", "parser"),
    NotRun(r"python test/e2e/crash.py", "takes minutes; test_crash.py kills three runs",
               "parser"),
    NotRun(r"python train.py .*--dataset_download", "fetches CIFAR-10 and weights; "
               "test_finetune_command.py runs it from a cache", "parser"),
    NotRun(r"python train.py .*--teacher resnet50", "fetches weights, and resnet50 is slow; "
           "test_distill.py has smaller ones", "parser"),
    NotRun(r"python train.py .*--data_path (https|s3)://", "needs a network; "
               "test_data_remote.py has a server", "parser"),
    NotRun(r".*(--device[= ](cuda|npu)|--amp_backend[= ]apex)", "needs a card", "parser"),
    NotRun(r"python -m mobilenetv3.convert SRC '\[DST\]'", "a form of the command, not one "
               "that is typed", "words"),
]

# What is appended, and so wins, where a command as it stands would take long; by program.
SHORTER = {
    "train.py": "--device cpu --max_steps 2 --batch_size 8 --img_size 32 --workers 0",
    "validate.py": "--device cpu --batch_size 8 --workers 0",
    "predict.py": "--device cpu",
    "export.py": "",
    "mobilenetv3.average": "",
    "mobilenetv3.convert": "",
    "mobilenetv3.data.check": "",
    "mobilenetv3.data.prepare": "--workers 0",
    "mobilenetv3.device": "",
    "mobilenetv3.models": "--img-size 32",
    "mobilenetv3.report": "",
    "pydoc": "",
}
# In place of all that: for the same reason, or because it would contradict the command.
INSTEAD = {
    r"python -m mobilenetv3\.(?!device$|models$)[\w.]+$": "--help",  # the command is only named
    r"python -m mobilenetv3.models$": "--img-size 32 mobilenetv3_small_050",
    r".*--res_schedule": "--device cpu --max_steps 2 --batch_size 4 --workers 0",
}


def exception(command: str):
    """The exception that a command falls under, or None."""
    return next((each for each in EXCEPTIONS if re.match(each.pattern, command)), None)


def shorter(command: str) -> List[str]:
    """What is appended to a command.

    Raises:
        ValueError: nothing says what.
    """
    program = parts(command).program
    for pattern, words in INSTEAD.items():
        if re.match(pattern, command):
            return words.split()
    if program not in SHORTER:
        raise ValueError(f"there is no rule for {program}, which is to run: {command}")
    return SHORTER[program].split()


def variants(command: str) -> List[str]:
    """A command in which words stand for each other (--to timm|mindcv), once with each."""
    choice = re.search(r"'?(?<![\w|])(\w+(?:\|\w+)+)'?", command)
    if choice is None:
        return [command]
    return [command[:choice.start()] + word + command[choice.end():]
            for word in choice.group(1).split("|")]


class Parts(NamedTuple):
    """A command that starts Python."""

    launcher: List[str]  # torchrun's own options, or nothing
    module: bool  # after -m
    program: str  # path of a script, or name of a module
    arguments: List[str]


def parts(command: str) -> Parts:
    """Take a command apart.

    Raises:
        ValueError: it does not start Python.
    """
    words = shlex.split(command)
    launcher = []
    if words[0] == "torchrun":
        at = next(number for number, word in enumerate(words) if word.endswith(".py"))
        launcher, words = words[1:at], ["python", *words[at:]]
    if not re.fullmatch(r"(\.venv/bin/)?python", words[0]) or len(words) < 2:
        raise ValueError(f"there is no rule for the command: {command}")
    if words[1] == "-m":
        return Parts(launcher, True, words[2], words[3:])
    return Parts(launcher, False, words[1], words[2:])
