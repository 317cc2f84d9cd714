"""The command `pymixtral tokenize`."""

from __future__ import annotations

from pathlib import Path

import click

from pymixtral.cli.text import read_text, shorten, write, write_json


@click.command(
    epilog="""\b
Examples:
  pymixtral tokenize "Once upon a time"
  pymixtral tokenize -m mixtral-q4_0.gguf -f chapter.txt --ids | wc -w
  echo "naïve" | pymixtral tokenize --json --no-bos""",
)
@click.argument("text", required=False)
@click.option("-m", "--model", type=click.Path(path_type=Path), help="A GGUF file.  [default: the demo model in the package]")
@click.option("-f", "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Read the text from a file.")
@click.option("--ids", is_flag=True, help="Print the ids alone, in one line.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: ids, pieces and count.")
@click.option("--no-bos", is_flag=True, help="Leave out the begin-of-text token.")
@click.pass_context
def tokenize(ctx: click.Context, text: str | None, model: Path | None, file: Path | None, ids: bool, as_json: bool, no_bos: bool) -> None:
    """Show the tokens of a text.

    The text is TEXT, the contents of -f, or standard input (UTF-8; one newline at the end of a file or of standard input is not part
    of it). Each line has a token's id and its piece, where \u2581 stands for a space; the count goes to standard error. Only the
    file's tokenizer is read, no weights.
    """
    if ids and as_json:
        raise click.UsageError("expected --ids or --json, found both", ctx)
    if text is not None and file is not None:
        raise click.UsageError("expected TEXT or -f, found both", ctx)
    if text is None:
        text = read_text(ctx, file, "no text: expected TEXT, -f FILE, or text on standard input")
    from pymixtral.demo import demo_path
    from pymixtral.errors import UnsupportedError
    from pymixtral.files.gguf import GGUFFile
    from pymixtral.text.tokenizer import Tokenizer, has_tokenizer

    with GGUFFile(model or demo_path()) as gguf:
        if not has_tokenizer(gguf.metadata, gguf.path):
            raise UnsupportedError(f"{gguf.path}: the file has no tokenizer, so text cannot be used")
        tokens = Tokenizer.from_metadata(gguf.metadata, gguf.path).encode(text, add_bos=not no_bos)
        names = gguf.metadata["tokenizer.ggml.tokens"]
        assert isinstance(names, list)  # the tokenizer has checked it
        pieces = [names[i] for i in tokens]
    if as_json:
        write_json({"count": len(tokens), "ids": tokens, "pieces": pieces})
        return
    if ids:
        write(" ".join(map(str, tokens)))
    elif tokens:
        width = len(str(max(tokens)))
        write("\n".join(f"{token:{width}}  {shorten(piece, 200)}" for token, piece in zip(tokens, pieces, strict=True)))
    click.echo(f"{len(tokens)} token{'' if len(tokens) == 1 else 's'}", err=True)
