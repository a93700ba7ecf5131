"""Every file the lessons read: found in the cache, in a mirror or at its official address, and checked before use.

    path = data.fetch("the_verdict")              # a local path; downloads at most once
    items = data.read(data.fetch("hellaswag"))    # what it holds, in whichever form it came
    python -m shared.data --list                  # what there is, and where each file is now
    python -m shared.data --all --to /media/usb   # make a mirror, such as a workshop's USB stick

Environment (relative paths count from the course folder):
LLM_DATA_DIR  the cache; default `data/` in the course folder
LLM_MIRROR    a folder or an http(s) address with the same relative paths, asked before the official addresses
LLM_OFFLINE   1: never ask the official addresses (a mirror that is set is still asked)
"""

import argparse
import contextlib
import difflib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from shared import readers
from shared.download import LARGEST, Failed, download, mismatch, sha256_of
from shared.readers import read_records, read_text

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "shared" / "samples"


@dataclass(frozen=True)
class Form:
    """One file that holds a data set. `file` is its path in the cache and in a mirror.

    `size` is in bytes, exact, or None, and then the file has no more than `limit`. `reader` makes of a path what `read`
    returns; None: it is text, or not read here. Where `sha256` is None, a file counts only once its reader has read it
    through; the sha256 of the first download is recorded beside it in the cache (FILE.sha256), and from then on the
    file must have that one. A form without `urls` is one that mirrors hold.
    """

    file: str
    size: int | None
    sha256: str | None
    urls: tuple[str, ...] = ()
    reader: Callable | None = None
    limit: int = LARGEST


@dataclass(frozen=True)
class Dataset:
    """A data set: what it is, under which licence it stands, its file (as in `Form`), and its `others`: further forms,
    taken in their order where the file itself cannot be had.

    `sample` is the path of its stand-in under `shared/samples`, to be read like the file itself. What is `huge` is
    fetched by name only, not by `--all`.
    """

    name: str
    about: str
    licence: str
    file: str
    size: int | None
    sha256: str | None
    urls: tuple[str, ...]
    reader: Callable | None = None
    limit: int = LARGEST
    others: tuple[Form, ...] = ()
    sample: str | None = None
    huge: bool = False


def _hub(repository, revision, file):
    return f"https://huggingface.co/{repository}/resolve/{revision}/{file}"


_OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
_GPT2 = ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e")
_MEDIUM = ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da")
_LARGE = ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519")
_XL = ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2")
_WIKITEXT = ("datasets/Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3")
_PYTORCH = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
_SLIMPAJAMA = ("datasets/DKYoon/SlimPajama-6B", "b5f90f419b7489cdba26fdbc8c022fcb5562f968")
_RASBT = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main"
_UCI = "https://archive.ics.uci.edu"
_SMS = "saurabh1105/Spam-classfication-/5cab5fa12d31d4766924638084ae0eed4353cb81/smsspamcollection"  # the name is so
_ALPACA = "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca"
_ARC = ("datasets/allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453")
_MMLU = ("datasets/cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe")

