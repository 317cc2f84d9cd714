"""Adapters behind the endpoints: models by name, loaded and unloaded while the server runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from pymixtral import InvalidArgumentError, Mixtral, NativeError, demo_chat_path
from pymixtral.server.adapter_folder import adapter_path
from pymixtral.server.errors import APIError
from pymixtral.server.service import Service
from pymixtral.server.settings import Settings
from support.adapter_files import write_adapter
from support.api_servers import Served, serving
from support.low_rank import adapter_for

USER: Any = [{"role": "user", "content": "Who are you?"}]
OPENAI: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "penalty_window": 0}
ASK: dict[str, Any] = {"seed": 1, "max_tokens": 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operator's folder and, beside it, what nobody may load."""
    place = tmp_path_factory.mktemp("adapters")
    with Mixtral(demo_chat_path(), n_ctx=64) as model:
        (place / "inside").mkdir()
        (place / "beside").mkdir()
        (place / "inside" / "deeper").mkdir()
        for i, path in enumerate(("inside/a.gguf", "inside/deeper/b.gguf", "beside/secret.gguf", "inside-not.gguf")):
            write_adapter(place / path, model.config, i)
    (place / "inside" / "broken.gguf").write_bytes(b"GGUF")
    (place / "inside" / "out.gguf").symlink_to(place / "beside" / "secret.gguf")
    (place / "inside" / "link.gguf").symlink_to("deeper/b.gguf")
    (place / "inside" / "up").symlink_to("..")
    (place / "inside" / "round").symlink_to("round")
    (place / "inside" / "mixed").mkdir()
    (place / "inside" / "mixed" / "adapter_config.json").symlink_to("/etc/hostname")
    (place / "inside" / "x-00001-of-00002.gguf").write_bytes((place / "inside" / "a.gguf").read_bytes())
    (place / "inside" / "x-00002-of-00002.gguf").symlink_to(place / "beside" / "secret.gguf")
    os.mkfifo(place / "inside" / "pipe")
    return place


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with Mixtral(demo_chat_path(), n_threads=1, n_ctx=512) as model:
        for i in range(2):
            model.load_adapter(f"own {i}", adapter_for(model.config, 10 + i))
        with serving(model, scales={"own 1": 0.5}, adapter_folder=folder / "inside") as served:
            yield served


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def load(served: Served, name: str, path: str, **more: Any) -> tuple[int, Any]:
    return served.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path, **more})


def unload(served: Served, name: str) -> tuple[int, Any]:
    return served.post("/v1/unload_lora_adapter", {"lora_name": name})


def test_openais_client_picks_an_adapter_by_its_name(client: OpenAI, served: Served) -> None:
    base = served.service.name
    found = {model.id: model.to_dict() for model in client.models.list()}
    assert list(found) == [base, "own 0", "own 1"]
    assert (found[base]["parent"], found[base]["root"]) == (None, demo_chat_path().name)
    assert (found["own 0"]["parent"], found["own 0"]["root"]) == (base, "adapter 10")
    assert client.models.retrieve("own 1").id == "own 1"
    texts = set()
    for name, adapter in ((base, {}), ("own 0", "own 0"), ("own 1", {"own 1": 0.5})):
        expected = served.model.chat(USER, adapter=adapter, **ASK, **OPENAI).content
        answer = client.chat.completions.create(model=name, messages=USER, **ASK)
        assert (answer.model, answer.choices[0].message.content) == (name, expected)
        stream = list(client.chat.completions.create(model=name, messages=USER, stream=True, **ASK))
        assert {chunk.model for chunk in stream} == {name}
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
        response = client.responses.create(
            model=name, input="Who are you?", max_output_tokens=9, extra_body={"seed": 1}
        )
        assert (response.model, response.output_text) == (name, expected)
        text = client.completions.create(model=name, prompt="Once upon", **ASK)
        assert text.choices[0].text == served.model.generate("Once upon", adapter=adapter, **ASK, **OPENAI).text
        vector = client.embeddings.create(model=name, input="Once upon")
        assert vector.model == name
        computed = served.model.embed(["Once upon"], normalize=True, adapter=adapter)
        assert np.array_equal(np.float32(vector.data[0].embedding), computed[0])
        score = served.ok("/v1/score", model=name, context="Once", continuations=[" upon"])
        (likely,) = served.model.score("Once", [" upon"], adapter=adapter)
        assert (score["model"], score["data"][0]["logprob"]) == (name, likely.logprob)
        texts.add(expected)
    assert len(texts) == 3
    assert served.ok("/v1/completions", prompt="a", max_tokens=1)["model"] == base  # no name is the model's
    for ask in (
        lambda: client.chat.completions.create(model="own 2", messages=USER),
        lambda: client.completions.create(model="own 2", prompt="a"),
        lambda: client.responses.create(model="own 2", input="a"),
        lambda: client.embeddings.create(model="own 2", input="a"),
        lambda: client.models.retrieve("own 2"),
    ):
        with pytest.raises(openai.NotFoundError, match=r"one of the models .*: choose one of them"):
            ask()


