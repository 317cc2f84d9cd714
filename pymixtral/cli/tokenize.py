"""The command `pymixtral tokenize`."""

from __future__ import annotations

from pathlib import Path

import click

from pymixtral.cli.model import model_path, note_control_names
from pymixtral.cli.options import json_option, model_option, prompt_options, special_option
from pymixtral.cli.text import note, read_prompt, shorten, write, write_json


@click.command(
    epilog="""\b
Examples:
  pymixtral tokenize -p "Once upon a time"
  pymixtral tokenize -m mixtral-q4_0.gguf -f chapter.txt --ids | wc -w
  echo "naïve" | pymixtral tokenize --json --no-bos""",
)
@model_option
@prompt_options
@click.option("--no-bos", is_flag=True, help="Leave out the begin-of-text token.")
@special_option
@click.option("--ids", is_flag=True, help="Print the ids alone, in one line.")
@json_option
@click.pass_context
def tokenize(
    ctx: click.Context,
    /,
    model: Path | None,
    prompt: str | None,
    file: Path | None,
    no_bos: bool,
    parse_special: bool,
    ids: bool,
    as_json: bool,
) -> None:
    """Show the tokens of a text.

    The text is given with -p, in a file with -f, or on standard input, in UTF-8. One newline at the
    end of a file or of standard input is left out. Each line of the output has the id of a token
    and its piece of the text, in which \u2581 stands for a space. The number of tokens goes to
    standard error. No weights are read.
    """
    if ids and as_json:
        raise click.UsageError("expected --ids or --json, found both", ctx)
    text = read_prompt(ctx, prompt, file)
    from pymixtral.errors import UnsupportedError
    from pymixtral.files.gguf import GGUFFile
    from pymixtral.text.tokenizer import Tokenizer, has_tokenizer

    with GGUFFile(model_path(model)) as gguf:
        if not has_tokenizer(gguf.metadata, gguf.path):
            raise UnsupportedError(f"{gguf.path}: the file has no tokenizer, so text cannot be used")
        tokenizer = Tokenizer.from_metadata(gguf.metadata, gguf.path)
        tokens = tokenizer.encode(text, add_bos=not no_bos, parse_special=parse_special)
        pieces = [tokenizer.piece(i) for i in tokens]
    if not parse_special:
        note_control_names(tokenizer.control_names(text))
    if as_json:
        write_json({"count": len(tokens), "ids": tokens, "pieces": pieces})
        return
    if ids:
        write(" ".join(map(str, tokens)))
    elif tokens:
        width = len(str(max(tokens)))
        write("\n".join(f"{token:{width}}  {shorten(piece, 200)}" for token, piece in zip(tokens, pieces, strict=True)))
    note(f"{len(tokens)} token{'' if len(tokens) == 1 else 's'}")
