"""OpenAI's own client with a local model: only its base URL is another one (pip install openai)."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Who are you?"}]


@contextmanager
def server(*model: str) -> Iterator[str]:
    """A server of a GGUF file, or of the demo model, for as long as the block runs."""
    command = [sys.executable, "-m", "pymixtral", "serve", "--port", "0"]
    process = subprocess.Popen([*command, *(["-m", *model] if model else [])], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        lines = iter(process.stderr.readline, "")
        url = next(line.split()[-1] for line in lines if line.startswith("Serving on "))
        next(line for line in lines if line.startswith("Ready"))
        yield url
    finally:
        process.terminate()
        process.communicate()


def main(*model: str) -> None:
    """An answer whole, the same in pieces, and one that has a form."""
    with server(*model) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        name = client.models.list().data[0].id
        print(f"model: {name}")

        answer = client.chat.completions.create(model=name, messages=MESSAGES, seed=1, max_tokens=30)
        print(f"whole:  {answer.choices[0].message.content!r}")

        print("pieces:", end=" ")
        text = ""
        for chunk in client.chat.completions.create(model=name, messages=MESSAGES, seed=1, max_tokens=30, stream=True):
            text += chunk.choices[0].delta.content or ""
        print(repr(text))

        mood = client.completions.create(
            model=name, prompt="The wolf was", seed=1, extra_body={"structured_outputs": {"choice": ["good", "angry"]}}
        )
        print(f"choice: {mood.choices[0].text}")


main(*sys.argv[1:2])