REGISTRY = {entry.name: entry for entry in (
    Dataset(name="the_verdict", about="Edith Wharton, The Verdict (1908), a short story", licence="public domain",
            file="the-verdict.txt", sample="the-lamp-room.txt", size=20_479,
            sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
            urls=(f"{_RASBT}/ch02/01_main-chapter-code/the-verdict.txt",)),
    Dataset(name="gpt2_vocab", about="GPT-2's byte-pair encoding: the merges", licence="Modified MIT (OpenAI gpt-2)",
            file="bpe/vocab.bpe", sample="bpe/vocab.bpe", size=456_318,
            sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            urls=(f"{_OPENAI}/vocab.bpe", _hub(*_GPT2, "merges.txt"))),
    Dataset(name="gpt2_encoder", about="GPT-2's byte-pair encoding: token to id", licence="Modified MIT (OpenAI gpt-2)",
            file="bpe/encoder.json", sample="bpe/encoder.json", size=1_042_301,
            sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
            urls=(f"{_OPENAI}/encoder.json", _hub(*_GPT2, "vocab.json"))),
    Dataset(name="gpt2_weights", about="GPT-2, 124 M parameters", licence="Modified MIT (OpenAI gpt-2)",
            file="gpt2/model.safetensors", size=548_105_171,
            sha256="248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
            urls=(_hub(*_GPT2, "model.safetensors"),)),
    Dataset(name="gpt2-medium_weights", about="GPT-2 medium, 355 M parameters", licence="Modified MIT (OpenAI gpt-2)",
            file="gpt2-medium/model.safetensors", size=None, limit=2**33, sha256=None, huge=True,
            urls=(_hub(*_MEDIUM, "model.safetensors"),)),
    Dataset(name="gpt2-large_weights", about="GPT-2 large, 774 M parameters", licence="Modified MIT (OpenAI gpt-2)",
            file="gpt2-large/model.safetensors", size=None, limit=2**33, sha256=None, huge=True,
            urls=(_hub(*_LARGE, "model.safetensors"),)),
    Dataset(name="gpt2-xl_weights", about="GPT-2 XL, 1.6 G parameters", licence="Modified MIT (OpenAI gpt-2)",
            file="gpt2-xl/model.safetensors", size=None, limit=2**33, huge=True,
            sha256="0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
            urls=(_hub(*_XL, "model.safetensors"),)),
    Dataset(name="wikitext2", about="WikiText-2, test part: Wikipedia articles", licence="CC BY-SA 3.0 / GFDL",
            file="eval/wikitext2_raw_test.parquet", sample="wikitext2.jsonl", size=732_610, sha256=None,
            urls=(_hub(*_WIKITEXT, "wikitext-2-raw-v1/test-00000-of-00001.parquet"),), reader=readers.wikitext,
            others=(Form("eval/wikitext2_test.txt.gz", 410_944,  # rare words are <unk> in these two
                         "a7f70ace9020b0d6daf21ea9f7666bc824aae4e8a3d5d7a1bd7820b2110da32d"),
                    Form("eval/wikitext2_test.txt", 1_256_449, None, (f"{_PYTORCH}/test.txt",)))),
    Dataset(name="lambada", about="LAMBADA, test part: 5,153 passages", licence="CC BY 4.0",
            file="eval/lambada_test.jsonl", sample="lambada.jsonl", size=None, limit=2**26, reader=readers.lambada,
            sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
            urls=("https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",),
            others=(Form("eval/lambada_5153.jsonl.zst", 589_042, reader=readers.lambada_parts,
                         sha256="ddab0b2a13e46dd7f3413b13d447e09195c2db36dcc6ec5e06f62837efcfc42e"),)),
    Dataset(name="hellaswag", about="HellaSwag, validation part: 10,042 items", licence="MIT",
            file="eval/hellaswag_val.jsonl", sample="hellaswag.jsonl", size=None, limit=2**26,
            reader=readers.hellaswag,
            sha256="0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
            urls=("https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",),
            others=(Form("eval/hellaswag_val_subset.jsonl.zst", 242_476, reader=read_records,  # 1,000 of them
                         sha256="866d3bc39186c1b56a74a36613f033a64768aebb2b59dfbc141507df435d469d"),)),
    Dataset(name="mmlu", about="MMLU: questions of 57 subjects", licence="MIT",
            file="eval/mmlu_data.tar", sample="mmlu.jsonl", size=166_184_960, reader=readers.mmlu,
            sha256="bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b",
            urls=("https://people.eecs.berkeley.edu/~hendrycks/data.tar", _hub(*_MMLU, "data.tar")),
            others=(Form("eval/mmlu.tar.gz", 2_268_114, reader=readers.mmlu,  # without the auxiliary training part
                         sha256="c0daf8697f279a699a2417fb020072d9dd944669113a8c74cd9d877e19cbf07c"),)),
    Dataset(name="arc_easy", about="ARC-Easy, validation part: 570 items", licence="CC BY-SA 4.0",
            file="eval/arc_easy_val.parquet", sample="arc_easy.jsonl", size=None, limit=2**26, sha256=None,
            reader=readers.arc,
            urls=(_hub(*_ARC, "ARC-Easy/validation-00000-of-00001.parquet"),),
            others=(Form("eval/arc_easy_val.jsonl.zst", 45_208, reader=readers.arc,
                         sha256="a41dcb943a1a91f91f36f0255f1fafe16f5934231ba361f6e9bdfbaaac565ff8"),)),
    Dataset(name="sms_spam", about="UCI SMS Spam Collection: 5,574 messages", licence="CC BY 4.0",
            file="sms_spam/sms_spam_collection.zip", sample="sms_messages.tsv", size=None, limit=2**26,
            reader=readers.sms_text,
            sha256="1587ea43e58e82b14ff1f5425c88e17f8496bfcdb67a583dbff9eefaf9963ce3",
            urls=(f"{_UCI}/static/public/228/sms+spam+collection.zip",
                  f"{_UCI}/ml/machine-learning-databases/00228/smsspamcollection.zip",
                  "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip"),
            others=(Form("sms_spam/SMSSpamCollection", 477_907, reader=readers.sms_text,
                         sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
                         urls=(f"https://raw.githubusercontent.com/{_SMS}/SMSSpamCollection",)),)),
    Dataset(name="instruction_data", about="1,100 instructions with answers", licence="Apache-2.0",
            file="instruction-data.json", sample="instructions.json", size=203_524, reader=readers.read_json_list,
            sha256="7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
            urls=(f"{_RASBT}/ch07/01_main-chapter-code/instruction-data.json",)),
    Dataset(name="alpaca", about="Stanford Alpaca: 52,002 instructions", licence="CC BY-NC 4.0",
            file="instruct/alpaca_data.json", sample="instructions.json", size=None, limit=2**26,
            reader=readers.read_json_list,
            sha256="2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
            urls=(f"{_ALPACA}/main/alpaca_data.json",
                  f"{_ALPACA}/761dc5bfbdeeffa89b8bff5d038781a4055f796a/alpaca_data.json"),
            others=(Form("instruct/alpaca_5000.json", 2_044_701, reader=readers.read_json_list,  # 5,000 of them
                         sha256="fc1add24c93c9fbbe585a64a6c9bf6165eb110225f4470efbff382a913558ec0"),)),
    Dataset(name="slimpajama_first", about="SlimPajama-6B, the first of 48 files", licence="that of its components",
            file="hub/DKYoon/SlimPajama-6B/data/train-00000-of-00048-ab2b35705f029d94.parquet", size=292_286_056,
            sha256="6c1e83b5f990a245a9e3fe95e5a1d5c3af8ce4d1f823791f59390c903656bb3f", huge=True,
            urls=(_hub(*_SLIMPAJAMA, "data/train-00000-of-00048-ab2b35705f029d94.parquet"),), reader=read_records),
    # The .jsonl.zst is a stand-in that mirrors may hold: RedPajama's records in SlimPajama's format, not SlimPajama.
    Dataset(name="slimpajama_validation", about="SlimPajama-6B, validation", licence="that of its components",
            file="hub/DKYoon/SlimPajama-6B/data/validation-00000-of-00001-4fb685c22a3f91ef.parquet", size=None,
            limit=2**28, sha256=None, reader=read_records, sample="web_pages.jsonl",
            urls=(_hub(*_SLIMPAJAMA, "data/validation-00000-of-00001-4fb685c22a3f91ef.parquet"),),
            others=(Form("slimpajama_format/train/chunk1/example_train_0.jsonl.zst", 2_039_859, reader=read_records,
                         sha256="9a52cd2c2744f9a23466b559454584cd70c519a9deba55334c0b6bbf08056334"),)),
    Dataset(name="slimpajama_test", about="SlimPajama-6B, test", licence="that of its components",
            file="hub/DKYoon/SlimPajama-6B/data/test-00000-of-00001-9f769cf7ce219017.parquet", size=None,
            limit=2**28, sha256=None, huge=True, reader=read_records,
            urls=(_hub(*_SLIMPAJAMA, "data/test-00000-of-00001-9f769cf7ce219017.parquet"),)),
)}

