"""Adapters are loaded and unloaded while a model runs: each text ends with those that it began with."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pymixtral import Adapter, AsyncMixtral, Completion, InvalidArgumentError, Mixtral
from pymixtral.errors import AdapterError, ClosedError
from pymixtral.files.names import TensorName
from pymixtral.model.adapter import LowRank
from support.adapter_files import write_adapter
from support.low_rank import adapter_for, bound
from support.serving import eventually
from support.texts import lone, same

PROMPT = "Once upon a time there was a king who had three daughters"

LONG = PROMPT * 12

OPTIONS: dict[str, Any] = {"max_tokens": 10, "seed": 4, "logprobs": 2, "prompt_logprobs": 1}


def test_what_is_loaded_is_listed(tiny_q8_0: Path, of: dict[str, Adapter], tmp_path: Path) -> None:
    with Mixtral(tiny_q8_0, n_ctx=64) as model:
        assert dict(model.adapters) == {}
        path = write_adapter(tmp_path / "tales.gguf", model.config, 1)
        model.load_adapter("tales", path)
        before = model.adapters
        model.load_adapter("a", of["a"])
        assert list(model.adapters) == ["tales", "a"]
        assert list(before) == ["tales"]  # a picture of that moment
        found = model.adapters["tales"]
        assert (found.source, found.rank) == (str(path), 4)
        assert found.nbytes == sum(a.nbytes + b.nbytes for a, b in found.pairs.values())
        with pytest.raises(TypeError):
            model.adapters["x"] = found  # type: ignore[index]
        with pytest.raises(InvalidArgumentError, match=r"found 'a', which is: unload it, or give replace=True"):
            model.load_adapter("a", of["b"])
        model.load_adapter("a", of["b"], replace=True)
        assert model.adapters["a"] is of["b"]
        model.unload_adapter("tales")
        with pytest.raises(InvalidArgumentError, match=r"found 'tales': load it; loaded now: 'a'"):
            model.generate(PROMPT, adapter="tales")
        with pytest.raises(InvalidArgumentError, match="found 'tales'"):
            model.unload_adapter("tales")
    for call in (lambda: model.load_adapter("b", of["b"]), lambda: model.unload_adapter("a")):
        with pytest.raises(ClosedError):
            call()


def test_what_is_no_adapter_is_refused(model: Mixtral, of: dict[str, Adapter], tmp_path: Path) -> None:
    name = TensorName("attn_q", model.config.n_layers)
    pair = LowRank(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32))
    cases: list[tuple[Any, type[Exception], str]] = [
        (tmp_path / "nothing.gguf", AdapterError, "nothing.gguf"),
        (5, InvalidArgumentError, "expected adapter to be a path"),
        ("", InvalidArgumentError, "expected adapter to be the name of a file"),
        (Adapter({name: pair}, "beyond"), AdapterError, "beyond: blk"),
    ]
    for adapter, kind, words in cases:
        with pytest.raises(kind, match=words):
            model.load_adapter("new", adapter)
    for wrong in ("", "x" * 257, "a\nb", "\udcff", 5, None):
        with pytest.raises(InvalidArgumentError, match="name of an adapter"):
            model.load_adapter(wrong, of["c"])  # type: ignore[arg-type]
    assert sorted(model.adapters) == ["a", "b"]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("c", "found 'c': load it; loaded now: 'a', 'b'"),
        (["a"], "a name, or a mapping of names to scales"),
        (5, "a name, or a mapping"),
        ({"a": float("nan")}, "the scale of adapter 'a' to be a number from -1000 to 1000"),
        ({"a": True}, "the scale of adapter 'a'"),
        ({"a": "1"}, "the scale of adapter 'a'"),
        ({"a": 1001}, "the scale of adapter 'a'"),
        ({1: 1.0}, "found 1: load it"),
        ({"a": 1.0, "c": 0.0}, "found 'c'"),
    ],
)
def test_choices_that_are_none(model: Mixtral, choice: Any, words: str) -> None:
    calls: list[Any] = [
        lambda: model.generate(PROMPT, adapter=choice),
        lambda: model.stream(PROMPT, adapter=choice),
        lambda: model.logits([1], adapter=choice),
        lambda: model.score(PROMPT, ["a"], adapter=choice),
        lambda: model.embed([PROMPT], adapter=choice),
        lambda: model.routing(PROMPT, adapter=choice),
        lambda: model.save_session("x", PROMPT, adapter=choice),
        lambda: model.load_session("x", adapter=choice),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError, match=words):
            call()


def test_a_model_has_a_choice_of_its_own(tiny_q8_0: Path, of: dict[str, Adapter], alone: Mixtral) -> None:
    with Mixtral(tiny_q8_0, n_ctx=512, adapters=of, adapter={"a": 0.5}) as model:
        same(model.generate(PROMPT, **OPTIONS), lone(alone, PROMPT, adapter={"a": 0.5}, **OPTIONS))
        same(model.generate(PROMPT, adapter={}, **OPTIONS), lone(alone, PROMPT, **OPTIONS))
        same(model.generate(PROMPT, adapter="b", **OPTIONS), lone(alone, PROMPT, adapter="b", **OPTIONS))
        model.unload_adapter("a")
        with pytest.raises(InvalidArgumentError, match="found 'a'"):  # rather than the model without it
            model.generate(PROMPT)
        assert model.generate(PROMPT, adapter={}, max_tokens=1).tokens
    for wrong in ("d", {"a": 1e9}, 5):
        with pytest.raises(InvalidArgumentError, match="adapter"):
            Mixtral(tiny_q8_0, n_ctx=64, adapters=of, adapter=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="expected adapters to be a mapping"):
        Mixtral(tiny_q8_0, n_ctx=64, adapters=[of["a"]])  # type: ignore[arg-type]


def test_a_running_text_ends_with_the_adapter_that_it_began_with(model: Mixtral, alone: Mixtral, of: Any) -> None:
    """Its name goes at once; its memory when the last text ends."""
    options: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "seed": 7}
    adapter = adapter_for(model.config, 77)
    alone.load_adapter("mine", adapter)
    expected = lone(alone, PROMPT, adapter="mine", **options)
    alone.unload_adapter("mine")
    model.load_adapter("mine", adapter)
    stream = model.stream(PROMPT, adapter="mine", **options)
    first = next(stream)
    n = bound(model)
    model.unload_adapter("mine")
    assert "mine" not in model.adapters
    with pytest.raises(InvalidArgumentError):
        model.generate(PROMPT, adapter="mine")
    model.load_adapter("mine", of["c"])  # the same name, another adapter
    assert bound(model) == n  # the text still has it, and nobody has used the new one
    text = first + "".join(stream)
    assert stream.completion
    same(stream.completion, expected)
    assert text == expected.text
    assert bound(model) == n - 1
    model.unload_adapter("mine")
    gone = weakref.ref(adapter)
    del adapter
    gc.collect()
    assert gone() is None  # though the stream is still there


def test_cancelled_and_failed_texts_give_their_adapter_back(model: Mixtral) -> None:
    def fail(ids: Any, logits: Any) -> None:  # noqa: ARG001
        raise KeyError("no")

    model.load_adapter("mine", adapter_for(model.config, 5))
    n = bound(model)
    stream = model.stream(LONG, adapter="mine", max_tokens=300, ignore_eos=True)
    next(stream)
    assert bound(model) == n + 1
    model.unload_adapter("mine")
    stream.close()
    for _ in range(1000):  # of calls between two passes
        if bound(model) == n:
            break
    assert bound(model) == n
    model.load_adapter("mine", adapter_for(model.config, 5))
    with pytest.raises(KeyError):
        model.generate(PROMPT, adapter="mine", logits_processor=fail)
    model.unload_adapter("mine")
    assert bound(model) == n


def test_a_request_that_was_made_before_and_is_sent_afterwards(model: Mixtral, alone: Mixtral) -> None:
    options: dict[str, Any] = {"max_tokens": 4, "seed": 1}
    model.load_adapter("mine", adapter_for(model.config, 6))
    n = bound(model)
    [[request]] = model.core.factory.continuations([PROMPT], {"adapter": "mine", **options}, streams=False)
    model.unload_adapter("mine")
    assert bound(model) == n
    events: Any = []
    ended = threading.Event()
    request.listen(lambda event: (events.append(event), ended.set()))
    interest = model.core.engine.submit([request])
    assert ended.wait(100)
    alone.load_adapter("mine", adapter_for(alone.config, 6))
    assert events[-1].result.tokens == lone(alone, PROMPT, adapter="mine", **options).tokens
    alone.unload_adapter("mine")
    assert bound(model) == n
    del interest


def test_tasks_load_and_unload(tiny_q8_0: Path, of: dict[str, Adapter], alone: Mixtral) -> None:
    async def run() -> None:
        async with AsyncMixtral(tiny_q8_0, n_ctx=512) as model:
            await model.load_adapter("a", of["a"])
            found, other = await asyncio.gather(
                model.generate(PROMPT, adapter="a", **OPTIONS), model.generate(PROMPT, **OPTIONS)
            )
            same(found, lone(alone, PROMPT, adapter="a", **OPTIONS))
            same(other, lone(alone, PROMPT, **OPTIONS))
            assert list(model.adapters) == ["a"]
            model.unload_adapter("a")
            with pytest.raises(InvalidArgumentError):
                await model.embed([PROMPT], adapter="a")

    asyncio.run(run())


NAMES = st.sampled_from(["x", "y"])

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("load"), NAMES, st.integers(0, 2)),
        st.tuples(st.just("replace"), NAMES, st.integers(0, 2)),
        st.tuples(st.just("unload"), NAMES, st.none()),
        st.tuples(st.just("ask"), NAMES, st.sampled_from([1.0, 0.5])),
        st.tuples(st.just("read"), st.none(), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.none(), st.integers(0, 3)),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_histories(steps: list[Any], model: Mixtral, alone: Mixtral, of: dict[str, Adapter]) -> None:
    """Whatever is loaded, unloaded and asked in whatever order: a dict knows what each text must be."""
    options: dict[str, Any] = {"max_tokens": 6, "seed": 2, "ignore_eos": True}
    adapters = list(of.values())
    named: dict[str, int] = {}
    running: list[tuple[Any, int, float]] = []
    for what, name, value in steps:
        if what in ("load", "replace"):
            if what == "load" and name in named:
                with pytest.raises(InvalidArgumentError):
                    model.load_adapter(name, adapters[value])
            else:
                model.load_adapter(name, adapters[value], replace=what == "replace")
                named[name] = value
        elif what == "unload" and name in named:
            model.unload_adapter(name)
            del named[name]
        elif what == "ask" and name in named:
            stream = model.stream(PROMPT, adapter={name: value}, **options)
            running.append((stream, named[name], value))
        elif what in ("unload", "ask"):
            with pytest.raises(InvalidArgumentError):
                model.unload_adapter(name) if what == "unload" else model.stream(PROMPT, adapter=name)
        elif running:
            stream, which, scale = running.pop(value % len(running))
            if what == "cancel":
                stream.close()
            else:
                text, expected = "".join(stream), _expected(alone, "abc"[which], scale, options)
                assert text == expected.text
        assert set(model.adapters) == {"a", "b", *named}
    for stream, which, scale in running:
        assert "".join(stream) == _expected(alone, "abc"[which], scale, options).text
    for name in named:
        model.unload_adapter(name)
    eventually(
        lambda: bound(model) <= 2, "adapters of texts that were cancelled are kept"
    )  # the engine ends these soon
    assert model.core.engine.call(lambda inner: {*inner._adapters._bound} <= {of["a"].digest, of["b"].digest})


_known: dict[tuple[str, float], Completion] = {}


def _expected(alone: Mixtral, name: str, scale: float, options: dict[str, Any]) -> Completion:
    if (name, scale) not in _known:
        _known[name, scale] = lone(alone, PROMPT, adapter={name: scale}, **options)
    return _known[name, scale]


def test_many_threads_load_unload_and_ask(model: Mixtral, alone: Mixtral, of: dict[str, Adapter]) -> None:
    options: dict[str, Any] = {"max_tokens": 5, "seed": 2}
    expected = {name: lone(alone, PROMPT, adapter=name, **options).text for name in of}
    faults: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for j in range(6):
                which, name = "abc"[(i + j) % 3], f"mine {i}"
                model.load_adapter(name, of[which])
                stream = model.stream(PROMPT, adapter=name, **options)
                model.unload_adapter(name)
                assert "".join(stream) == expected[which]
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert sorted(model.adapters) == ["a", "b"]
    assert bound(model) <= 2
