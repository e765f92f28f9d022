"""Reads a command line by the command's own parser, and does nothing else.

    python parse_only.py SCRIPT.py ARGUMENTS...
    python parse_only.py -m MODULE ARGUMENTS...

Ends with status 0 where the command would have begun, and as the command ends where it would not.
"""
import argparse
import os
import runpy
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def begin(*_, **__):
    print("parsed")
    sys.exit(0)


def main():
    sys.path.insert(0, ROOT)
    from mobilenetv3 import entry

    sys.argv.pop(0)
    is_module = sys.argv[0] == "-m"
    if is_module:
        sys.argv.pop(0)
    program = sys.argv[0]
    if is_module or os.path.basename(os.path.dirname(os.path.abspath(program))) in (
            "benchmarks", "docs", "e2e", "fuzz", "unit"):
        parse = argparse.ArgumentParser.parse_args

        def parse_and_end(self, *arguments, **named):
            parse(self, *arguments, **named)
            begin()
        argparse.ArgumentParser.parse_args = parse_and_end
    else:
        entry.run = begin  # the scripts look at more than argparse does before they call it
    if is_module:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(program)))
        runpy.run_path(program, run_name="__main__")
    sys.exit(f"{program} did not read its arguments")


if __name__ == "__main__":
    main()