# SlimPajama (Soboleva et al. 2023): its own repository, cerebras/SlimPajama-627B, is gone from the Hub. Copies of it as
# (repository, revision, what its files' paths begin with), in the order in which `prepare_corpus.py` asks them.
SLIMPAJAMA = (
    ("DKYoon/SlimPajama-6B", _SLIMPAJAMA[1], "data/train-"),  # a tenth of the first of ten chunks, 48 files, 14 GB
    ("gmongaras/SlimPajama-627B_Reupload", "main", "data/train-"),  # all of it, 1.5 TB
)


class DownloadError(OSError):
    """A file could not be had. The message names each address tried, with the reason, and the way out by hand."""


def fetch(name, *, sample_ok=True, progress=True):
    """The local path of the data called `name` (or of a `Dataset` of your own), brought here first if need be.

    Looks in the cache, in the mirror, at the official addresses in turn. Where none of them gives it and there is a
    bundled sample, says so in one line and returns the sample's path (`is_sample` tells), unless `sample_ok` is False.
    Raises ValueError for an unknown name, DownloadError where there is no file or the cache cannot be written.
    """
    if not isinstance(name, Dataset) and name not in REGISTRY:
        near = difflib.get_close_matches(str(name), REGISTRY) or REGISTRY
        raise ValueError(f"no data is called {name!r}; did you mean {' or '.join(near)}?")
    entry, tried = name if isinstance(name, Dataset) else REGISTRY[name], {}  # tried: place -> why it is not used
    name = entry.name
    for form, place in _places(entry):
        try:
            return _get(name, form, place, progress)
        except Failed as reason:
            tried[place] = reason
        except OSError as error:
            raise DownloadError(
                f"{name}: the cache {data_dir()} cannot be used ({error.filename or data_dir() / form.file}: "
                f"{error.strerror or error}). Free some space or get the right to write there, or set LLM_DATA_DIR to "
                "another folder. What was downloaded so far is kept."
            ) from error
    if sample_ok and entry.sample and (SAMPLES / entry.sample).is_file():
        hosts = {urlsplit(place).hostname: reason for place, reason in tried.items() if isinstance(place, str)}
        why = "; ".join(f"{host}: {reason}" for host, reason in hosts.items()) or "offline, LLM_OFFLINE is set"
        print(f"{name}: not reachable ({why}), using the bundled sample {entry.sample} (written for this course)")
        return SAMPLES / entry.sample
    raise DownloadError(_how_by_hand(entry, tried))