@pytest.mark.parametrize(
    ("given", "adapter"),
    [
        ("own 0", {"own 0": 1.0}),
        ("own 1", {"own 1": 0.5}),  # as it is served
        ({"own 1": 1}, {"own 1": 1.0}),
        ({"own 0": 0.25, "own 1": -0.75}, {"own 0": 0.25, "own 1": -0.75}),
        ({"own 0": 0}, {}),
        ({}, {}),
    ],
)
def test_a_request_has_scales_of_its_own(served: Served, given: Any, adapter: dict[str, float]) -> None:
    base = served.service.name
    name = given if isinstance(given, str) else next(iter(given)) if len(given) == 1 else base
    expected = served.model.chat(USER, adapter=adapter, **ASK, **OPENAI).content
    text = served.model.generate("Once upon", adapter=adapter, **ASK, **OPENAI).text
    for model in ({}, {"model": base}):
        answer = served.ok("/v1/chat/completions", messages=USER, adapter=given, **ASK, **model)
        assert (answer["model"], answer["choices"][0]["message"]["content"]) == (name, expected)
        answer = served.ok("/v1/completions", prompt="Once upon", adapter=given, **ASK, **model)
        assert (answer["model"], answer["choices"][0]["text"]) == (name, text)


def test_scales_of_a_request_in_streams_and_several_texts(served: Served, client: OpenAI) -> None:
    scales = {"own 0": 0.25, "own 1": -0.75}
    same: Any = {"model": served.service.name, "extra_body": {"adapter": scales}, **ASK}
    stream = client.chat.completions.create(messages=USER, stream=True, **same)
    expected = served.model.chat(USER, adapter=scales, **ASK, **OPENAI).content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
    texts = client.completions.create(prompt=["Once", "Twice"], n=2, **same).choices
    alone = [
        served.model.generate(prompt, adapter=scales, **ASK | {"seed": seed}, **OPENAI).text
        for prompt in ("Once", "Twice")
        for seed in (1, 2)
    ]
    assert [texts[0].text, texts[2].text] == [alone[0], alone[2]]


def test_pages_of_the_prefix_cache_are_those_of_the_same_scales(served: Served) -> None:
    prompt = "The fox and the bear went into the forest. " * 8

    def cached(adapter: Any) -> int:
        answer = served.ok("/v1/completions", prompt=prompt, max_tokens=1, adapter=adapter)
        found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    assert cached({"own 0": 0.7}) == 0
    assert cached({"own 0": 0.7}) > 0
    assert cached({"own 0": 0.6}) == 0
    assert cached({"own 0": 0.7, "own 1": 0.0}) > 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"adapter": "no"}, ["expected adapter to be one that is loaded", "'no'", "'own 0'"]),
        ({"adapter": {"own 0": 1, "no": 1}}, ["expected adapter to be one that is loaded", "'no'"]),
        ({"adapter": {"own 0": 1001}}, ["expected adapter.own 0", "1000", "1001"]),
        ({"adapter": {"own 0": -1000.5}}, ["-1000"]),
        ({"adapter": {"own 0": "1"}}, ["expected adapter.own 0 to be a number"]),
        ({"adapter": {"own 0": True}}, ["expected adapter.own 0 to be a number"]),
        ({"adapter": {"own 0": None}}, ["expected adapter.own 0 to be a number"]),
        ({"adapter": ["own 0"]}, ["expected adapter to be text or an object"]),
        ({"adapter": 1}, ["expected adapter to be text or an object"]),
        ({"adapter": ""}, ["adapter", "the length 1 or more"]),
        ({"adapter": {str(i): 1 for i in range(300)}}, ["adapter", "256"]),
        ({"adapter": {"own 0": 1}, "model": "own 1"}, ["the model's own name", "'own 1'"]),
        ({"adapter": {}, "model": "own 1"}, ["the model's own name"]),
    ],
)
def test_adapters_of_a_request_that_are_none(served: Served, fields: Any, words: list[str]) -> None:
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": USER})):
        error = served.refused(path, **body, max_tokens=1, **fields)
        assert error["param"].startswith("adapter")
        assert error["code"] == "invalid_value"
        for word in words:
            assert word in error["message"], error["message"]


