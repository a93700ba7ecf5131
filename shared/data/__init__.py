"""The data that the lessons read, each set by its name.

    data.load("hellaswag")      # what it holds: text, records, test items
    data.fetch("the_verdict")   # the path of its file; downloads at most once
    python -m shared.data --list                  # what there is, and where each file is now
    python -m shared.data --all --to /media/usb   # make a mirror, such as a workshop's USB stick

From the bottom up: `formats` (packed text, JSON, Parquet), `readers` (what each file holds), `registry` (the data sets
and their licences), `places` (cache, mirror, samples and their settings), `checks`, `network` (the one HTTP client),
`download` (one file), `cache` (`fetch` and `load`).
"""

from shared.data.cache import DownloadError, fetch, load

__all__ = ["DownloadError", "fetch", "load"]
