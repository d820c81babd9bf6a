"""LiteLLM with Sconce as `hosted_vllm/`: chats, streams, tools, embeddings, models, errors, and its router's way out."""

import http.client
import json
import os
import pathlib

import pytest
import yaml

from fleet import MODEL, Replica, body, metric

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm = pytest.importorskip("litellm", reason="skipped: the package litellm is not installed")
litellm.telemetry = False

KEY = "sk-test-only"
CONFIG = pathlib.Path(__file__).parents[2] / "deploy" / "litellm" / "config.yaml"
ASK = [{"role": "user", "content": "Why is the sky blue?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        # LiteLLM takes additionalProperties out of schemas, and nonsense would go on for long.
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "maxProperties": 1,
        },
    },
}


@pytest.fixture(scope="module")
def server():
    replica = Replica("--api-key", KEY).start().wait_ready()
    yield replica
    replica.stop()


def arguments(server, **more):
    return (
        dict(model=f"hosted_vllm/{MODEL}", api_base=f"{server.url}/v1", api_key=KEY, num_retries=0, timeout=20) | more
    )


def test_chat(server):
    answer = litellm.completion(**arguments(server, messages=ASK, max_tokens=8, temperature=0))
    assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("length", "stop")
    assert 1 <= answer.usage.completion_tokens <= 8 and answer.usage.prompt_tokens > 0
    again = litellm.completion(**arguments(server, messages=ASK, max_tokens=8, temperature=0))
    assert again.usage.prompt_tokens_details.cached_tokens > 0, "the second finds the first one's prefix"


def test_a_stream_equals_the_whole_and_has_usage(server):
    wanted = arguments(server, messages=ASK, max_tokens=12, temperature=0)
    whole = litellm.completion(**wanted)
    text, usage, reasons = "", None, []
    for chunk in litellm.completion(**wanted, stream=True, stream_options={"include_usage": True}):
        usage = getattr(chunk, "usage", None) or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert text == whole.choices[0].message.content
    assert reasons == [whole.choices[0].finish_reason]
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_tools(server):
    forced = {"type": "function", "function": {"name": "weather"}}
    wanted = arguments(server, messages=ASK, tools=[WEATHER], tool_choice=forced, max_tokens=200)
    (call,) = litellm.completion(**wanted).choices[0].message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    pieces = litellm.completion(**wanted, stream=True)
    deltas = [call for chunk in pieces for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert json.loads("".join(delta.function.arguments or "" for delta in deltas))["city"] in ("Rome", "Oslo")
    call = {"id": call.id, "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    turn = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]}]
    turn += [{"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    after = litellm.completion(**arguments(server, messages=turn, tools=[WEATHER], max_tokens=8))
    assert after.usage.completion_tokens > 0


def test_structured_output(server):
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}},
        "required": ["sure"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema, "strict": True}}
    answer = litellm.completion(**arguments(server, messages=ASK, response_format=form, max_tokens=60))
    assert isinstance(json.loads(answer.choices[0].message.content)["sure"], bool)


def test_text_completions(server):
    wanted = arguments(server, prompt="Once", max_tokens=6) | {"model": f"hosted_vllm/{MODEL}"}
    answer = litellm.text_completion(**wanted)
    assert answer.choices[0].text and answer.usage.completion_tokens <= 6


def test_models_are_found(server):
    """As an OpenAI-compatible server: in this release `hosted_vllm` itself can list nothing, it never has a key."""
    found = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_base=f"{server.url}/v1", api_key=KEY
    )
    assert any(model.split("/")[-1] == MODEL for model in found), found


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"api_key": "sk-wrong"}, "AuthenticationError"),
        ({"model": "hosted_vllm/no-such-model"}, "NotFoundError"),
        ({"max_tokens": -1}, "BadRequestError"),
        ({"messages": [{"role": "user", "content": "w " * 40_000}]}, "ContextWindowExceededError"),
    ],
)
def test_errors_are_mapped(server, change, error):
    with pytest.raises(getattr(litellm.exceptions, error)) as raised:
        litellm.completion(**arguments(server, messages=ASK) | change)
    assert raised.value.status_code in (400, 401, 404)


def test_fields_of_a_proxy_do_no_harm(server):
    """What its health checks and its proxy add to requests."""
    check = [{"role": "user", "content": "test from litellm"}]
    extra = dict(user="somebody", seed=1, extra_body={"metadata": {"team": "a"}, "store": False})
    answer = litellm.completion(**arguments(server, messages=check, max_tokens=1, **extra))
    assert answer.usage.completion_tokens == 1


def test_embeddings():
    embedder = Replica("--task", "embed", model="dummy:tiny").start().wait_ready()
    try:
        wanted = dict(model=f"hosted_vllm/{MODEL}", api_base=f"{embedder.url}/v1", api_key=KEY, timeout=20)
        answer = litellm.embedding(**wanted, input=["the sky", "the sea"])
        vectors = [entry["embedding"] for entry in answer.data]
        assert len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 8 and vectors[0] != vectors[1]
        assert answer.usage.prompt_tokens > 0
    finally:
        embedder.stop()


def test_its_router_leaves_a_full_server(server, replicas):
    """With the file of deploy/: a queue that is full answers 429, and LiteLLM asks the other deployment."""
    full = replicas("--max-num-seqs", "1", "--max-queue", "0", "--shutdown-timeout", "1")
    config = yaml.safe_load(CONFIG.read_text())
    for deployment, replica in zip(config["model_list"], (full, server), strict=True):
        assert deployment["litellm_params"]["model"] == "hosted_vllm/smollm2"
        deployment["litellm_params"] |= {
            "model": f"hosted_vllm/{MODEL}",
            "api_base": f"{replica.url}/v1",
            "api_key": KEY,
        }
    router = litellm.Router(model_list=config["model_list"], retry_after=0, **config["router_settings"])
    connection = http.client.HTTPConnection("127.0.0.1", full.port, timeout=30)
    connection.request("POST", "/v1/chat/completions", body(20_000, stream=True), {"content-type": "application/json"})
    assert connection.getresponse().status == 200, "its only place is taken"
    before = server.answered()
    for _ in range(6):
        answer = router.completion(model="smollm2", messages=ASK, max_tokens=2)
        assert answer.usage.completion_tokens <= 2 and answer._hidden_params["response_cost"] > 0
    assert server.answered() == before + 6
    assert metric(full.url, 'sconce_http_requests_total{endpoint="/v1/chat/completions",status="429"}') > 0, (
        "it was asked"
    )
    connection.close()
