"""Metadata in place of the file's: read and checked like its own, by library and commands."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pymixtral import Mixtral, ModelConfig
from pymixtral.arrays import F32
from pymixtral.cli import main
from pymixtral.errors import InvalidArgumentError, ModelConfigError, UnsupportedError
from pymixtral.files.gguf import GGUFFile
from pymixtral.inspection.inspect import inspect
from pymixtral.model.overrides import KEYS
from pymixtral.model.weights import load_weights
from pymixtral.quantize import quantize
from pymixtral.reference import oracle
from support.checkpoints import Shape, make_checkpoint
from support.ggufs import rewrite

PROMPT = "Once upon a time there was a king"
USED = "llama.expert_used_count"


def logits(path: Path, **options: Any) -> Any:
    with Mixtral(path, **options) as model:
        return model.logits(model.tokenize(PROMPT))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (USED, 1),
        (USED, 8),
        ("llama.rope.freq_base", 5e5),
        ("llama.attention.layer_norm_rms_epsilon", 2.0**-10),
        ("llama.rope.scaling.factor", 2.0),
        ("tokenizer.ggml.add_bos_token", False),
        ("tokenizer.ggml.add_space_prefix", False),
    ],
)
def test_an_override_is_as_if_the_file_had_it(tiny_q8_0: Path, tmp_path: Path, key: str, value: Any) -> None:
    changed = logits(rewrite(tiny_q8_0, tmp_path / "m.gguf", keys={key: value}))
    np.testing.assert_array_equal(logits(tiny_q8_0, overrides={key: value}), changed)
    before = logits(tiny_q8_0)
    assert before.shape != changed.shape or not np.array_equal(before, changed)


def test_experts_used(tiny_q8_0: Path) -> None:
    np.testing.assert_array_equal(logits(tiny_q8_0, experts_used=3), logits(tiny_q8_0, overrides={USED: 3}))
    with Mixtral(tiny_q8_0, experts_used=1) as one, Mixtral(tiny_q8_0) as two:
        assert (one.config.n_experts_used, two.config.n_experts_used) == (1, 2)
    assert inspect(tiny_q8_0, experts_used=4).inventory.active_weights > inspect(tiny_q8_0).inventory.active_weights


def expected_logits(path: Path, **changes: Any) -> F32:
    with GGUFFile(path) as file:
        config = replace(ModelConfig.from_gguf(file), **changes)
        weights = load_weights(file, config)
        with Mixtral(path) as model:
            ids = model.tokenize(PROMPT)
        return oracle.logits(oracle.forward(weights, config, ids, np.float16), weights, config)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("n_batch", [3, 512])
def test_experts_used_by_layer(tiny_q8_0: Path, n_threads: int, n_batch: int) -> None:
    found = logits(tiny_q8_0, experts_used=[3, 1, 2, 3], n_threads=n_threads, n_batch=n_batch)
    expected = expected_logits(tiny_q8_0, n_experts_used=3, fewer_experts=(3, 1, 2, 3))
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, logits(tiny_q8_0, experts_used=3))
    np.testing.assert_array_equal(logits(tiny_q8_0, experts_used=[1] * 4), logits(tiny_q8_0, experts_used=1))


@pytest.mark.parametrize("min_p", [0.3, 1.0])
def test_unlikely_experts_are_left_out(tiny_q8_0: Path, min_p: float) -> None:
    found = logits(tiny_q8_0, experts_used=4, expert_min_p=min_p)
    np.testing.assert_array_equal(found, expected_logits(tiny_q8_0, n_experts_used=4, expert_min_p=min_p))
    assert not np.array_equal(found, logits(tiny_q8_0, experts_used=4))


@pytest.mark.parametrize("n_batch", [3, 512])
def test_finer_activations(tiny_q4_0: Path, tiny_q8_0: Path, n_batch: int) -> None:
    for path in (tiny_q4_0, tiny_q8_0):
        found = logits(path, activations="int16", n_batch=n_batch)
        np.testing.assert_array_equal(found, expected_logits(path, planes=2))
        assert not np.array_equal(found, logits(path))


@pytest.mark.parametrize("activations", ["int4", "INT8", 16, None, ""])
def test_activations_that_are_none(tiny_q8_0: Path, activations: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="activations to be 'int8' or 'int16', found"):
        Mixtral(tiny_q8_0, activations=activations)


def test_figures_of_experts_used_by_layer(tiny_q8_0: Path) -> None:
    each = [4, 1, 2, 1]
    with Mixtral(tiny_q8_0, experts_used=each) as model, Mixtral(tiny_q8_0) as two:
        assert (model.config.n_experts_used, model.config.experts_used) == (4, (4, 1, 2, 1))
        assert model.active_bytes == two.active_bytes  # 8 in all, as with 2 in each
        assert model.prompt_weights > two.prompt_weights  # whose last layer, of which a prompt skips the experts, has 2
        assert inspect(tiny_q8_0, experts_used=each).inventory.active_bytes == model.active_bytes


@pytest.mark.parametrize(
    ("each", "words"),
    [
        ([2, 2, 2], "one for each of the 4 layers, found 3"),
        ([], "experts_used"),
        ([2, 0, 2, 2], "experts_used"),
        ([2, True, 2, 2], "experts_used"),
        ([2, 2.0, 2, 2], "experts_used"),
        ("2222", "experts_used"),
    ],
)
def test_lists_of_experts_used_that_make_no_sense(tiny_q8_0: Path, each: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        Mixtral(tiny_q8_0, experts_used=each)


@pytest.mark.parametrize(("used", "most"), [(9, 9), ([2, 9, 2, 2], 9), (1 << 70, 1 << 70)])
def test_more_experts_than_there_are(tiny_q8_0: Path, used: Any, most: int) -> None:
    """The message names the argument. An override is refused by its key, as the file's own value is."""
    with pytest.raises(
        InvalidArgumentError, match=f"expected experts_used of at most the model's 8 experts, found {most}"
    ):
        Mixtral(tiny_q8_0, experts_used=used)
    with pytest.raises(ModelConfigError, match=USED):
        Mixtral(tiny_q8_0, overrides={USED: 9})


