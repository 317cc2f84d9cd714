"""Writes the help of every command into docs/command-line.md.

python docs/command_line.py
"""

from pathlib import Path

import click

from pymixtral.cli import main

PAGE = Path(__file__).with_name("command-line.md")
WIDTH = 78  # what click takes of a terminal of 80 columns
MARK = "<!-- What follows is made by docs/command_line.py. -->\n"


def page(text: str) -> str:
    """The page with the help of today below its mark."""
    head, mark, _ = text.partition(MARK)
    context = click.Context(main, info_name="pymixtral", terminal_width=WIDTH, **main.context_settings)
    sections = [f"\n```text\n{main.get_help(context)}\n```\n"]
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        sections.append(
            f"\n### pymixtral {name}\n\n```text\n{command.get_help(click.Context(command, context, name))}\n```\n"
        )
    return head + mark + "".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
