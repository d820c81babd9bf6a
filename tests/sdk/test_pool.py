"""The official clients of OpenAI and Anthropic in front of a route to every kind of hosted provider, and boto3 behind it.

The providers are fakes; that they are honest is told by the providers' own clients, which read them here too.
"""

import json
import os
import signal
import subprocess
import tempfile

import anthropic
import boto3
import botocore.validate
import openai
import pydantic
import pytest

from conftest import API_KEY, free_port, wait_ready
from fake_providers import AWS_ID, AWS_REGION, AWS_SECRET, COMPLETION_TOKENS, KEY, KINDS, PROMPT_TOKENS, FakeProviders

ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SAID = ("hello", [], (PROMPT_TOKENS, COMPLETION_TOKENS))
CALLED = ("", [("weather", {"city": "Paris"})], (PROMPT_TOKENS, COMPLETION_TOKENS))


class Number(pydantic.BaseModel):
    n: int


class Chat:
    """Chat Completions."""

    errors, param = openai, "messages"
    tools = {"tools": [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]}

    def __init__(self, url, **more):
        self.api = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0, **more).chat.completions

    def headers(self, route, stream):
        raw = self.api.with_raw_response.create(model=route, messages=ASK, stream=stream)
        answer = raw.parse()
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices) if stream else None
        return raw.headers, text or answer.choices[0].message.content

    def ask(self, route, **more):
        return self.told(self.api.create(model=route, messages=ASK, **more))

    def stream(self, route, **more):
        with self.api.stream(model=route, messages=ASK, stream_options={"include_usage": True}, **more) as stream:
            for _ in stream:
                pass
            return self.told(stream.get_final_completion())

    def told(self, answer):
        (choice,) = answer.choices
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []]
        assert choice.finish_reason == ("tool_calls" if calls else "stop")
        return choice.message.content or "", calls, (answer.usage.prompt_tokens, answer.usage.completion_tokens)

    def number(self, route):
        return self.api.parse(model=route, messages=ASK, response_format=Number).choices[0].message.parsed

    def texts(self, route):
        with self.api.create(model=route, messages=ASK, stream=True) as chunks:
            for chunk in chunks:
                yield from (choice.delta.content for choice in chunk.choices if choice.delta.content)


class Responses:
    errors, param = openai, "input"
    tools = {"tools": [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}]}

    def __init__(self, url, **more):
        self.api = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0, **more).responses

    def headers(self, route, stream):
        raw = self.api.with_raw_response.create(model=route, input=ASK, stream=stream)
        answer = raw.parse()
        if stream:
            return raw.headers, "".join(event.delta for event in answer if event.type == "response.output_text.delta")
        return raw.headers, answer.output_text

    def ask(self, route, **more):
        return self.told(self.api.create(model=route, input=ASK, **more))

    def stream(self, route, **more):
        with self.api.stream(model=route, input=ASK, **more) as stream:
            for _ in stream:
                pass
            return self.told(stream.get_final_response())

    def told(self, answer):
        assert answer.status == "completed"
        found = [item for item in answer.output if item.type == "function_call"]
        calls = [(call.name, json.loads(call.arguments)) for call in found]
        return answer.output_text, calls, (answer.usage.input_tokens, answer.usage.output_tokens)

    def number(self, route):
        return self.api.parse(model=route, input=ASK, text_format=Number).output_parsed

    def texts(self, route):
        with self.api.create(model=route, input=ASK, stream=True) as events:
            for event in events:
                if event.type == "response.output_text.delta":
                    yield event.delta
                # The client leaves it to its user to see this.
                elif event.type == "response.failed":
                    raise openai.APIError(event.response.error.message, events.response.request, body=None)


