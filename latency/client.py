"""A service's registry and predictions from Python, with the errors of `latency.errors`.

with ServiceClient("http://board-lab:8080", token) as service:
    lpnet = service.lpnets(structure_hash=space.structure_hash)[0]
    latency_ms = service.predictor(lpnet.id).predict_ms(widths)
"""

import functools
import json
import os
import re
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np
import numpy.typing as npt

from latency import errors
from latency.errors import LatencyError, NotFoundError, ServiceError, SettingError
from latency.lpnet_archive import zipped
from latency.lpnet_files import LPNetManifest
from latency.npy import NPY, npy_array, npy_bytes
from latency.predictor import FloatArray, Prediction
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.profiles import ProfileSet, parse_profile
from latency.registry.records import (
    FINISHED,
    DeviceRecord,
    JobRecord,
    LPNetRecord,
    ProfileRecord,
    SpaceRecord,
)

TOKEN_VARIABLE = "TRIMMS_TOKEN"
"""Environment variable that a token is read from where none is given."""

URN = "urn:trimms:"

# A request that changes nothing is sent again so often when the service does not answer.
_ATTEMPTS = 3
_LARGEST_BATCH = 2048
_LPNET_ADDRESS = re.compile(r"(https?://.+)/v1/lpnets/([0-9a-f]+)/?")

Answer = TypeVar("Answer")


