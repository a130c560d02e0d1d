"""What holds for every test: the real servers as fixtures, the order of the folders, and no silent skip in CI.

Order: quick and narrow first, so that a broken rule is told before the machine is kept busy for minutes.
In CI (CI=true) a skipped test fails the run, because a claim of the project would go unproved; a test that may be
skipped there too says so with `@pytest.mark.allowed_skip("why")`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import configuration as hypothesis_configuration

pytest.register_assert_rewrite("harness")
pytest_plugins = ["harness.fixtures"]

TESTS = Path(__file__).resolve().parent
ORDER = (
    "unit", "contract", "chart", "harness", "integration", "operating", "images", "e2e", "drills", "chaos", "cluster",
    "bench",
)  # fmt: skip
# What these need is built from Go modules where it never was, and whichever test comes first waits for it: minutes on
# an idle machine, far more beside other work. (tests/cluster gives its own the time.)
BUILT_FOR = ("chart", "operating")
# What kills at random, and what is a machine of its own beside ours.
ALONE = ("chaos", "cluster")
BUILD_SECONDS = 5400
HANDED_OVER = "skipped_modules"
IS_CI = os.environ.get("CI", "").lower() in {"1", "true"}

hypothesis_configuration.set_hypothesis_home_dir(TESTS.parent / ".cache" / "hypothesis")


def _folder_rank(item: pytest.Item) -> int:
    if not item.path.is_relative_to(TESTS):  # a test of these settings themselves
        return len(ORDER)
    folder = item.path.relative_to(TESTS).parts[0]
    return ORDER.index(folder) if folder in ORDER else len(ORDER)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Run folder by folder, from the quickest to the longest; what needs the machine for itself runs alone."""
    waiting: set[Path] = set()
    for item in items:
        rank = _folder_rank(item)
        if rank in map(ORDER.index, ALONE):
            item.add_marker(pytest.mark.alone)
        if rank in map(ORDER.index, BUILT_FOR) and item.path not in waiting:
            waiting.add(item.path)
            item.add_marker(pytest.mark.timeout(BUILD_SECONDS))
    yield
    items.sort(key=_folder_rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share tests out by file, whatever --dist says."""
    from harness import side_by_side

    return side_by_side.scheduler(config, log)


class SkipGuard:
    """Collects the skips that nobody allowed and fails the session for them.

    Of tests that run side by side the reports come to the process that started the others; modules that were
    skipped as a whole are known to the others only, who hand them over at their end.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.refused: list[str] = []
        self.skipped_modules: list[str] = []
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and "allowed_skip" not in report.keywords:
            self.refused.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.refused.append(report.nodeid)
            self.skipped_modules.append(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        skipped = getattr(node, "workeroutput", {}).get(HANDED_OVER, ())
        self.refused += [name for name in skipped if name not in self.refused]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(self._config, "workeroutput"):
            self._config.workeroutput[HANDED_OVER] = self.skipped_modules
        if self.refused and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for node in self.refused:
            terminalreporter.write_line(f"REFUSED SKIP (CI): {node}", red=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests have measured (`record_property("told", text)`), whichever process ran them."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for text in (text for name, text in report.user_properties if name == "told"):
            terminalreporter.section(report.nodeid)
            terminalreporter.write_line(str(text))


def pytest_configure(config: pytest.Config) -> None:
    """Guard against skips in CI only: at a desk a missing program is no failure."""
    if IS_CI:
        config.pluginmanager.register(SkipGuard(config), "skip-guard")
