"""The blocks of code on a page, and how each kind is run.

A page's blocks share one folder and one Python namespace, in order. `python` runs; one that begins with `# NAME.py` is
saved under that name instead. `toml`, `c`, `cpp` and `cmake` begin with their file's name in a comment and are saved.
In `sh`, lines of `vqc` run in this process, the rest in bash. `output` says what the block before it printed; `...` in
it stands for any text. `text` is no code.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from vqc.cli import app

SAVED = {"c": "/* ", "cpp": "// ", "toml": "# ", "cmake": "# "}
KINDS = {"python", "sh", "output", "text", *SAVED}


@dataclass(frozen=True)
class Block:
    """One block: what it is, its text, and the line of the page on which it begins."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def file(self) -> str | None:
        """The name under which the block is saved, None for one that runs."""
        mark = SAVED.get(self.kind, "# ")
        found = re.match(re.escape(mark) + r"([\w./-]+\.\w+)(?: \*/)?\s*$", self.text.split("\n")[0])
        return found[1] if found and self.kind in ("python", *SAVED) else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.split(chr(10))[0]}"


def blocks(root: Path, page: str) -> list[Block]:
    """The fenced blocks of a page in order; directives of the site (```{...}) are none."""
    found, inside, kind, start = [], None, "", 0
    for number, line in enumerate((root / page).read_text(encoding="utf-8").splitlines(), 1):
        if inside is None and line.startswith("```"):
            inside, kind, start = [], line[3:].strip(), number
        elif inside is not None and line.startswith("```"):
            if not kind.startswith("{"):
                found.append(Block(page, start, kind, "\n".join(inside)))
            inside = None
        elif inside is not None:
            inside.append(line)
    assert inside is None, f"{page}:{start}: a block without an end"
    return found


def indented(root: Path, page: str) -> list[str]:
    """Lines that Markdown shows as code because they are indented: nobody would run them."""
    text = re.sub(r"^```.*?^```", "", (root / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"(?<=\n\n)    .*", text)


def commands(block: Block) -> list[str]:
    """The commands of an `sh` block: comments gone, lines that go on joined, several on a line apart."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    lines = [re.sub(r"\s+#.*$|^#.*$", "", line).strip() for line in joined.splitlines()]
    return [c.strip() for line in lines for c in re.split(r";\s+(?=vqc )", line) if c.strip()]


def vqc_arguments(command: str) -> list[str] | None:
    """The arguments of a `vqc` command, also under torchrun; None for another program."""
    words = shlex.split(command)
    if words[:1] == ["vqc"]:
        return words[1:]
    if words[:1] == ["torchrun"] and "vqc" in words and words[words.index("vqc") - 1] == "-m":
        return words[words.index("vqc") + 1 :]
    return None


def check_arguments(arguments: list[str]) -> None:
    """Raise click's UsageError unless the command line's own parser knows the command and all its flags."""
    group: Any = typer.main.get_command(app)
    if arguments[:1] in (["--help"], ["--version"]):
        return
    outer = group.context_class(group, info_name="vqc")
    name, command, rest = group.resolve_command(outer, list(arguments))
    inner = command.context_class(command, info_name=name, parent=outer)
    command.make_parser(inner).parse_args([a for a in rest if a != "..."])


def expected(pattern: str, printed: str) -> bool:
    """Whether printed text is what a page shows: "..." stands for anything, ends of lines do not count."""

    def tidy(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip().splitlines())

    parts = [re.escape(p) for p in tidy(pattern).split("...")]
    return re.fullmatch(".*".join(parts), tidy(printed), re.S) is not None


@dataclass
class Page:
    """One page being read from top to bottom in a folder."""

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: str = ""

    def run(self, block: Block) -> None:
        """Run, save or compare one block; an AssertionError or the block's own error names it."""
        if block.kind == "output":
            shown = f"{block}\nthe page shows\n{block.text}\nprinted was\n{self.printed}"
            assert expected(block.text, self.printed), shown
        elif block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text + "\n", encoding="utf-8")
            if block.kind == "python":
                compile(block.text, str(block), "exec")
        elif block.kind == "python":
            self.printed = self._python(block)
        elif block.kind == "sh":
            self.printed = "".join(self._command(block, c) for c in commands(block))

    def _python(self, block: Block) -> str:
        out = io.StringIO()
        with self._here(), contextlib.redirect_stdout(out):
            exec(compile("\n" * block.line + block.text, block.page, "exec"), self.names)
        return out.getvalue()

    def _command(self, block: Block, command: str) -> str:
        arguments = vqc_arguments(command)
        if arguments is None:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(["bash", "-euc", command], cwd=self.folder, capture_output=True, text=True,
                                  env={**os.environ, "PATH": path})  # fmt: skip
            assert done.returncode == 0, f"{block}\n{command}\n{done.stdout}{done.stderr}"
            return done.stdout
        arguments, into = (arguments[: arguments.index(">")], arguments[-1]) if ">" in arguments else (arguments, None)
        with self._here():
            result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"}, catch_exceptions=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, f"{block}\n{command}\n{result.output}"
        if into is not None:
            (self.folder / into).write_text(result.stdout, encoding="utf-8")
        return result.stdout if into is None else ""

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        before, path = Path.cwd(), list(sys.path)
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        try:
            yield
        finally:
            os.chdir(before)
            sys.path[:] = path
