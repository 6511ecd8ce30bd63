"""Carries out jobs, each in a process of its own, and survives being stopped at any moment."""

import asyncio
import contextlib
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process

from latency.registry.records import JobRecord
from latency.registry.registry import Registry

POLL_S = 0.5
BEAT_S = 2.0

DATABASE_VARIABLE = "TRIMMS_DATABASE_URL"
"""Environment variable that tells a job's process where the registry is: a URL may hold a password, which other users
must not see in the list of processes."""

# Characters of a failed job's last words that are kept.
_LAST_WORDS = 2000

_log = logging.getLogger(__name__)


class JobRunner:
    """Takes jobs from a registry, one at a time.

    Args:
        registry: where jobs wait.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def run(self) -> None:
        """Carry out jobs until cancelled; a job that is running then goes back to the queue."""
        while True:
            job = await asyncio.to_thread(self._registry.jobs.claim)
            if job is None:
                await asyncio.sleep(POLL_S)
                continue
            _log.info("job begun", extra={"job": job.id, "kind": job.kind, "attempt": job.attempts})
            await self._carry_out(job)

    async def _carry_out(self, job: JobRecord) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "latency.service.training"),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=os.environ | {DATABASE_VARIABLE: self._registry.database.url},
        )
        order = json.dumps({"artefacts": self._registry.artefacts.url, **job.arguments}).encode()
        talk = asyncio.create_task(process.communicate(order))
        try:
            while not talk.done():
                await asyncio.wait([talk], timeout=BEAT_S)
                if not talk.done() and not await asyncio.to_thread(self._registry.jobs.beat, job.id):
                    await _end(process)
                    await talk
                    await asyncio.to_thread(self._registry.jobs.finish, job.id, "cancelled")
                    _log.info("job cancelled", extra={"job": job.id})
                    return
        except asyncio.CancelledError:
            await _end(process)
            with contextlib.suppress(asyncio.CancelledError):
                await talk
            self._registry.jobs.release(job.id)
            raise
        await asyncio.to_thread(self._record, job, process.returncode, *talk.result())

    def _record(self, job: JobRecord, code: int | None, out: bytes, err: bytes) -> None:
        words = err.decode(errors="replace").strip()[-_LAST_WORDS:]
        if code == 0:
            self._registry.jobs.finish(job.id, "succeeded", result=json.loads(out))
        else:
            self._registry.jobs.finish(
                job.id, "failed", error=words or f"The process ended with code {code}."
            )
        _log.info("job ended", extra={"job": job.id, "code": code, "said": words})


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
