# needs pip install llm, and a server
cat > "$(dirname "$(llm logs path)")/extra-openai-models.yaml" <<END
- model_id: mixtral
  model_name: mixtral
  api_base: http://127.0.0.1:8080/v1
  api_key_name: pymixtral
END
llm keys set pymixtral --value sesame
llm -m mixtral "Who are you?" -o temperature 0 -o max_tokens 16
llm -m mixtral --no-stream "Who are you?" -o temperature 0 -o max_tokens 16