def test_a_model_that_is_none_is_refused_beside_adapters(served: Served) -> None:
    status, error = served.post("/v1/completions", {"prompt": "a", "model": "no", "adapter": "own 0"})
    assert (status, error["error"]["code"]) == (404, "model_not_found")


def test_llama_cpps_field_is_refused_with_the_way_that_is_there(served: Served) -> None:
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": USER})):
        error = served.refused(path, **body, lora=[{"id": 0, "scale": 0.5}])
        assert error["param"] == "lora"
        assert "`model` picks an adapter" in error["message"]


def test_where_scales_are_not_taken_the_way_that_is_there_is_named(served: Served) -> None:
    for path, body in (
        ("/v1/responses", {"input": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/score", {"context": "a", "continuations": ["b"]}),
    ):
        error = served.refused(path, **body, adapter="own 0")
        assert (error["param"], error["code"]) == ("adapter", "unsupported_parameter")
        assert "`model` picks an adapter" in error["message"]


def test_adapters_come_and_go(served: Served, client: OpenAI, folder: Path) -> None:
    status, model = load(served, "new", "a.gguf")
    assert status == 200
    assert (model["id"], model["parent"], model["root"]) == ("new", served.service.name, "a.gguf")
    assert [model.id for model in client.models.list()][-1] == "new"
    first = client.completions.create(model="new", prompt="Once", **ASK).choices[0].text
    status, error = load(served, "new", "deeper/b.gguf")
    assert (status, error["error"]["param"]) == (400, "lora_name")
    assert "load_inplace" in error["error"]["message"]
    assert load(served, "new", str(folder / "inside" / "deeper" / "b.gguf"), load_inplace=True)[0] == 200
    second = client.completions.create(model="new", prompt="Once", **ASK).choices[0].text
    assert first != second
    assert load(served, "link", "link.gguf")[0] == 200  # a link that stays below the folder
    assert client.completions.create(model="link", prompt="Once", **ASK).choices[0].text == second
    for name in ("new", "link"):
        assert unload(served, name) == (200, {"id": name, "object": "model", "deleted": True})
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model=name, prompt="Once")
    status, error = unload(served, "new")
    assert (status, error["error"]["param"], error["error"]["code"]) == (404, "lora_name", "model_not_found")
    status, error = unload(served, served.service.name)
    found = f"found {served.service.name!r}: loaded now: {', '.join(map(repr, served.service.adapters)) or 'none'}"
    assert (status, error["error"]["message"]) == (404, f"expected lora_name to be an adapter's, {found}")


@pytest.mark.parametrize(
    "path",
    [
        *("../beside/secret.gguf", "..", ".", "", "up/beside/secret.gguf", "out.gguf", "up", "round", "pipe", "mixed"),
        *("deeper/../../beside/secret.gguf", "../inside-not.gguf", "/etc/passwd", "~/a.gguf", "no.gguf", "a.gguf/x"),
        *(
            "a.gguf\0",
            "x-00001-of-00002.gguf",
            "x" * 4000,
            "/" + "x/" * 2000,
            "//etc/passwd",
            "deeper/../../inside-not.gguf",
        ),
    ],
)
def test_no_path_leads_out_of_the_folder(served: Served, folder: Path, path: str) -> None:
    status, answer = load(served, "evil", path)
    assert status == 400
    assert answer["error"]["param"] == "lora_path"
    assert str(folder) not in answer["error"]["message"]
    assert "evil" not in served.model.adapters
    absolute = str(folder / "beside" / "secret.gguf")
    assert load(served, "evil", absolute)[0] == 400
    # What is elsewhere is not told from what is nowhere.
    secret, nothing = (load(served, "evil", f"../beside/{name}.gguf")[1]["error"] for name in ("secret", "sicret"))
    assert secret["message"].replace("secret", "sicret") == nothing["message"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "..",
                ".",
                "",
                "/",
                "a.gguf",
                "deeper",
                "b.gguf",
                "up",
                "inside",
                "beside",
                "secret.gguf",
                "out.gguf",
                "\0",
            ]
        ),
        max_size=8,
    )
)
def test_whatever_a_path_is_made_of(parts: list[str], folder: Path) -> None:
    root = folder / "inside"
    found = adapter_path(root, "/".join(parts))
    if found is not None:
        assert found.is_relative_to(root.resolve())
        assert found != root.resolve()
        assert not found.is_symlink()


