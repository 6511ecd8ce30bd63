"""What a service counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Seconds: a prediction takes a tenth of a millisecond, an upload seconds.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)


class ServiceMetrics:
    """Counters of one app, apart from other apps in the process.

    Attributes:
        predictions: width vectors priced.
        in_progress: requests that are being answered.
    """

    def __init__(self) -> None:
        self._collectors = CollectorRegistry()
        self._requests = Counter(
            "trimms_requests",
            "Requests answered",
            ("method", "route", "status"),
            registry=self._collectors,
        )
        self._seconds = Histogram(
            "trimms_request_seconds",
            "Time from a request's headers to its answer's last byte",
            ("route",),
            buckets=_BUCKETS,
            registry=self._collectors,
        )
        self.predictions = Counter("trimms_predictions", "Width vectors priced", registry=self._collectors)
        self.in_progress = Gauge(
            "trimms_requests_in_progress", "Requests being answered", registry=self._collectors
        )
        # Looking labels up by name costs more than counting.
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        key = (method, route, status)
        known = self._known.get(key)
        if known is None:
            known = (self._requests.labels(method, route, str(status)), self._seconds.labels(route))
            self._known[key] = known
        known[0].inc()
        known[1].observe(seconds)

    def text(self) -> bytes:
        """All counters in Prometheus's text format."""
        return generate_latest(self._collectors)