class ServiceClient:
    """A connection to a service.

    Args:
        url: where it is, such as `http://127.0.0.1:8080`.
        token: bearer token; from `TRIMMS_TOKEN` if left out; none is needed on a service of this machine's own.
        timeout_s: longest wait for an answer.

    Raises:
        SettingError: the URL is none.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout_s: float = 60.0) -> None:
        token = token or os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        except httpx.InvalidURL as error:
            raise SettingError(
                f"A service is at a URL such as http://127.0.0.1:8080; got {url!r}."
            ) from error
        if self._http.base_url.scheme not in ("http", "https"):
            raise SettingError(f"A service is at a URL such as http://127.0.0.1:8080; got {url!r}.")

    def __enter__(self) -> "ServiceClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def devices(self) -> list[DeviceRecord]:
        """Known devices."""
        return self._get("/v1/devices", list[DeviceRecord])

    def spaces(self) -> list[SpaceRecord]:
        """Known search spaces."""
        return self._get("/v1/spaces", list[SpaceRecord])

    def upload_space(self, base: Path, name: str = "") -> SpaceRecord:
        """Upload a `base.onnx`."""
        return self._send_as(
            "POST", "/v1/spaces", SpaceRecord, content=base.read_bytes(), params={"name": name}
        )

    def profiles(self, **of: str) -> list[ProfileRecord]:
        """Known profile sets; `structure_hash=` and `device_digest=` choose among them."""
        return self._get("/v1/profiles", list[ProfileRecord], **of)

    def upload_profile(self, content: bytes) -> str:
        """Upload a `profile.jsonl`, whole or as far as it has come; returns the profile set's id."""
        return str(self.send("POST", "/v1/profiles", content=content).json()["id"])

    def begin_profile(self, header: ProfileHeader) -> str:
        """Begin a profile set, or find it again; returns its id."""
        return self.upload_profile(json.dumps(header.to_json()).encode() + b"\n")

    def upload_rows(self, profile_id: str, rows: Iterable[ProfileRow]) -> int:
        """Upload rows of a profile set, any number of times; returns how many were new."""
        lines = "".join(json.dumps(row.to_json()) + "\n" for row in rows)
        answer = self.send("POST", f"/v1/profiles/{profile_id}/rows", content=lines.encode())
        return int(answer.json()["n_new"])

    def download_profile(self, profile_id: str) -> bytes:
        """A profile set as a `profile.jsonl`."""
        return self.send("GET", f"/v1/profiles/{profile_id}/jsonl").content

    def profile_of(self, manifest: LPNetManifest) -> ProfileSet:
        """What was measured of an LPNet's network on its device; of several sets that by whose clock it was fitted.

        Raises:
            NotFoundError: there is nothing.
        """
        known = self.profiles(
            structure_hash=manifest.structure_hash, device_digest=manifest.fingerprint.digest
        )
        if not known:
            raise NotFoundError(
                f"The service has no profile of network {manifest.structure_hash[:12]} on device "
                f"{manifest.fingerprint.digest}; upload it with `trimms profile --registry`."
            )
        best = max(
            known, key=lambda record: (record.reference_ms == manifest.reference_ms, record.created_at)
        )
        profile = parse_profile(self.download_profile(best.id), Path(best.id))
        if profile is None:
            raise ServiceError(f"The service answered with an empty profile {best.id}.")
        return profile

    def lpnets(self, **of: str) -> list[dict[str, Any]]:
        """Known LPNets in a few figures, the newest first; `structure_hash=` and `device_digest=` choose."""
        return self._get("/v1/lpnets", list[dict[str, Any]], **of)

    def lpnet(self, lpnet_id: str) -> LPNetRecord:
        """An LPNet."""
        return self._get(f"/v1/lpnets/{lpnet_id}", LPNetRecord)

    def upload_lpnet(self, folder: Path) -> LPNetRecord:
        """Upload the LPNet in a folder, as `trimms fit` leaves it."""
        return self._send_as("POST", "/v1/lpnets", LPNetRecord, content=zipped(folder))

    def train(self, profile_id: str, *, seed: int = 0) -> JobRecord:
        """Have an LPNet trained on a stored profile set."""
        return self._send_as("POST", "/v1/jobs", JobRecord, json={"profile_id": profile_id, "seed": seed})

    def job(self, job_id: str) -> JobRecord:
        """How far a job is."""
        return self._get(f"/v1/jobs/{job_id}", JobRecord)

    def cancel(self, job_id: str) -> JobRecord:
        """Ask to cancel a job."""
        return self._send_as("DELETE", f"/v1/jobs/{job_id}", JobRecord)

    def wait(self, job_id: str, *, timeout_s: float = 3600.0, poll_s: float = 0.5) -> JobRecord:
        """The job once it has ended.

        Raises:
            ServiceError: it has not ended in time.
        """
        deadline = time.monotonic() + timeout_s
        while (job := self.job(job_id)).state not in FINISHED:
            if time.monotonic() > deadline:
                raise ServiceError(f"Job {job_id} is still {job.state} after {timeout_s:g} s.")
            time.sleep(poll_s)
        return job

    def predictor(self, lpnet_id: str) -> "RemotePredictor":
        """A predictor with the interface of `latency.predictor.Predictor`."""
        return RemotePredictor(self, lpnet_id)

    def predictor_for(self, structure_hash: str, device_digest: str) -> "RemotePredictor":
        """The newest LPNet's predictor of a network on a device.

        Raises:
            NotFoundError: there is none.
        """
        found = self.lpnets(structure_hash=structure_hash, device_digest=device_digest)
        if not found:
            raise NotFoundError(
                f"The service has no LPNet of network {structure_hash[:12]} on device {device_digest}; upload "
                "one, or have one trained there."
            )
        return self.predictor(found[0]["id"])

    def predict_onnx(self, lpnet_id: str, pruned: bytes) -> dict[str, Any]:
        """Latency of a pruned network's ONNX file, and its widths."""
        answer: dict[str, Any] = self.send(
            "POST", f"/v1/lpnets/{lpnet_id}/predict-onnx", content=pruned
        ).json()
        return answer

    def _get(self, path: str, kind: type[Answer], **params: str) -> Answer:
        return self._send_as("GET", path, kind, params=params)

    def _send_as(self, method: str, path: str, kind: type[Answer], **what: Any) -> Answer:
        answer = self.send(method, path, **what)
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except msgspec.DecodeError as error:
            raise ServiceError(
                f"The service answered what this version does not understand: {error}."
            ) from error

    def send(self, method: str, path: str, **what: Any) -> httpx.Response:
        """The answer to a request, `what` being httpx's arguments.

        Raises:
            LatencyError: the service's refusal, as the error that it raised.
            ServiceError: it does not answer.
        """
        # Everything here may be sent twice: uploads are kept once; a job too many can be cancelled.
        attempts = 1 if path == "/v1/jobs" else _ATTEMPTS
        for attempt in range(1, attempts + 1):
            try:
                answer = self._http.request(method, path, **what)
                break
            except httpx.TransportError as error:
                if attempt == attempts:
                    raise ServiceError(
                        f"The service at {self._http.base_url} does not answer ({error}); is it running?"
                    ) from error
                time.sleep(0.2 * attempt)
        if answer.is_error:
            raise _error(answer)
        return answer


