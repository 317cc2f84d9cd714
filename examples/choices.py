"""Multiple choice: which of several texts does the model expect to follow another one?"""

import sys

from pymixtral import Mixtral

QUESTIONS = {
    "Once upon a time there was a king who had three": [" wheels", " sons", " telephones"],
    "The wolf ate the": [" moon", " grandmother", " sheep"],
    "The king gave him his daughter in": [" marriage", " bread", " winter"],
}

with Mixtral(*sys.argv[1:2]) as model:  # a GGUF file; without one, the demo model
    for question, choices in QUESTIONS.items():
        scores = model.score(question, choices)  # the question is computed once
        best = max(scores, key=lambda score: score.logprob)
        print(f"{question} ...")
        for choice, score in zip(choices, scores, strict=True):
            mark = "  <- likeliest of these" if score is best else ""
            mark += ", and what temperature 0 writes" if score.greedy else ""
            print(f"  {score.logprob:7.2f}{choice} (tokens: {len(score.tokens)}){mark}")
