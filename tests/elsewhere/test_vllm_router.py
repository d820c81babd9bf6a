"""vllm-router in front of two replicas: it balances, and neither restart loses a request."""

import urllib.request

import pytest

from fleet import Clients, Process, free_port, metric, program, wait_for

ROUTER = program("vllm-router")
pytestmark = pytest.mark.skipif(not ROUTER, reason="skipped: the package vllm-router is not installed")


@pytest.fixture
def router():
    started = []

    def start(*replicas):
        port, metrics_port = free_port(), free_port()
        command = [ROUTER, "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
        command += ["--worker-urls", *(replica.url for replica in replicas)]
        command += ["--health-check-endpoint", "/ready", "--health-check-interval-secs", "1"]
        command += ["--health-failure-threshold", "1", "--health-success-threshold", "1"]
        command += ["--worker-startup-check-interval", "1", "--prometheus-port", str(metrics_port)]
        process = Process(command)
        started.append(process)
        wait_for("the router answers", lambda: is_up(port, process))
        return port, f"http://127.0.0.1:{metrics_port}"

    yield start
    for process in started:
        process.stop()


def is_up(port, process):
    assert process.child.poll() is None, process.output()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def is_healthy(metrics, replica):
    return metric(metrics, f'vllm_router_worker_health{{worker="{replica.url}"}}') == 1.0


def test_both_replicas_get_their_share(router, replicas):
    pair = [replicas(), replicas()]
    port, _ = router(*pair)
    with Clients(port) as clients:
        clients.asked(60)
    assert not clients.failures, clients.failures[:3]
    shares = [replica.answered() for replica in pair]
    assert min(shares) > 0.3 * sum(shares), shares


def test_a_rolling_restart_loses_no_request(router, replicas):
    pair = [replicas("--drain-delay", "3"), replicas("--drain-delay", "3")]
    port, metrics = router(*pair)
    with Clients(port, long_tokens=500) as clients:
        clients.asked(40)
        for replica in pair:
            replica.stop()
            assert not is_healthy(metrics, replica)
            replica.start().wait_ready()
            wait_for("the router takes it back", lambda: is_healthy(metrics, replica))
            clients.asked(40)
            assert replica.answered() > 0, "it gets requests again"
    assert not clients.failures, f"{len(clients.failures)} of {clients.answers}: {clients.failures[:3]}"
