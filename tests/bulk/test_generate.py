"""Texts of many prompts: those of Mixtral.generate(), in the order of the prompts, whatever happens."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pymixtral import ClosedError, InvalidArgumentError, Mixtral, OutputError, UnsupportedError
from pymixtral.adapters import gguf_writer
from pymixtral.bulk import generate as module
from pymixtral.bulk.generate import Bulk
from pymixtral.quantize import quantize
from support.checkpoints import Shape, make_checkpoint
from support.ggufs import rewrite
from support.low_rank import adapter_for

TEXT = "Once upon a time there was a king who had three daughters"


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=128) as model:
        yield model


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "texts.jsonl"


def write(path: Path, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return lines


def some(n: int) -> list[dict[str, Any]]:
    """Prompts of different lengths, whose texts have different lengths, too; a long one is the first."""
    return [
        {"prompt": TEXT[: 3 + i % 50], "max_tokens": 90 if i == 0 else 1 + i * 7 % 12, "seed": i, "id": f"n{i}"}
        for i in range(n)
    ]


def read(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    for record in records:
        record.get("usage", {}).pop("cached_tokens", None)
    return records


def test_the_texts_are_those_of_generate_in_the_order_of_the_prompts(
    model: Mixtral, prompts: Path, output: Path
) -> None:
    lines = write(prompts, some(60))
    bulk = Bulk(model, prompts, output, temperature=0.7, ignore_eos=True)
    bulk.run(8)
    records = read(output)
    assert [(record["index"], record["id"]) for record in records] == [(i, f"n{i}") for i in range(60)]
    for line, record in zip(lines, records, strict=True):
        options = {name: value for name, value in line.items() if name not in ("prompt", "id")}
        expected = model.generate(line["prompt"], temperature=0.7, ignore_eos=True, **options)
        assert (record["text"], record["tokens"]) == (expected.text, expected.tokens)
        assert (record["finish_reason"], record["stop_reason"]) == ("length", None)
        assert record["usage"] == {
            "prompt_tokens": expected.stats.prompt_tokens,
            "generated_tokens": len(expected.tokens),
        }
    assert (bulk.n_prompts, bulk.n_done, bulk.n_resumed, bulk.n_failed) == (60, 60, 0, 0)
    assert bulk.n_tokens == sum(len(record["tokens"]) for record in records)


def test_they_are_computed_together(model: Mixtral, prompts: Path, output: Path) -> None:
    write(prompts, [{"prompt": TEXT, "max_tokens": 30, "seed": i} for i in range(32)])
    before = model.stats()
    Bulk(model, prompts, output, ignore_eos=True).run(32)
    after = model.stats()
    assert after.generated_tokens - before.generated_tokens == 32 * 30
    assert after.passes - before.passes < 32 * 30 / 2  # 60 are the fewest, as max_batch is 16


def test_no_more_are_in_flight_than_asked_for(model: Mixtral, prompts: Path, output: Path) -> None:
    write(prompts, some(40))
    bulk = Bulk(model, prompts, output)
    most = 0
    ask = bulk._ask

    def counted(*arguments: Any) -> Any:
        nonlocal most
        stats = model.stats()
        most = max(most, stats.waiting + stats.prefilling + stats.decoding + 1)
        return ask(*arguments)

    bulk._ask = counted  # type: ignore[method-assign]
    bulk.run(5)
    assert 1 < most <= 5
    assert bulk.n_done == 40


def test_texts_that_wait_for_a_long_one_are_bounded(
    model: Mixtral, prompts: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether by number or by bytes, and all come."""
    write(prompts, some(40))
    for name, value in (("_AHEAD", 1), ("_AHEAD_BYTES", 300)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            bulk = Bulk(model, prompts, output, force=True)
            bulk.run(4)
        assert [record["index"] for record in read(output)] == list(range(40))


def test_errors_that_wait_for_a_long_text_are_bounded_too(
    model: Mixtral, prompts: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(prompts, [{"prompt": TEXT, "max_tokens": 90}, *[{"prompt": []}] * 40])
    failure, write_record = module._failure, Bulk._write
    made: list[int] = []
    ahead: list[int] = []

    def counted(prompt: Any, error: BaseException) -> Any:
        made.append(prompt.index)
        return failure(prompt, error)

    def noted(self: Bulk, record: Any) -> None:
        ahead.append(len(made))
        write_record(self, record)

    monkeypatch.setattr(module, "_failure", counted)
    monkeypatch.setattr(Bulk, "_write", noted)
    monkeypatch.setattr(module, "_AHEAD_BYTES", 300)
    bulk = Bulk(model, prompts, output, ignore_eos=True)
    bulk.run(4)
    assert 1 <= ahead[0] <= 300 // 100
    assert (bulk.n_done, bulk.n_failed) == (41, 40)


@pytest.mark.parametrize("cut", [0, 1, 700, 1500, -1])
def test_another_run_goes_on_where_the_first_ended(model: Mixtral, prompts: Path, output: Path, cut: int) -> None:
    write(prompts, some(20))
    Bulk(model, prompts, output).run()
    whole, expected = output.read_bytes(), read(output)
    output.write_bytes(whole[:cut])
    generated = model.stats().generated_tokens
    bulk = Bulk(model, prompts, output)
    bulk.run(progress=False)
    assert read(output) == expected
    assert bulk.n_resumed == whole[:cut].count(b"\n")
    assert model.stats().generated_tokens - generated == bulk.n_tokens
    assert bulk.n_tokens == sum(len(record["tokens"]) for record in expected[bulk.n_resumed :])
    again = Bulk(model, prompts, output)
    again.run()
    assert (again.n_resumed, again.n_done, again.n_tokens) == (20, 20, 0)


def test_more_prompts_may_be_added_later(model: Mixtral, prompts: Path, output: Path) -> None:
    write(prompts, some(5))
    Bulk(model, prompts, output).run()
    write(prompts, some(9))
    bulk = Bulk(model, prompts, output)
    bulk.run()
    assert (bulk.n_resumed, bulk.n_done, len(read(output))) == (5, 9, 9)


def test_the_texts_of_other_prompts_options_or_models_are_kept(
    model: Mixtral, prompts: Path, output: Path, tiny_q8_0: Path, tmp_path: Path
) -> None:
    lines = write(prompts, some(4))
    Bulk(model, prompts, output).run()
    before = output.read_bytes()
    (tmp_path / "other").mkdir()
    rewrite(tiny_q8_0, tmp_path / "other" / tiny_q8_0.name, keys={"llama.rope.freq_base": 5e5})
    with Mixtral(tmp_path / "other" / tiny_q8_0.name, n_ctx=128) as other:
        for bulk in (Bulk(model, prompts, output, temperature=0.1), Bulk(other, prompts, output)):
            with pytest.raises(OutputError, match=r"line 1: expected the record of prompt 0, .* choose another name"):
                bulk.run()
    write(prompts, [*lines[:2], {**lines[2], "seed": 77}, lines[3]])
    with pytest.raises(OutputError, match="line 3: expected the record of prompt 2"):
        Bulk(model, prompts, output).run()
    write(prompts, lines[:3])
    with pytest.raises(OutputError, match="line 4: expected no more records than prompts"):
        Bulk(model, prompts, output).run()
    assert output.read_bytes() == before
    expected = read(output)[:3]
    Bulk(model, prompts, output, force=True).run()
    assert read(output) == expected


def test_what_changes_no_text_may_change(model: Mixtral, prompts: Path, output: Path) -> None:
    write(prompts, some(4))
    Bulk(model, prompts, output).run()
    bulk = Bulk(model, prompts, output, prompt_lookup=4, priority=3)
    bulk.run()
    assert bulk.n_resumed == 4


def test_an_error_of_one_prompt_is_its_record(model: Mixtral, prompts: Path, output: Path) -> None:
    write(
        prompts,
        [
            {"prompt": "a", "max_tokens": 3},
            {"prompt": TEXT * 20, "id": 7},
            {"prompt": [4096]},
            {"prompt": []},
            {"prompt": "\ud800"},
            {"prompt": "b", "max_tokens": 3},
        ],
    )
    bulk = Bulk(model, prompts, output)
    bulk.run(2)
    records = read(output)
    kinds = [record.get("error", {}).get("type") for record in records]
    assert kinds == [None, "ContextLengthError", *["InvalidArgumentError"] * 3, None]
    assert "expected prompt of at most 128 tokens" in records[1]["error"]["message"]
    assert records[1]["id"] == 7
    assert (bulk.n_done, bulk.n_failed) == (6, 4)
    again = Bulk(model, prompts, output)
    again.run()
    assert (again.n_resumed, again.n_failed, again.n_tokens) == (6, 4, 0)


def test_an_error_while_it_is_computed_is_its_record_too(
    model: Mixtral, prompts: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several texts of the prompt, of which only one fails."""
    from pymixtral import NonFiniteError
    from pymixtral.engine.generation import Continuation

    advance = Continuation.advance

    def failing(self: Continuation) -> None:
        if len(self.tokens) == 2 and self.ids[: self.n_prompt].tolist() == wrong and not failed:
            failed.append(1)
            raise NonFiniteError("expected numbers, found NaN")
        advance(self)

    monkeypatch.setattr(Continuation, "advance", failing)
    failed: list[int] = []
    wrong = model.tokenize("b")
    write(prompts, [{"prompt": prompt, "max_tokens": 6, "n": 2} for prompt in "abc"])
    bulk = Bulk(model, prompts, output, ignore_eos=True)
    bulk.run()
    records = read(output)
    assert [record.get("error") for record in records] == [
        None,
        {"type": "NonFiniteError", "message": "expected numbers, found NaN"},
        None,
    ]
    assert [len(record.get("others", [])) for record in records] == [1, 0, 1]
    assert records[2]["usage"]["generated_tokens"] == 12


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"temperature": -1}, "expected temperature to be a number from 0"),
        ({"temperature": None}, "expected temperature"),
        ({"seed": -1}, "expected seed"),
        ({"seed": "1"}, "expected seed"),
        ({"stop": ""}, "expected stop"),
        ({"stop": [1]}, "expected stop"),
        ({"max_tokens": 1.5}, "expected max_tokens to be an integer"),
        ({"logit_bias": {"4096": 1}}, "in logit_bias, found 4096"),
        ({"logit_bias": 3}, "expected logit_bias to be a mapping"),
        ({"logprobs": 101}, "expected logprobs"),
        ({"n": 0}, "expected n to be"),
        ({"timeout": -1}, "expected timeout"),
        ({"prompt_lookup": 17}, "expected prompt_lookup"),
        ({"priority": "high"}, "expected priority"),
    ],
    ids=str,
)
def test_an_option_that_is_wrong_is_found_before_anything_is_computed(
    model: Mixtral, prompts: Path, output: Path, own: dict[str, Any], words: str
) -> None:
    write(prompts, [{"prompt": "a"}, {"prompt": "b", "seed": 3}, {"prompt": "c", **own}])
    before = model.stats().passes
    with pytest.raises(InvalidArgumentError) as info:
        Bulk(model, prompts, output).run()
    assert str(info.value).startswith(f"{prompts}, line 3: ")
    assert words in str(info.value)
    assert model.stats().passes == before
    assert not output.exists()


def test_options_and_places_are_checked_at_once(model: Mixtral, prompts: Path, output: Path) -> None:
    write(prompts, some(1))
    with pytest.raises(InvalidArgumentError, match="expected temperature"):
        Bulk(model, prompts, output, temperature=-1)
    with pytest.raises(InvalidArgumentError, match="did you mean 'temperature'"):
        Bulk(model, prompts, output, temprature=1)
    for place in (prompts, model.path, prompts / "x", prompts.parent):
        with pytest.raises(OutputError):
            Bulk(model, prompts, place)
    with pytest.raises(InvalidArgumentError, match="n_in_flight"):
        Bulk(model, prompts, output).run(0)


def test_the_output_is_no_adapter_of_the_model(prompts: Path, output: Path, tmp_path: Path) -> None:
    write(prompts, some(1))
    file = tmp_path / "a.gguf"
    with Mixtral(n_ctx=64) as model:
        gguf_writer.write(adapter_for(model.config, 1, stems=("attn_q",)), model.config, file, force=False)
        model.load_adapter("a", file)
        before = file.read_bytes()
        with pytest.raises(OutputError, match="read or written otherwise"):
            Bulk(model, prompts, file, force=True)
        assert file.read_bytes() == before
        Bulk(model, prompts, output)


def test_log_probabilities_and_several_texts_are_in_the_records(model: Mixtral, prompts: Path, output: Path) -> None:
    write(prompts, [{"prompt": "Once upon", "seed": 3, "n": 3, "logprobs": 2, "prompt_logprobs": 1}])
    Bulk(model, prompts, output, max_tokens=4).run()
    (record,) = read(output)
    expected = model.generate("Once upon", seed=3, n=3, max_tokens=4, logprobs=2, prompt_logprobs=1)
    for found, text in zip([record, *record["others"]], expected.choices, strict=True):
        assert found["text"] == text.text
        assert [(t["id"], t["logprob"], t["top"]) for t in found["logprobs"]] == [
            (t.id, t.logprob, [list(pair) for pair in t.top]) for t in text.logprobs or []
        ]
        assert found["prompt_logprobs"][0] is None
        assert [t["id"] for t in found["prompt_logprobs"][1:]] == model.tokenize("Once upon")[1:]


def test_an_empty_file_has_no_texts(model: Mixtral, prompts: Path, output: Path) -> None:
    prompts.write_text("\n \n")
    bulk = Bulk(model, prompts, output)
    bulk.run()
    assert (bulk.n_prompts, bulk.n_done, output.read_bytes()) == (0, 0, b"")


def test_a_model_without_a_tokenizer_takes_ids(prompts: Path, output: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "bare", Shape(n_layers=1, n_vocab=64), seed=4)
    (tmp_path / "bare" / "tokenizer.model").unlink()
    quantize(tmp_path / "bare", tmp_path / "bare.gguf", "q8_0", no_tokenizer=True, progress=False)
    write(prompts, [{"prompt": [1, 2, 3], "max_tokens": 3}, {"prompt": "a"}])
    with Mixtral(tmp_path / "bare.gguf", n_ctx=64) as model:
        Bulk(model, prompts, output).run()
        first, second = read(output)
        assert (first["text"], len(first["tokens"])) == ("", 3)
        assert second["error"]["type"] == UnsupportedError.__name__


def test_a_model_that_is_closed_ends_it_and_what_is_complete_stays(
    tiny_q8_0: Path, prompts: Path, output: Path
) -> None:
    write(prompts, some(31)[1:])
    with Mixtral(tiny_q8_0, n_ctx=128) as model:
        bulk = Bulk(model, prompts, output)
        answer, n = bulk._receive, 0

        def closing(*arguments: Any) -> Any:
            nonlocal n
            n += 1
            if n == 20:
                model.close()
            return answer(*arguments)

        bulk._receive = closing  # type: ignore[method-assign]
        with pytest.raises(ClosedError):
            bulk.run(4)
    assert 0 < bulk.n_done == len(read(output)) < 30


def test_an_interrupt_leaves_nothing_that_is_still_generated(
    tiny_q8_0: Path, prompts: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(prompts, [{"prompt": TEXT, "seed": i, "ignore_eos": True} for i in range(8)])
    receive = Bulk._receive

    def interrupted(self: Bulk, *arguments: Any) -> Any:
        if self._model.stats().decoding == 8:
            raise KeyboardInterrupt
        return receive(self, *arguments)

    monkeypatch.setattr(Bulk, "_receive", interrupted)
    monkeypatch.setattr(module, "_TICK", 0.001)
    with Mixtral(tiny_q8_0, n_ctx=2048) as model:
        bulk = Bulk(model, prompts, output)
        bulk.check()
        gc.disable()
        try:
            with pytest.raises(KeyboardInterrupt):
                bulk.run(8, progress=False)
            end = time.monotonic() + 60
            while (stats := model.stats()).waiting + stats.prefilling + stats.decoding:
                assert time.monotonic() < end
        finally:
            gc.enable()
        assert model.stats().generated_tokens < 8 * 1900  # not because the texts were complete
