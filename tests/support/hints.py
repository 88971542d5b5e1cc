"""What a hint offers to type, taken out of it and typed.

A command begins a hint or follows a colon, and ends with the hint, at a semicolon, or at ", and" or ", or". Programs
that only look at a file may complain of it; all others must do their work.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_PROGRAM = r"(?:geoseg|gdal\w+(?:\.py)?|ogr\w+|mkdir|curl|rm|ls|pip)"
_COMMAND = re.compile(rf"(?:^|: )({_PROGRAM} .+?)(?=; |, and |, or |$)")
_MENTION = re.compile(rf"(?<![\w.-]){_PROGRAM}(?= (?!train w))")  # a folder that geoseg train wrote
_OPTION = re.compile(
    r"(?<![\w-])(--[a-z][a-z-]*|-o)(?: (?!or |to |and |if )('[^']*'|[^\s;()]+?)(?=[,.]?(?:\s|$)|[;)]))?"
)
_LOOKS_ONLY = ("gdalinfo", "ogrinfo", "ls")
_NOT_TYPED = ("geoseg", "pip", "curl", "rm")  # called in this process; a registry, a server; what would be missed


def commands_in(hint: str) -> list[str]:
    """The commands of a hint, each as it would be pasted."""
    return [match[1] for match in _COMMAND.finditer(hint)]


def misplaced_commands(hint: str) -> list[str]:
    """Programs that a hint names where nobody would find a command to paste."""
    left = _COMMAND.sub("", hint)
    return [match[0] for match in _MENTION.finditer(left)]


def options_in(hint: str, placeholders: Mapping[str, object]) -> list[list[str]]:
    """Options to add to the command that failed, each with its value; not those to be left out."""
    if "leave out" in hint or commands_in(hint):
        return []
    return [shlex.split(_filled(match[0], placeholders)) for match in _OPTION.finditer(hint)]


def with_option(arguments: Sequence[object], option: Sequence[str]) -> list[object]:
    """A command with an option in place of what it said there."""
    words = list(arguments)
    if option[0] in words:
        at = words.index(option[0])
        del words[at : at + len(option)]
    return [*words, *option]


def words_of(command: str, placeholders: Mapping[str, object]) -> list[str]:
    """A pasted command as the shell cuts it.

    Args:
        command: As the hint has it.
        placeholders: Words that stand for something of the user's, and what he would type.
    """
    return shlex.split(_filled(command, placeholders))


def complaint(words: Sequence[str], folder: Path) -> str | None:
    """What a program that is not geoseg says when it fails in a folder; None where it works.

    A program that is not installed, or that would ask a server or delete something, is not run.
    """
    program, *arguments = words
    if program in _NOT_TYPED or shutil.which(program) is None:
        return None
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    said = done.stdout + done.stderr
    if program in _LOOKS_ONLY:
        return said if "Usage" in said else None
    # gdal_translate of old versions ends with 0 after an error.
    return said if done.returncode != 0 or "ERROR" in done.stderr else None


def _filled(text: str, placeholders: Mapping[str, object]) -> str:
    for word, value in placeholders.items():
        text = re.sub(rf"(?<![\w/.]){re.escape(word)}(?![\w.])", shlex.quote(str(value)), text)
    assert "…" not in text, f"nobody can paste {text}"
    return text
