"""One hosted provider of every kind on one port. What it does stands in the path: `/SCENARIO/KIND/...`.

A request without the right credentials gets a 401; Bedrock's signature is made again by botocore and compared.
"""

import json
import pathlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import botocore.auth
import botocore.awsrequest
import botocore.credentials

KINDS = ["openai", "responses", "openai-compatible", "anthropic", "bedrock", "azure", "gemini", "mistral"]
KEY = "sk-7c21f09be4d3a856"
AWS_ID, AWS_SECRET, AWS_REGION = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "eu-central-1"
PROMPT_TOKENS, COMPLETION_TOKENS = 10, 2
CITY = '{"city": "Paris"}'
ORACLE = pathlib.Path(__file__).parents[2] / "providers" / "tests" / "oracle" / "frames.json"
FRAMES = {name: [bytes.fromhex(frame) for frame in frames] for name, frames in json.loads(ORACLE.read_text()).items()}
TEXTS = {"text": ["hel", "lo"], "form": ['{"n"', ": 1}"]}


def data(value, event=None):
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def chat(said, call_id="call_1"):
    def chunk(delta, finish=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return data({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    if said == "call":
        function = {"name": "weather", "arguments": ""}
        yield chunk({"tool_calls": [{"index": 0, "id": call_id, "type": "function", "function": function}]})
        yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": CITY}}]})
        yield chunk({}, "tool_calls")
    else:
        for text in TEXTS[said]:
            yield chunk({"content": text})
        yield chunk({}, "stop")
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": 12}
    last = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": usage}
    yield data(last)
    yield data("[DONE]")


def responses(said):
    numbers = iter(range(100))

    def event(name, **fields):
        return data({"type": name, "sequence_number": next(numbers), **fields}, name)

    def response(status, **fields):
        whole = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": status, "output": []}
        return {**whole, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], **fields}

    yield event("response.created", response=response("in_progress"))
    if said == "call":
        call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather"}
        yield event("response.output_item.added", output_index=0, item={**call, "arguments": "", "status": "in_progress"})
        yield event("response.function_call_arguments.delta", output_index=0, item_id="fc_1", delta=CITY)
        yield event("response.function_call_arguments.done", output_index=0, item_id="fc_1", arguments=CITY)
        item = {**call, "arguments": CITY, "status": "completed"}
    else:
        begun = {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []}
        place = {"output_index": 0, "content_index": 0, "item_id": "msg_1"}
        part = {"type": "output_text", "text": "", "annotations": []}
        yield event("response.output_item.added", output_index=0, item=begun)
        yield event("response.content_part.added", **place, part=part)
        for text in TEXTS[said]:
            yield event("response.output_text.delta", **place, delta=text, logprobs=[])
        part = {**part, "text": "".join(TEXTS[said])}
        yield event("response.output_text.done", **place, text=part["text"], logprobs=[])
        yield event("response.content_part.done", **place, part=part)
        item = {**begun, "status": "completed", "content": [part]}
    yield event("response.output_item.done", output_index=0, item=item)
    counts = {"input_tokens": PROMPT_TOKENS, "output_tokens": COMPLETION_TOKENS, "total_tokens": 12}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    yield event("response.completed", response=response("completed", output=[item], usage={**counts, **details}))


def messages(said):
    def event(name, **fields):
        return data({"type": name, **fields}, name)

    begun = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
    usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": 1}
    yield event("message_start", message={**begun, "stop_sequence": None, "usage": usage})
    if said == "call":
        block = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
        deltas, stop = [{"type": "input_json_delta", "partial_json": CITY}], "tool_use"
    else:
        block, stop = {"type": "text", "text": ""}, "end_turn"
        deltas = [{"type": "text_delta", "text": text} for text in TEXTS[said]]
    yield event("content_block_start", index=0, content_block=block)
    for delta in deltas:
        yield event("content_block_delta", index=0, delta=delta)
    yield event("content_block_stop", index=0)
    stopped = {"stop_reason": stop, "stop_sequence": None}
    yield event("message_delta", delta=stopped, usage={"output_tokens": COMPLETION_TOKENS})
    yield event("message_stop")


def gemini(said):
    counts = {"promptTokenCount": PROMPT_TOKENS, "candidatesTokenCount": COMPLETION_TOKENS, "totalTokenCount": 12}

    def chunk(part, **finish):
        candidate = {"index": 0, "content": {"role": "model", "parts": [part]}, **finish}
        return data({"candidates": [candidate], "usageMetadata": counts, "modelVersion": "m"})

    if said == "call":
        yield chunk({"functionCall": {"name": "weather", "args": json.loads(CITY)}})
    else:
        for text in TEXTS[said]:
            yield chunk({"text": text})
    yield chunk({"text": ""}, finishReason="STOP")


# Of each kind: the header of its key, what it streams, and how many pieces hold the first content.
PLAYS = {
    "openai": ("authorization", chat, 2),
    "responses": ("authorization", responses, 4),
    "openai-compatible": ("authorization", chat, 2),
    "anthropic": ("x-api-key", messages, 3),
    "bedrock": (None, FRAMES.get, 2),
    "azure": ("api-key", chat, 2),
    "gemini": ("x-goog-api-key", gemini, 1),
    "mistral": ("authorization", lambda said: chat(said, "a1b2c3d4e"), 2),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        _, scenario, kind, path = self.path.split("/", 3)
        self.server.seen.append((scenario, kind, path, json.loads(body)))
        if not self.is_known(kind, body):
            return self.refuse(401, "the credentials are wrong")
        if scenario.isdigit():
            return self.refuse(int(scenario), "the provider's own words")
        self.stream(scenario, kind)

    def is_known(self, kind, body):
        header = PLAYS[kind][0]
        if header is None:
            return self.headers["authorization"] == self.signature(body)
        # Anthropic's own client sends keys that are not like Anthropic's as bearers.
        if header == "authorization" or (kind == "anthropic" and header not in self.headers):
            return self.headers["authorization"] == f"Bearer {KEY}"
        return self.headers[header] == KEY

    def signature(self, body):
        """What botocore would have put into the header."""
        signed = self.headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
        headers = {name: self.headers[name] for name in signed if name != "host"}
        url = f"http://{self.headers['host']}{self.path}"
        request = botocore.awsrequest.AWSRequest(method="POST", url=url, data=body, headers=headers)
        request.context["timestamp"] = self.headers["x-amz-date"]
        signer = botocore.auth.SigV4Auth(botocore.credentials.Credentials(AWS_ID, AWS_SECRET), "bedrock", AWS_REGION)
        to_sign = signer.string_to_sign(request, signer.canonical_request(request))
        signer._inject_signature_to_request(request, signer.signature(to_sign, request))
        return request.headers["Authorization"]

    def refuse(self, status, message):
        body = json.dumps({"error": {"message": message, "type": "a_type"}, "message": message}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if status == 429:
            self.send_header("retry-after", "7")
        self.end_headers()
        self.wfile.write(body)

    def stream(self, scenario, kind):
        amazon = kind == "bedrock"
        self.send_response(200)
        self.send_header("content-type", "application/vnd.amazon.eventstream" if amazon else "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        _, play, begun = PLAYS[kind]
        is_whole = scenario not in ("cut", "break", "stall")
        for piece in list(play(scenario)) if is_whole else list(play("text"))[:begun]:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if is_whole:
            self.wfile.write(b"0\r\n\r\n")
            return
        if scenario == "break":
            self.server.may_break.acquire(timeout=10)
        if scenario == "stall":
            while self.connection.recv(64):
                pass
            self.server.left()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class FakeProviders(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.seen, self.gone = [], 0
        self.changed = threading.Condition()
        # `break` waits for it, so that the client has seen the first content.
        self.may_break = threading.Semaphore(0)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def left(self):
        with self.changed:
            self.gone += 1
            self.changed.notify_all()

    def wait_gone(self, count, seconds=10):
        """Waits until so many clients went away while they were to wait."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.gone >= count, seconds), "nobody went away"
