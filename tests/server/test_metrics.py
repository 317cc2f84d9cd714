"""What is told of requests: metrics, log, trace, names."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pymixtral.engine.completion import Completion, Stats
from pymixtral.server.log import Lines
from pymixtral.server.metrics import Metrics
from support.serving import LONG, Server, Start, eventually

BODY = {"prompt": "Once upon a time", "max_tokens": 8}

TYPES = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "num_preemptions": "counter",
    "prefix_cache_queries": "counter",
    "prefix_cache_hits": "counter",
    "request_success": "counter",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram",
    "request_inference_time_seconds": "histogram",
    "request_prompt_tokens": "histogram",
    "request_generation_tokens": "histogram",
    "request_params_n": "histogram",
    "request_params_max_tokens": "histogram",
}
"""vLLM's."""


def test_the_metrics_of_vllm(probe: Server) -> None:
    with probe.client() as client:
        answer = client.get("/metrics")
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        openmetrics = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert openmetrics.text.endswith("# EOF\n")
    for name, kind in TYPES.items():
        family = families[f"pymixtral:{name}"]
        assert family.type == kind
        assert all(sample.labels["model_name"] == "tiny-mixtral-instruct-q4_k_m" for sample in family.samples)


@pytest.mark.parametrize("version", ["abc", "1e9", "", "1.0.0; escaping=abc", "1; version=2=3"])
def test_metrics_for_whoever_accepts_nonsense(probe: Server, version: str) -> None:
    with probe.client() as client:
        answer = client.get("/metrics", headers={"accept": f"application/openmetrics-text; version={version}"})
    assert answer.status_code == 200
    assert "pymixtral:passes" in answer.text


def test_requests_are_counted(start: Start) -> None:
    server = start(probe=True)
    with server.client() as client:
        client.post("/probe/whole", json={**BODY, "n": 3})
        client.post("/probe/stream", json=BODY)
        client.post("/probe/whole", json={**BODY, "temperature": -1})
    metric = server.metric
    assert metric("request_success_total", finished_reason="length") == 4
    assert metric("request_params_n_sum") == 3 + 1 + 1
    assert metric("request_params_max_tokens_sum") == 8 + 8  # the stream's says none
    assert metric("generation_tokens_total") == metric("request_generation_tokens_sum") == 4 * 8
    assert metric("prompt_tokens_total") == metric("prefix_cache_queries_total") > 0
    assert metric("request_prompt_tokens_bucket", le="5.0") == 4
    assert 0 < metric("time_to_first_token_seconds_sum") <= metric("e2e_request_latency_seconds_sum")
    whole = metric("request_queue_time_seconds_sum") + metric("request_inference_time_seconds_sum")
    assert whole == pytest.approx(metric("e2e_request_latency_seconds_sum"))
    parts = metric("request_prefill_time_seconds_sum") + metric("request_decode_time_seconds_sum")
    assert parts == pytest.approx(metric("request_inference_time_seconds_sum"))
    assert metric("inter_token_latency_seconds_count") > 0
    assert metric("http_requests_total", method="POST", status="200") == 2
    assert metric("http_requests_total", method="POST", status="400") == 1


def test_the_endpoints_tell_what_they_were_asked_for(start: Start) -> None:
    server = start()
    messages = [{"role": "user", "content": "Who?"}]
    bodies = {
        "/v1/completions": {"prompt": ["Once", "Then"], "max_tokens": 3},
        "/v1/chat/completions": {"messages": messages, "max_tokens": 100, "max_completion_tokens": 5},
        "/v1/responses": {"input": "Who?", "max_output_tokens": 16},
    }
    with server.client() as client:
        for path, body in bodies.items():
            for stream in (False, True):
                assert client.post(path, json={**body, "stream": stream}).status_code == 200
    assert server.metric("request_params_max_tokens_sum") == 2 * (3 + 5 + 16)
    assert server.metric("request_params_n_sum") == 2 * (2 + 1 + 1)
    texts = sum(server.metric("request_success_total", finished_reason=reason) for reason in ("stop", "length"))
    assert texts == 2 * (2 + 1 + 1)


