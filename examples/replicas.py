"""Two replicas of a model on a cluster: a conversation comes back to the replica that remembers it.

The cluster is this machine alone; with others in it the program would be the same. It needs the extras
[ray] and [server], and pip install openai.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

QUESTIONS = ["Who are you, and where do you live?", "And who lives there with you?", "Tell me more of them."]


@contextmanager
def server(cluster: str) -> Iterator[str]:
    """A server of the demo model on a cluster, for as long as the block runs."""
    options = ["--ray", cluster, "--replicas", "2", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pymixtral", "serve", "--port", "0", *options], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    try:
        lines = iter(process.stderr.readline, "")
        url = next(line.split()[-1] for line in lines if line.startswith("Serving on "))
        print(next(line for line in lines if line.startswith("Ready")).strip())
        yield url
    finally:
        process.terminate()
        process.communicate()


with ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False) as context:
    cluster = context.address_info["gcs_address"]
    with server(cluster) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        name = client.models.list().data[0].id
        for someone in ("the fox", "the king"):
            messages: list[ChatCompletionMessageParam] = [{"role": "system", "content": f"You are {someone}."}]
            for question in QUESTIONS:
                messages.append({"role": "user", "content": question})
                answer = client.chat.completions.create(model=name, messages=messages, seed=1, max_tokens=20)
                messages.append({"role": "assistant", "content": answer.choices[0].message.content})
                assert answer.usage
                assert answer.usage.prompt_tokens_details
                cached = answer.usage.prompt_tokens_details.cached_tokens
                print(f"{someone}: {answer.usage.prompt_tokens} tokens, {cached} of them remembered")