class Messages:
    errors, param = anthropic, "messages"
    tools = {"tools": [{"name": "weather", "input_schema": PARAMETERS}]}

    def __init__(self, url, **more):
        self.api = anthropic.Anthropic(base_url=url, api_key=API_KEY, max_retries=0, **more).messages

    def headers(self, route, stream):
        raw = self.api.with_raw_response.create(model=route, messages=ASK, max_tokens=50, stream=stream)
        answer = raw.parse()
        if stream:
            deltas = [event.delta for event in answer if event.type == "content_block_delta"]
            return raw.headers, "".join(delta.text for delta in deltas)
        return raw.headers, answer.content[0].text

    def ask(self, route, **more):
        return self.told(self.api.create(model=route, messages=ASK, max_tokens=50, **more))

    def stream(self, route, **more):
        with self.api.stream(model=route, messages=ASK, max_tokens=50, **more) as stream:
            return self.told(stream.get_final_message())

    def told(self, answer):
        text = "".join(block.text for block in answer.content if block.type == "text")
        calls = [(block.name, block.input) for block in answer.content if block.type == "tool_use"]
        assert answer.stop_reason == ("tool_use" if calls else "end_turn")
        return text, calls, (answer.usage.input_tokens, answer.usage.output_tokens)

    def number(self, route):
        answer = self.api.parse(model=route, messages=ASK, max_tokens=50, output_format=Number)
        return answer.parsed_output

    def texts(self, route):
        with self.api.create(model=route, messages=ASK, max_tokens=50, stream=True) as events:
            for event in events:
                if event.type == "content_block_delta":
                    yield event.delta.text


CLIENTS = [Chat, Responses, Messages]
WELL = ["text", "call", "form"]
# A member that failed is left alone for a while, so each failure has its own.
SICK = ["400", "401", "429", "500", "cut", "break"]
WAYS = [(client, stream) for client in CLIENTS for stream in (False, True)]


def sick(scenario, kind, client, stream):
    return f"{scenario}-{kind}-{client.__name__}-{stream}"


def member(name, scenario, kind, url):
    provider = "openai" if kind == "responses" else kind
    more = 'api = "responses"\n' if kind == "responses" else ""
    if kind == "bedrock":
        more = f'region = "{AWS_REGION}"\naccess_key_id = {{ env = "POOL_ID" }}\nsecret_access_key = {{ env = "POOL_SECRET" }}\n'
    else:
        more += 'api_key = { env = "POOL_KEY" }\n'
    return (
        f'[[member]]\nname = "{name}"\nkind = "{provider}"\nmodel = "m"\nbase_url = "{url}/{scenario}/{kind}"\n{more}'
        "price = { input = 1.0, output = 10.0 }\n"
    )


def route(name, *members):
    return f'[[route]]\nname = "{name}"\nmembers = {json.dumps(members)}\nattempts_max = {len(members)}\n'


def config(url):
    names = [(f"{scenario}-{kind}", scenario, kind) for scenario in [*WELL, "stall"] for kind in KINDS]
    names += [(sick(scenario, kind, *way), scenario, kind) for scenario in SICK for kind in KINDS for way in WAYS]
    text = "".join(member(*named, url) + route(named[0], named[0]) for named in names)
    # Somebody else answers for who fails.
    for kind in KINDS:
        text += member(f"down-{kind}", "500", kind, url)
        first, second = f'{{ name = "down-{kind}", priority = 1 }}', f'{{ name = "text-{kind}", priority = 2 }}'
        text += f'[[route]]\nname = "spare-{kind}"\nmembers = [{first}, {second}]\n'
    return text


@pytest.fixture(scope="module")
def fake():
    return FakeProviders()


@pytest.fixture(scope="module")
def pool(fake):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "sconce.toml")
        with open(path, "w") as file:
            file.write(config(fake.url) + f'[ledger]\nfile = "{folder}/ledger.db"\n')
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [os.environ["SCONCE_BIN"], "serve", "--config", path, "--port", str(port), "--api-key", API_KEY]
        command += ["--responses-store", f"{folder}/responses.db", "--files-dir", "off", "--web", "off"]
        secrets = {"POOL_KEY": KEY, "POOL_ID": AWS_ID, "POOL_SECRET": AWS_SECRET}
        process = subprocess.Popen(command, env={**os.environ, **secrets})
        try:
            wait_ready(process, url, 30)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=40)
    assert code == 0, f"after SIGTERM the server ended with exit code {code}"


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda client: client.__name__)
def client(request, pool):
    return request.param(pool, timeout=20)


