"""The official `openai` client, sync and async, streaming and not, against a running server."""

import asyncio
import json
import math
import time
import urllib.request

import openai
import pytest

from conftest import API_KEY

MODEL = "test-model"
ASK = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=60)


def async_client(server):
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=60)


def test_models_are_listed_and_retrieved(client):
    models = client.models.list().data
    assert [model.id for model in models] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_chat(client):
    answer = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=24, temperature=0)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.model == MODEL
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert 1 <= answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_real_model_knows_paris(client, server):
    if server.kind != "real":
        pytest.skip("skipped: the simulated engine knows nothing")
    answer = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=24, temperature=0)
    assert "Paris" in answer.choices[0].message.content


def test_streamed_chat_equals_the_whole(client):
    arguments = dict(model=MODEL, messages=ASK, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**arguments)
    text, usage, reasons, roles = "", None, [], []
    for chunk in client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "chat.completion.chunk"
        if chunk.usage:
            usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert text == whole.choices[0].message.content
    assert roles == ["assistant"]
    assert reasons == [whole.choices[0].finish_reason]
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0


def test_a_seed_repeats_an_answer_and_n_gives_different_ones(client):
    arguments = dict(model=MODEL, messages=ASK, max_tokens=16, temperature=1.0, seed=7)
    first = client.chat.completions.create(**arguments, n=3)
    again = client.chat.completions.create(**arguments, n=3)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1


def test_logprobs(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    entries = answer.choices[0].logprobs.content
    assert 1 <= len(entries) <= 5
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert math.isclose(entry.top_logprobs[0].logprob, entry.logprob)
        assert bytes(entry.bytes).decode(errors="replace") == entry.token


def test_stop_strings_are_not_returned(client):
    arguments = dict(model=MODEL, messages=ASK, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**arguments).choices[0].message.content
    stop = whole[3:7]
    cut = client.chat.completions.create(**arguments, stop=[stop])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_completions_with_texts_and_token_ids(client):
    answer = client.completions.create(model=MODEL, prompt=["Once upon", "In the end"], max_tokens=4, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    tokens = client.completions.create(model=MODEL, prompt=[72, 105], max_tokens=4, temperature=0)
    assert tokens.usage.prompt_tokens == 2


def test_echo_with_prompt_logprobs(client):
    answer = client.completions.create(
        model=MODEL, prompt="Hello there, world", max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    choice = answer.choices[0]
    assert choice.text == "Hello there, world"
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.tokens) == answer.usage.prompt_tokens
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    assert choice.logprobs.text_offset[0] == 0


def test_echo_returns_the_prompt_as_it_was_sent(client, server):
    prompt = "<|im_start|>user\nhi  there \u00e9\U0001f44b<|im_end|>\n"
    arguments = dict(model=MODEL, max_tokens=2, echo=True, temperature=0)
    answer = client.completions.create(prompt=prompt, **arguments)
    assert answer.choices[0].text.startswith(prompt)
    chunks = client.completions.create(prompt=prompt, stream=True, **arguments)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    headers = {"content-type": "application/json", "authorization": f"Bearer {API_KEY}"}
    ask = urllib.request.Request(f"{server.url}/tokenize", json.dumps({"prompt": prompt}).encode(), headers)
    ids = json.load(urllib.request.urlopen(ask, timeout=30))["tokens"]
    answer = client.completions.create(prompt=ids, logprobs=0, **arguments)
    assert answer.choices[0].text.startswith(prompt)
    assert answer.choices[0].logprobs.tokens[0] == "<|im_start|>"


def test_a_far_too_long_prompt_is_refused_at_once(client):
    started = time.monotonic()
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt="x " * 14_000_000)
    assert long.value.code == "context_length_exceeded"
    assert time.monotonic() - started < 20, "the whole of it was tokenised"


def test_streamed_completions(client):
    arguments = dict(model=MODEL, prompt="Once upon a time", max_tokens=8, temperature=0)
    whole = client.completions.create(**arguments).choices[0].text
    parts = [chunk.choices[0].text for chunk in client.completions.create(**arguments, stream=True) if chunk.choices]
    assert "".join(parts) == whole


def test_errors_are_typed(client, server):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-nothing", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(model=MODEL, messages=ASK, temperature=9)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 60000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as foreign:
        client.chat.completions.create(model=MODEL, messages=ASK, extra_body={"guided_whitespace_pattern": "a+"})
    assert foreign.value.param == "guided_whitespace_pattern"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_a_repeated_prompt_is_cached(client):
    words = " ".join(f"word{number}" for number in range(120))
    arguments = dict(model=MODEL, messages=[{"role": "user", "content": words}], max_tokens=1)
    client.chat.completions.create(**arguments)
    again = client.chat.completions.create(**arguments)
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert 0.8 * again.usage.prompt_tokens <= cached < again.usage.prompt_tokens


def test_async_streams_side_by_side(server):
    async def one(client, number):
        messages = [{"role": "user", "content": f"Count from {number}."}]
        text = ""
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=12, temperature=0, stream=True
        )
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        whole = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=12, temperature=0)
        return text, whole.choices[0].message.content

    async def all_of_them():
        async with async_client(server) as client:
            return await asyncio.gather(*(one(client, number) for number in range(16)))

    for streamed, whole in asyncio.run(all_of_them()):
        assert streamed == whole


def test_a_client_that_goes_away_frees_its_sequence(server):
    async def leave():
        async with async_client(server) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=ASK, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
            )
            async for _ in stream:
                break
            await stream.close()

    def running():
        text = urllib.request.urlopen(f"{server.url}/metrics", timeout=5).read().decode()
        lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    asyncio.run(leave())
    deadline = time.monotonic() + 10
    while running() > 0:
        assert time.monotonic() < deadline, "the sequence of a client that left still runs"
        time.sleep(0.02)
