"""Values of options that are more than a word or a number."""

from geoseg.errors import ConfigError


def parse_devices(text: str) -> int | str:
    """A number of devices, or "auto"; a `ConfigError` for anything else."""
    if text == "auto":
        return text
    if not (text.isdecimal() and int(text) > 0):
        raise ConfigError(f"--devices {text} is not a number of devices", hint="--devices 2, or auto for all GPUs")
    return int(text)


def parse_groups(texts: list[str]) -> dict[str, tuple[str, ...]]:
    """Groups of classes, each written as ``NAME=CLASS,CLASS,…``; a `ConfigError` for anything else or a name twice."""
    groups: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, members = (part.strip() for part in text.partition("="))
        classes = tuple(member.strip() for member in members.split(",") if member.strip())
        if not (name and equals and classes):
            raise ConfigError(f"--dissolve {text!r} is not NAME=CLASS,…", hint="--dissolve green=tree,grass")
        if name in groups:
            raise ConfigError(f"--dissolve names the group {name} twice", hint="list all its classes once")
        groups[name] = classes
    return groups


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """1-based band numbers of ``4,3,2``; a `ConfigError` for anything but whole numbers from 1 with commas."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) >= 1 for word in words):
        raise ConfigError(f"--bands {text!r} is not a list of band numbers from 1", hint="write it as --bands 4,3,2")
    return tuple(int(word) for word in words)
