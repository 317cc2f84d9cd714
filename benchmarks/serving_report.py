"""The tables of serving.py, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    setting, parts = report["setting"], report["parts"]
    out = [
        f"{setting['model']}, {setting['file_bytes'] / 1e9:.2f} GB; pymixtral {setting['version']}; "
        f"{setting['threads']} threads; {setting['cpu']}; load {setting['load_before']:.2f} before"
    ]
    if "batches" in parts:
        part = parts["batches"]
        head = ["requests", "tokens/s of all (least to most)", "experts a layer", "GB a step", "bound, tokens/s"]
        rows = [
            [
                f"{row['requests']}",
                f"{row['tokens_per_second']:.1f} ({row['least']:.1f} to {row['most']:.1f})",
                f"{row['experts_read']:.2f}",
                f"{row['bytes'] / 1e9:.2f}",
                f"{row['bound']:.0f} ({row['bound_by']})",
                f"{row['of_bound']:.0%}",
                f"{row['peer']:.1f}" if "peer" in row else "",
                f"{row['ratio']:.2f}" if "ratio" in row else "",
            ]
            for row in part["rows"]
        ]
        out.append(table([*head, "of the bound", "llama-batched-bench", "ratio"], rows))
        out.append(
            "Measured in each round: read bandwidth "
            + ", ".join(f"{turn['read_gbps']:.1f}" for turn in part["rounds"])
            + " GB/s; int8 products "
            + ", ".join(f"{turn['int8_gmacs']:.0f}" for turn in part["rounds"])
            + " GMAC/s."
        )
    if "pace" in parts:
        head = ["program", "setting", "gap p50, ms", "p95", "longest", "p50 before", "first token of the prompt, s"]
        rows = [
            [
                row["program"],
                row["setting"],
                *(ms(row["gaps"][key]) for key in ("p50", "p95", "most")),
                ms(row["gaps_before"]["p50"]),
                f"{row['first_token']:.1f}",
            ]
            for row in parts["pace"]["rows"]
        ]
        out.append(table(head, rows))
    if "ends" in parts:
        head = ["ended by", "next pass begins, ms (most)", "its first token, ms (most)", "inside the prompt"]
        rows = [
            [
                row["how"],
                f"{ms(row['next_pass'])} ({ms(row['next_pass_most'])})",
                f"{ms(row['first_token'])} ({ms(row['first_token_most'])})",
                f"{row['ended_inside']}",
            ]
            for row in parts["ends"]["rows"]
        ]
        out.append(table(head, rows))
        out.append(f"The first token of such a request alone takes {ms(parts['ends']['first_token_alone'])} ms.")
    if "prefix" in parts:
        head = ["documents in turns", "first question, s", "later ones, s", "ratio", "hit rate of later ones", "of all"]
        rows = [
            [
                f"{row['documents']}",
                f"{row['first']:.2f}",
                f"{row['later']:.3f}",
                f"{row['ratio']:.0f}",
                f"{row['hit_rate_later']:.1%}",
                f"{row['hit_rate']:.1%}",
            ]
            for row in parts["prefix"]["rows"]
        ]
        out.append(table(head, rows))
    if "logprobs" in parts:
        part = parts["logprobs"]
        out.append(
            f"Log-probabilities of a prompt: {part['seconds_with']:.2f} s instead of {part['seconds']:.2f} s "
            f"({part['ratio']:.2f} times), {part['more_peak_bytes'] / 1e6:.0f} MB more at the peak."
        )
    if "lookup" in parts:
        head = ["text", "plain, tokens/s", "prompt_lookup=8", "ratio", "drafted", "accepted"]
        rows = [
            [
                row["text"],
                *(f"{row[key]:.1f}" for key in ("plain", "lookup")),
                f"{row['ratio']:.2f}",
                f"{row['drafted']}",
                f"{row['accepted']}",
            ]
            for row in parts["lookup"]["rows"]
        ]
        out.append(table(head, rows))
    if "python" in parts:
        head = ["requests", "outside C", "a step, ms", "a step without readers, ms"]
        rows = [
            [
                f"{row['requests']}",
                f"{row['python_share']:.1%}",
                f"{1000 * row['step']:.1f}",
                f"{1000 * row['step_without_readers']:.1f}",
            ]
            for row in parts["python"]["rows"]
        ]
        out.append(table(head, rows))
    if "soak" in parts:
        found = parts["soak"]["report"]
        out.append(
            f"Soak: {found['requests']} requests, {found['faults']} faults, {found['preempted']} preemptions; "
            f"memory grew by {found['memory_growth']:.1%} over the last four fifths."
        )
    out.append("Seconds of each part: " + ", ".join(f"{k} {v:.0f}" for k, v in report["seconds"].items()))
    return "\n\n".join(out) + "\n"
