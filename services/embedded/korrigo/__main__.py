"""`python -m korrigo`: how `korrigo up` starts its children, whatever is on PATH."""

from __future__ import annotations

from korrigo.cli import main

if __name__ == "__main__":
    main()
