"""The official `anthropic` client, sync and async, streaming and not, against a running server."""

import asyncio
import json
import urllib.request

import anthropic
import pytest

from conftest import API_KEY

MODEL = "test-model"
ASK = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="session")
def client(server):
    return anthropic.Anthropic(base_url=server.url, api_key=API_KEY, max_retries=0, timeout=60)


def arguments(**more):
    # Since API version 2026-10-21 the client has no parameter for the temperature; this server takes it all the same.
    return dict(model=MODEL, messages=ASK, max_tokens=24, extra_body={"temperature": 0}, **more)


def test_a_message(client):
    message = client.messages.create(**arguments(system="You are brief."))
    assert message.type == "message" and message.role == "assistant" and message.model == MODEL
    assert message.id.startswith("msg_")
    assert message.content[0].type == "text" and message.content[0].text
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert 1 <= message.usage.output_tokens <= 24
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens > 1
    assert message._request_id


def test_a_streamed_message_equals_the_whole(client):
    whole = client.messages.create(**arguments())
    types = []
    with client.messages.stream(**arguments()) as stream:
        for event in stream:
            types.append(event.type)
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert types[0] == "message_start" and types[-1] == "message_stop"
    assert "content_block_start" in types and "content_block_stop" in types and "message_delta" in types
    raw = [event.type for event in client.messages.create(**arguments(), stream=True)]
    assert raw[:2] == ["message_start", "content_block_start"]
    assert raw[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_stop_sequences_are_named_and_not_returned(client):
    whole = client.messages.create(**arguments()).content[0].text
    stop = whole[3:7]
    cut = client.messages.create(**arguments(stop_sequences=[stop]))
    assert cut.content[0].text == whole[: whole.index(stop)]
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)


def test_an_answer_can_be_begun_for_the_model(client):
    begun = [*ASK, {"role": "assistant", "content": "The capital of France is"}]
    answer = client.messages.create(model=MODEL, messages=begun, max_tokens=4)
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens > 1


def test_the_context_may_end_before_max_tokens(client):
    limit = client.models.retrieve(MODEL).max_tokens
    count = client.messages.count_tokens(model=MODEL, messages=ASK).input_tokens
    assert 1 < count < limit
    words = [{"role": "user", "content": "word " * 20}]
    answer = client.messages.create(model=MODEL, messages=words, max_tokens=8, extra_body={"temperature": 0})
    assert answer.stop_reason in ("end_turn", "max_tokens")
    with client.messages.stream(model=MODEL, messages=words, max_tokens=limit * 2) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                break


def test_tokens_are_counted_as_they_are_used(client):
    count = client.messages.count_tokens(model=MODEL, messages=ASK, system="You are brief.").input_tokens
    usage = client.messages.create(**arguments(system="You are brief.")).usage
    assert count == usage.input_tokens + usage.cache_read_input_tokens


def test_a_conversation_with_tools_and_thinking_is_read(client):
    messages = [
        {"role": "user", "content": "How is the weather in Paris?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I need the tool.", "signature": "from elsewhere"},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Rain."}]},
                {"type": "text", "text": "So?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    answer = client.messages.create(
        model=MODEL, messages=messages, max_tokens=8, tools=[TOOL], thinking={"type": "disabled"}
    )
    assert answer.usage.output_tokens >= 1
    again = client.messages.create(
        model=MODEL,
        max_tokens=8,
        messages=[*ASK, {"role": "assistant", "content": answer.content or "..."}, *ASK],
    )
    assert again.type == "message"


def test_models(client):
    models = client.models.list()
    assert [model.id for model in models] == [MODEL]
    model = client.models.retrieve(MODEL)
    assert model.type == "model" and model.created_at.year >= 2024 and model.max_input_tokens > 0


def test_errors_are_typed(client, server):
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="claude-nothing", messages=ASK, max_tokens=4)
    assert unknown.value.body["error"]["type"] == "not_found_error"
    assert unknown.value.request_id == unknown.value.body["request_id"]
    with pytest.raises(anthropic.BadRequestError) as hot:
        client.messages.create(model=MODEL, messages=ASK, max_tokens=4, extra_body={"temperature": 2})
    assert "temperature" in hot.value.body["error"]["message"]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    with pytest.raises(anthropic.BadRequestError) as seen:
        client.messages.create(model=MODEL, messages=[{"role": "user", "content": [image]}], max_tokens=4)
    assert "messages[0].content[0]" in seen.value.body["error"]["message"]
    with pytest.raises(anthropic.BadRequestError) as hosted:
        search = {"type": "web_search_20250305", "name": "web_search"}
        client.messages.create(model=MODEL, messages=ASK, max_tokens=4, tools=[search])
    assert "web_search_20250305" in hosted.value.body["error"]["message"]
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model=MODEL, messages=ASK, max_tokens=4, stream=True, extra_body={"top_p": 7})
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0).models.list()


def test_the_key_is_read_from_either_header(server):
    body = json.dumps({"model": MODEL, "max_tokens": 2, "messages": ASK}).encode()
    for header in ({"x-api-key": API_KEY}, {"authorization": f"Bearer {API_KEY}"}):
        headers = {"content-type": "application/json", **header}
        ask = urllib.request.Request(f"{server.url}/v1/messages", body, headers)
        with urllib.request.urlopen(ask, timeout=30) as answer:
            assert answer.headers["request-id"] and json.load(answer)["type"] == "message"


def test_async_streams_side_by_side(server):
    async def one(client, number):
        messages = [{"role": "user", "content": f"Count from {number}."}]
        more = dict(model=MODEL, messages=messages, max_tokens=12, extra_body={"temperature": 0})
        async with client.messages.stream(**more) as stream:
            text = await stream.get_final_text()
        return text, (await client.messages.create(**more)).content[0].text

    async def all_of_them():
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key=API_KEY, max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(8)))

    for streamed, whole in asyncio.run(all_of_them()):
        assert streamed == whole
