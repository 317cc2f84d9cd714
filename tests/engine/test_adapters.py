"""Adapters while a model runs: each text has the bits that it has alone, whatever is loaded meanwhile."""

from __future__ import annotations

import asyncio
import gc
import math
import struct
import threading
import weakref
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pymixtral import Adapter, AsyncMixtral, Completion, InvalidArgumentError, Mixtral
from pymixtral.engine.adapters import Adapters, identity
from pymixtral.errors import AdapterError, ClosedError, SessionFileError
from pymixtral.files.names import TensorName
from pymixtral.model.adapter import LowRank
from pymixtral.model.forward import Model
from support.adapter_files import write_adapter
from support.low_rank import adapter_for
from support.serving import eventually
from support.texts import lone, same

PROMPT = "Once upon a time there was a king who had three daughters"
LONG = PROMPT * 12
CHOICES: list[Any] = [None, "a", "b", {"a": 0.5}, {"a": 1, "b": -0.5}, {}]
OPTIONS: dict[str, Any] = {"max_tokens": 10, "seed": 4, "logprobs": 2, "prompt_logprobs": 1}


@pytest.fixture(scope="module")
def of(tiny_q8_0: Path) -> dict[str, Adapter]:
    with Mixtral(tiny_q8_0, n_ctx=64) as model:
        return {name: adapter_for(model.config, seed) for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def model(tiny_q8_0: Path, of: dict[str, Adapter]) -> Iterator[Mixtral]:
    with Mixtral(tiny_q8_0, n_ctx=512, n_threads=2, adapters={"a": of["a"], "b": of["b"]}) as model:
        yield model


@pytest.fixture(scope="module")
def alone(tiny_q8_0: Path, of: dict[str, Adapter]) -> Iterator[Mixtral]:
    """A model that computes one text at a time, without a cache of earlier ones."""
    with Mixtral(tiny_q8_0, n_ctx=512, n_threads=1, max_batch=1, adapters=of) as model:
        yield model


def bound(model: Mixtral) -> int:
    """How many adapters the model keeps."""
    return model.core.engine.call(lambda inner: len(inner._adapters))


# --- Bits ---------------------------------------------------------------------------------------------------------


def test_adapters_of_one_batch_are_each_as_alone(model: Mixtral, alone: Mixtral) -> None:
    model.forget()
    before = model.stats()
    streams = [model.stream(prompt, adapter=choice, **OPTIONS) for choice in CHOICES for prompt in (PROMPT, LONG)]
    for stream in streams:
        list(stream)
    after = model.stats()
    assert (after.passes - before.passes) * 3 < len(streams) * OPTIONS["max_tokens"]  # they went together
    texts = set()
    for i, (choice, prompt) in enumerate((choice, prompt) for choice in CHOICES for prompt in (PROMPT, LONG)):
        completion = streams[i].completion
        assert completion
        same(completion, lone(alone, prompt, adapter=choice, **OPTIONS))
        texts.add((prompt, completion.text))
    assert len(texts) == 2 * (len(CHOICES) - 1)  # None and {} are both none


def test_an_adapter_is_more_than_a_change_of_the_choice_of_tokens(model: Mixtral, alone: Mixtral) -> None:
    """Logits, scores, vectors and experts depend on it, too."""
    ids = model.tokenize(LONG)
    for choice in CHOICES:
        model.forget()
        alone.forget()
        assert np.array_equal(model.logits(ids, adapter=choice), alone.logits(ids, adapter=choice))
        assert model.score(PROMPT, [" and", " the"], adapter=choice) == alone.score(
            PROMPT, [" and", " the"], adapter=choice
        )
        assert np.array_equal(model.embed([LONG], adapter=choice), alone.embed([LONG], adapter=choice))
        one, other = model.routing(LONG, full=True, adapter=choice), alone.routing(LONG, full=True, adapter=choice)
        assert np.array_equal(one.experts, other.experts)
        assert np.array_equal(one.probabilities, other.probabilities)
        if choice:
            assert not np.array_equal(model.logits(ids, adapter=choice), model.logits(ids))
            assert not np.array_equal(one.probabilities, model.routing(LONG, full=True).probabilities)


def test_several_texts_drafts_and_forms_have_their_adapter(model: Mixtral, alone: Mixtral) -> None:
    repeating = "the wolf and the fox and the wolf and the fox and the"
    for options in (
        {"n": 3, "seed": 2},
        {"prompt_lookup": 4, "temperature": 0},
        {"choice": ["yes", "no", "perhaps"], "seed": 5},
        {"routing": True, "seed": 1},
    ):
        found, expected = (one.generate(repeating, max_tokens=12, adapter="b", **options) for one in (model, alone))
        for a, b in zip(found.choices, expected.choices, strict=True):
            same(a, b)
        assert (found.routing is None) == ("routing" not in options)
        if found.routing and expected.routing:
            assert np.array_equal(found.routing.experts, expected.routing.experts)


def test_the_order_and_the_names_of_adapters_change_nothing(model: Mixtral, alone: Mixtral, of: Any) -> None:
    expected = model.generate(PROMPT, adapter={"a": 1, "b": 0.5}, **OPTIONS)
    same(expected, model.generate(PROMPT, adapter={"b": 0.5, "a": 1.0}, **OPTIONS))
    model.load_adapter("other", of["a"])
    try:
        same(expected, model.generate(PROMPT, adapter={"b": 0.5, "other": 0.25, "a": 0.75}, **OPTIONS))
        same(lone(alone, PROMPT, **OPTIONS), model.generate(PROMPT, adapter={"a": 1, "other": -1}, **OPTIONS))
    finally:
        model.unload_adapter("other")


def test_a_preempted_text_keeps_its_adapter(tiny_q8_0: Path, of: dict[str, Adapter], alone: Mixtral) -> None:
    page = 64 * 2 * alone.config.n_layers * alone.config.n_kv_heads * alone.config.head_dim * 2
    options: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True, "seed": 1}
    choices: list[Any] = [None, *of, {"a": 0.5}]
    with Mixtral(tiny_q8_0, n_ctx=256, cache_bytes=7 * page, n_threads=2, adapters=of) as model:
        streams = [model.stream(LONG[:300], adapter=choice, **options) for choice in choices]
        for stream in streams:
            list(stream)
        assert model.stats().preempted > 0
        assert bound(model) == 3
    for stream, choice in zip(streams, choices, strict=True):
        assert stream.completion
        same(stream.completion, lone(alone, LONG[:300], adapter=choice, **options))


