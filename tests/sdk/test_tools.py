"""Function calls through the official `openai` client and an agent framework, forced, on whatever model is served."""

import asyncio
import json
from typing import Literal

import agents
import openai
import pydantic
import pytest

from conftest import API_KEY

MODEL = "test-model"
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Oslo", "Rome"]},
                "days": {"type": "integer", "enum": [1, 2, 3]},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=120)


def check(call):
    assert call.id.startswith("call_") and call.type == "function"
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert arguments["city"] in ("Oslo", "Rome") and arguments["days"] in (1, 2, 3)
    else:
        assert call.function.name == "get_time" and arguments == {}


def test_a_named_function_is_called(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[WEATHER, CLOCK], tool_choice=NAMED, max_tokens=200
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "stop", "as OpenAI says it when the function was named"
    assert choice.message.content is None and len(choice.message.tool_calls) == 1
    assert choice.message.tool_calls[0].function.name == "get_weather"
    check(choice.message.tool_calls[0])


def test_a_required_call_streams_as_it_comes_whole(client):
    arguments = dict(
        model=MODEL, messages=ASK, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False,
        max_tokens=200, temperature=0,
    )
    whole = client.chat.completions.create(**arguments).choices[0]
    assert whole.finish_reason == "tool_calls" and len(whole.message.tool_calls) == 1
    check(whole.message.tool_calls[0])
    first, text, reason = None, "", None
    for chunk in client.chat.completions.create(**arguments, stream=True):
        choice = chunk.choices[0]
        reason = choice.finish_reason or reason
        assert not choice.delta.content
        for delta in choice.delta.tool_calls or []:
            assert delta.index == 0
            if delta.id:
                assert first is None and delta.function.arguments == "" and delta.type == "function"
                first = delta
            text += delta.function.arguments or ""
    assert reason == "tool_calls"
    assert first.function.name == whole.message.tool_calls[0].function.name
    assert text == whole.message.tool_calls[0].function.arguments


def test_the_stream_helper_puts_calls_together(client):
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False,
        max_tokens=200,
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        message = stream.get_final_completion().choices[0].message
    assert len(done) == 1 and len(message.tool_calls) == 1
    assert done[0].name == message.tool_calls[0].function.name
    check(message.tool_calls[0])


class GetWeather(pydantic.BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Rome"]
    days: Literal[1, 2, 3]


def test_calls_are_parsed_into_pydantic_models(client):
    answer = client.chat.completions.parse(
        model=MODEL, messages=ASK, tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice={"type": "function", "function": {"name": "GetWeather"}}, max_tokens=200,
    )
    parsed = answer.choices[0].message.tool_calls[0].function.parsed_arguments
    assert isinstance(parsed, GetWeather)


def test_the_result_of_a_call_is_answered(client):
    first = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[WEATHER], tool_choice=NAMED, max_tokens=200
    ).choices[0].message
    messages = [
        *ASK,
        first.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "4 degrees, rain"},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=16
    )
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls


def test_errors_name_the_tool(client):
    with pytest.raises(openai.BadRequestError) as twice:
        client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER, WEATHER])
    assert twice.value.param == "tools[1].function.name"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(
            model=MODEL, messages=ASK, tools=[CLOCK], tool_choice=NAMED
        )
    assert unknown.value.param == "tool_choice"


@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_calls_two_tools_and_answers(server, streamed):
    called = []

    @agents.function_tool
    def get_weather(city: Literal["Oslo", "Rome"], days: Literal[1, 2, 3]) -> str:
        """The weather of a city."""
        called.append("get_weather")
        return f"{days} days of rain in {city}"

    @agents.function_tool
    def send_report(urgent: bool) -> str:
        """Sends the report."""
        called.append("send_report")
        return "sent"

    # Small models do not choose well: each step is told what to call, and the last one to answer.
    order = iter(["send_report", "none"])

    class Steps(agents.AgentHooks):
        async def on_tool_end(self, context, agent, *_, **__):
            agent.model_settings.tool_choice = next(order)

    async def converse():
        agents.set_tracing_disabled(True)
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=120)
        agent = agents.Agent(
            name="reporter",
            instructions="Report the weather.",
            model=agents.OpenAIChatCompletionsModel(model=MODEL, openai_client=client),
            model_settings=agents.ModelSettings(tool_choice="get_weather", max_tokens=120, temperature=0),
            tools=[get_weather, send_report],
            hooks=Steps(),
            reset_tool_choice=False,
        )
        if streamed:
            result = agents.Runner.run_streamed(agent, "Weather in Oslo?", max_turns=4)
            async for _ in result.stream_events():
                pass
        else:
            result = await agents.Runner.run(agent, "Weather in Oslo?", max_turns=4)
        await client.close()
        return result

    result = asyncio.run(converse())
    assert called == ["get_weather", "send_report"]
    assert isinstance(result.final_output, str) and result.final_output


def test_reasoning_is_a_field_of_its_own(reasoning_server):
    client = openai.OpenAI(base_url=f"{reasoning_server.url}/v1", api_key=API_KEY, max_retries=0, timeout=60)
    arguments = dict(model=MODEL, messages=ASK, max_tokens=12, temperature=0)
    answer = client.chat.completions.create(**arguments)
    message = answer.choices[0].message
    assert message.reasoning_content and message.reasoning == message.reasoning_content and not message.content
    assert answer.usage.completion_tokens_details.reasoning_tokens == answer.usage.completion_tokens
    streamed = ""
    for chunk in client.chat.completions.create(**arguments, stream=True):
        streamed += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
    assert streamed == message.reasoning_content
    hidden = client.chat.completions.create(**arguments, extra_body={"include_reasoning": False})
    assert getattr(hidden.choices[0].message, "reasoning_content", None) is None
