"""Providers that no one here wrote behind routes of every kind that they speak: aimock (npm) and llm-katan (PyPI).

Where they do otherwise than the providers, and what Sconce makes of it:
- llm-katan, asked to stream, sends calls as one document (taken), Bedrock's events as text under the type of Amazon's
  frames (refused), and no Retry-After with its 429. Its Gemini is that of Vertex, which wants a
  bearer, and does not look at `parametersJsonSchema`.
- aimock ends Gemini's calls with FUNCTION_CALL (taken), and as Mistral tells no usage, as it is only asked for at OpenAI.
"""

import json
import os
import pathlib
import urllib.error
import urllib.request

import pytest

from fleet import Process, Replica, free_port, program, status_of, wait_for

HERE = pathlib.Path(__file__).parent
AIMOCK = os.environ.get("SCONCE_AIMOCK")
KATAN = program("llm-katan")
APIS = ["/v1/chat/completions", "/v1/responses", "/v1/messages"]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
# Kinds, and where their APIs begin.
AIMOCK_KINDS = {
    "openai": "/v1",
    "responses": "/v1",
    "openai-compatible": "/v1",
    "anthropic": "",
    "bedrock": "",
    "azure": "",
    "gemini": "/v1beta",
    "mistral": "/v1",
}
KATAN_KINDS = {"openai": "/v1", "openai-compatible": "/v1", "mistral": "/v1", "anthropic": "", "azure": "", "gemini": "/v1beta"}

needs_aimock = pytest.mark.skipif(not AIMOCK, reason="skipped: the package @copilotkit/aimock is not installed (npm)")
needs_katan = pytest.mark.skipif(not KATAN, reason="skipped: the package llm-katan is not installed")


