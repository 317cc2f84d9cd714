# needs pip install 'lm-eval[api]', and a server
export OPENAI_API_KEY=sesame
server="base_url=http://127.0.0.1:8080/v1/completions,auth_token=sesame"
lm_eval run --model local-completions \
    --model_args "$server,model=mixtral,num_concurrent=2,max_length=2048,custom_prefix_token_id=1" \
    --include_path . --tasks pymixtral_choices,pymixtral_texts,pymixtral_answers \
    --output_path results --log_samples