each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_texts_calls_and_forms(client, kind):
    assert client.ask(f"text-{kind}") == SAID
    assert client.stream(f"text-{kind}") == SAID
    assert client.ask(f"call-{kind}", **client.tools) == CALLED
    assert client.stream(f"call-{kind}", **client.tools) == CALLED
    assert client.number(f"form-{kind}").n == 1


@each_kind
@pytest.mark.parametrize("stream", [False, True])
def test_answers_say_who_gave_them(client, kind, stream):
    headers, text = client.headers(f"text-{kind}", stream)
    assert text == "hello"
    said = [headers.get(f"x-sconce-{name}") for name in ("member", "reason", "attempts")]
    assert said == [f"text-{kind}", "only", "1"]
    # 10 tokens at a dollar and 2 at ten dollars a million; of a stream that still goes on nobody knows it yet.
    assert headers.get("x-sconce-cost") in (("0.00003", None) if stream else ("0.00003",))
    headers, text = client.headers(f"spare-{kind}", stream)
    assert (text, headers["x-sconce-member"]) == ("hello", f"text-{kind}")


def text_of(client, route, stream):
    return "".join(client.texts(route)) if stream else client.ask(route)


@each_kind
@pytest.mark.parametrize("stream", [False, True])
def test_failures_are_the_clients_own_errors(client, kind, stream):
    errors = client.errors
    cases = [
        ("400", errors.BadRequestError, 400, "the provider's own words"),
        ("401", errors.InternalServerError, 502, "credentials"),
        ("429", errors.RateLimitError, 429, ""),
        ("500", errors.InternalServerError, 502, ""),
    ]
    for scenario, error, status, words in cases:
        name = sick(scenario, kind, type(client), stream)
        with pytest.raises(error) as raised:
            text_of(client, name, stream)
        told = raised.value
        assert told.status_code == status and words in str(told), told
        assert told.response.headers["x-sconce-member"] == name
        assert told.response.headers["x-sconce-attempts"] == "1"
        assert KEY not in str(told) and AWS_SECRET not in str(told)
        if scenario == "429":
            assert told.response.headers["retry-after"] == "7"


@each_kind
def test_a_stream_that_breaks_is_an_error_after_its_text(fake, client, kind):
    texts = client.texts(sick("break", kind, type(client), True))
    assert "hello".startswith(next(texts))
    fake.may_break.release()
    with pytest.raises(client.errors.APIError, match="broke off"):
        next(texts)
    with pytest.raises(client.errors.InternalServerError) as raised:
        client.ask(sick("cut", kind, type(client), False))
    assert raised.value.status_code == 502


@each_kind
def test_a_client_that_leaves_is_felt_at_the_provider(pool, fake, client, kind):
    before = fake.gone
    begun = client.texts(f"stall-{kind}")
    assert "hello".startswith(next(begun))
    begun.close()
    fake.wait_gone(before + 1)
    impatient = type(client)(pool, timeout=0.3)
    with pytest.raises(client.errors.APITimeoutError):
        impatient.ask(f"stall-{kind}")
    fake.wait_gone(before + 2)


