"""`helm upgrade` to the next release and `helm rollback`, while people save and finalise: they lose and notice nothing.

The next release is this one with a further migration of every room (`harness.releases`), as a layer on its images.
"""

from __future__ import annotations

import queue
import random
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import backing, product_images
from cluster.clustered import Clustered
from cluster.images import with_layer
from cluster.installation import NAMESPACE, RELEASE, Installation
from harness import releases
from harness.checker import check_audit, check_copy
from harness.client import Client
from harness.instance import ROOMS
from harness.ledger import Ledger
from harness.pdfs import a4_booklets
from harness.story import Marker

THIS = "0.1.0"
NEXT = f"{THIS}-next"
QUESTIONS = {"q1": 8.0, "q2": 12.0}
# the client's documented retry: the same key again, for at most this long in all
PATIENCE_SECONDS = 30
MARKERS = 2
# more than two markers finish while the release goes up and back
COPIES = 400
# between two of a marker's copies: a steady load, not as much as there can be
PAUSE_SECONDS = 1.0


def load_next_release(installation: Installation, folder: Path) -> None:
    """Put the images of the next release on the node."""
    assert installation.node is not None
    base = product_images.product()
    for program in (*ROOMS, "operator", "tools"):
        added = folder / program
        for path, text in releases.next_migrations().items():
            room = path.parts[1]
            if program in (room, "tools"):
                target = added / product_images.SITE_PACKAGES.lstrip("/") / Path(*path.parts[2:])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
        added.mkdir(exist_ok=True)
        name = f"localhost/korrigo/{program}"
        archive = with_layer(base, f"{name}:{THIS}", added, f"{name}:{NEXT}", folder / f"{program}.tar")
        installation.node.load_image(archive)


class Load:
    """Markers who work through copies until told to stop; whatever is refused or lost after the retry ends up here."""

    def __init__(self, instance: Clustered, copies: list[str], ledger: Ledger) -> None:
        self.ledger = ledger
        self.failures: list[str] = []
        self.finalised: list[str] = []
        self.retries = 0
        self._instance = instance
        self._copies: queue.SimpleQueue[str] = queue.SimpleQueue()
        for copy_id in copies:
            self._copies.put(copy_id)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._mark, args=(seed,), daemon=True) for seed in range(MARKERS)]

    def start(self) -> None:
        """Let them begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each finish the copy in hand."""
        self._over.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a marker is stuck"

    def _mark(self, seed: int) -> None:
        try:
            with Client(self._instance.url, patience_seconds=PATIENCE_SECONDS) as client:
                client.login("admin", self._instance.admin_password)
                marker = Marker(client, self.ledger, random.Random(seed))
                while not self._over.wait(PAUSE_SECONDS):
                    try:
                        copy_id = self._copies.get_nowait()
                    except queue.Empty:
                        return
                    marker.mark(client.copy(copy_id), QUESTIONS)
                    self.finalised.append(copy_id)
                self.retries += client.retries
        except BaseException:
            self.failures.append(traceback.format_exc())

    def is_over_early(self) -> bool:
        """Tell whether somebody failed, or nobody works any more."""
        return bool(self.failures) or not any(thread.is_alive() for thread in self._threads)


def schemas(installation: Installation) -> dict[str, str]:
    """Return the version of each room's schema."""
    asked = " union all ".join(f"select '{room}', version_num from {room}.alembic_version" for room in ROOMS)
    psql = f'PGPASSWORD=$(cat /secrets/postgresql-password) psql -h 127.0.0.1 -U postgres -At korrigo -c "{asked}"'
    command = ("exec", "deployment/postgresql", "--", "sh", "-c", psql)
    told = installation.kube.kubectl("-n", backing.NAMESPACE, *command)
    return dict(line.split("|") for line in told.split())


@pytest.mark.timeout(1500)
def test_up_and_back_under_load_without_a_failed_action(
    installation: Installation,
    instance: Clustered,
    admin: Client,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    load_next_release(installation, tmp_path)
    exam = admin.create_exam("While it changes", pages_per_booklet=1, questions=QUESTIONS)
    path = a4_booklets(tmp_path / "many.pdf", document=93, booklets=COPIES, pages=1)
    answer = admin.upload(exam["id"], path)
    copies = admin.wait_scan(answer["scan_id"], seconds=240)["copy_ids"]
    for copy_id in copies:
        admin.wait_copy(copy_id, ["READY"], seconds=60)
    ledger = Ledger()
    ledger.uploaded(answer, exam["id"], path, pages=COPIES, copies=COPIES, is_a3=False)
    before = schemas(installation)
    load = Load(instance, copies, ledger)
    load.start()
    try:
        installation.install("--set", f"image.tag={NEXT}")
        upgraded = len(load.finalised)
        assert not load.is_over_early(), load.failures
        _images_are(installation, NEXT)
        moved = schemas(installation)
        assert {room: int(moved[room]) - int(before[room]) for room in ROOMS} == dict.fromkeys(ROOMS, 1)
        installation.kube.helm("rollback", RELEASE, "-n", NAMESPACE, "--wait", "--timeout", "600s", seconds=660)
        assert not load.is_over_early(), load.failures
        _images_are(installation, THIS)
        assert schemas(installation) == moved, "going back is going back to the code; the schema stays"
        time.sleep(2 * PAUSE_SECONDS)
    finally:
        load.stop()
    assert load.failures == []
    assert upgraded >= 3 and len(load.finalised) > upgraded, (upgraded, len(load.finalised))
    for copy_id in load.finalised:
        ledger.graded(admin.wait_graded(copy_id, seconds=180))
    _is_whole(admin, instance, ledger, load.finalised)
    told = f"upgrade and rollback: {len(load.finalised)} copies finalised, none failed, {load.retries} retries"
    record_property("told", told)


def _images_are(installation: Installation, tag: str) -> None:
    for deployment in installation.items("deployments"):
        image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image.endswith(f":{tag}"), image


def _is_whole(admin: Client, instance: Clustered, ledger: Ledger, copies: list[str]) -> None:
    """Compare every finalised copy with what its marker was told."""
    upload = ledger.uploads[0]
    wrong = []
    for copy_id in copies:
        entry = ledger.copies[copy_id]
        wrong += [f"{copy_id}: {text}" for text in [*check_copy(entry, upload, admin), *check_audit(entry, admin)]]
    assert wrong == []
    verified = instance.cli("audit", "verify", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
