"""Print what a Python lacks: its torch version ("-" if none), then each unmet requirement line.

    python test/python_check.py FILE...       # nothing is imported: this answers in a moment

A FILE holds pip requirements. The lower bound of each counts, and == as one; what PyTorch itself
does not need at run time (tensorboard, setuptools, six), what only does something faster
(simplejpeg) or draws (matplotlib, plotly), may be missing. With torch below 2.1 the
requirements.txt of the current stack is exchanged for 1.8_requirements.txt beside it.
"""
import importlib.util
import os
import re
import sys
from importlib import metadata

OPTIONAL = ("tensorboard", "setuptools", "six", "simplejpeg", "matplotlib", "plotly")
# Where a package of another name (pillow-simd) may serve, the module is looked for.
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}


def version_of(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def numbers(version):
    """"2.15.0+cpu" -> (2, 15, 0)"""
    return tuple(int(part) for part in re.match(r"[\d.]*", version).group().split(".") if part)


def is_met(line):
    line, _, condition = line.partition(";")
    newer = re.fullmatch(r"""\s*python_version >= ["']([\d.]+)["']\s*""", condition)
    if newer and sys.version_info < numbers(newer.group(1)):
        return True  # not wanted here
    name = re.match(r"[\w.-]+", line).group()
    bound = re.search(r"[>=]=\s*([\d.]+)", line)
    found = version_of(name)
    if name in OPTIONAL:
        return True
    if found is None:
        return name in MODULES and importlib.util.find_spec(MODULES[name]) is not None
    return bound is None or numbers(found) >= numbers(bound.group(1))


def main(files):
    torch = version_of("torch")
    print(torch or "-")
    for path in files:
        folder, name = os.path.split(path)
        if name == "requirements.txt" and torch and numbers(torch) < (2, 1):
            old = os.path.join(folder, "1.8_requirements.txt")
            path = old if os.path.exists(old) else path
        with open(path, encoding="utf-8") as lines:
            for line in (line.split("#")[0].strip() for line in lines):
                if line and not is_met(line):
                    print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
