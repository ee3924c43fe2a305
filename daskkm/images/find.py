"""Image files that a user names: single ones, those of folders, and those that match patterns."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daskkm.errors import ImageError, printable, reason
from daskkm.storage import locations

if TYPE_CHECKING:
    from collections.abc import Iterable

SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm"),
    *(".png", ".ppm", ".tif", ".tiff", ".webp"),
)
# What systems leave in folders of pictures; hidden files and folders are left out besides.
_SYSTEM_FILES = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"),
    *("$recycle.bin", "system volume information"),
}
_MOST_FILES = 1_000  # that are counted in a sub-folder
_MOST_NAMES = 3


@dataclass(frozen=True)
class Unread:
    """Entries of a folder that are not read.

    Attributes
    ----------
    folder : Path
    files : Counter of str
        How many files have each suffix, in lower case; "" for files without one.
    folders : tuple of str
        Names of sub-folders. Files are counted, up to 1,000, in those that are named to the user.
    """

    folder: Path
    files: Counter[str]
    folders: tuple[str, ...]

    def __str__(self) -> str:
        parts = []
        if n := self.files.total():
            suffixes = [f"{suffix or 'no suffix'} {m}" for suffix, m in self.files.most_common()]
            parts.append(f"{_count(n, 'file')} ({_shorten(suffixes, ', ')})")
        if self.folders:
            named = [
                f"{name}, {_count_files(_count_below(self.folder / name))}"
                for name in self.folders[:_MOST_NAMES]
            ]
            folders = [*named, *self.folders[_MOST_NAMES:]]
            parts.append(f"{_count(len(folders), 'folder')} ({_shorten(folders, '; ')})")
        return ", ".join(parts)


def find_images(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], store: Path | None = None
) -> tuple[list[Path], list[Unread]]:
    """List image files, and the entries of folders that are not read.

    Parameters
    ----------
    images : path-like, or iterable of path-like
        Files, which are taken whatever their suffix; folders, of which files with the suffix of an
        image are taken, in natural order (image_2 before image_10); or patterns as `glob` has them.
    store : Path, optional
        Of daskkm's, which is no input though it may be in one of the folders.

    Returns
    -------
    list of Path
        In the order given, each once. No two have the same name.
    list of Unread
        One for each folder with entries that are not read, except hidden ones.

    Raises
    ------
    ImageError
        If a path is a URL, there is no such file, a folder holds no image or cannot be read, or
        two images have the same name.
    """
    given = [images] if isinstance(images, str | os.PathLike) else list(images)
    found: list[Path] = []
    unread: list[Unread] = []
    for path in _unique(
        itertools.chain.from_iterable(_expand(locations.local(path, ImageError)) for path in given)
    ):
        if path.is_dir():
            files, others = _look_into(path, store)
            found += files
            unread += [others] if others.files or others.folders else []
        else:
            found.append(path)
    if not found:
        msg = "images: an empty list. Name at least one image or folder"
        raise ImageError(msg)
    found = _unique(found)
    _refuse_equal_names(found)
    return found, unread


def describe_unread(unread: list[Unread]) -> str:
    """Return in one line how many entries of folders are not read."""
    lines = [f"{others.folder}: not read: {others}" for others in unread]
    return printable(_shorten(lines, "; ", "more folders"))


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a sort key by which numbers inside names count as numbers."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _unique(paths: Iterable[Path]) -> list[Path]:
    """Return each path once, as it was first given."""
    first: dict[Path, Path] = {}
    for path in paths:
        first.setdefault(path.absolute(), path)
    return list(first.values())


def _expand(path: Path) -> list[Path]:
    """Return the path if it exists, else the files that match a pattern, else the folders.

    Raises
    ------
    ImageError
        If there are none, or a folder on the way to them cannot be read.
    """
    if os.path.lexists(path):
        return [path]
    is_pattern = glob.has_magic(str(path))
    matches = glob.glob(str(path), recursive=True) if is_pattern else []  # noqa: PTH207 (absolute too)
    if not matches:
        _check_searchable(path)
        what = "no file matches this pattern" if is_pattern else "no such file or folder"
        msg = f"{path}: {what}. Name the images, or a folder that holds them"
        raise ImageError(msg)
    found = [Path(match) for match in sorted(matches, key=natural_key)]
    return [path for path in found if not path.is_dir()] or found


def _check_searchable(path: Path) -> None:
    """Raise ImageError if a path, or the folder a pattern begins with, may exist but is closed.

    `os.path.lexists` and `glob` take what they may not look into for missing.
    """
    try:
        if glob.has_magic(str(path)):
            path = next(folder for folder in path.parents if not glob.has_magic(str(folder)))
            next(path.iterdir(), None)
        else:
            path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no name of a file
        pass
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ImageError:
    """Return an error that names a path that cannot be read, and why."""
    return ImageError(f"{path}: cannot be read ({reason(error)}). See that it can be")


def _look_into(folder: Path, store: Path | None) -> tuple[list[Path], Unread]:
    """Return the images of a folder, and its other entries."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
        entries = [entry for entry in entries if not _is_system_file(entry.name)]
        images = [entry for entry in entries if entry.suffix.lower() in SUFFIXES]
        others = {
            entry: entry.is_dir() for entry in entries if entry.suffix.lower() not in SUFFIXES
        }
    except OSError as error:
        raise _unreadable(folder, error) from error
    if store is not None and folder.absolute() == store.absolute().parent:
        own = re.compile(rf"{re.escape(store.name)}(\..*)?")  # its lock and checkpoint too
        others = {
            entry: is_dir for entry, is_dir in others.items() if not own.fullmatch(entry.name)
        }
    unread = Unread(
        folder,
        Counter(entry.suffix.lower() for entry, is_dir in others.items() if not is_dir),
        tuple(entry.name for entry, is_dir in others.items() if is_dir),
    )
    if not images:
        msg = f"{folder}: no images in this folder, {_describe_content(unread)}"
        raise ImageError(msg)
    return images, unread


def _describe_content(unread: Unread) -> str:
    """Return what a folder without images holds, and what to do."""
    hint = f"Put images there ({', '.join(SUFFIXES)})"
    if unread.folders:
        pattern = unread.folder / "**" / "*.png"
        hint = f"Name the folders that hold images, or a pattern such as '{pattern}'"
    return f"only {unread}. {hint}" if unread.files or unread.folders else f"it is empty. {hint}"


def _is_system_file(name: str) -> bool:
    """Return True for hidden entries, and those that systems leave in folders."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _count_below(folder: Path) -> int:
    """Return how many files are in a folder and below, without hidden ones, up to a limit."""
    n = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_system_file(name)]  # that it enters
        n += sum(not _is_system_file(name) for name in files)
        if n > _MOST_FILES:
            break
    return n


def _refuse_equal_names(paths: list[Path]) -> None:
    """Raise ImageError if two images have the same name, by which a store knows them."""
    first: dict[str, Path] = {}
    for path in paths:
        if path.name in first:
            msg = (
                f"{path}: a second image of this name, besides {first[path.name]}. Name each image "
                "once; rename those of several folders, or make a store of each folder"
            )
            raise ImageError(msg)
        first[path.name] = path


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def _count_files(n: int) -> str:
    return _count(n, "file") if n <= _MOST_FILES else f"more than {_MOST_FILES:,} files"


def _shorten(texts: list[str], separator: str, noun: str = "more") -> str:
    """Join the first texts, and say how many others there are."""
    rest = len(texts) - _MOST_NAMES
    shown = texts[:_MOST_NAMES] + ([f"{rest} {noun}"] if rest > 0 else [])
    return separator.join(shown)