def test_the_cache_of_prefixes_never_goes_from_one_to_another(model: Mixtral) -> None:
    model.forget()
    n = len(model.tokenize(LONG))
    for choice in (None, "a", "b", {"a": 0.5}, {"a": 1, "b": 1}):
        for salt in (None, "x"):
            cached = [
                model.generate(LONG, max_tokens=1, adapter=choice, cache_salt=salt).stats.cached_tokens
                for _ in range(2)
            ]
            assert cached == [0, n - 1]
    for equal in ({}, {"a": 0}, {"b": 0.0}):
        assert model.generate(LONG, max_tokens=1, adapter=equal).stats.cached_tokens == n - 1


def test_an_adapter_that_is_loaded_again_finds_its_prefixes(model: Mixtral, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf", model.config, 9)
    model.load_adapter("file", path)
    text = model.generate(LONG, max_tokens=3, seed=1, adapter="file").text
    model.unload_adapter("file")
    model.load_adapter("again", path)
    try:
        found = model.generate(LONG, max_tokens=3, seed=1, adapter="again")
        assert found.text == text
        assert found.stats.cached_tokens == len(model.tokenize(LONG)) - 1
    finally:
        model.unload_adapter("again")


# --- Loading and unloading ----------------------------------------------------------------------------------------


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


def test_a_pass_without_adapters_is_given_none(model: Mixtral, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    before = Model.forward

    def forward(self: Model, *args: Any, **options: Any) -> Any:
        given.append(options["adapters"])
        return before(self, *args, **options)

    monkeypatch.setattr(Model, "forward", forward)
    model.generate(PROMPT, max_tokens=2)
    assert given
    assert given == [None] * len(given)
    model.generate(PROMPT, max_tokens=2, adapter="a")
    assert given[-1] == [{model.adapters["a"]: 1.0}] or given[-1] == [{}]
    assert [scales for scales in given if scales] != []


# --- Sessions -----------------------------------------------------------------------------------------------------


def test_a_session_is_of_its_adapters(model: Mixtral, of: dict[str, Adapter], tmp_path: Path) -> None:
    ids = model.tokenize(LONG)
    files: dict[str, Any] = {"none": {}, "a": "a", "half": {"a": 0.5}, "both": {"a": 1, "b": 1}}
    expected = {}
    for name, choice in files.items():
        model.save_session(tmp_path / name, ids, adapter=choice)
        expected[name] = model.generate([*ids, 5], adapter=choice, **OPTIONS)
    assert struct.unpack_from("<I", (tmp_path / "none").read_bytes(), 8) == (1,)
    assert struct.unpack_from("<I", (tmp_path / "a").read_bytes(), 8) == (2,)
    for name, choice in files.items():
        for other, asked in files.items():
            model.forget()
            if name == other:
                assert model.load_session(tmp_path / name, adapter=asked) == ids
                assert model.generate([*ids, 5], max_tokens=1, adapter=choice).stats.cached_tokens == len(ids)
                same(model.generate([*ids, 5], adapter=choice, **OPTIONS), expected[name])
            else:
                with pytest.raises(SessionFileError, match="adapter"):
                    model.load_session(tmp_path / name, adapter=asked)
                assert model.stats().cached_pages == 0
    model.load_adapter("by another name", of["a"])
    try:
        assert model.load_session(tmp_path / "a", adapter="by another name") == ids
    finally:
        model.unload_adapter("by another name")


def test_the_words_of_a_session_of_another_adapter(model: Mixtral, tmp_path: Path) -> None:
    model.save_session(tmp_path / "a", PROMPT, adapter="a")
    model.save_session(tmp_path / "none", PROMPT)
    for path, asked, words in (
        ("a", None, "expected a session without adapters, found one with some"),
        ("a", "b", "expected a session with the adapter 'b' of scale 1, found one with other adapters or scales"),
        ("none", {"b": 2}, "expected a session with the adapter 'b' of scale 2, found one without adapters"),
    ):
        with pytest.raises(SessionFileError, match=words):
            model.load_session(tmp_path / path, adapter=asked)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 159), bits=st.integers(1, 255))
