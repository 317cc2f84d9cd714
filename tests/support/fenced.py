"""Code blocks of Markdown pages: what a reader copies from them, and what the page says it prints."""

from __future__ import annotations

import re
from dataclasses import dataclass

from support.paths import ROOT

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S)
_INCLUDED = re.compile(r'^--8<-- "(?P<path>[^"]+)"$', re.M)


@dataclass
class Block:
    """A block of commands or of Python, and what the block `text` that follows it says of its
    output.

    Attributes:
        language: sh or python.
        code: without indentation; files that the page includes are in it.
        output: None where the page shows none; see is_output().
    """

    language: str
    code: str
    output: str | None = None

    @property
    def runs(self) -> bool:
        """Whether it needs nothing but the repository: such a block does not begin with `# needs
        ...`, and installs nothing.
        """
        return not self.code.startswith("# needs ") and not self.code.startswith("pip install ")


def blocks(markdown: str) -> list[Block]:
    """The blocks of a page that are commands or Python, in their order."""
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(markdown):
        code = re.sub(f"^{match['indent']}", "", match["code"], flags=re.M)
        code = _INCLUDED.sub(lambda include: (ROOT / include["path"]).read_text(encoding="utf-8"), code)
        if match["language"] in ("sh", "python"):
            found.append(Block(match["language"], code))
            end = match.end()
        elif (
            match["language"] == "text"
            and found
            and not markdown[end : match.start()].strip()
            and found[-1].output is None
        ):
            found[-1].output = code
    return found


def is_output(page: str, printed: str) -> bool:
    """Whether a program prints what a page says. On the page `...` is any part of a line, or alone
    in its line any number of lines. Empty lines do not count.
    """
    pattern = ""
    for line in filter(None, map(str.rstrip, page.splitlines())):
        anything = line.strip() == "..."
        pattern += r"(?:.*\n)*?" if anything else ".*?".join(map(re.escape, line.split("..."))) + r"\n"
    lines = filter(None, map(str.rstrip, printed.splitlines()))
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None
