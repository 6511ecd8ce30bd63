"""Jobs in the registry: queued, running, succeeded, failed or cancelled; safe against a server that dies."""

import time
import uuid
from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import or_, select

from latency.errors import NotFoundError
from latency.registry.database import Database
from latency.registry.records import FINISHED, JobRecord, JobState
from latency.registry.schema import Job

LOST_AFTER_S = 30.0
"""A running job whose server has given no sign of life for so long is begun again."""

MOST_ATTEMPTS = 3
"""A job that took its server down so often is given up."""


class Jobs:
    """Work that takes longer than a request."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(self, kind: str, arguments: Mapping[str, Any]) -> JobRecord:
        """Queue a job."""
        row = Job(
            id=uuid.uuid4().hex[:16],
            kind=kind,
            state="queued",
            arguments=dict(arguments),
            result=None,
            error=None,
            cancel_asked=False,
            attempts=0,
            created_at=time.time(),
            heartbeat_at=None,
            finished_at=None,
        )
        with self._database.write() as session:
            session.add(row)
        return _record(row)

    def get(self, job_id: str) -> JobRecord:
        """A job.

        Raises:
            NotFoundError: it is not known.
        """
        with self._database.read() as session:
            row = session.get(Job, job_id)
        if row is None:
            raise NotFoundError(f"There is no job {job_id!r}.")
        return _record(row)

    def all(self, *, limit: int = 100) -> list[JobRecord]:
        """The newest jobs, the newest first."""
        with self._database.read() as session:
            rows = session.scalars(select(Job).order_by(Job.created_at.desc()).limit(limit))
            return [_record(row) for row in rows]

    def claim(self) -> JobRecord | None:
        """The oldest job that waits, or whose server is lost, now running; None where there is none."""
        now = time.time()
        lost = (Job.state == "running") & (Job.heartbeat_at < now - LOST_AFTER_S)
        waiting = select(Job).where(or_(Job.state == "queued", lost)).order_by(Job.created_at).limit(1)
        with self._database.write() as session:
            row = session.scalar(waiting.with_for_update(skip_locked=True))
            if row is None:
                return None
            row.attempts += 1
            if row.attempts > MOST_ATTEMPTS:
                row.state, row.finished_at = "failed", now
                row.error = f"The job was begun {MOST_ATTEMPTS} times, and its server died each time."
                return None
            row.state, row.heartbeat_at = "running", now
        return _record(row)

    def beat(self, job_id: str) -> bool:
        """A sign of life for a running job; returns whether it is to go on."""
        with self._database.write() as session:
            row = session.get(Job, job_id)
            if row is None or row.state != "running":
                return False
            row.heartbeat_at = time.time()
            return not row.cancel_asked

    def release(self, job_id: str) -> None:
        """Give a running job back, for another server or a later time; it was not its fault."""
        with self._database.write() as session:
            row = session.get(Job, job_id)
            if row is not None and row.state == "running":
                row.state, row.attempts = "queued", row.attempts - 1

    def finish(
        self,
        job_id: str,
        state: JobState,
        *,
        result: Mapping[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        """Record how a running job ended."""
        with self._database.write() as session:
            row = session.get(Job, job_id)
            if row is not None and row.state not in FINISHED:
                row.state, row.error, row.finished_at = state, error, time.time()
                row.result = None if result is None else dict(result)

    def cancel(self, job_id: str) -> JobRecord:
        """Ask to cancel a job: one that waits ends at once, one that runs within seconds.

        Raises:
            NotFoundError: it is not known.
        """
        with self._database.write() as session:
            row = session.get(Job, job_id)
            if row is not None:
                row.cancel_asked = True
                if row.state == "queued":
                    row.state, row.finished_at = "cancelled", time.time()
        return self.get(job_id)


def _record(row: Job) -> JobRecord:
    return JobRecord(
        id=row.id,
        kind=row.kind,
        state=cast(JobState, row.state),
        arguments=row.arguments,
        result=row.result,
        error=row.error,
        cancel_asked=row.cancel_asked,
        attempts=row.attempts,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