@pytest.mark.parametrize("min_p", [-0.1, 1.1, math.nan, "0.1", None])
def test_an_expert_min_p_that_makes_no_sense(tiny_q8_0: Path, min_p: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expert_min_p"):
        Mixtral(tiny_q8_0, expert_min_p=min_p)


def test_a_dense_model_has_no_experts_to_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "dense.gguf"
    make_checkpoint(tmp_path / "dense", Shape(n_experts=0), seed=1)
    quantize(tmp_path / "dense", path, "q8_0", progress=False)
    with pytest.raises(InvalidArgumentError, match="expert_min_p of 0 for a dense model"):
        Mixtral(path, expert_min_p=0.5)
    with pytest.raises(InvalidArgumentError, match="expected no experts_used for a dense model"):
        Mixtral(path, experts_used=2)


def test_a_window_for_a_file_that_has_none(tiny_q8_0: Path) -> None:
    key = "llama.attention.sliding_window"
    assert inspect(tiny_q8_0, overrides={key: 4}).config == inspect(tiny_q8_0).config  # a Mixtral has none
    assert key not in inspect(tiny_q8_0).metadata


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"llama.expert_used": 2}, ("'llama.expert_used'", "keys that pymixtral reads")),
        ({"general.alignment": 64}, ("'general.alignment'",)),
        ({"split.count": 2}, ("'split.count'",)),
        ({"tokenizer.ggml.tokens": "x"}, ("'tokenizer.ggml.tokens'",)),
        ({USED: 2.0}, (USED, "expected int", "found float 2.0")),
        ({USED: True}, (USED, "expected int", "found bool True")),
        ({USED: "2"}, (USED, "expected int", "found str '2'")),
        ({"llama.rope.freq_base": 10000}, ("llama.rope.freq_base", "expected float", "found int 10000")),
        ({"llama.rope.scaling.type": None}, ("expected str", "found NoneType None")),
    ],
)
def test_keys_and_types_that_cannot_be_given(
    tiny_q8_0: Path, overrides: dict[str, Any], words: tuple[str, ...]
) -> None:
    for call in (Mixtral, inspect):
        with pytest.raises(InvalidArgumentError) as caught:
            call(tiny_q8_0, overrides=overrides)
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({USED: 9}, ModelConfigError),
        ({USED: 0}, ModelConfigError),
        ({"llama.rope.freq_base": math.nan}, ModelConfigError),
        ({"llama.block_count": 3}, UnsupportedError),
        ({"llama.block_count": 2**70}, ModelConfigError),
        ({"llama.embedding_length": 128}, ModelConfigError),
        ({"general.architecture": "gemma"}, UnsupportedError),
        ({"llama.attention.causal": False}, UnsupportedError),
        ({"tokenizer.ggml.bos_token_id": 4096}, ModelConfigError),
    ],
)
def test_values_are_checked_like_the_file_s_own(
    tiny_q8_0: Path, overrides: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"tiny-mixtral-q8_0\.gguf"):
        Mixtral(tiny_q8_0, overrides=overrides)
    assert inspect(tiny_q8_0, overrides=overrides).problem is not None


