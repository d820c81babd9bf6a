"""Writes frames.json: what the fakes of Bedrock send, frame by frame, after botocore has read it. Needs botocore."""

import json
import pathlib
import struct
import zlib

import botocore.eventstream

USAGE = '{"usage":{"inputTokens":10,"outputTokens":2,"totalTokens":12},"metrics":{"latencyMs":1}}'


def frame(event, payload):
    named = ((":event-type", event), (":content-type", "application/json"), (":message-type", "event"))
    headers = b"".join(
        struct.pack(f"!B{len(name)}sBH{len(value)}s", len(name), name.encode(), 7, len(value), value.encode())
        for name, value in named
    )
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    head = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload.encode()
    return head + struct.pack("!I", zlib.crc32(head))


def message(start, delta, stop):
    yield "messageStart", '{"role":"assistant"}'
    if start:
        yield "contentBlockStart", '{"contentBlockIndex":0,"start":' + start + "}"
    yield "contentBlockDelta", '{"contentBlockIndex":0,"delta":' + delta + "}"
    yield "contentBlockStop", '{"contentBlockIndex":0}'
    yield "messageStop", '{"stopReason":"' + stop + '"}'
    yield "metadata", USAGE


CASES = {
    "text": message(None, '{"text":"hello"}', "end_turn"),
    "call": message(
        '{"toolUse":{"toolUseId":"tooluse_1","name":"weather"}}',
        '{"toolUse":{"input":"{\\"city\\": \\"Paris\\"}"}}',
        "tool_use",
    ),
    "form": message(None, '{"text":"{\\"n\\": 1}"}', "end_turn"),
}


def read_back(frames):
    buffer = botocore.eventstream.EventStreamBuffer()
    for one in frames:
        buffer.add_data(one)
    return [(event.headers[":event-type"], event.payload.decode()) for event in buffer]


cases = {}
for name, events in CASES.items():
    events = list(events)
    frames = [frame(*event) for event in events]
    assert read_back(frames) == events, name
    cases[name] = [one.hex() for one in frames]
pathlib.Path(__file__).with_name("frames.json").write_text(json.dumps(cases, indent=1) + "\n")