def test_times_go_to_the_buckets_that_they_belong_to() -> None:
    metrics = Metrics("m", 4096, lambda: None)
    stats = Stats(100, 0, 11, 0.0, 0.0, 10, 1, queue_seconds=0.4, first_seconds=1.0, seconds=3.0)
    metrics.finished(Completion("", [], "deadline", stats))
    metrics.answered("BREW", 405)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"pymixtral:{name}", {"model_name": "m", **labels})

    assert value("request_success_total", finished_reason="deadline") == 1
    assert value("http_requests_total", method="other", status="405") == 1
    assert value("request_queue_time_seconds_sum") == 0.4
    assert value("request_prefill_time_seconds_sum") == pytest.approx(0.6)
    assert value("request_decode_time_seconds_sum") == 2.0
    assert value("request_time_per_output_token_seconds_sum") == pytest.approx(0.2)
    assert [value("e2e_request_latency_seconds_bucket", le=le) for le in ("2.5", "5.0")] == [0, 1]
    assert [value("request_prompt_tokens_bucket", le=le) for le in ("50.0", "100.0", "2000.0")] == [0, 1, 1]
    assert value("request_prompt_tokens_bucket", le="5000.0") is None


def test_requests_have_names(start: Start) -> None:
    server = start("--json", probe=True)
    with server.client() as client:
        for name in ("a", "trace-1/2:3", "x" * 128):
            assert client.get("/livez", headers={"x-request-id": name}).headers["x-request-id"] == name
        for name in ("", "a b", "x" * 129, 'a"b', "é".encode("latin-1")):
            answer = client.get("/livez", headers={"x-request-id": name})
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        lines = [json.loads(server.until('^{"')) for _ in range(8)]
    assert [line["id"] for line in lines[:3]] == ["a", "trace-1/2:3", "x" * 128]
    assert {(line["method"], line["path"], line["status"]) for line in lines} == {("GET", "/livez", 200)}


def test_the_log_and_the_trace(start: Start, tmp_path: Path) -> None:
    server = start("--json", "--trace", str(tmp_path / "trace"), probe=True)
    with server.client() as client:
        client.post("/probe/whole?key=secret", json={**BODY, "n": 2}, headers={"x-request-id": "one"})
        client.post("/probe/stream", json=BODY, headers={"x-request-id": "two"})
    one = json.loads(server.until('"one"'))
    assert (one["path"], one["prompt_tokens"], one["generated_tokens"]) == ("/probe/whole", 5, 16)
    assert one["finish_reasons"] == ["length", "length"]
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    traces = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    assert [trace["id"] for trace in traces] == ["one", "two"]
    for trace in traces:
        for text in trace["texts"]:
            phases = [text[f"{phase}_seconds"] for phase in ("queued", "prompt", "decode")]
            assert min(phases) >= 0
            assert text["decode_seconds"] > 0
            assert sum(phases) + trace["read_seconds"] + trace["sent_seconds"] <= trace["seconds"] + 1e-3
        assert 0 < trace["first_byte_seconds"] <= trace["seconds"]
    assert "secret" not in "".join(server.lines)


def test_a_log_for_people_is_safe_on_a_terminal(start: Start) -> None:
    server = start()
    with server.client() as client:
        client.get("/a%1b%5b2J%0aReady")
        client.get("/livez")
    line = server.until("/a")
    assert "\x1b" not in line
    assert re.fullmatch(r"\d\d:\d\d:\d\d 127\.0\.0\.1:\d+ GET /a.*Ready: 404, \d+\.\d{3} s \[[0-9a-f]{32}\]", line)
    assert "/livez" in server.line()


def test_a_client_that_left_is_logged(start: Start) -> None:
    server = start("--json", probe=True)
    from support.serving import post

    connection = server.connect(post("/probe/whole", {"prompt": "Once", "max_tokens": None}))
    eventually(lambda: server.metric("num_requests_running") == 1, "it is computed")
    connection.close()
    line = json.loads(server.until("/probe/whole"))
    assert line["status"] in (0, 499)
    eventually(lambda: server.metric("http_requests_total", method="POST", status="499") == 1, "it is counted")


def test_a_trace_that_cannot_be_written_is_refused(start: Start, tmp_path: Path) -> None:
    server = start("--trace", str(tmp_path / "no" / "trace"), wait=False)
    assert server.wait() == 2
    assert "Error: " in server.lines[-1]


def test_lines_that_were_lost_are_counted_at_the_end(start: Start) -> None:
    """Nothing can be written to /dev/full, which is a disk without room."""
    server = start("--trace", "/dev/full")
    with server.client() as client:
        for _ in range(3):
            client.get("/livez")
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert re.fullmatch(r"Lost lines of the log and the trace: [1-3], .*", server.lines[-1])


def test_nobody_waits_for_lines_that_nobody_reads() -> None:
    import os

    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        lines = Lines(file)
        for _ in range(20_000):
            lines.write("x" * 100)
        eventually(lambda: lines.dropped > 0, "some were dropped")
        os.close(read)  # the thread, which waits for a reader, is told that there is none
        lines.close()
        lines._thread.join(LONG)
        assert not lines._thread.is_alive()