def is_sample(path):
    """True if `path` is one of the course's bundled samples and not the real data."""
    return Path(path).resolve().is_relative_to(SAMPLES.resolve())


def read(path):
    """What the file that `fetch` gave holds, whichever form it is in: what its reader returns (for most, text).

    Raises ValueError, naming the file, where it cannot be read.
    """
    for entry in REGISTRY.values():
        for form in _forms(entry):
            if _ends_with(path, form.file) or (form is entry and is_sample(path) and _ends_with(path, entry.sample)):
                return _read(form, path)
    raise ValueError(f"{path} is no file of this course's data")


def _read(form, path):
    try:
        return (form.reader or read_text)(path)
    except Exception as error:  # of zipfile, tarfile, pyarrow, or a field that is not there
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "  # ours need no name
        raise ValueError(f"{path} cannot be read: {kind}{str(error).removeprefix(f'{path}: ')}") from error


def _ends_with(path, file):
    """True if `file`, a relative path, is the end of `path`."""
    return file is not None and Path(path).parts[-len(Path(file).parts) :] == Path(file).parts


def data_dir():
    """The cache folder: `LLM_DATA_DIR`, or `data/` in the course folder. It need not exist yet."""
    return ROOT / Path(os.environ.get("LLM_DATA_DIR", "").strip() or "data").expanduser()


def _forms(entry):
    """The entry's own file and its others."""
    return entry, *entry.others


