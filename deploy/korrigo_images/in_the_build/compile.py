"""Compiles Python's modules ahead of time, in an image whose root nobody can write. Called by the Containerfile.

The bytecode names no time of its source (PEP 552, unchecked): layers carry no times, and a module whose time differs
would be compiled anew at every start. What an earlier layer compiled is left alone, unless `--again`.
"""

from __future__ import annotations

import argparse
import importlib.util
import py_compile
import sys
from pathlib import Path


def main() -> int:
    """Compile every module below the folders; a file that is no Python of this version (a template) is passed over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--again", action="store_true", help="compile what is compiled already")
    parser.add_argument("--below", default="", help="where the folders' root lies now; left out of tracebacks")
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for source in sorted(file for folder in options.folders for file in folder.rglob("*.py")):
        compiled = Path(importlib.util.cache_from_source(str(source)))
        if options.again or not compiled.exists():
            shown = str(source).removeprefix(options.below)
            try:
                py_compile.compile(str(source), str(compiled), shown, doraise=True, invalidation_mode=unchecked)
            except py_compile.PyCompileError as error:
                sys.stderr.write(f"not compiled: {error.exc_value}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
