# needs pip install haystack-ai, and a server
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret

how = {
    "api_base_url": "http://127.0.0.1:8080/v1",
    "api_key": Secret.from_token("sesame"),
    "model": "mixtral",
    "generation_kwargs": {"temperature": 0, "max_tokens": 16},
}
question = [ChatMessage.from_user("Who are you?")]
print(OpenAIChatGenerator(**how).run(question)["replies"][0].text)
OpenAIChatGenerator(**how, streaming_callback=lambda chunk: print(chunk.content, end="")).run(question)
print()
