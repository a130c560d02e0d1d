"""Every query of every dashboard on a real Prometheus that scrapes the running product: taken, and answered.

The rules files are the shipped ones, evaluated each second, so that what is recorded is there within seconds.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from harness.alerts import rule_files
from harness.client import Client
from harness.dashboards import FILES, queries
from harness.instance import Instance
from harness.processes import Child, clean_environment, free_port, wait_for
from harness.ready import ready_copy

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not on PATH"),
    # One target that serves everything; what is added up over several is promtool's to prove (tests/promtool).
    pytest.mark.parametrize("instance", ["embedded"], indirect=True),
]

BOARDS = [json.loads(path.read_text()) for path in FILES]
QUERIES = sorted({query.expression for board in BOARDS for query in queries(board)})
# Nothing is the right answer of a healthy product: no alert, no failing route, no volume that fills up, and on one
# machine no operator (tests/cluster asks for its metrics).
MAY_BE_EMPTY = re.compile(r"ALERTS\{|status=~\"5\.\.\"|-deriv\(|korrigo_operator_")
# Quotients of what did not happen within the window.
MAY_BE_NOTHING = re.compile(r"histogram_quantile|p9[59]_rate|ratio_|error_budget")


class Prometheus:
    """A real one, asked over HTTP."""

    def __init__(self, folder: Path, target: str) -> None:
        rules = folder / "rules"
        rules.mkdir()
        for path in rule_files():
            text = re.sub(r"^    interval: .*$", "    interval: 1s", path.read_text(), flags=re.MULTILINE)
            (rules / path.name).write_text(text)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [f"{rules}/*.yaml"],
            "scrape_configs": [{"job_name": "korrigo", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self.base = f"http://127.0.0.1:{(port := free_port())}"
        words = [
            "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]  # fmt: skip
        self.child = Child("prometheus", words, folder / "prometheus.log", clean_environment())
        self.http = httpx.Client(base_url=self.base, timeout=20, trust_env=False)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Ask for now."""
        answer = self.http.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}\n{answer.text}"
        data = answer.json()["data"]
        assert data["resultType"] == "vector", expression
        found: list[dict[str, Any]] = data["result"]
        return found

    def __enter__(self) -> Prometheus:
        self.child.start()
        wait_for("Prometheus", lambda: self.http.get("/-/ready").is_success, seconds=60)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.child.stop()


@pytest.fixture(scope="module")
def prometheus(instance: Instance, admin: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has seen an import, a lock and a final PDF happen."""
    folder = tmp_path_factory.mktemp("prometheus")
    with Prometheus(folder, urlsplit(instance.url).netloc) as asked:
        wait_for("recorded series", lambda: asked.query("korrigo:copies:by_status"), seconds=60)
        copy_id = str(ready_copy(admin, folder, pages=1)["id"])
        lock = admin.lock(copy_id)
        admin.put_scores(lock, {"q1": 1, "q2": 2})
        admin.finalize(lock)
        admin.wait_graded(copy_id)
        graded = 'increase(grading_finalize_duration_seconds_count{status="success"}[5m]) > 0'
        wait_for("the final PDF in the figures", lambda: asked.query(graded), seconds=60)
        wait_for("the error budget", lambda: asked.query("korrigo:error_budget:remaining_ratio30d"), seconds=60)
        yield asked


@pytest.mark.parametrize("expression", QUERIES)
def test_a_query_is_answered(prometheus: Prometheus, expression: str) -> None:
    found = wait_for(
        f"an answer to {expression}",
        lambda: prometheus.query(expression) or MAY_BE_EMPTY.search(expression),
        seconds=20,
    )
    if isinstance(found, list) and not MAY_BE_NOTHING.search(expression):
        numbers = [float(sample["value"][1]) for sample in found]
        assert all(math.isfinite(number) for number in numbers), (expression, numbers)


def test_the_figures_are_those_of_the_product(prometheus: Prometheus, admin: Client) -> None:
    """The same moment seen twice: by Prometheus and by the API of the control room."""

    def agrees() -> bool:
        counts = admin.json("GET", "/api/ops/summary")["copies"]
        shown = {s["metric"]["status"]: float(s["value"][1]) for s in prometheus.query("korrigo:copies:by_status")}
        return shown == {status: entry["count"] for status, entry in counts.items()}

    wait_for("the same copies", agrees, seconds=40, every_seconds=0.5)
    summary = admin.json("GET", "/api/ops/summary")
    waiting = prometheus.query('korrigo:queue_messages:by_queue_state{state="ready"}')
    assert summary["broker"]["queues"].keys() == {sample["metric"]["queue"] for sample in waiting}
    assert summary["final_pdfs"]["made"] >= 1 and summary["database"]["connections"] > 3
    eta = next(expression for expression in QUERIES if "* 3600" in expression)
    (sample,) = prometheus.query(eta)
    assert float(sample["value"][1]) >= 0

    def up() -> list[str]:
        return [sample["value"][1] for sample in prometheus.query("min by (job) (up)")]

    # A scrape each second may miss one on a busy machine, and then the target is down for that second.
    wait_for("the target to be up", lambda: up() == ["1"], seconds=20)