class RemotePredictor:
    """An LPNet of a service, with the interface of `latency.predictor.Predictor`.

    Gradients are kept: the search asks for the same widths again and again.

    Attributes:
        manifest: what the LPNet is for and how good it is.
    """

    def __init__(self, service: ServiceClient, lpnet_id: str) -> None:
        self._service = service
        self._path = f"/v1/lpnets/{lpnet_id}"
        self.manifest = LPNetManifest.from_json(service.lpnet(lpnet_id).manifest)
        self._gradient_at = functools.lru_cache(maxsize=4096)(self._ask_gradient)

    def close(self) -> None:
        """Close its connection to the service."""
        self._service.close()

    def profile(self) -> ProfileSet:
        """What was measured on its device, see `ServiceClient.profile_of`."""
        return self._service.profile_of(self.manifest)

    def predict_ms(self, widths: npt.ArrayLike) -> FloatArray:
        """Predicted latencies in ms, [n]; see `Predictor.predict_ms`."""
        return self._predicted(widths)[:, 0].copy()

    def predict(self, widths: npt.ArrayLike) -> Prediction:
        """Predictions with their intervals and the layers' shares; see `Predictor.predict`."""
        columns = self._predicted(widths)
        layers = self._ask("layers", widths)["layer_ms"]
        return Prediction(
            latency_ms=columns[:, 0].copy(),
            low_ms=columns[:, 1].copy(),
            high_ms=columns[:, 2].copy(),
            out_of_range=columns[:, 3] > 0,
            layer_ms=np.array(layers, dtype=np.float64),
        )

    def gradient(self, widths: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Predicted latencies in ms, [n], and their gradient, [n, n_groups]; see `Predictor.gradient`."""
        rows = np.atleast_2d(np.asarray(widths, dtype=np.float64))
        if len(rows) > 1:
            answer = self._ask("gradient", rows)
            latency_ms, gradient = answer["latency_ms"], answer["gradient_ms_per_channel"]
        else:
            found = [self._gradient_at(tuple(row.tolist())) for row in rows]
            latency_ms, gradient = [one[0] for one in found], [one[1] for one in found]
        return np.array(latency_ms), np.array(gradient)

    def _ask_gradient(self, widths: tuple[float, ...]) -> tuple[float, list[float]]:
        answer = self._ask("gradient", widths)
        return answer["latency_ms"][0], answer["gradient_ms_per_channel"][0]

    def _ask(self, what: str, widths: npt.ArrayLike) -> Any:
        body = msgspec.json.encode({"widths": np.asarray(widths).tolist()})
        return self._service.send("POST", f"{self._path}/{what}", content=body).json()

    def _predicted(self, widths: npt.ArrayLike) -> FloatArray:
        """Latency, low and high end, out of range, [n, 4]."""
        rows = np.atleast_2d(np.asarray(widths, dtype=np.float32))
        batches = [rows[first : first + _LARGEST_BATCH] for first in range(0, len(rows), _LARGEST_BATCH)]
        return np.concatenate([self._predicted_batch(batch) for batch in batches] or [np.zeros((0, 4))])

    def _predicted_batch(self, rows: npt.NDArray[np.float32]) -> FloatArray:
        headers = {"Content-Type": NPY, "Accept": NPY}
        answer = self._service.send("POST", f"{self._path}/predict", content=npy_bytes(rows), headers=headers)
        found: FloatArray = npy_array(answer.content)
        return found


def lpnet_at(address: str) -> RemotePredictor:
    """The LPNet at an address, with a connection of its own that ends with it.

    Args:
        address: where a service shows it, such as `http://lab:8080/v1/lpnets/3f0c9a…`.

    Raises:
        SettingError: it is no such address.
        LatencyError: the service does not have it, or does not answer.
    """
    found = _LPNET_ADDRESS.fullmatch(address)
    if found is None:
        raise SettingError(
            f"An LPNet of a service is at an address such as http://lab:8080/v1/lpnets/ID; got {address!r}. "
            "The service lists them at /v1/lpnets."
        )
    service = ServiceClient(found[1])
    try:
        return owning(service.predictor(found[2]), service)
    except LatencyError:
        service.close()
        raise


def owning(predictor: RemotePredictor, service: ServiceClient) -> RemotePredictor:
    """The predictor, with which its service's connection will end."""
    weakref.finalize(predictor, service.close)
    return predictor


def _error(answer: httpx.Response) -> LatencyError:
    """The error that the service raised."""
    try:
        problem = answer.json()
        name, detail = str(problem["type"]).removeprefix(URN), str(problem["detail"])
    except (KeyError, TypeError, ValueError):
        return ServiceError(f"The service answered {answer.status_code}: {answer.text[:200]!r}.")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, LatencyError):
        return kind(detail)
    return ServiceError(detail)
