"""Writes sign.json: how botocore signs the requests of the test in src/bedrock/sign.rs. Needs botocore."""

import json
import pathlib
import urllib.parse

import botocore.auth
import botocore.awsrequest
import botocore.credentials

ID, SECRET, TOKEN = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "a/session+token=="
PROFILE = "arn:aws:bedrock:us-east-1:1:inference-profile/us.x-v1:0"
HOST = "https://bedrock-runtime.us-east-1.amazonaws.com"
JSON = "application/json"

# Name, method, base, model, what follows it, region, token, type of the body, body.
CASES = [
    ("an inference profile", "POST", HOST, PROFILE, "converse-stream", "us-east-1", TOKEN, JSON, '{"messages":[]}'),
    ("keys that last", "POST", HOST, "amazon.nova-lite-v1:0", "converse", "us-east-1", None, JSON, '{"messages":[]}'),
    ("another region", "POST", HOST.replace("us-east-1", "eu-central-1"), "eu.x:0", "converse", "eu-central-1", None, JSON,
     '{"a":1}'),
    ("a body that is not ASCII", "POST", HOST, "x", "converse-stream", "us-east-1", TOKEN, JSON,
     '{"text":"Grüße, 日本 \\u0000 €"}'),
    ("an embedding", "POST", HOST, "amazon.titan-embed-text-v2:0", "invoke", "us-east-1", None, JSON, '{"inputText":"hi"}'),
    ("a port and no body", "GET", "http://127.0.0.1:8443", "m", "converse", "us-east-1", None, None, ""),
    ("a query", "GET", HOST, "m", "list?b=2&a=1%20x&a=0", "us-east-1", None, None, ""),
    ("a path below the host", "POST", "https://proxy.example/aws/v1", "a b+c~d", "converse", "us-west-2", None, JSON, "{}"),
]


class FixedTime(botocore.auth.SigV4Auth):
    def add_auth(self, request):
        request.context["timestamp"] = "20150830T123600Z"
        self._modify_request_before_signing(request)
        canonical = self.canonical_request(request)
        self._inject_signature_to_request(request, self.signature(self.string_to_sign(request, canonical), request))


def signed(name, method, base, model, after, region, token, kind, body):
    url = f"{base}/model/{urllib.parse.quote(model, safe='')}/{after}"
    request = botocore.awsrequest.AWSRequest(
        method=method, url=url, data=body.encode(), headers={"Content-Type": kind} if kind else {}
    )
    FixedTime(botocore.credentials.Credentials(ID, SECRET, token), "bedrock", region).add_auth(request)
    return {
        "name": name, "method": method, "base": base, "model": model, "after": after, "region": region, "token": token,
        "type": kind, "body": body, "authorization": request.headers["Authorization"],
    }


target = pathlib.Path(__file__).with_name("sign.json")
target.write_text(json.dumps([signed(*case) for case in CASES], indent=1, ensure_ascii=False) + "\n")
