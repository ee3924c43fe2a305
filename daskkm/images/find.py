"""Find image files by paths of files and folders, and by patterns."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskkm.errors import ImageError, count, printable, reason
from daskkm.storage.locations import LocalLocation, Location, as_location

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from daskkm.storage.locations import LocationLike

SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm"),
    *(".png", ".ppm", ".tif", ".tiff", ".webp"),
)
# Entries that operating systems create; hidden entries are ignored too.
_SYSTEM_FILES = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"),
    *("$recycle.bin", "system volume information"),
}
_MAX_COUNT = 1_000  # files counted in a sub-folder
_MAX_NAMES = 3  # names in a message


@dataclass(frozen=True)
class UnreadEntries:
    """Entries of a folder that are not read."""

    folder: Path
    files: Counter[str]  # files by suffix, in lower case; "" without a suffix
    folders: tuple[str, ...]  # names of sub-folders

    def __bool__(self) -> bool:
        return bool(self.files or self.folders)

    def __str__(self) -> str:
        parts = []
        if n := self.files.total():
            suffixes = [f"{suffix or 'no suffix'} {m}" for suffix, m in self.files.most_common()]
            parts.append(f"{count(n, 'file')} ({_join_first(suffixes, ', ')})")
        if self.folders:
            names = list(self.folders)
            names[:_MAX_NAMES] = [
                f"{name}, {_count_files(self.folder / name)}" for name in names[:_MAX_NAMES]
            ]
            parts.append(f"{count(len(names), 'folder')} ({_join_first(names, '; ')})")
        return ", ".join(parts)


def find_images(
    images: LocationLike | Iterable[LocationLike],
    store: Location | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[list[Location], list[UnreadEntries]]:
    """Return image files in the given order, and the entries of folders that are not read.

    Single files may have any suffix. A folder stands for its files with the suffix of an image, in
    natural order (image_2 before image_10). Patterns are those of `glob`; a pattern of a URL has no
    ``**``. A store in one of the folders does not count as unread. Raise ImageError if a file does
    not exist, a folder has no image or cannot be read, or two images have the same name.
    """
    is_one = isinstance(images, str | os.PathLike | Location)
    paths: list[Any] = [images] if is_one else list(images)  # type: ignore[arg-type]
    files: list[Location] = []
    unread: list[UnreadEntries] = []
    for path in paths:
        location = as_location(path, storage_options)
        if not isinstance(location, LocalLocation):
            files += _find_objects(location)
            continue
        for local in _expand_pattern(Path(str(location))):
            if local.is_dir():
                in_folder, others = _list_folder(local, store)
                folder = LocalLocation(local)
                files += [folder / name for name in in_folder]
                unread += [others] if others and others not in unread else []
            else:
                files.append(LocalLocation(local))
    if not files:
        msg = "images: the list is empty. Name at least one image or folder"
        raise ImageError(msg)
    files = list(dict.fromkeys(files))
    _check_names(files)
    return files, unread


def _find_objects(location: Location) -> list[Location]:
    """Return the object at a URL, or those with the suffix of an image in a folder or a pattern."""
    try:
        if glob.has_magic(location.name):
            folder = location.parent
            names = {name for name in folder.names() if fnmatch.fnmatchcase(name, location.name)}
        else:
            if location.is_file():
                return [location]
            folder = location
            names = set(filter(_is_image, folder.names()))
    except OSError as error:
        raise _make_read_error(location, error) from error
    if not names:
        msg = f"{location}: no images here. Name images, or a folder with images"
        raise ImageError(msg)
    return [folder / name for name in sorted(names, key=natural_key)]


def describe_unread(unread: list[UnreadEntries]) -> str:
    """Return the counts of unread entries of folders in one line."""
    lines = [f"{others.folder}: not read: {others}" for others in unread]
    return printable(_join_first(lines, "; ", "more folders"))


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a sort key that compares numbers within names by value."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _expand_pattern(path: Path) -> list[Path]:
    """Return an existing path, or the files that match a pattern, or the matching folders."""
    if _exists(path):
        return [path]
    is_pattern = glob.has_magic(str(path))
    matches = glob.glob(str(path), recursive=True) if is_pattern else []  # noqa: PTH207 (absolute too)
    if not matches:
        problem = "no file matches this pattern" if is_pattern else "no such file or folder"
        msg = f"{path}: {problem}. Name the images, or a folder with images"
        raise ImageError(msg)
    paths = [Path(match) for match in sorted(matches, key=natural_key)]
    return [path for path in paths if not path.is_dir()] or paths


def _exists(path: Path) -> bool:
    """Return True if a path exists; raise ImageError if the system refuses the answer."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: not a file name
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG and glob.has_magic(str(path)):
            return False
        raise _make_read_error(path, error) from error
    return True