class Answer:
    def __init__(self, status, headers, text):
        self.status, self.headers, self.text = status, headers, text

    def events(self):
        lines = [line.removeprefix("data: ") for line in self.text.split("\n") if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


def ask(server, api, route, text, stream=False, tools=False):
    body = {"model": route, "stream": stream}
    weather = {"name": "weather", "description": "The weather of a city"}
    if api == "/v1/responses":
        body |= {"input": text, "store": False}
        tool = {"type": "function", **weather, "parameters": PARAMETERS}
    else:
        body |= {"messages": [{"role": "user", "content": text}], "max_tokens": 100}
        tool = {"type": "function", "function": {**weather, "parameters": PARAMETERS}}
        if api == "/v1/messages":
            tool = {**weather, "input_schema": PARAMETERS}
    if tools:
        body["tools"] = [tool]
    request = urllib.request.Request(f"{server.url}{api}", json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return Answer(answer.status, answer.headers, answer.read().decode())
    except urllib.error.HTTPError as answer:
        return Answer(answer.code, answer.headers, answer.read().decode())


def said(api, stream, answer):
    """The text of an answer, and its calls."""
    assert answer.status == 200, answer.text
    if not stream:
        whole = json.loads(answer.text)
    if api == "/v1/chat/completions":
        parts = answer.events() if stream else [whole]
        parts = [choice.get("delta") or choice.get("message") or {} for part in parts for choice in part["choices"]]
        functions = [call["function"] for part in parts for call in part.get("tool_calls") or []]
        names = "".join(function.get("name") or "" for function in functions)
        arguments = "".join(function.get("arguments") or "" for function in functions)
        return "".join(part.get("content") or "" for part in parts), names, arguments
    if api == "/v1/responses":
        output = (answer.events()[-1]["response"] if stream else whole)["output"]
        texts = [part["text"] for item in output if item["type"] == "message" for part in item["content"]]
        calls = [item for item in output if item["type"] == "function_call"]
        return "".join(texts), "".join(call["name"] for call in calls), "".join(call["arguments"] for call in calls)
    if not stream:
        texts = [block["text"] for block in whole["content"] if block["type"] == "text"]
        calls = [block for block in whole["content"] if block["type"] == "tool_use"]
        return "".join(texts), "".join(call["name"] for call in calls), "".join(json.dumps(call["input"]) for call in calls)
    events = answer.events()
    begun = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    names = "".join(block["name"] for block in begun if block["type"] == "tool_use")
    return "".join(delta.get("text", "") for delta in deltas), names, "".join(d.get("partial_json", "") for d in deltas)


def config(kinds, url, folder):
    key = folder / "key"
    key.write_text("a-key-for-tests\n")
    bearer = folder / "bearer"
    bearer.write_text("Bearer a-key-for-tests\n")
    secret = f'{{ file = "{key}" }}'
    text = f'[ledger]\nfile = "{folder}/ledger.db"\n'
    for kind, root in kinds.items():
        more = f"api_key = {secret}\n"
        if kind == "bedrock":
            more = f'region = "eu-central-1"\naccess_key_id = {secret}\nsecret_access_key = {secret}\n'
        if kind == "responses":
            more += 'api = "responses"\n'
        if kind == "gemini":
            more += f'headers = {{ authorization = {{ file = "{bearer}" }} }}\n'
        provider = "openai" if kind == "responses" else kind
        # Failures are asked for on purpose and in a row; none of them is to be remembered.
        health = "health = { breaker = { open_ms = 1 }, rate = { hold_ms = 1, hold_ms_max = 1, forget_ms = 1 } }\n"
        text += f'[[member]]\nname = "{kind}"\nkind = "{provider}"\nmodel = "m"\nbase_url = "{url}{root}"\n{more}{health}'
        text += f'[[route]]\nname = "{kind}"\nmembers = ["{kind}"]\nattempts_max = 1\n'
    path = folder / "sconce.toml"
    path.write_text(text)
    return path


def behind(command, kinds, folder):
    """The fake, and a server whose members are at it."""
    port = free_port()
    fake = Process([*command, "--port", str(port), "--host", "127.0.0.1"])
    server = None
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for("the fake provider answers", lambda: is_up(fake, url), 60)
        server = Replica("--config", str(config(kinds, url, folder)), named=False).start().wait_ready()
        yield server
    finally:
        if server:
            server.stop()
        fake.stop()


def is_up(fake, url):
    assert fake.child.poll() is None, fake.output()
    return status_of(f"{url}/health") == 200


@pytest.fixture(scope="module")
def aimock(tmp_path_factory):
    command = [AIMOCK, "--fixtures", str(HERE / "aimock.json"), "--strict", "--log-level", "warn"]
    yield from behind(command, AIMOCK_KINDS, tmp_path_factory.mktemp("aimock"))


def katan(*flags):
    @pytest.fixture(scope="module")
    def started(tmp_path_factory):
        folder = tmp_path_factory.mktemp("katan")
        command = [KATAN, "--model", "m", "--backend", "echo", "--disable-dashboard", "--log-level", "warning"]
        command += ["--providers", "openai,anthropic,vertexai,bedrock,azure_openai", "--stats-file", str(folder / "stats")]
        yield from behind([*command, *flags], KATAN_KINDS | {"bedrock": ""}, folder)

    return started


echo = katan()
limited = katan("--rate-limit-after", "1")
broken = katan("--error-rate", "1")

each_api = pytest.mark.parametrize("api", APIS)
each_way = pytest.mark.parametrize("stream", [False, True])


@needs_aimock
@each_api
@each_way
@pytest.mark.parametrize("kind", AIMOCK_KINDS)
def test_aimock(aimock, kind, api, stream):
    answer = ask(aimock, api, kind, "please say something", stream)
    assert said(api, stream, answer) == ("hello from elsewhere, in several pieces", "", "")
    assert answer.headers["x-sconce-member"] == kind
    text, name, arguments = said(api, stream, ask(aimock, api, kind, "please call", stream, tools=True))
    assert (text, name, json.loads(arguments)) == ("", "weather", {"city": "Paris"})
    # What is thought is no part of what is said, wherever the provider tells it.
    assert said(api, stream, ask(aimock, api, kind, "please think", stream))[0] == "hello"


@needs_aimock
@each_api
@each_way
@pytest.mark.parametrize("kind", AIMOCK_KINDS)
def test_failures_of_aimock(aimock, kind, api, stream):
    limited = ask(aimock, api, kind, "please limit", stream)
    assert (limited.status, limited.headers["retry-after"]) == (429, "3"), limited.text
    broken = ask(aimock, api, kind, "please fail", stream)
    assert broken.status == 502, broken.text
    refused = ask(aimock, api, kind, "please refuse", stream)
    assert refused.status == 400 and "not like this" in refused.text, refused.text
    cut = ask(aimock, api, kind, "please break", stream)
    if stream:
        assert cut.status == 200 and "hello" in cut.text and '"error"' in cut.text, cut.text
    else:
        assert cut.status == 502, cut.text


@needs_aimock
def test_the_ledger_has_what_aimock_says_that_it_took(aimock):
    def sums():
        with urllib.request.urlopen(f"{aimock.url}/v1/usage?by=member", timeout=5) as answer:
            rows = json.load(answer)["data"]
        return {row["member"]: (row["prompt_tokens"], row["completion_tokens"]) for row in rows}

    before = sums()
    for kind in AIMOCK_KINDS:
        for stream in (False, True):
            ask(aimock, APIS[0], kind, "please say something", stream)
    after = sums()
    for kind in AIMOCK_KINDS:
        grown = tuple(now - then for now, then in zip(after[kind], before.get(kind, (0, 0)), strict=True))
        assert grown == ((0, 0) if kind == "mistral" else (20, 4)), kind


@needs_katan
@each_api
@each_way
@pytest.mark.parametrize("kind", KATAN_KINDS)
def test_llm_katan(echo, kind, api, stream):
    answer = ask(echo, api, kind, "please say something", stream)
    text, name, _ = said(api, stream, answer)
    assert text.startswith("[echo]") and "please say something" in text and name == ""
    assert answer.headers["x-sconce-member"] == kind
    _, name, arguments = said(api, stream, ask(echo, api, kind, "please call", stream, tools=True))
    assert (name, json.loads(arguments)) == ("weather", {} if kind == "gemini" else {"city": "test_city"})


@needs_katan
@each_api
@each_way
@pytest.mark.parametrize("kind", [*KATAN_KINDS, "bedrock"])
def test_failures_of_llm_katan(limited, broken, kind, api, stream):
    # The first request of all is the one that it answers.
    ask(limited, APIS[0], "openai", "hi")
    assert ask(limited, api, kind, "hi", stream).status == 429
    assert ask(broken, api, kind, "hi", stream).status == 502


@needs_katan
@each_api
@each_way
def test_text_that_poses_as_frames_is_refused(echo, api, stream):
    answer = ask(echo, api, "bedrock", "please say something", stream)
    assert answer.status == 502 and "frame" in answer.text, answer.text
