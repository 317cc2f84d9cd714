# needs pip install llama-index-llms-openai-like, and a server
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(
    api_base="http://127.0.0.1:8080/v1",
    api_key="sesame",
    model="mixtral",
    is_chat_model=True,
    context_window=32768,
    temperature=0,
    max_tokens=16,
)
question = [ChatMessage(role="user", content="Who are you?")]
print(model.chat(question).message.content)
for piece in model.stream_chat(question):
    print(piece.delta, end="")
print()
