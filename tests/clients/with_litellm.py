# needs pip install litellm, and a server
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices when it is imported

from litellm import completion

how = {
    "model": "openai/mixtral",
    "api_base": "http://127.0.0.1:8080/v1",
    "api_key": "sesame",
    "messages": [{"role": "user", "content": "Who are you?"}],
    "temperature": 0,
    "max_tokens": 16,
}
print(completion(**how).choices[0].message.content)
for chunk in completion(**how, stream=True):
    print(chunk.choices[0].delta.content or "", end="")
print()
