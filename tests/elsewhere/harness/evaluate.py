"""Runs lm-evaluation-harness on the tasks of this folder and prints what it finds as one JSON document.

usage: python evaluate.py hf MODEL [TOKENIZER]                 Transformers in F32; MODEL is a folder or a .gguf file
       python evaluate.py sconce URL NAME TOKENIZER|remote     a server's /v1/completions, by the harness's local-completions
Needs lm-eval 0.4.13, with its extra `hf` or `api`, which needs transformers as well unless the tokenizer is `remote`.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = Path(__file__).resolve().parent
TASKS = ["sconce_choice", "sconce_words", "sconce_text"]


def arguments(kind, *rest):
    if kind == "sconce":
        url, name, tokenizer = rest
        found = dict(base_url=f"{url}/v1/completions", model=name, num_concurrent=4, max_retries=1, max_length=1024)
        if tokenizer == "remote":
            return "local-completions", found | dict(tokenizer_backend="remote")
        return "local-completions", found | dict(tokenizer=tokenizer, tokenizer_backend="huggingface")
    model, *tokenizer = rest
    found = dict(pretrained=model, dtype="float32", device="cpu", max_length=1024)
    if model.endswith(".gguf"):
        folder, file = os.path.split(os.path.abspath(model))
        found |= dict(pretrained=folder, gguf_file=file)
    return "hf", found | (dict(tokenizer=tokenizer[0]) if tokenizer else {})


def simple(sample):
    """What a sample's answers are: log-likelihoods to 4 digits with whether they are greedy, or the text."""

    def one(answer):
        if isinstance(answer, (list, tuple)):
            return [one(part) for part in answer]
        return round(answer, 4) if isinstance(answer, float) else answer

    return one(sample["resps"])


def main(*rest):
    import lm_eval
    from lm_eval.tasks import TaskManager

    os.chdir(HERE)
    model, model_args = arguments(*rest)
    manager = TaskManager(include_path=str(HERE), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, model_args=model_args, tasks=TASKS, batch_size=1, task_manager=manager, bootstrap_iters=0
    )
    scores = {
        task: {name: value for name, value in metrics.items() if isinstance(value, float) and "stderr" not in name}
        for task, metrics in found["results"].items()
    }
    samples = {task: [simple(sample) for sample in found["samples"][task]] for task in TASKS}
    json.dump({"scores": scores, "samples": samples}, sys.stdout, indent=1, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
