# needs a server
curl --fail --silent http://127.0.0.1:8080/v1/chat/completions \
    -H "Authorization: Bearer sesame" -H "Content-Type: application/json" \
    -d '{"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 16, "temperature": 0}'
