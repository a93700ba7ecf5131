"""`python -m shared.data`: show, fetch and copy the course's data."""

import argparse
import shutil
import sys
from pathlib import Path

from shared.data.cache import DownloadError, fetch
from shared.data.checks import problem_of
from shared.data.places import data_dir, ends_with, places_of, sample_of
from shared.data.registry import REGISTRY
from shared.files import command_line, sha256_of, write_atomically


def main(argv=None):
    """Returns the exit status: 0, or 1 if any of the files could not be had."""
    parser = argparse.ArgumentParser(prog="python -m shared.data", description="Fetch and check the course's data.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch")
    parser.add_argument("--all", action="store_true", help="fetch everything that is not marked huge")
    parser.add_argument("--list", action="store_true", help="show what there is and where it is now")
    parser.add_argument("--to", metavar="DIR", type=Path, help="also copy it to DIR, which can then be a mirror")
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name may be no text
    if args.list or not (args.names or args.all):
        print_table()
        return 0
    names = [entry.name for entry in REGISTRY.values() if not entry.huge] if args.all else args.names
    try:
        results = [bring(name, args.to) for name in names]
    except KeyboardInterrupt:
        print("\ninterrupted; what has come so far is kept")
        return 130
    return 0 if all(results) else 1  # one failure does not stop the others


def bring(name, folder):
    """Fetch the data called `name`, and copy it into `folder` unless that is None. Says how it went; False if badly."""
    try:
        path = fetch(name, sample_ok=False)
        if folder is not None:
            source, path = path, folder / next(f.file for f in REGISTRY[name].forms if ends_with(path, f.file))
            if not path.is_file() or sha256_of(path) != sha256_of(source):
                path.parent.mkdir(parents=True, exist_ok=True)
                with write_atomically(path) as part:
                    shutil.copyfile(source, part)
    except (ValueError, DownloadError) as error:
        print(error)
        return False
    except OSError as error:
        print(f"{name} cannot be copied to {folder}: {error}")
        return False
    print(f"{name}: {path}")
    return True


def print_table():
    """Where `fetch` would find each file without asking the network: cache, mirror or sample; else absent."""
    line = "{:21} {:38} {:>13}  {:28} {:8} {}"
    lines = [line.format("name", "file", "bytes", "licence", "now", "what it is")]
    for entry in REGISTRY.values():
        now, shown = "sample" if sample_of(entry) else "absent", entry
        for form, place in reversed(places_of(entry)):
            if isinstance(place, Path) and place.is_file():
                now, shown = "cache" if place == data_dir() / form.file else "mirror", form
                if problem_of(form, place):
                    now = "damaged"
        size = "?" if shown.size is None else f"{shown.size:,}"
        about = entry.about + (" (huge: not in --all)" if entry.huge else "")
        lines.append(line.format(entry.name, shown.file, size, entry.licence, now, about))
    sys.stdout.write("\n".join(lines) + "\n")  # at once: `| head -1` closes its end soon


if __name__ == "__main__":
    command_line(main)