@example(at=85, bits=2)  # more ids than a context holds
def test_a_damaged_header_of_a_session_with_adapters(at: int, bits: int, model: Mixtral, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    if not path.exists():
        model.save_session(path, PROMPT, adapter="a")
    data = bytearray(path.read_bytes())
    data[at] ^= bits
    damaged = tmp_path / "damaged.session"
    damaged.write_bytes(data)
    with pytest.raises(SessionFileError):
        model.load_session(damaged, adapter="a")


def test_a_session_of_an_adapter_that_the_cache_no_longer_has(model: Mixtral, tmp_path: Path) -> None:
    model.forget()
    ids = model.tokenize(LONG)
    model.save_session(tmp_path / "a", ids, adapter="a")  # computed for it
    first = (tmp_path / "a").read_bytes()
    model.save_session(tmp_path / "a", ids, adapter="a", force=True)  # found in the cache
    assert (tmp_path / "a").read_bytes() == first


# --- The table of names -------------------------------------------------------------------------------------------


def test_identities_are_of_content_and_scale(of: dict[str, Adapter]) -> None:
    again = Adapter(of["a"].pairs, "elsewhere")
    table = Adapters({"a": of["a"], "again": again, "b": of["b"]})
    assert identity(table.chosen("a")) == identity(table.chosen("again")) == ((of["a"].digest.hex(), 1.0),)
    assert identity(table.chosen({"a": 0.25, "again": 0.5})) == ((of["a"].digest.hex(), 0.75),)
    assert identity(table.chosen({"a": 2, "b": 1})) == identity(table.chosen({"b": 1, "a": 2}))
    assert identity(table.chosen({"a": 1, "again": -1})) == identity(table.chosen(None)) == ()
    named = {name: Adapter(of["a"].pairs, name) for name in "wxyz"}
    few = {"w": 1.0, "x": 2.0**-60, "y": -1.0, "z": 0.1}
    for order in permutations(few):  # additions of two would differ in their last bits
        assert identity(Adapters(named).chosen({name: few[name] for name in order})) == (
            (of["a"].digest.hex(), math.fsum(few.values())),
        )
    assert not table.has(Adapter(of["c"].pairs, "c"))
