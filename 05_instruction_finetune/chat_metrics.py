"""Counters of the service, in the form that Prometheus reads at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one application; `served` are its models."""

    def __init__(self, served):
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("chat_requests", "Requests that were answered", registry=registry)
        self.errors = Counter("chat_errors", "Requests that were refused", ["status"], registry=registry)
        self.prompt = Counter("chat_prompt_tokens", "Tokens that were read", registry=registry)
        self.completion = Counter("chat_completion_tokens", "Tokens that were written", registry=registry)
        self.first = Histogram("chat_first_token_seconds", "Wait for the first token", buckets=SECONDS,
                               registry=registry)  # fmt: skip
        for name, what, count in (
            ("running", "Answers that grow now", lambda scheduler: len(scheduler.running)),
            ("waiting", "Requests that wait for a row", lambda scheduler: len(scheduler.waiting)),
            ("steps", "Steps of the scheduler so far", lambda scheduler: scheduler.n_steps),
            ("passes", "Passes through the model so far", lambda scheduler: scheduler.n_passes),
        ):
            gauge = Gauge(f"chat_{name}", what, ["model"], registry=registry)
            for one in served:
                gauge.labels(one.name).set_function(lambda one=one, count=count: count(one.scheduler))

    def first_token(self, seconds):
        self.first.observe(seconds)

    def done(self, usage):
        self.requests.inc()
        self.prompt.inc(usage["prompt_tokens"])
        self.completion.inc(usage["completion_tokens"])

    def error(self, status):
        self.errors.labels(str(status)).inc()

    def text(self):
        return generate_latest(self.registry)
