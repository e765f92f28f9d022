"""All fuzzers, each with the number of cases that is promised, and the table of what came out.

    python test/fuzz/run.py                  # 1,000 images, 500 of each other: some minutes
    python test/fuzz/run.py --short          # a fiftieth
    python test/fuzz/checkpoints.py --seed 7 --count 2000 --keep faults     # one of them, further
"""
import argparse
import importlib
import sys
import time

import common

COUNTS = {"images": 1000, "checkpoints": 500, "yaml_files": 500, "command_lines": 500,
          "logs": 500}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a fiftieth of the cases")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the cases (0)")
    parser.add_argument("--keep", metavar="DIR", help="folder for the inputs that went wrong")
    args = parser.parse_args(argv)
    rows, faults = [], 0
    for name, count in COUNTS.items():
        started = time.monotonic()
        totals = importlib.import_module(name).run(
            count // 50 if args.short else count, args.seed, args.keep)
        seconds = time.monotonic() - started
        print(totals.table() + "\n", flush=True)
        rows.append((totals.title, totals.cases, len(totals.faults), f"{totals.slowest_s:.2f}",
                     f"{seconds:.0f}"))
        faults += len(totals.faults)
    print(f"| fuzzed (seed {args.seed}) | cases | faults | slowest case, s | all, s |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        print("| {} |".format(" | ".join(map(str, row))))
    print(f"\nA fault: an answer after more than {common.SECONDS} s, more than "
          f"{common.CEILING >> 20} MB of memory beyond the base, a traceback, a process that died, "
          "or something accepted that was not so.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