def _places(entry):
    """Where the data may be, in the order in which it is looked for: (form, path on this machine or address)."""
    places = [(form, data_dir() / form.file) for form in _forms(entry)]
    mirror = os.environ.get("LLM_MIRROR", "").strip()
    if mirror.startswith(("http://", "https://")):
        places += [(form, f"{mirror.rstrip('/')}/{quote(form.file)}") for form in _forms(entry)]
    elif mirror:
        folder = ROOT / Path(mirror).expanduser()
        if not os.path.isdir(folder):
            print(f"LLM_MIRROR: there is no folder {folder}; going on without a mirror")
        places += [(form, folder / form.file) for form in _forms(entry)]
    if os.environ.get("LLM_OFFLINE", "").strip().lower() in ("", "0", "no", "false"):
        places += [(form, url) for form in _forms(entry) for url in form.urls]
    return places


def _get(name, form, place, progress):
    """The path of the right file from `place`, downloaded if that is an address. Raises Failed with the reason."""
    cached = data_dir() / form.file
    record = Path(f"{cached}.sha256")
    if isinstance(place, Path):
        if not os.path.isfile(place):
            raise Failed("is not there")
        problem = _problem(form, place)
        if problem:
            print(f"{name}: {place} {problem}; it is not used")
            if place == cached and form.sha256 is None and mismatch(place, _expected(form), form.size) is None:
                record.unlink(missing_ok=True)  # it was recorded from this bad file
            raise Failed(problem)
        return place
    download(place, cached, sha256=_expected(form), size=form.size, limit=form.limit, progress=progress,
             check=None if form.sha256 else lambda path: _problem(form, path))  # fmt: skip
    if _expected(form) is None:
        _write(record, sha256_of(cached))
    return cached


