# needs pip install openai, and a server
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="sesame")
question = [{"role": "user", "content": "Who are you?"}]

answer = client.chat.completions.create(model="mixtral", messages=question, max_tokens=16, temperature=0)
print(answer.choices[0].message.content)

stream = client.chat.completions.create(
    model="mixtral",
    messages=question,
    max_tokens=16,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    print("".join(choice.delta.content or "" for choice in chunk.choices), end="")
print(f"\n{chunk.usage.completion_tokens} tokens")
