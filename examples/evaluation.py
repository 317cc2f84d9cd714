"""Ask two models the same questions, and say how sure the difference between them is.

The questions are in files of HellaSwag's form: a text, some endings, and which one is right.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from pymixtral import Mixtral
from pymixtral.evaluation.comparison import compare
from pymixtral.evaluation.evaluate import evaluate
from pymixtral.evaluation.tasks.hellaswag import HellaSwag

TALES = {
    "The king": "gave him his daughter in marriage.",
    "The wolf": "ate the grandmother.",
    "The princess": "kissed the prince.",
    "The fox": "ran into the wood.",
    "The tailor": "took his needle and thread.",
    "The fisherman": "threw his net into the sea.",
    "The witch": "turned him into a stone.",
    "The soldier": "drew his sword.",
}


def write(folder: Path) -> None:
    """A question for each of them; the wrong endings are those of the next three."""
    endings = list(TALES.values())
    with (folder / "hellaswag_val.jsonl").open("w", encoding="utf-8") as file:
        for i, who in enumerate(TALES):
            question = {"activity_label": "A tale", "ctx": who, "endings": (endings * 2)[i : i + 4], "label": 0}
            file.write(json.dumps(question) + "\n")


with TemporaryDirectory() as name:
    folder = Path(name)
    write(folder)
    task = HellaSwag(folder)
    results = []
    for experts_used in (2, 1):  # the demo model as it is, and with half of its experts
        with Mixtral(experts_used=experts_used) as model:
            (result,) = evaluate(model, [task], answers=folder / "answers.jsonl")
        accuracy = result.figures["accuracy"]
        print(f"{experts_used} experts: accuracy {accuracy.value:.3f} ± {accuracy.standard_error:.3f}")
        results.append(result)
    difference = compare(*results).differences["accuracy"]
    low, high = difference.interval
    print(f"difference {difference.value:+.3f}, between {low:+.3f} and {high:+.3f} with 95% confidence")
    (again,) = evaluate(model := Mixtral(), [task], answers=folder / "answers.jsonl")
    model.close()
    print(f"asked again: {len(again.items) - again.n_resumed} of {len(again.items)} questions")
