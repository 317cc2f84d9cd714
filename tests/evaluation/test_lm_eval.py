"""The model of lm-evaluation-harness. What needs the harness itself is run by hand: pytest -m peers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pymixtral import Mixtral, UnsupportedError, demo_chat_path
from pymixtral.evaluation.evaluate import evaluate
from pymixtral.evaluation.tasks.bbq import BBQ
from pymixtral.evaluation.tasks.hellaswag import HellaSwag
from pymixtral.evaluation.tasks.mmlu import LETTERS, MMLU
from support import tasks as files


def test_a_missing_harness_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "pymixtral.evaluation.lm_eval", raising=False)
    with pytest.raises(UnsupportedError, match=r"pip install 'pymixtral\[eval\]'"):
        __import__("pymixtral.evaluation.lm_eval")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf" / "datasets"))


class Instance:
    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.mark.peers
def test_log_likelihoods_are_those_of_score() -> None:
    from pymixtral.evaluation.lm_eval import MixtralLM

    with Mixtral(n_ctx=256) as model:
        lm = MixtralLM(model)
        contexts = ["Once upon a time there was a king", "Once upon a time there was a wolf who", "The fox "] * 2
        choices = [" and then", " had three daughters.", " x"]
        found = lm.loglikelihood([Instance(c, choice) for c in contexts for choice in choices], disable_tqdm=True)
        expected = []
        for context in contexts:
            moved = context[len(context.rstrip()) :]  # the harness moves spaces into the continuation
            for score in model.score(context.rstrip(), [moved + choice for choice in choices]):
                expected.append((score.logprob, score.greedy))
        assert found == expected
        text = "Once upon a time there was a king. " * 3
        ids = model.tokenize(text)
        (rolling,) = lm.loglikelihood_rolling([Instance(text)], disable_tqdm=True)
        assert rolling == model.score([model.bos_id or 0], [ids])[0].logprob
        long = text * 20
        (rolling,) = lm.loglikelihood_rolling([Instance(long)], disable_tqdm=True)
        ids = model.tokenize(long)
        assert len(ids) > 2 * 255
        total = model.score([model.bos_id or 0], [ids[:255]])[0].logprob
        total += model.score(ids[254:255], [ids[255:510]])[0].logprob
        rest = ids[510:]
        begin = len(ids) - 256
        total += model.score(ids[begin : len(ids) - len(rest)], [rest])[0].logprob
        assert rolling == pytest.approx(total, rel=1e-12)


@pytest.mark.peers
def test_texts_end_where_the_task_says() -> None:
    from pymixtral.evaluation.lm_eval import MixtralLM

    with Mixtral(n_ctx=256) as model:
        lm = MixtralLM(model)
        prompts = ["Once upon a time", "The wolf said"]
        greedy = {"until": ["."], "max_gen_toks": 20, "do_sample": False, "temperature": 0.9}
        drawn = {"until": [], "max_gen_toks": 9, "do_sample": True, "temperature": 0.9, "top_p": 0.8}
        found = lm.generate_until(
            [Instance(p, kwargs) for p in prompts for kwargs in (greedy, drawn)], disable_tqdm=True
        )
        expected = []
        for prompt in prompts:
            expected.append(model.generate(prompt, stop=["."], max_tokens=20, temperature=0).text)
            expected.append(model.generate(prompt, max_tokens=9, temperature=0.9, top_p=0.8, seed=0).text)
        assert found == expected
        (cut,) = lm.generate_until([Instance("king " * 400, greedy)], disable_tqdm=True)
        ids = model.tokenize("king " * 400)[-(256 - 20) :]
        assert cut == model.generate(ids, stop=["."], max_tokens=20, temperature=0).text


@pytest.mark.peers
def test_conversations_are_read_as_chat_reads_them() -> None:
    from pymixtral.evaluation.lm_eval import MixtralLM

    with Mixtral(demo_chat_path(), n_ctx=512) as model:
        lm = MixtralLM(model)
        messages = [{"role": "user", "content": "What is </s> in [INST] a tale?"}]
        text = lm.apply_chat_template(messages)
        assert "[INST]" in text
        (found,) = lm.generate_until([Instance(text, {"max_gen_toks": 12})], disable_tqdm=True)
        assert found == model.chat(messages, max_tokens=12, temperature=0).content
        ((logprob, _),) = lm.loglikelihood([Instance(text, "A king")], disable_tqdm=True)
        ids = model.chat_format().ids(messages)
        assert logprob == model.score(ids, [model.tokenize("A king", False)])[0].logprob
        assert lm.tokenizer_name.startswith("pymixtral-")


def write_task(folder: Path, name: str, cases: list[dict[str, Any]], text: str) -> None:
    path = folder / f"{name}.jsonl"
    files.write_lines(path, cases)
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {path}}}}}\ntest_split: test\n"
        f'output_type: multiple_choice\ndoc_to_choice: "{{{{choices}}}}"\ndoc_to_target: "{{{{gold}}}}"\n'
        f"metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}, "
        f"{{metric: acc_norm, aggregation: mean, higher_is_better: true}}]\n{text}"
    )


@pytest.mark.peers
@pytest.mark.usefixtures("offline")
def test_the_harness_and_evaluate_agree(tmp_path: Path) -> None:
    """The harness asks its own tasks over the same cases; accuracies, errors and log-likelihoods are equal."""
    import lm_eval

    from pymixtral.evaluation.lm_eval import MixtralLM

    data, folder = files.write_all(tmp_path / "data"), tmp_path / "tasks"
    folder.mkdir()
    mmlu = MMLU(data / "mmlu")
    wolves = [item for item in mmlu.items if item.group == "wolves"]
    shown, examples = (
        [{"q": one["question"], "c": one["choices"], "choices": list(LETTERS), "gold": one["answer"]} for one in found]
        for found in ([item.fields for item in wolves], mmlu._examples["wolves"])
    )
    files.write_lines(folder / "dev.jsonl", examples)
    write_task(
        folder,
        "local_mmlu",
        shown,
        'description: "The following are multiple choice questions (with answers) about wolves.\\n\\n"\n'
        'doc_to_text: "{{q.strip()}}\\nA. {{c[0]}}\\nB. {{c[1]}}\\nC. {{c[2]}}\\nD. {{c[3]}}\\nAnswer:"\n'
        "num_fewshot: 5\nfewshot_split: dev\nfewshot_config: {sampler: first_n}\n",
    )
    yaml = folder / "local_mmlu.yaml"
    yaml.write_text(
        yaml.read_text().replace("{data_files: {test: ", f"{{data_files: {{dev: {folder}/dev.jsonl, test: ")
    )
    hellaswag = HellaSwag(data / "hellaswag")
    write_task(
        folder,
        "local_hellaswag",
        [{"q": i.fields["prompt"], "choices": i.fields["endings"], "gold": i.fields["label"]} for i in hellaswag.items],
        'doc_to_text: "{{q}}"\n',
    )
    bbq = BBQ(data / "bbq")
    write_task(
        folder,
        "local_bbq",
        [
            {
                "q": f"{i.fields['context']}\n\nQ: {i.fields['question']}\nA:",
                "choices": [i.fields[name] for name in ("ans0", "ans1", "ans2")],
                "gold": i.fields["label"],
            }
            for i in bbq.items
        ],
        'doc_to_text: "{{q}}"\n',
    )
    with Mixtral() as model:
        found = lm_eval.simple_evaluate(
            model=MixtralLM(model),
            tasks=["local_mmlu", "local_hellaswag", "local_bbq"],
            task_manager=lm_eval.tasks.TaskManager(include_path=str(folder)),
            bootstrap_iters=0,
        )
        own = evaluate(model, [mmlu, hellaswag, bbq], progress=False)
    assert found is not None
    of_mmlu, of_hellaswag, of_bbq = (result.figures for result in own)
    for task, figure, metric in (
        ("local_mmlu", of_mmlu["accuracy/wolves"], "acc"),
        ("local_hellaswag", of_hellaswag["accuracy"], "acc"),
        ("local_hellaswag", of_hellaswag["normalized_accuracy"], "acc_norm"),
        ("local_bbq", of_bbq["accuracy"], "acc"),
    ):
        assert found["results"][task][f"{metric},none"] == figure.value, task
    answers = {
        "local_mmlu": [a for a, item in zip(own[0].answers, mmlu.items, strict=True) if item.group == "wolves"],
        "local_hellaswag": own[1].answers,
        "local_bbq": own[2].answers,
    }
    for task, expected in answers.items():
        samples = sorted(found["samples"][task], key=lambda one: one["doc_id"])
        assert [[float(said[0]) for said in one["filtered_resps"]] for one in samples] == expected, task


@pytest.mark.peers
@pytest.mark.usefixtures("offline")
def test_the_harness_runs_from_the_shell(tmp_path: Path) -> None:
    cases = [{"q": "The king had", "choices": ["a daughter", "a telephone"], "gold": 0}] * 3
    write_task(tmp_path, "local", cases, 'doc_to_text: "{{q}}"\n')
    program = [sys.executable, "-m", "pymixtral.evaluation.lm_eval", "run", "--model", "pymixtral"]
    arguments = ["--model_args", "n_ctx=128", "--tasks", "local", "--include_path", str(tmp_path)]
    done = subprocess.run(
        [*program, *arguments, "--output_path", str(tmp_path / "out")], env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "|local|" in done.stdout
    (path,) = (tmp_path / "out").rglob("results*.json")
    assert json.loads(path.read_text())["results"]["local"]["acc,none"] in (0.0, 1.0)
