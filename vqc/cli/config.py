"""The configuration file: arguments and options of the commands as TOML (docs/cli.md).

Keys at the top are for every command that has such an option; a table called after a command is for it alone, and wins.
What stands on the command line wins over both. The file becomes the parser's own table of defaults, so values are
checked and converted as on the command line.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from vqc import video
from vqc.cli.exits import misuse
from vqc.errors import InputError
from vqc.models import MODELS

COMMANDS = ("run", "apply", "compile", "export", "compare", "report", "bench")  # those that read a file
OURS = ("config", "json", "help")  # options about this call, not about the work
PATHS = ("model", "clip", "clips", "calibration", "workdir", "output")  # relative ones are meant from the file's folder


def configure(context: typer.Context, value: Path | None) -> Path | None:
    """The callback of --config: the file's values become the defaults of this command."""
    if value is not None and not context.resilient_parsing:
        assert context.parent is not None
        group: Any = context.parent.command
        known = {name: options_of(group.commands[name]) for name in COMMANDS}
        with misuse():
            found = read_config(value, known, str(context.command.name))
        context.default_map = found
    return value


def options_of(command: Any) -> dict[str, tuple[str, Any]]:
    """What a command can be told in a file: key -> (the parameter's name, its type)."""
    hints = get_type_hints(command.callback)
    found = {}
    for p in command.params:
        key = max(p.opts, key=len).lstrip("-").replace("_", "-")
        if key not in OURS:
            found[key] = (p.name, hints[p.name])
    return found


def read_config(path: Path, known: Mapping[str, Mapping[str, tuple[str, Any]]], command: str) -> dict[str, Any]:
    """The values that a file has for a command, by parameter.

    `known`: `options_of` every command. The whole file is checked, whatever command is asked for.
    Raises InputError for a file that cannot be read, a key that is not known, a value of a wrong kind.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:  # tomllib's own error is a ValueError, and so is that of bad UTF-8
        why = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise InputError(f"the configuration file {path} cannot be read", where=str(path), why=why,
                         way_out="give a TOML file, as docs/cli.md shows") from e  # fmt: skip
    shared: dict[str, tuple[str, Any]] = {}
    for options in known.values():
        shared |= options
    tables = {k: v for k, v in data.items() if isinstance(v, dict)}
    for name in tables:
        if name not in known:
            raise _unknown(path, f"[{name}]", name, list(known), "tables are called after commands")
    top = _values(path, "", {k: v for k, v in data.items() if k not in tables}, shared)
    own = {name: _values(path, name, table, known[name]) for name, table in tables.items()}
    options = known[command]
    merged = _clips(options, top) | _clips(options, own.get(command, {}))
    return {options[key][0]: value for key, value in merged.items() if key in options}


def _values(path: Path, table: str, given: Mapping[str, Any], known: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """The values of one table by key, checked."""
    where = f"{path}, [{table}]" if table else str(path)
    spare = {"pipeline"} | {"clip", "clips"} if {"clip", "clips"} & set(known) else {"pipeline"}
    found: dict[str, Any] = {}
    for written, value in given.items():
        key = written.replace("_", "-")
        if key not in known and key not in spare:
            raise _unknown(path, f"the key {written!r}" + (f" in [{table}]" if table else ""), key,
                           sorted({*known, *spare}), "a key is called as the option, without its dashes")  # fmt: skip
        if key == "pipeline":
            if "recipe" in given:
                raise InputError("a configuration file names both a recipe and a pipeline", where=where,
                                 way_out="keep one of them")  # fmt: skip
            found["recipe"] = ",".join(_texts(where, key, value))
        elif key in ("clip", "clips", "calibration"):
            texts = _texts(where, key, value)
            if key == "clip" and len(texts) != 1:
                raise _wrong(where, key, value, "one clip; several go under clips")
            if key == "calibration":  # "a.mp4,b.mp4" as on the command line: each is meant from the file's folder
                whole = [t for t in texts if t in video.CLIPS or (path.parent / t).exists()]
                texts = [one for t in texts for one in ([t] if t in whole else t.split(","))]
            found[key] = [_path(path, key, text) for text in texts]
        elif key == "size" and isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value):
            found[key] = f"{value[0]}x{value[1]}"
        else:
            found[key] = _path(path, key, _typed(where, key, value, known[key][1]))
    return found


def _clips(options: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`clip` and `clips` as the command has them: of several, one that takes one takes the first."""
    found = {k: v for k, v in values.items() if k not in ("clip", "clips")}
    wanted = "clips" if "clips" in options else "clip"
    given = values.get(wanted, values.get("clip", values.get("clips")))
    if given is not None and wanted in options:
        found[wanted] = given if wanted == "clips" else _first(given[0])
    return found


def _first(name: str) -> str:
    """The first clip of a folder; anything else as it is."""
    from vqc.cli.clips import in_folder  # which needs nothing of this, but is slow to import

    return str(in_folder(Path(name))[0]) if Path(name).is_dir() else name


def _texts(where: str, key: str, value: Any) -> list[str]:
    """A text or a list of texts, as a list."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise _wrong(where, key, value, "a text or a list of texts")
    return texts


def _typed(where: str, key: str, value: Any, hint: Any) -> Any:
    """A value of the option's kind: text, whole number, number, true or false."""
    kinds = get_args(hint) or (hint,)
    if bool in kinds:
        wanted, fits = "true or false", isinstance(value, bool)
    elif int in kinds:
        wanted, fits = "a whole number", type(value) is int
    elif float in kinds:
        wanted, fits = "a number", type(value) in (int, float)
    else:
        wanted, fits = "a text", isinstance(value, str)
    if not fits:
        raise _wrong(where, key, value, wanted)
    return value


def _path(file: Path, key: str, value: Any) -> Any:
    """A path that is meant from the file's folder, as one from here; names of known networks and clips stay."""
    if key not in PATHS:
        return value
    if key == "model":
        source, colon, factory = value.rpartition(":")
        if value in MODELS or not (value.endswith(".vqc") or source.endswith(".py")):
            return value
        return str(file.parent / source) + colon + factory if colon else str(file.parent / value)
    if value in video.CLIPS and not (file.parent / value).exists():
        return value
    return str(file.parent / value)


def _wrong(where: str, key: str, value: Any, wanted: str) -> InputError:
    return InputError(f"the value of {key} is not understood", where=where, why=f"it is {value!r:.60}",
                      way_out=f"write {wanted}")  # fmt: skip


def _unknown(path: Path, what: str, name: str, known: Sequence[str], why: str) -> InputError:
    nearest = difflib.get_close_matches(name, known, 1, cutoff=0.0)[0]
    return InputError(f"{what} of a configuration file is not known", where=str(path), why=why,
                      way_out=f"the nearest is {nearest!r}; there are " + ", ".join(known))  # fmt: skip