def test_the_ledger_has_every_token(client, pool, fake):
    key = {"Authorization": f"Bearer {API_KEY}"}
    http = openai.OpenAI(base_url=pool, api_key=API_KEY)

    def sums():
        rows = http.get("/v1/usage?by=member", cast_to=object, options={"headers": key})["data"]
        return {row["member"]: (row["attempts"], row["prompt_tokens"], row["completion_tokens"]) for row in rows}

    before, asked = sums(), len(fake.seen)
    for kind in KINDS:
        client.ask(f"text-{kind}")
        client.stream(f"call-{kind}", **client.tools)
    after = sums()
    for name in [f"text-{kind}" for kind in KINDS] + [f"call-{kind}" for kind in KINDS]:
        grown = tuple(now - then for now, then in zip(after[name], before.get(name, (0, 0, 0)), strict=True))
        assert grown == (1, PROMPT_TOKENS, COMPLETION_TOKENS), name
    assert len(fake.seen) == asked + 2 * len(KINDS), "nobody was asked twice"


def test_the_fakes_are_what_the_providers_clients_read(fake):
    """Otherwise the tests above would show that Sconce reads what Sconce's authors think is sent."""
    for kind in ("openai", "openai-compatible", "azure", "mistral"):
        headers = {"api-key": KEY} if kind == "azure" else None
        base = f"{fake.url}/%s/{kind}"
        for scenario, told, more in (("text", SAID, {}), ("call", CALLED, Chat.tools)):
            chat = Chat(fake.url)
            chat.api = openai.OpenAI(base_url=base % scenario, api_key=KEY, default_headers=headers).chat.completions
            assert chat.stream("m", **more) == told
    for scenario, told, more in (("text", SAID, {}), ("call", CALLED, Responses.tools)):
        of_responses = Responses(fake.url)
        of_responses.api = openai.OpenAI(base_url=f"{fake.url}/{scenario}/responses", api_key=KEY).responses
        assert of_responses.stream("m", **more) == told
    for scenario, told, more in (("text", SAID, {}), ("call", CALLED, Messages.tools)):
        of_messages = Messages(fake.url)
        of_messages.api = anthropic.Anthropic(base_url=f"{fake.url}/{scenario}/anthropic", api_key=KEY).messages
        assert of_messages.stream("m", **more) == told


@pytest.mark.parametrize(("scenario", "stop"), [("text", "end_turn"), ("call", "tool_use")])
def test_the_fake_of_bedrock_is_what_boto3_reads(fake, scenario, stop):
    """Its signature is checked by the fake, as Sconce's is."""
    bedrock = boto3.client(
        "bedrock-runtime",
        endpoint_url=f"{fake.url}/{scenario}/bedrock",
        region_name=AWS_REGION,
        aws_access_key_id=AWS_ID,
        aws_secret_access_key=AWS_SECRET,
    )
    question = [{"role": "user", "content": [{"text": "What is the weather in Paris?"}]}]
    events = list(bedrock.converse_stream(modelId="m", messages=question)["stream"])
    deltas = [event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event]
    assert deltas == [{"toolUse": {"input": '{"city": "Paris"}'}} if scenario == "call" else {"text": "hello"}]
    assert events[-2]["messageStop"]["stopReason"] == stop
    usage = events[-1]["metadata"]["usage"]
    assert (usage["inputTokens"], usage["outputTokens"]) == (PROMPT_TOKENS, COMPLETION_TOKENS)


def test_what_reaches_bedrock_is_what_boto3_would_send(pool, fake):
    """botocore's own description of the service checks the body."""
    service = boto3.client("bedrock-runtime", region_name=AWS_REGION).meta.service_model
    shape = service.operation_model("ConverseStream").input_shape
    tools = Messages.tools | {"tool_choice": {"type": "tool", "name": "weather"}}
    client = Messages(pool)
    client.ask("call-bedrock", system="Be brief.", stop_sequences=["END"], **tools)
    *_, (_, kind, path, body) = fake.seen
    assert (kind, path) == ("bedrock", "model/m/converse-stream")
    report = botocore.validate.ParamValidator().validate({"modelId": "m", **body}, shape)
    assert not report.has_errors(), report.generate_report()
    assert body["toolConfig"]["toolChoice"] == {"tool": {"name": "weather"}}
    unknown = set(body) - set(shape.members)
    assert not unknown, unknown
