"""What the endpoint picker of llm-d and of the Gateway API inference extension reads, as it reads it: every 50 ms."""

import http.client
import json
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fleet import MODEL, body, wait_for

# Metrics of the model server protocol, under the names that the picker takes for `vllm`.
QUEUED, RUNNING, KV = "vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"
CACHE, ADAPTERS = "vllm:cache_config_info", "vllm:lora_requests_info"


def scraped(url):
    with urllib.request.urlopen(f"{url}/metrics", timeout=2) as page:
        families = text_string_to_metric_families(page.read().decode())
        return {family.name: family for family in families}


def value(families, name):
    (sample,) = families[name].samples
    assert families[name].type == "gauge" and sample.labels["model_name"] == MODEL
    return sample.value


@pytest.fixture
def busy(replicas):
    """Two places, and five streams that want one."""
    replica = replicas(
        "--max-num-seqs", "2", "--max-queue", "8", "--max-model-len", "4096", "--kv-cache-memory-bytes", "64KiB"
    )
    open_streams = []
    for number in range(5):
        connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=20)
        text = f"{number} tells a story"
        connection.request("POST", "/v1/chat/completions", body(1000, True, text), {"content-type": "application/json"})
        open_streams.append(connection)
    yield replica
    for connection in open_streams:
        connection.close()


def test_queue_running_and_cache_are_true(busy):
    wait_for(
        "two run and three wait",
        lambda: (value(scraped(busy.url), RUNNING), value(scraped(busy.url), QUEUED)) == (2, 3),
    )
    families = scraped(busy.url)
    assert 0 < value(families, KV) <= 1
    assert value(families, KV) == value(families, "vllm:gpu_cache_usage_perc")
    (cache,) = families[CACHE].samples
    assert int(cache.labels["block_size"]) > 0 and int(cache.labels["num_gpu_blocks"]) > 0


def test_there_are_no_adapters(busy):
    (adapters,) = scraped(busy.url)[ADAPTERS].samples
    assert adapters.labels == {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    assert abs(adapters.value - time.time()) < 60


def test_a_scrape_every_50_ms_is_nothing(busy):
    times = []
    for _ in range(40):
        started = time.monotonic()
        scraped(busy.url)
        times.append(time.monotonic() - started)
        time.sleep(0.05)
    # The picker takes what is older than 200 ms for a full server.
    assert sorted(times)[len(times) // 2] < 0.05, times


def test_cached_tokens_are_told(replicas):
    replica = replicas()
    text = body(4, text="A long beginning that two prompts share. " * 8)
    counts = []
    for _ in range(2):
        request = urllib.request.Request(
            f"{replica.url}/v1/chat/completions", text.encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            counts.append(json.load(answer)["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert counts[0] == 0 and counts[1] > 64, counts
