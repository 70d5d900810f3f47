"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dit.generation.service import Made, Service


class Metrics:
    """Metrics for Prometheus of one service."""

    def __init__(self, service: Service) -> None:
        self.registry = registry = CollectorRegistry()
        batcher = service.batcher
        self.requests = Counter(
            "dit_requests", "requests by endpoint and HTTP status", ["endpoint", "status"], registry=registry
        )
        self.refused = Counter("dit_refused", "requests that were not served, by reason", ["code"], registry=registry)
        self.pictures = Counter("dit_pictures", "pictures delivered", registry=registry)
        self.seconds = Histogram("dit_request_seconds", "from admission to the answer", registry=registry)
        self.hits = Counter("dit_cache_hits", "of these, pictures of the cache", registry=registry)
        self.machine = Counter("dit_machine_seconds", "seconds of the machine for them", registry=registry)
        self.joules = Counter("dit_energy_joules", "their energy, if it is known", ["method"], registry=registry)
        self.price = Counter("dit_price", "their price, if there is one", ["currency"], registry=registry)
        for name, what, value in (
            ("dit_pending_calls", "network calls that unfinished requests still need", lambda: service.pending_calls),
            ("dit_active_requests", "admitted requests that are not finished", lambda: service.active),
            ("dit_ready", "1 if requests are admitted", lambda: service.ready and not service.draining),
            ("dit_network_calls", "batched calls of the network so far", lambda: batcher.calls),
            ("dit_network_rows", "rows of these calls: network calls of single pictures", lambda: batcher.rows),
            ("dit_network_seconds", "seconds of these calls", lambda: batcher.seconds),
        ):
            Gauge(name, what, registry=registry).set_function(lambda value=value: float(value()))  # type: ignore[misc]

    def count(self, made: Made) -> None:
        """Counts what was delivered, and what it cost."""
        cost = made.cost
        self.pictures.inc(len(made.pictures))
        self.seconds.observe(made.seconds)
        self.hits.inc(cost["cache_hits"])
        self.machine.inc(cost["seconds"])
        if cost["energy_joules"] is not None:
            self.joules.labels(cost["energy_method"]).inc(cost["energy_joules"])
        if "price" in cost:
            self.price.labels(cost["currency"]).inc(cost["price"])
