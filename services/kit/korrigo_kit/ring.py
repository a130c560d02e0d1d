"""The bell: a Celery message that carries a room and a job id, nothing else.

Both sides build the same app: relay and sweeper to ring, `kit.work` to hear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from celery import Celery

from korrigo_kit import broker
from korrigo_kit.errors import Unavailable
from korrigo_kit.settings import Settings

TASK = "korrigo.run_job"


def celery_app(settings: Settings, rooms: Sequence[str]) -> Celery:
    """Build the Celery app of these rooms' queues (reliability.md 1, recommended configuration)."""
    app = Celery("korrigo", broker=broker.broker_url(settings))
    app.conf.update(
        broker_transport=broker.transport(settings),
        broker_transport_options=broker.transport_options(settings),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_heartbeat=10,
        task_queues=[broker.job_queue(room) for room in rooms],
        task_default_queue_type="quorum",
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_publish_retry=False,
        task_time_limit=settings.jobs.limit_seconds + 60,
        worker_prefetch_multiplier=1,
        worker_concurrency=settings.jobs.concurrency,
        worker_max_tasks_per_child=200,
        # A fork of a process with threads, channels or a pool hangs sooner or later (celery 5.7 allows spawn).
        worker_pool_start_method="spawn",
        # A spawned child imports everything anew: with Celery's 4 s a crowded node kills each before it is up.
        worker_proc_alive_timeout=60,
        worker_soft_shutdown_timeout=30,
        worker_cancel_long_running_tasks_on_connection_loss=True,
        # Reply queue names overflow pgmq's 47 characters, and nothing here asks a worker anything.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        accept_content=["json"],
        task_serializer="json",
    )
    return app


class Bells:
    """Rings for jobs of one room; one per relay or sweeper thread."""

    def __init__(self, settings: Settings, room: str) -> None:
        self._settings = settings
        self._room = room
        self._app = celery_app(settings, [room])

    def ring(self, job_ids: Iterable[str]) -> None:
        """Ring for these jobs; raises Unavailable when the broker does not take a bell."""
        try:
            for job_id in job_ids:
                self._app.send_task(TASK, args=[self._room, job_id], queue=f"jobs.{self._room}", retry=False)
        except Exception as error:
            self.close()
            raise Unavailable("BROKER_UNAVAILABLE", "the broker did not take a bell") from error

    def close(self) -> None:
        """Drop the connections; the next bell opens new ones."""
        self._app.close()
        self._app = celery_app(self._settings, [self._room])