def _write(path, text):
    """Make the file anew, so that a link in its place is not followed."""
    path.unlink(missing_ok=True)
    with open(path, "x", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def _unreadable(form, path):
    """Why a file whose checksum is not known is not the right one, as the end of a sentence; None if it may be."""
    with open(path, "rb") as file:
        if re.match(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype\s+)?html\b", file.read(1000), re.IGNORECASE):
            return "is a web page (HTML)"
    problem = _bad_header(path)
    if problem is None and form.reader:
        try:
            _read(form, path)
        except ValueError as error:
            return str(error).removeprefix(f"{path} ")
    return problem


def _bad_header(path):
    """Why a .safetensors file is none or not whole, as the end of a sentence, else None; None for other files.

    It begins with the length of a header; the header is JSON that says where in the file each tensor ends.
    """
    if path.suffix != ".safetensors":
        return None
    with open(path, "rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
        if length > size - 8:
            return "has no safetensors header"
        try:
            header = json.loads(file.read(length))
            end = 8 + length + max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return "has no safetensors header"
    return None if end == size else f"has {size:,} bytes; its header speaks of {end:,}"


def _how_by_hand(entry, tried):
    """The message of a DownloadError: what was tried, and how to get the file without this module."""
    size = f"{entry.size:,} bytes" if entry.size else "size not known"
    sha256 = f"sha256 {_expected(entry)}" if _expected(entry) else "checksum not known"
    lines = [f"{entry.name} could not be had:"]
    lines += [f"  {place}: {reason}" for place, reason in tried.items()]
    lines += [f"  {url}: not asked, LLM_OFFLINE is set"
              for form in _forms(entry) for url in form.urls if url not in tried]  # fmt: skip
    lines += [f"By hand: get it ({size}, {sha256}) from one of these addresses; put it at {data_dir() / entry.file}."]
    if _expected(entry) != entry.sha256:
        lines += [f"That checksum was recorded in the cache, in {entry.file}.sha256; remove that if it is out of date."]
    lines += ["Or, where there is a network: python -m shared.data --all --to DIR; then here: LLM_MIRROR=DIR."]
    return "\n".join(lines)


_checked = {}  # (path, sha256, size, time of the last change) -> what is wrong; such a file is not read again
LARGE = 2**26  # bytes; that a larger file is right is remembered on disk too (FILE.checked in the cache)


def _problem(form, path):
    """Why `path` is not what `form` promises, as the end of a sentence; None if it is."""
    try:
        stat = path.stat()
        version = (path, _expected(form), stat.st_size, stat.st_mtime_ns)
        if version not in _checked and not _remembered(form, version):
            problem = mismatch(path, _expected(form), form.size)
            _checked[version] = problem or (_unreadable(form, path) if form.sha256 is None else None)
            if _checked[version] is None and stat.st_size > LARGE:
                _remember(form, version)
        return _checked.get(version)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _remembered(form, version):
    note = data_dir() / f"{form.file}.checked"
    return note.is_file() and note.read_bytes() == " ".join(map(str, version)).encode("utf-8", errors="surrogateescape")


def _remember(form, version):
    note = data_dir() / f"{form.file}.checked"
    with contextlib.suppress(OSError):  # a cache that cannot be written: then it is read again
        note.parent.mkdir(parents=True, exist_ok=True)
        _write(note, " ".join(map(str, version)))


def _expected(form):
    """The sha256 that the file must have: the registered one, else the recorded one, else None."""
    record = data_dir() / f"{form.file}.sha256"
    if form.sha256 is None and record.is_file():
        found = record.read_bytes().decode("ascii", errors="replace").strip()
        return found if re.fullmatch("[0-9a-f]{64}", found) else None  # a record that was cut off is none
    return form.sha256


def main(argv=None):
    """`python -m shared.data`; returns the exit status: 0, or 1 if any of the files could not be had."""
    parser = argparse.ArgumentParser(prog="python -m shared.data", description="Fetch and check the course's data.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch")
    parser.add_argument("--all", action="store_true", help="fetch everything that is not marked huge")
    parser.add_argument("--list", action="store_true", help="show what there is and where it is now")
    parser.add_argument("--to", metavar="DIR", type=Path, help="also copy it to DIR, which can then be a mirror")
    args = parser.parse_args(argv)
    if args.list or not (args.names or args.all):
        _print_table()
        return 0
    names = [entry.name for entry in REGISTRY.values() if not entry.huge] if args.all else args.names
    results = [_bring(name, args.to) for name in names]
    return 0 if all(results) else 1  # one failure does not stop the others


def _bring(name, folder):
    """Fetch the data called `name`, and copy it into `folder` unless that is None. Says how it went; False if badly."""
    try:
        path = fetch(name, sample_ok=False)
        if folder is not None:
            file = next(form.file for form in _forms(REGISTRY[name]) if _ends_with(path, form.file))
            source, path = path, folder / file
            if not path.is_file() or sha256_of(path) != sha256_of(source):
                path.parent.mkdir(parents=True, exist_ok=True)
                part = Path(f"{path}.part")
                part.unlink(missing_ok=True)  # a link in its place is not followed
                shutil.copyfile(source, part)
                os.replace(part, path)
    except (ValueError, DownloadError) as error:
        print(error)
        return False
    except OSError as error:
        print(f"{name} cannot be copied to {folder}: {error}")
        return False
    print(f"{name}: {path}")
    return True


def _print_table():
    """Where `fetch` would find each file without asking the network: cache, mirror or sample; else absent."""
    line = "{:21} {:38} {:>13}  {:28} {:8} {}"
    print(line.format("name", "file", "bytes", "licence", "now", "what it is"))
    for entry in REGISTRY.values():
        now, shown = "sample" if entry.sample and (SAMPLES / entry.sample).is_file() else "absent", entry
        for form, place in reversed(_places(entry)):
            if isinstance(place, Path) and place.is_file():
                now, shown = "cache" if place == data_dir() / form.file else "mirror", form
                if _problem(form, place):
                    now = "damaged"
        size = "?" if shown.size is None else f"{shown.size:,}"
        about = entry.about + (" (huge: not in --all)" if entry.huge else "")
        print(line.format(entry.name, shown.file, size, entry.licence, now, about))


if __name__ == "__main__":
    raise SystemExit(main())
