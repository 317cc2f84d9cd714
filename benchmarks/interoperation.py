"""Files that llama.cpp writes, run by pymixtral and by llama.cpp, and files that pymixtral writes,
likewise: do they agree?

    python benchmarks/interoperation.py -f heldout.txt --calibration other.txt \\
        --peer-python PEERS/bin/python --markdown table.md

A trained Mixtral is written in every type that llama.cpp's quantizer (llama_model_quantize of
llama-cpp-python) and pymixtral's have, and small models of other shapes (interoperation_models.py)
and other layouts in a few. agreement.py says what is compared. Files that llama.cpp writes only
with an importance matrix get pymixtral's, of the calibration text.

Then both quantizers write every type of both without an importance matrix, with pymixtral's, and,
with --tools, llama-imatrix's: the divergence of each file's predictions from those of the f32
model. With --tools, a directory that has llama-imatrix and llama-quantize, llama-quantize reads the
files themselves; without, pymixtral reads its file for llama.cpp's quantizer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from agreement import Agreement, Passage, Peer, RefusedError, agreement
from interoperation_models import MEMBERS, Member, make, rewrite

import pymixtral
from pymixtral import Mixtral, PymixtralError, convert_layout
from pymixtral.evaluation.calibration import calibrate
from pymixtral.evaluation.perplexity import perplexity
from pymixtral.files import imatrix
from pymixtral.files.gguf import GGUFFile
from pymixtral.quantize import quantize
from pymixtral.quantize.recipe import RECIPES

ROOT = Path(__file__).resolve().parents[1]

PEER_TYPES = {
    # Numbers of llama_ftype.
    **{
        "f32": 0,
        "f16": 1,
        "bf16": 32,
        "q4_0": 2,
        "q4_1": 3,
        "q5_0": 8,
        "q5_1": 9,
        "q8_0": 7,
        "iq4_nl": 25,
        "iq4_xs": 30,
        "q2_k": 10,
    },
    **{
        "q2_k_s": 21,
        "q3_k_s": 11,
        "q3_k_m": 12,
        "q3_k_l": 13,
        "q4_k_s": 14,
        "q4_k_m": 15,
        "q5_k_s": 16,
        "q5_k_m": 17,
        "q6_k": 18,
    },
    **{
        "iq1_s": 24,
        "iq1_m": 31,
        "iq2_xxs": 19,
        "iq2_xs": 20,
        "iq2_s": 28,
        "iq2_m": 29,
        "iq3_xxs": 23,
        "iq3_xs": 22,
        "iq3_s": 26,
    },
    **{"iq3_m": 27, "tq1_0": 36, "tq2_0": 37, "mxfp4_moe": 38, "nvfp4": 39, "q1_0": 40, "q2_0": 41},
}
WEIGHTED = (
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "iq4_xs", "q4_0", "iq4_nl", "q4_k_s", "q4_k_m", "q4_1"),
    *("q5_0", "q5_k_s", "q5_k_m", "q5_1", "q6_k", "q8_0"),
)
"""Types written with and without an importance matrix."""

Written = tuple[Path, Path, str]
"""The file that pymixtral runs, the one that llama.cpp runs, a note."""
Writer = Callable[[Path, str, Path], Written]
"""Writes a source in a type to a directory."""


@dataclass(frozen=True)
class Case:
    """One row. write: makes its files in a directory."""

    writer: str
    layout: str
    model: str
    type: str
    write: Callable[[Path], Written]

    @property
    def name(self) -> str:
        return f"{self.writer} | {self.layout} | {self.model} | {self.type}"


@dataclass(frozen=True)
class Bench:
    """What all cases share. source: the trained model as f32 GGUF."""

    peer: Peer
    checkpoint: Path
    source: Path
    importance: Path

    def cases(self) -> Iterator[Case]:
        writers = {"pymixtral": self.ours, "llama.cpp": self.theirs}
        for writer, kinds in (("llama.cpp", PEER_TYPES), ("pymixtral", RECIPES)):
            for kind in kinds:
                yield Case(writer, "merged", "trained", kind, partial(writers[writer], self.source, kind))
        for name, relayout in LAYOUTS.items():
            for writer, kind in (("pymixtral", "q8_0"), ("llama.cpp", "q4_k_m")):
                yield Case(writer, name, "trained", kind, partial(self.laid_out, writers[writer], kind, relayout))
        for name, member in MEMBERS.items():
            for writer, kind in (("pymixtral", "f16"), ("pymixtral", "q8_0"), ("llama.cpp", "q4_k_m")):
                yield Case(writer, "merged", name, kind, partial(self.member, writers[writer], kind, member))

    def ours(self, source: Path, kind: str, directory: Path) -> Written:
        path = directory / f"{kind}.gguf"
        quantize(source, path, kind, n_threads=self.peer.n_threads, progress=False)
        return path, path, ""

    def theirs(self, source: Path, kind: str, directory: Path) -> Written:
        path = directory / f"{kind}.gguf"
        try:
            self.peer("quantize", source=source, dest=path, kind=PEER_TYPES[kind], imatrix=None)
        except RefusedError as error:
            if "mportance" not in str(error) and "imatrix" not in str(error):
                raise
            self.peer(
                "quantize", source=source, dest=path, kind=PEER_TYPES[kind], imatrix=means(self.importance, directory)
            )
            return path, path, "needs an importance matrix"
        return path, path, ""

    def laid_out(self, write: Writer, kind: str, relayout: Callable[[Path, Path], Path], directory: Path) -> Written:
        plain, _, _ = write(self.source, kind, directory)
        path = relayout(plain, directory / "layout.gguf")
        try:
            self.peer("open", model=path)
        except RefusedError as error:
            return path, plain, f"llama.cpp refuses it ({error}) and runs the merged file"
        return path, path, ""

    def member(self, write: Writer, kind: str, member: Member, directory: Path) -> Written:
        path, _, note = write(make(member, self.checkpoint, directory), kind, directory)
        return path, path, "; ".join(filter(None, (note, member.note)))


LAYOUTS: dict[str, Callable[[Path, Path], Path]] = {
    "split": lambda source, to: convert_layout(source, to, layout="split", progress=False)[0],
    "shards": lambda source, to: convert_layout(source, to, max_shard_bytes=4 << 20, progress=False)[0],
    "split, shards": lambda source, to: convert_layout(
        source, to, layout="split", max_shard_bytes=4 << 20, progress=False
    )[0],
    "version 2": lambda source, to: rewrite(source, to, version=2),
}


def means(path: Path, directory: Path) -> Path:
    """An importance matrix as llama.cpp's quantizer takes it: mean squares, of an expert that was
    never seen ones.
    """
    vectors = {}
    for name, entry in imatrix.read(path).entries.items():
        seen = entry.counts[:, None]
        vectors[name] = np.where(seen > 0, entry.sums / np.maximum(seen, 1), 1).astype(np.float32).ravel()
    to = directory / "means.npz"
    np.savez(to, **vectors)
    return to


# --- Importance matrices across -----------------------------------------------------------------------------------


def weighted(
    bench: Bench, passage: Passage, calibration: Path, tools: Path | None, directory: Path
) -> Iterator[dict[str, Any]]:
    """How far each file's predictions are from the f32 model's, by pymixtral."""
    matrices: dict[str, Path | None] = {"none": None, "pymixtral's": bench.importance}
    if tools:
        matrices["llama-imatrix's"] = directory / "llama-imatrix.gguf"
        command = [
            tools / "llama-imatrix",
            "-m",
            bench.source,
            "-f",
            calibration,
            "-o",
            matrices["llama-imatrix's"],
            "-c",
            "256",
        ]
        _silently([*command, "--output-format", "gguf", "-t", str(bench.peer.n_threads)])
    base = directory / "base"
    options: dict[str, Any] = {"n_ctx": passage.n_ctx, "n_windows": passage.n_windows, "progress": False}
    with Mixtral(bench.source, n_ctx=passage.n_ctx, n_threads=bench.peer.n_threads) as model:
        perplexity(model, passage.text, save_base=base, **options)
    path = directory / "weighted.gguf"
    for kind in WEIGHTED:
        for writer in ("pymixtral", "llama.cpp"):
            for name, matrix in matrices.items():
                if writer == "pymixtral":
                    quantize(bench.source, path, kind, imatrix=matrix, progress=False)
                elif tools:
                    given = ["--imatrix", matrix] if matrix else []
                    _silently([tools / "llama-quantize", *given, bench.source, path, kind, str(bench.peer.n_threads)])
                else:
                    vectors = means(matrix, directory) if matrix else None
                    bench.peer("quantize", source=bench.source, dest=path, kind=PEER_TYPES[kind], imatrix=vectors)
                with Mixtral(path, n_ctx=passage.n_ctx, n_threads=bench.peer.n_threads) as model:
                    kl = perplexity(model, passage.text, kl_against=base, **options).kl
                assert kl
                with GGUFFile(path) as file:
                    tensors = file.tensors.values()
                    bits = (
                        8
                        * sum(tensor.data.nbytes for tensor in tensors)
                        / sum(prod(tensor.shape) for tensor in tensors)
                    )
                path.unlink()
                yield {"type": kind, "writer": writer, "imatrix": name, "bits": bits, **asdict(kl)}


def _silently(command: list[Any]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]}: status {done.returncode}: {done.stderr[-500:]}")


# --- Tables -------------------------------------------------------------------------------------------------------

HEAD = """\
| written by | layout | model | type | mapped | same tokens | top-1 | margin | beyond | KL | perplexity: pymixtral | llama.cpp | exact | \
top-1 with exact: pymixtral | llama.cpp | KL from exact: pymixtral | llama.cpp | |
| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"""  # noqa: E501
WEIGHTED_HEAD = """\
| type | written by | importance matrix | bits per weight | KL from the f32 model | top-1 | perplexity ratio |
| --- | --- | --- | ---: | ---: | ---: | ---: |"""


def line(case: Case, found: Agreement | str, note: str) -> str:
    if isinstance(found, str):
        return f"| {case.name} |{' |' * 13} {found} |"
    yes = {True: "yes", False: "no"}
    engines = ("pymixtral", "llama.cpp")
    cells = [
        *(
            yes[found.mapped],
            yes[found.same_tokens],
            f"{found.top1:.2%}",
            f"{found.margin:.3f}",
            str(found.n_beyond),
            f"{found.kl:.2e}",
        ),
        *(f"{found.perplexity[name]:.3f}" for name in (*engines, "exact")),
        *(f"{found.exact_top1[name]:.2%}" for name in engines),
        *(f"{found.exact_kl[name]:.2e}" for name in engines),
        "; ".join(
            filter(
                None,
                (
                    f"{', '.join(found.beyond)} beyond: {found.nearer} is nearer" if found.beyond else "within bounds",
                    note,
                ),
            )
        ),
    ]
    return f"| {case.name} | {' | '.join(cells)} |"


def run(bench: Bench, case: Case, passage: Passage) -> tuple[Agreement | str, str]:
    """What was found, or why nothing was, and a note."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            ours, theirs, note = case.write(Path(directory))
        except RefusedError as error:
            return f"llama.cpp does not write it: {str(error).replace(directory + os.sep, '')}", ""
        try:
            return agreement(bench.peer, passage, ours, theirs, Path(directory)), note.replace(directory + os.sep, "")
        except (RefusedError, PymixtralError) as error:
            who = "llama.cpp" if isinstance(error, RefusedError) else "pymixtral"
            return f"{who} refuses it: {str(error).replace(directory + os.sep, '')}", note


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether pymixtral and llama.cpp agree on files of both quantizers.")
    parser.add_argument(
        "-f", "--file", type=Path, required=True, help="the text, UTF-8, that the model was not trained on"
    )
    parser.add_argument("--calibration", type=Path, required=True, help="another text, UTF-8, for importance matrices")
    parser.add_argument(
        "--checkpoint", type=Path, default=ROOT / "tests" / "data" / "tiny-mixtral", help="a trained Mixtral, small"
    )
    parser.add_argument("-c", "--context", type=int, default=256, help="tokens of a window (256)")
    parser.add_argument("-n", "--windows", type=int, default=100, help="so many windows (100)")
    parser.add_argument(
        "-t", "--threads", type=int, default=os.cpu_count() or 1, help="threads of each engine (one per CPU)"
    )
    parser.add_argument(
        "--peer-python", default=sys.executable, metavar="PATH", help="an interpreter with the [peers] extra (this one)"
    )
    parser.add_argument("--tools", type=Path, metavar="DIRECTORY", help="where llama-imatrix and llama-quantize are")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="only rows that match, such as 'q4_'; 'importance matrices'"
    )
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    given = parser.parse_args()
    passage = Passage(given.file.read_text("utf-8").removesuffix("\n"), given.context, given.windows)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        bench = Bench(
            Peer(given.peer_python, given.threads), given.checkpoint, directory / "f32.gguf", directory / "imatrix.gguf"
        )
        quantize(given.checkpoint, bench.source, "f32", progress=False)
        with Mixtral(bench.source, n_ctx=256, n_threads=given.threads) as model:
            texts = [(given.calibration.name, given.calibration.read_text("utf-8"))]
            imatrix.write(calibrate(model, texts, n_ctx=256), bench.importance, force=True)
        about = bench.peer("open", model=bench.source)
        lines = [f"{about['name']} ({about['variant']}), pymixtral {pymixtral.__version__}", "", HEAD]
        print(*lines, sep="\n")
        rows = []
        for case in bench.cases():
            if re.search(given.only, case.name):
                found, note = run(bench, case, passage)
                lines.append(line(case, found, note))
                print(lines[-1], flush=True)
                figures = {"refused": found} if isinstance(found, str) else asdict(found)
                rows.append(
                    {
                        **{key: getattr(case, key) for key in ("writer", "layout", "model", "type")},
                        **figures,
                        "note": note,
                    }
                )
        weights = []
        if re.search(given.only, "importance matrices"):
            lines += ["", WEIGHTED_HEAD]
            print("", WEIGHTED_HEAD, sep="\n")
            for row in weighted(bench, passage, given.calibration, given.tools, directory):
                weights.append(row)
                cells = [
                    *(
                        row["type"],
                        row["writer"],
                        row["imatrix"],
                        f"{row['bits']:.3f}",
                        f"{row['mean']:.5f} ± {row['standard_error']:.5f}",
                    ),
                    *(f"{row['top1_agreement']:.2%}", f"{row['ratio']:.4f} ± {row['ratio_error']:.4f}"),
                ]
                lines.append(f"| {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps({"about": about, "rows": rows, "weighted": weights}, indent=2) + "\n")


if __name__ == "__main__":
    main()
