"""lm-evaluation-harness asks `/v1/completions` as it asks other servers, and finds what it finds with Transformers.

What Transformers gives stands in harness/golden.json, made by `harness/evaluate.py hf`: a tiny random model, so that every
log-likelihood is far from every other. The tasks are in harness/, too: choices, generation, and whole texts. The harness
has its tokens from the server's own endpoints.
"""

import json
import math
import pathlib
import subprocess
import sys

import pytest

from fleet import MODEL, Replica

pytest.importorskip("lm_eval", reason="skipped: the package lm-eval is not installed")

HERE = pathlib.Path(__file__).parent / "harness"  # named lm_eval it would be found as the package
TINY = pathlib.Path(__file__).parents[2] / "models" / "tests" / "fixtures" / "embed" / "qwen3_reranker"
EXACT = ["--kv-cache-dtype", "f32", "--matmul-precision", "high"]


def found(*flags):
    replica = Replica(*flags, model=str(TINY)).start().wait_ready()
    try:
        command = [sys.executable, str(HERE / "evaluate.py"), "sconce", replica.url, MODEL, "remote"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert run.returncode == 0, run.stderr[-2000:]
        return json.loads(run.stdout)
    finally:
        replica.stop()


def flat(answers):
    return [part for answer in answers for part in flat(answer)] if isinstance(answers, list) else [answers]


def test_the_same_scores_as_with_transformers():
    expected, here = json.loads((HERE / "golden.json").read_text()), found(*EXACT)
    assert here["scores"].keys() == expected["scores"].keys()
    for task, scores in expected["scores"].items():
        for name, score in scores.items():
            assert math.isclose(here["scores"][task][name], score, rel_tol=1e-5), (task, name)
    for task, answers in expected["samples"].items():
        ours, theirs = flat(here["samples"][task]), flat(answers)
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs):
            if isinstance(other, float):
                assert math.isclose(one, other, abs_tol=1e-3), task
            else:
                assert one == other, task