@pytest.mark.parametrize("n", [0, -1, 1.0, True, "2"])
def test_experts_used_that_make_no_sense(tiny_q8_0: Path, n: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="experts_used"):
        Mixtral(tiny_q8_0, experts_used=n)
    with pytest.raises(InvalidArgumentError, match="both, and different"):
        Mixtral(tiny_q8_0, experts_used=2, overrides={USED: 3})
    for overrides in ([1], 1, "llama.expert_used_count=2"):
        with pytest.raises(InvalidArgumentError, match="overrides to be a mapping"):
            Mixtral(tiny_q8_0, overrides=overrides)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("experts_used", "overrides"),
    [
        (np.zeros(3, int), {}),
        (np.zeros(3, int), {USED: 2}),
        (2, {USED: np.zeros(3, int)}),
        (np.array(2), None),
        (None, {USED: np.array(2)}),
        (None, {USED: "2\n\x1b[31m" + "x" * 5000}),
        (None, {"a\nb\u2028" * 1000: 3}),
        (None, {("a\n",) * 1000: 3}),
    ],
)
def test_values_of_any_type_are_refused_in_one_line(tiny_q8_0: Path, experts_used: Any, overrides: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Mixtral(tiny_q8_0, experts_used=experts_used, overrides=overrides)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_every_key_that_can_be_given_is_read(tiny_q8_0: Path) -> None:
    """A value out of any range is refused by its key.

    Flags, names and what sets no range are in the tests above.
    """
    free = {
        "general.name",
        "tokenizer.chat_template",
        "tokenizer.ggml.pre",  # of byte-level tokenizers
        "tokenizer.ggml.unknown_token_id",  # where the token list names none
    }
    for key, kind in KEYS.items():
        if kind is bool or key in free:
            continue
        given = {int: -(2**40), float: math.nan, str: "nonsense"}[kind]
        overrides: dict[str, Any] = {
            "llama.rope.scaling.factor": 2.0,
            "llama.rope.scaling.type": "yarn",
            "llama.rope.freq_base": 1e6,
        }
        overrides[key] = given
        if key == "llama.rope.scale_linear":
            del overrides["llama.rope.scaling.factor"]
        problem = inspect(tiny_q8_0, overrides=overrides).problem
        assert problem is not None, key
        assert key.rpartition(".")[2] in problem or key in ("tokenizer.ggml.model",), (key, problem)


# --- Commands -------------------------------------------------------------------------------------


def run(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], input=input, prog_name="pymixtral")


def test_the_commands(tiny_q8_0: Path) -> None:
    generate = ["generate", "-m", tiny_q8_0, "-p", PROMPT, "-n", 12, "--temperature", 0]
    with Mixtral(tiny_q8_0, experts_used=1) as one:
        expected = one.generate(PROMPT, max_tokens=12, temperature=0).text
    for option in (["--experts-used", 1], ["--override-kv", f"{USED}=int:1"]):
        assert run(*generate, *option).stdout == expected + "\n"
    assert run(*generate).stdout != expected + "\n"
    with Mixtral(tiny_q8_0, experts_used=[2, 1, 2, 1], expert_min_p=0.5) as model:
        expected = model.generate(PROMPT, max_tokens=12, temperature=0).text
    assert run(*generate, "--experts-used", "2,1,2,1", "--expert-min-p", 0.5).stdout == expected + "\n"
    assert "1 to 2 used by a token" in run("inspect", tiny_q8_0, "--experts-used", "2,1,2,1").stdout

    text = PROMPT * 8
    plain, one_expert = (
        json.loads(run("perplexity", "-m", tiny_q8_0, "-c", 32, "--json", *option, input=text).stdout)["perplexity"]
        for option in ([], ["--experts-used", 1])
    )
    assert plain != one_expert

    found = json.loads(
        run("inspect", tiny_q8_0, "--json", "--experts-used", 4, "--override-kv", "general.name=str:a=b:c").stdout
    )
    assert (found["model"]["n_experts_used"], found["model"]["name"]) == (4, "a=b:c")


@pytest.mark.parametrize("text", ["", "0", "a", "2,", "2,0", "1.5", "2;2", "-1"])
def test_experts_used_that_cannot_be_read(tiny_q8_0: Path, text: str) -> None:
    result = run("inspect", tiny_q8_0, "--experts-used", text)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--experts-used" in result.stderr


def test_types_on_the_command_line(tiny_q8_0: Path) -> None:
    options = [
        "tokenizer.ggml.add_bos_token=bool:false",
        "llama.rope.freq_base=float:1e4",
        f"{USED}=int:1",
        f"{USED}=int:3",
    ]
    found = json.loads(
        run("inspect", tiny_q8_0, "--json", *(part for option in options for part in ("--override-kv", option))).stdout
    )
    assert found["metadata"]["tokenizer.ggml.add_bos_token"] is False
    assert (found["model"]["rope_base"], found["model"]["n_experts_used"]) == (1e4, 3)


@pytest.mark.parametrize(
    "text", ["", "a", "a=int", "a=int:", "a=int:1.5", "=int:1", "a=bool:1", "a=u32:1", f"{USED}=float:x"]
)
@pytest.mark.parametrize("command", ["generate", "perplexity", "inspect"])
def test_overrides_that_cannot_be_read(tiny_q8_0: Path, command: str, text: str) -> None:
    result = run(command, "-m", tiny_q8_0, "--override-kv", text, input=PROMPT)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "KEY=TYPE:VALUE" in result.stderr
