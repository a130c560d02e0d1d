"""Generate the Python code of the protocol files, written beside each .proto and committed.

Called by `make protos`, and with --check by `make drift`: a fresh machine needs no compiler, and a stub that no
longer fits its .proto fails the checks. The proto path is the import path, so nothing is rewritten afterwards.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = "korrigo_protos"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
INIT = '"""Generated from the .proto files of this folder by protos/generate.py."""\n'


def protocol_files() -> list[Path]:
    """List every .proto, relative to protos/, in a fixed order."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / PACKAGE).rglob("*.proto"))


def compile_into(target: Path) -> None:
    """Write the messages, the services and the type stubs of every .proto below `target`."""
    scripts = str(Path(sys.executable).parent)
    arguments = [
        sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}",
        f"--python_out={target}", f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}", f"--mypy_grpc_out=quiet,only_sync:{target}",
        *map(str, protocol_files()),
    ]  # fmt: skip
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}"}
    subprocess.run(arguments, check=True, env=environment, cwd=ROOT)
    for path in protocol_files():
        for folder in (path.parent, path.parent.parent):
            (target / folder / "__init__.py").write_text(INIT)


def generated_files(below: Path) -> dict[str, bytes]:
    """Return the generated files below a folder, by their path relative to it; the package's own is not one."""
    names = [path for path in (below / PACKAGE).rglob("*") if path.name.endswith(SUFFIXES)]
    names += [path for path in (below / PACKAGE).glob("*/**/__init__.py") if path.read_text() == INIT]
    return {str(path.relative_to(below)): path.read_bytes() for path in names}


def main() -> int:
    """Generate, or tell what is out of date."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    is_check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh_root = Path(folder)
        compile_into(fresh_root)
        fresh, present = generated_files(fresh_root), generated_files(ROOT)
    stale = sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))
    for name in stale:
        if is_check:
            sys.stderr.write(f"out of date: protos/{name} (run make protos)\n")
        elif name in fresh:
            (ROOT / name).write_bytes(fresh[name])
        else:
            (ROOT / name).unlink()
    return 1 if is_check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
