# needs pip install dspy, and a server
import dspy

model = dspy.LM(
    "openai/mixtral",
    api_base="http://127.0.0.1:8080/v1",
    api_key="sesame",
    temperature=0,
    max_tokens=16,
    cache=False,
)
print(model("Who are you?")[0])
