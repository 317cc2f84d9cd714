# needs pip install langchain-openai, and a server
from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url="http://127.0.0.1:8080/v1", api_key="sesame", model="mixtral", temperature=0, max_tokens=16)
print(model.invoke("Who are you?").content)
for piece in model.stream("Who are you?"):
    print(piece.content, end="")
print()
