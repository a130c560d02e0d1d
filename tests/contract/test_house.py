"""The rules of the house that no linter knows: what may lie where, and what must never be committed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("ingest", "grading", "render", "audit")
LINES_PER_FILE = 450
BYTES_PER_FILE = 1_500_000
PURE_KIT = {"korrigo_kit.errors", "korrigo_kit.ids", "korrigo_kit.clock"}
GENERATED = re.compile(r'_pb2(_grpc)?\.pyi?$|^"""Generated ')


def _project_files() -> list[Path]:
    """Every file that is committed or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    return sorted(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


FILES = _project_files()


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _texts() -> Iterator[tuple[Path, str]]:
    for path in FILES:
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def _python_files(*folders: str) -> list[Path]:
    tops = tuple(ROOT / folder for folder in folders)
    return [path for path in FILES if path.suffix == ".py" and any(path.is_relative_to(top) for top in tops)]


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_folders_that_are_not_packages_stay_so() -> None:
    """`operator/__init__.py` would shadow the standard library for every program started here."""
    wrong = [
        _named(path)
        for path in FILES
        if path.name == "__init__.py"
        and (
            path.relative_to(ROOT).parts[0] == "tests"
            or not any(part.startswith("korrigo") for part in path.relative_to(ROOT).parts[:-1])
        )
    ]
    assert wrong == []


def test_the_standard_library_is_not_shadowed_in_the_root() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import operator; print(operator.__file__)"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert not Path(done.stdout.strip()).is_relative_to(ROOT / "operator")


def test_every_package_says_that_it_is_typed() -> None:
    packages = [path.parent for path in FILES if path.name == "__init__.py" and path.parent.name.startswith("korrigo")]
    assert packages
    assert [_named(package) for package in packages if not (package / "py.typed").is_file()] == []


# Written with gaps so that this file does not hit itself.
FORBIDDEN = {
    "a folder of somebody's machine": r"(?<![\w.})])/(?:work|home/\w+|Users/\w+)/\w",
    "the address of a package registry": r"[p]ythonhosted\.[o]rg|pypi\.[o]rg/simple|registry\.[n]pmjs|proxy\.[g]olang",
    "a file that records download addresses": r'"[r]esolved": *"http|^--(?:extra-)?[i]ndex|^--[f]ind-links',
    "a private key": r"-----BEGIN [A-Z ]*[P]RIVATE KEY-----",
}


@pytest.mark.parametrize(("what", "pattern"), FORBIDDEN.items())
def test_no_file_names(what: str, pattern: str) -> None:
    found = re.compile(pattern, re.MULTILINE)
    hits = [f"{_named(path)}: {match.group()}" for path, text in _texts() for match in found.finditer(text)]
    assert hits == [], what


def test_no_file_names_this_checkout() -> None:
    assert [_named(path) for path, text in _texts() if f"{ROOT}/" in text] == []


def test_modules_keep_to_their_size() -> None:
    long = {
        _named(path): text.count("\n")
        for path, text in _texts()
        if path.suffix == ".py" and not GENERATED.search(path.name) and not GENERATED.search(text)
        if text.count("\n") > LINES_PER_FILE
    }
    assert long == {}, "split by story, not by size"


def test_no_file_is_needlessly_large() -> None:
    assert {_named(path): size for path in FILES if (size := path.stat().st_size) > BYTES_PER_FILE} == {}


def test_no_module_is_named_after_nothing() -> None:
    empty = re.compile(r"(^|_)(utils?|helpers?|common|misc|managers?|services?)(_|$)")
    assert [_named(path) for path in _python_files("services", "tests") if empty.search(path.stem)] == []


def test_test_files_have_unique_names() -> None:
    names = Counter(path.name for path in _python_files("tests") if path.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []


def test_tests_do_not_patch_our_code() -> None:
    patch = re.compile(r"unittest\.mock|from unittest import mock|mocker\.|monkeypatch\.setattr\(\s*[\"']?korrigo")
    this = Path(__file__).resolve()
    hits = [_named(path) for path in _python_files("tests") if path != this and patch.search(path.read_text())]
    assert hits == []


def test_domain_modules_import_only_what_is_pure() -> None:
    wrong: list[str] = []
    for room in ROOMS:
        package = f"korrigo_{room}"
        for path in _python_files(f"services/{room}/{package}/domain"):
            for name in set(_imports(ast.parse(path.read_text()))):
                top = name.split(".")[0]
                is_own = name.startswith((f"{package}.domain", f"{package}.errors"))
                is_pure_kit = any(name == pure or name.startswith(f"{pure}.") for pure in PURE_KIT)
                if not (top in sys.stdlib_module_names or is_own or is_pure_kit or name == "korrigo_kit"):
                    wrong.append(f"{_named(path)}: {name}")
    assert wrong == []


def test_only_the_transaction_of_the_kit_commits() -> None:
    commit = re.compile(r"\.commit\(\)|\bautocommit\s*=\s*True")
    allowed = {
        ROOT / "services/kit/korrigo_kit/db.py",        # the one transaction
        ROOT / "services/kit/korrigo_kit/migrate.py",   # before there is a schema to have transactions in
        ROOT / "services/kit/korrigo_kit/parts.py",     # LISTEN, which hears nothing inside a transaction
    }  # fmt: skip
    hits = [
        _named(path)
        for path in _python_files(*(f"services/{room}" for room in (*ROOMS, "kit")))
        if path not in allowed and commit.search(path.read_text())
    ]
    assert hits == []


def test_migrations_are_linear() -> None:
    for room in ROOMS:
        folder = ROOT / f"services/{room}/korrigo_{room}/migrations"
        numbers = sorted(int(path.name[:4]) for path in folder.rglob("[0-9][0-9][0-9][0-9]_*.py"))
        assert numbers == list(range(1, len(numbers) + 1)), room