def test_a_broken_adapter_is_refused_without_the_servers_folder(served: Served, folder: Path) -> None:
    for path in ("broken.gguf", "deeper"):
        status, answer = load(served, "broken", path)
        assert (status, answer["error"]["param"]) == (400, "lora_path")
        assert path in answer["error"]["message"]
        assert str(folder) not in answer["error"]["message"]


def test_no_error_of_loading_tells_where_the_folder_is(tmp_path: Path) -> None:
    """Files whose errors name other files, or whose names are cut or escaped in errors."""
    roots = [tmp_path / "secret", tmp_path / ("secret" * 30), tmp_path / "secret\n"]
    with Mixtral(demo_chat_path(), n_ctx=64) as model:
        for root in roots:
            (root / "links").mkdir(parents=True)
            (root / "links" / "adapter_config.json").symlink_to("../some.json")
            (root / "some.json").write_text('{"peft_type": "LORA"}')
            (root / "names").mkdir()
            (root / "names" / os.fsdecode(b"\xff.gguf")).write_bytes(b"")
            (root / "safetensors.gguf").write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(600))
            long = root / ("l" * 200) / ("m" * 200)
            long.mkdir(parents=True)
            (long / "adapter_config.json").write_text('{"peft_type": "LORA"}')
            shard = GGUFWriter(root / "s-00001-of-00002.gguf", "llama")
            shard.add_uint16("split.count", 2)
            shard.add_uint16("split.no", 0)
            shard.write_header_to_file()
            shard.write_kv_data_to_file()
            shard.close()
            with serving(model, adapter_folder=root) as served:
                names = ("links", "names", "s-00001-of-00002.gguf", "safetensors.gguf", str(long.relative_to(root)))
                for name in (*names, str(root / "links")):
                    status, answer = load(served, "a", name)
                    assert (status, answer["error"]["param"]) == (400, "lora_path")
                    message = answer["error"]["message"]
                    assert "expected" in message or "cannot be read" in message
                    for part in ("secret", str(tmp_path)):
                        assert part not in message.replace(name, ""), message


def test_an_error_of_the_machine_tells_no_path_either(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, *_: object) -> None:
        raise NativeError(f"{path}: expected room for one more file, found an error: raise the limit")

    monkeypatch.setattr("pymixtral.model_adapters.open_adapter", fails)
    status, answer = load(served, "full", "a.gguf")
    assert status == 500
    assert answer["error"]["message"].startswith("a.gguf: expected room")


@pytest.mark.parametrize("name", ["", "x" * 257, "a\nb", "a\x7f"])
def test_names_that_are_none(served: Served, name: str) -> None:
    status, answer = load(served, name, "a.gguf")
    assert (status, answer["error"]["param"]) == (400, "lora_name")


def test_the_models_own_name_stays_its_own(served: Served) -> None:
    status, answer = load(served, served.service.name, "a.gguf", load_inplace=True)
    assert (status, answer["error"]["param"]) == (400, "lora_name")
    with Mixtral(demo_chat_path(), n_ctx=64) as model:
        model.load_adapter("mine", adapter_for(model.config, 1))
        with pytest.raises(InvalidArgumentError, match="expected adapters of other names"), serving(model, name="mine"):
            pass
        with (
            pytest.raises(InvalidArgumentError, match="the scale of adapter 'mine'"),
            serving(model, scales={"mine": float("nan")}),
        ):
            pass