def _make_read_error(path: Path | Location, error: OSError) -> ImageError:
    """Return an error for an unreadable file or folder."""
    return ImageError(f"{path}: cannot be read ({reason(error)}). Check path and permissions")


def _list_folder(folder: Path, store: Location | None) -> tuple[list[str], UnreadEntries]:
    """Return the names of images, and the other entries, of a folder."""
    try:
        names = [name for name in os.listdir(folder) if not _is_system_file(name)]  # noqa: PTH208
        images = sorted(filter(_is_image, names), key=natural_key)
        rest = sorted((name for name in names if not _is_image(name)), key=natural_key)
        others = {folder / name: (folder / name).is_dir() for name in rest}
    except OSError as error:
        raise _make_read_error(folder, error) from error
    if isinstance(store, LocalLocation) and folder.absolute() == store.path.parent:
        own = re.compile(rf"{re.escape(store.name)}(\..*)?")  # the store, its lock and checkpoint
        others = {path: is_dir for path, is_dir in others.items() if not own.fullmatch(path.name)}
    unread = UnreadEntries(
        folder,
        Counter(path.suffix.lower() for path, is_dir in others.items() if not is_dir),
        tuple(path.name for path, is_dir in others.items() if is_dir),
    )
    if not images:
        msg = f"{folder}: no images in this folder, {_describe_content(unread)}"
        raise ImageError(msg)
    return images, unread


def _describe_content(unread: UnreadEntries) -> str:
    """Return a description of a folder without images, with a hint."""
    hint = f"Add images ({', '.join(SUFFIXES)})"
    if unread.folders:
        pattern = unread.folder / "**" / "*.png"
        hint = f"Name the folders with images, or a pattern such as '{pattern}'"
    return f"only {unread}. {hint}" if unread else f"which is empty. {hint}"


def _is_image(name: str) -> bool:
    """Return True if a name has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def _is_system_file(name: str) -> bool:
    """Return True if an entry is hidden or created by an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _count_files(folder: Path) -> str:
    """Return the number of files in a folder and its sub-folders, in words, up to `_MAX_COUNT`."""
    n = 0
    for _, folders, files in os.walk(folder):
        # `walk` enters only the folders that remain in the list.
        folders[:] = [name for name in folders if not _is_system_file(name)]
        n += sum(not _is_system_file(name) for name in files)
        if n > _MAX_COUNT:
            return f"more than {_MAX_COUNT:,} files"
    return count(n, "file")


def _check_names(paths: Iterable[Location]) -> None:
    """Raise ImageError if two images have the same name: a store identifies images by name."""
    first: dict[str, Location] = {}
    for path in paths:
        if path.name in first:
            msg = (
                f"{path}: same name as {first[path.name]}. Rename one of the images, or create a "
                "store for each folder"
            )
            raise ImageError(msg)
        first[path.name] = path


def _join_first(texts: list[str], separator: str, noun: str = "more") -> str:
    """Join the first `_MAX_NAMES` texts and the number of other texts."""
    rest = len(texts) - _MAX_NAMES
    shown = texts[:_MAX_NAMES] + ([f"{rest} {noun}"] if rest > 0 else [])
    return separator.join(shown)
