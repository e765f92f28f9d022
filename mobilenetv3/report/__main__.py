"""python -m mobilenetv3.report"""
import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
