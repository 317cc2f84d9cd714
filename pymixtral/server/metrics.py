"""What Prometheus is told: names, types and buckets of vLLM's, under `pymixtral:`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from pymixtral.engine.completion import Completion
    from pymixtral.engine.stats import EngineStats

_LABELS = ("model_name",)

_FIRST = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_N = (1, 2, 5, 10, 20)

_SECONDS = {
    "time_to_first_token_seconds": ("Seconds from a text's arrival to its first token.", _FIRST),
    "inter_token_latency_seconds": ("Seconds between the pieces of a stream.", _TOKEN),
    "request_time_per_output_token_seconds": ("Mean seconds of the tokens of a text after its first.", _TOKEN),
    "e2e_request_latency_seconds": ("Seconds from a text's arrival to its end.", _REQUEST),
    "request_queue_time_seconds": ("Seconds from a text's arrival to its first pass.", _REQUEST),
    "request_prefill_time_seconds": ("Seconds from a text's first pass to its first token.", _REQUEST),
    "request_decode_time_seconds": ("Seconds from a text's first token to its end.", _REQUEST),
    "request_inference_time_seconds": ("Seconds from a text's first pass to its end.", _REQUEST),
}
_COUNTS = {
    "request_prompt_tokens": "Tokens of a text's prompt.",
    "request_generation_tokens": "Tokens generated of a text.",
    "request_params_max_tokens": "Most tokens that a request asks for.",
}

_REASONS = {"stop": "stop", "length": "length", "context": "length", "cancelled": "abort", "deadline": "deadline"}
"""Why texts end, in vLLM's words as far as it has them."""


class Metrics:
    """What a server counts.

    Args:
        name: the model's name, the label of all that is counted.
        n_ctx: the model's context, the end of buckets of tokens.
        stats: describes the engine; None: the model is closed.

    Attributes:
        registry: all metrics; it is nobody else's.
    """

    def __init__(self, name: str, n_ctx: int, stats: Callable[[], EngineStats | None]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engine(name, stats))
        tokens = _buckets_to(n_ctx)
        buckets: dict[str, tuple[str, Sequence[float]]] = {
            **_SECONDS,
            **{what: (help, tokens) for what, help in _COUNTS.items()},
            "request_params_n": ("Texts that a request asks for.", _N),
        }
        self._histograms = {
            what: Histogram(f"pymixtral:{what}", help, _LABELS, buckets=tuple(limits), registry=self.registry).labels(
                name
            )
            for what, (help, limits) in buckets.items()
        }
        success = Counter(
            "pymixtral:request_success",
            "Texts that ended, by the reason.",
            (*_LABELS, "finished_reason"),
            registry=self.registry,
        )
        self._success = {reason: success.labels(name, reason) for reason in _REASONS.values()}
        self._answers = Counter(
            "pymixtral:http_requests",
            "Answers over HTTP; 499: the client left before.",
            (*_LABELS, "method", "status"),
            registry=self.registry,
        )
        self._name = name

    def asked(self, n: int, max_tokens: int | None) -> None:
        """Count a request that was admitted.

        Args:
            n: texts that it asks for.
            max_tokens: most tokens of each; None: as many as there is room for.
        """
        self._histograms["request_params_n"].observe(n)
        if max_tokens is not None:
            self._histograms["request_params_max_tokens"].observe(max_tokens)

    def finished(self, completion: Completion) -> None:
        """Count a text that is complete.

        Args:
            completion: the text.
        """
        stats, observe = completion.stats, self._observe
        self._success[_REASONS[completion.finish_reason]].inc()
        observe("request_prompt_tokens", stats.prompt_tokens)
        observe("request_generation_tokens", stats.generated_tokens)
        observe("e2e_request_latency_seconds", stats.seconds)
        observe("request_queue_time_seconds", stats.queue_seconds)
        observe("request_inference_time_seconds", stats.seconds - stats.queue_seconds)
        if stats.first_seconds:
            decode = stats.seconds - stats.first_seconds
            observe("time_to_first_token_seconds", stats.first_seconds)
            observe("request_prefill_time_seconds", stats.first_seconds - stats.queue_seconds)
            observe("request_decode_time_seconds", decode)
            if stats.generated_tokens > 1:
                observe("request_time_per_output_token_seconds", decode / (stats.generated_tokens - 1))

    def aborted(self) -> None:
        """Count a request whose client left before its text was complete."""
        self._success["abort"].inc()

    def gap(self, seconds: float) -> None:
        """Count the time between two pieces of a stream.

        Args:
            seconds: the time.
        """
        self._observe("inter_token_latency_seconds", seconds)

    def answered(self, method: str, status: int) -> None:
        """Count an answer.

        Args:
            method: of HTTP; others than the usual ones are counted together.
            status: of the answer.
        """
        known = method if method in ("GET", "POST", "OPTIONS", "HEAD") else "other"
        self._answers.labels(self._name, known, str(status)).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics as text.

        Args:
            accept: the header Accept of the request.

        Returns:
            The text, and its content type.
        """
        try:
            encode, kind = choose_encoder(accept)
        except (TypeError, ValueError):  # of a version that is none, such as "version=abc"
            encode, kind = choose_encoder("")
        return encode(self.registry), kind

    def _observe(self, what: str, value: float) -> None:
        self._histograms[what].observe(max(value, 0.0))


class _Engine(Collector):
    """What the engine counts by itself, read when it is asked for."""

    def __init__(self, name: str, stats: Callable[[], EngineStats | None]) -> None:
        self._name = name
        self._stats = stats

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry would ask the engine for its names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The engine's metrics now."""
        stats = self._stats()
        if stats is None:
            return
        given = stats.prompt_tokens + stats.cached_tokens
        gauges = {
            "num_requests_running": ("Texts that are computed.", stats.prefilling + stats.decoding),
            "num_requests_waiting": ("Texts that wait for their turn.", stats.waiting),
            "kv_cache_usage_perc": (
                "Part of the cache that running texts hold, 0 to 1.",
                stats.used_pages / stats.pages,
            ),
        }
        counters = {
            "prompt_tokens": ("Tokens of prompts, with those that the prefix cache had.", given),
            "generation_tokens": ("Tokens generated.", stats.generated_tokens),
            "num_preemptions": ("Times that a text gave its place in the cache back.", stats.preempted),
            "prefix_cache_queries": ("Tokens of prompts that the prefix cache was asked for.", given),
            "prefix_cache_hits": ("Tokens of prompts that the prefix cache had.", stats.cached_tokens),
            "passes": ("Passes through the model.", stats.passes),
            "pass_seconds": ("Seconds of all passes.", stats.seconds),
        }
        for what, (help, value) in gauges.items():
            gauge = GaugeMetricFamily(f"pymixtral:{what}", help, labels=_LABELS)
            gauge.add_metric((self._name,), value)
            yield gauge
        for what, (help, value) in counters.items():
            counter = CounterMetricFamily(f"pymixtral:{what}", help, labels=_LABELS)
            counter.add_metric((self._name,), value)
            yield counter


def _buckets_to(most: int) -> list[float]:
    """1, 2, 5, 10, 20, 50 and so on, up to a number of tokens."""
    return [n for exponent in range(len(str(most))) for n in (10**exponent * m for m in (1, 2, 5)) if n <= most]