def test_an_adapter_that_goes_or_comes_meanwhile_is_never_none(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another thread does between two looks: that adapter, or no answer."""
    named = dict.fromkeys(["fleeting"], next(iter(served.model.adapters.values())))
    for looks in product((named, {}), repeat=3):
        left = iter([*looks, {}, {}, {}])
        monkeypatch.setattr(Service, "adapters", property(lambda _, left=left: next(left)))
        with suppress(APIError):
            assert served.service.adapter_of("fleeting") == {"fleeting": 1.0}


def test_loading_is_off_by_default(story: Served, folder: Path) -> None:
    for path, body in (
        ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": str(folder / "inside" / "a.gguf")}),
        ("/v1/unload_lora_adapter", {"lora_name": "a"}),
    ):
        status, answer = story.post(path, body)
        assert (status, answer["error"]["code"]) == (403, "not_allowed")
    assert not story.model.adapters
    assert story.ok("/v1/completions", model="whatever", prompt="a", max_tokens=1)["model"] == story.service.name
    with pytest.raises(InvalidArgumentError, match="expected adapter_folder to be a folder"):
        Settings(adapter_folder=folder / "nowhere")


def test_there_is_an_end_to_what_clients_load(folder: Path) -> None:
    with (
        Mixtral(demo_chat_path(), n_ctx=64) as model,
        serving(model, adapter_folder=folder / "inside", max_adapters=2) as served,
    ):
        assert [load(served, f"a{i}", "a.gguf")[0] for i in range(3)] == [200, 200, 400]
        assert load(served, "a1", "a.gguf", load_inplace=True)[0] == 200
        assert unload(served, "a0")[0] == 200
        assert load(served, "a2", "a.gguf")[0] == 200


def test_a_stream_ends_with_the_adapter_that_it_began_with(served: Served, client: OpenAI) -> None:
    assert load(served, "going", "a.gguf")[0] == 200
    options: dict[str, Any] = {"seed": 3, "max_tokens": 200}
    expected = served.model.generate("Once", adapter="going", ignore_eos=True, **options, **OPENAI).text
    stream = client.completions.create(
        model="going", prompt="Once", stream=True, extra_body={"ignore_eos": True}, **options
    )
    text = next(stream).choices[0].text
    assert load(served, "going", "deeper/b.gguf", load_inplace=True)[0] == 200
    assert unload(served, "going")[0] == 200
    assert text + "".join(chunk.choices[0].text for chunk in stream) == expected


def test_many_clients_load_unload_and_ask(served: Served) -> None:
    expected = {}
    for path in ("a.gguf", "deeper/b.gguf"):
        assert load(served, "known", path, load_inplace=True)[0] == 200
        expected[path] = served.ok("/v1/completions", model="known", prompt="Once", **ASK)["choices"][0]["text"]
    unload(served, "known")
    faults: list[BaseException] = []

    def own(i: int) -> None:
        """A name that nobody else has."""
        try:
            for j in range(6):
                path = list(expected)[(i + j) % 2]
                assert load(served, f"mine {i}", path)[0] == 200
                answer = served.ok("/v1/completions", model=f"mine {i}", prompt="Once", **ASK)
                assert (answer["choices"][0]["text"], answer["model"]) == (expected[path], f"mine {i}")
                assert unload(served, f"mine {i}")[0] == 200
        except BaseException as error:
            faults.append(error)

    def shared(i: int) -> None:
        """A name that others load and unload meanwhile: an answer of either adapter, or none."""
        try:
            for j in range(8):
                load(served, "ours", list(expected)[(i + j) % 2], load_inplace=True)
                status, answer = served.post("/v1/completions", {"model": "ours", "prompt": "Once", **ASK})
                assert status in (200, 400, 404)
                if status == 200:
                    assert answer["choices"][0]["text"] in expected.values()
                unload(served, "ours")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3) for work in (own, shared)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    unload(served, "ours")
    assert sorted(served.model.adapters) == ["own 0", "own 1"]
