"""Talk to your model: a chat page in the browser, and OpenAI's interface for every client that speaks it.

    python 05_instruction_finetune/chat.py                          # the newest chat checkpoint, else SmolLM2
    python 05_instruction_finetune/chat.py data/my_gpt smollm2      # two models, to compare them side by side

Then open http://127.0.0.1:8000. Many may ask at once: their answers grow together, row by row, in scheduler.py.
A CHECKPOINT is a folder in Hugging Face's layout, or `smollm2`, or `course_base`. Only this machine is served, unless
--host says otherwise; that needs an --api-key.
"""

import argparse
import asyncio
import contextlib
import csv
import hashlib
import io
import logging
import math
import os
import re
import socket
import sys
import threading
from datetime import datetime
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait would starve the web server

import torch  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import APIRouter, FastAPI, Request  # noqa: E402
from fastapi.responses import Response  # noqa: E402
from starlette.concurrency import run_in_threadpool  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import chat_api  # noqa: E402
from chat_answers import USUAL_TOKENS, Answers, busy, reply, serve  # noqa: E402
from chat_api import ApiError, ErrorBody  # noqa: E402
from chat_guard import Guard, error_response, openapi_with_bodies, read_request  # noqa: E402
from chat_metrics import Metrics  # noqa: E402
from chat_text import TooLong, fitted_prompt  # noqa: E402

from shared import data  # noqa: E402
from shared.checkpoints import COURSE_BASE, load_base, load_model  # noqa: E402
from shared.files import command_line, read_json  # noqa: E402
from shared.runtime import autocast_dtype, get_device  # noqa: E402
from shared.tokenizer import with_end_of_text  # noqa: E402

PAGE = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "chat_page").glob("*.*"))}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
ERRORS = {status: {"model": ErrorBody} for status in (400, 401, 403, 404, 405, 408, 413, 429, 500, 503)}
FORMULA = re.compile(r"(?:^|(?<=[;|]))(?=\s*[=+\-@＝＋－＠])")  # where a spreadsheet may cut a line, ; and | too
VOTE_FIELDS = ["pair", "choice", "preferred", "rater", "left", "right", "when", "prompt"]


# --- the application


def create_app(served, *, api_key=None, hosts=(), aliases=None, classifier=None, votes=None, seconds=300.0):
    """The service for a list of `Served` models, the first of which is the usual one.

    `aliases` are more names, {name: name of a model}; `hosts` more names of this machine; `classifier` a
    SpamClassifier; `votes` the CSV file for votes of the page; `seconds` the time that one request has.
    """
    models = {one.name: one for one in served}
    aliases = {alias: models[name] for alias, name in (aliases or {}).items()}
    metrics = Metrics(served)
    writing = threading.Lock()
    labelling = asyncio.Lock()  # one at a time: `predict` switches the model's mode; who waits holds no thread

    @contextlib.asynccontextmanager
    async def lifespan(app):
        for one in served:
            one.scheduler.start()
        yield
        for one in served:
            await run_in_threadpool(one.scheduler.close)

    app = FastAPI(title="build-a-gpt chat", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
                  responses=ERRORS)  # fmt: skip
    app.state.served = served
    app.add_middleware(Guard, api_key=api_key, hosts=hosts, refused=metrics.error)
    api = APIRouter()

    def model_of(name):
        if found := models.get(name) or aliases.get(name):
            return found
        raise ApiError(404, f"there is no model {name[:100]!r}; there are: {', '.join(models)}", "model_not_found",
                       "model")  # fmt: skip

    @api.post("/chat/completions", summary="An answer to a conversation")
    async def chat_completions(request: Request):
        asked = await read_request(request, chat_api.ChatRequest)
        served = model_of(asked.model)
        wanted = USUAL_TOKENS if asked.wanted()[0] is None else asked.wanted()[0]
        prefix = asked.prefix_token_ids or []
        if prefix and max(prefix) >= served.tokenizer.n_vocab:
            raise ApiError(400, f"the model has {served.tokenizer.n_vocab} tokens", "invalid_value", "prefix_token_ids")
        messages, room = [message.plain() for message in asked.messages], served.room - len(prefix)
        try:
            prompt, left_out = await run_in_threadpool(
                fitted_prompt, served.tokenizer, messages, room, min(wanted, served.room // 4), served.form
            )
        except TooLong as error:
            raise ApiError(400, str(error), "context_length_exceeded", "messages") from None
        notes = [f"the oldest {left_out} messages were left out: the model's context is full"] if left_out else []
        answers = Answers(served, [prompt + prefix], asked, seconds)
        for text in answers.texts:
            text.begin_with(prefix)
        shapes = chat_api.ChatShapes(asked.model, answers.texts[0].name_of)
        return await reply(request, answers, shapes, asked, notes, metrics)

    @api.post("/completions", summary="How a text goes on")
    async def completions(request: Request):
        asked = await read_request(request, chat_api.CompletionRequest)
        served = model_of(asked.model)
        prompts = asked.prompt if isinstance(asked.prompt, list) else [asked.prompt or ""]
        prompts = [prompts] if isinstance(prompts[0], int) else prompts
        if len(prompts) * (asked.n or 1) > 2 * chat_api.MAX_CHOICES:
            raise ApiError(400, f"at most {2 * chat_api.MAX_CHOICES} answers in one request", "invalid_value", "n")
        tokenizer, room = served.tokenizer, served.room
        prompts = [await run_in_threadpool(tokenizer.encode_ordinary, one) if isinstance(one, str) else one
                   for one in prompts]  # fmt: skip
        prompts = [one or [tokenizer.eot_token] for one in prompts]
        if max(map(len, prompts)) > room:
            raise ApiError(400, f"the prompt has {max(map(len, prompts))} tokens; there is room for {room}",
                           "context_length_exceeded", "prompt")  # fmt: skip
        if max(map(max, prompts)) >= tokenizer.n_vocab:
            raise ApiError(400, f"the model has {tokenizer.n_vocab} tokens", "invalid_value", "prompt")
        answers = Answers(served, prompts, asked, seconds)
        shapes = chat_api.CompletionShapes(asked.model, answers.texts[0].name_of)
        return await reply(request, answers, shapes, asked, [], metrics)

    def described(one):
        return {"id": one.name, "object": "model", "created": one.created, "owned_by": "build-a-gpt",
                "context_length": one.room, "is_chat": one.is_chat}  # fmt: skip

    @api.get("/models", summary="The models that answer here")
    async def list_models():
        return {"object": "list", "data": [described(one) for one in served]}

    @api.get("/models/{name:path}", summary="One of them")
    async def retrieve_model(name: str):
        return described(model_of(name)) | {"id": name}

    @api.post("/classify", summary="Labels of messages, by a classifier of chapter 4")
    async def classify(request: Request):
        asked = await read_request(request, chat_api.ClassifyRequest)
        if classifier is None:
            raise ApiError(404, "there is no classifier: start the server with --classifier DIR", "model_not_found")
        texts = [asked.input] if isinstance(asked.input, str) else asked.input

        async with labelling:
            labels, probabilities = await run_in_threadpool(classifier.predict, texts)
        rows = [{"label": name, "probabilities": dict(zip(classifier.labels, row, strict=True))}
                for name, row in zip(labels, probabilities.tolist(), strict=True)]  # fmt: skip
        return {"object": "list", "data": rows}

    @app.post("/vote", summary="Keep which of two answers somebody liked better, in a CSV file")
    async def vote(request: Request):
        asked = await read_request(request, chat_api.Vote)
        if votes is None:
            raise ApiError(404, "votes are not kept: start the server with --votes FILE", "no_votes")
        if not {asked.left, asked.right} <= {*models}:
            raise ApiError(404, "left and right must be models of this server", "model_not_found")
        await run_in_threadpool(write_vote, votes, asked, writing)
        return {"kept": True}

    @app.get("/health", summary="Whether the service can answer")
    async def health():
        if any(one.scheduler.closed or not one.scheduler.thread.is_alive() for one in served):
            raise busy(503, "the server is being shut down, or a model's thread has ended")
        return {"status": "ok"}

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def tell_metrics():
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    def page(name):
        async def send():
            return Response(PAGE[name], media_type=TYPES[Path(name).suffix])

        return send

    for name in PAGE:
        path = "/" if name == "index.html" else f"/chat_page/{name}"
        app.get(path, include_in_schema=False)(page(name))
    app.include_router(api, prefix="/v1")
    app.include_router(api, include_in_schema=False)

    @app.get("/docs", include_in_schema=False)
    async def docs():
        return Response(chat_api.docs_page(app.openapi()), media_type="text/html")

    def openapi():
        if not app.openapi_schema:
            made = FastAPI.openapi(app)
            app.openapi_schema = openapi_with_bodies(made, {
                "/v1/chat/completions": chat_api.ChatRequest, "/v1/completions": chat_api.CompletionRequest,
                "/v1/classify": chat_api.ClassifyRequest, "/vote": chat_api.Vote},
                [*models, *aliases])  # fmt: skip
        return app.openapi_schema

    app.openapi = openapi

    @app.exception_handler(ApiError)
    async def on_api_error(request, error):
        metrics.error(error.status)
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def on_http_error(request, error):
        metrics.error(error.status_code)
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        wrong = ApiError(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}", code)
        wrong.headers = error.headers or {}
        return error_response(wrong)

    @app.exception_handler(Exception)
    async def on_error(request, error):  # uvicorn logs it
        metrics.error(500)
        return error_response(ApiError(500, "the server failed; its log says why", kind="server_error"))

    return app


def check_port(host, port):
    """Raises OSError where nothing can be served at this address, before the models are loaded."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise OSError(f"{host}:{port} cannot be used ({error.strerror or error}): choose another with --port") from None


def check_votes(file):
    """Raises ValueError where `file` holds something other than votes: nothing is appended to somebody's data."""
    if file.is_file() and file.stat().st_size:
        with file.open(encoding="utf-8", errors="replace") as opened:
            if opened.readline().strip() != ",".join(VOTE_FIELDS):
                raise ValueError(f"{file} holds something other than votes: name another file with --votes")


def write_vote(file, vote, lock):
    """Append a vote, a line in one write. What a spreadsheet would take for a formula gets an apostrophe."""
    pair = hashlib.sha256("\0".join([vote.prompt, vote.left_answer, vote.right_answer]).encode()).hexdigest()[:16]
    preferred = "tie" if vote.choice == "tie" else getattr(vote, vote.choice)
    prompt = re.sub(r"\s+", " ", vote.prompt)[:500]
    row = [pair, vote.choice, preferred, vote.rater, vote.left, vote.right,
           datetime.now().isoformat(timespec="seconds"), prompt]  # fmt: skip
    row = [FORMULA.sub("'", cell) for cell in row]
    with lock:
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_bytes() if file.exists() else b""
        lines = io.StringIO()
        if before and not before.endswith(b"\n"):
            lines.write("\n")  # a line that broke off stays alone
        writer = csv.writer(lines, lineterminator="\n")
        if not before:
            writer.writerow(VOTE_FIELDS)
        writer.writerow(row)
        with open(file, "ab", buffering=0) as opened:
            opened.write(lines.getvalue().encode())


# --- the command


def chat_template_of(folder):
    """The chat template (Jinja) of a Hugging Face folder, None where it has none."""
    settings, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    told = read_json(settings).get("chat_template") if settings.is_file() else None
    return file.read_text(encoding="utf-8") if told is None and file.is_file() else told


def newest_chat_model():
    """The newest folder in the data folder whose tokenizer brings a chat template; None where there is none."""
    found = []
    for file in data.places.data_dir().glob("*/tokenizer_config.json"):
        with contextlib.suppress(ValueError, OSError):
            if chat_template_of(file.parent) is not None and (file.parent / "config.json").is_file():
                found.append((file.stat().st_mtime, file.parent))
    return max(found)[1] if found else None


def load_checkpoint(name):
    """(its name, model, tokenizer, chat template or None) of "smollm2", "course_base" or a folder."""
    if name == "smollm2":
        model, tokenizer = load_base("smollm2")
        return "smollm2" if "smollm2" not in tokenizer.name else tokenizer.name, model, tokenizer, None
    folder = COURSE_BASE if name == "course_base" else Path(name).expanduser()
    model, tokenizer = load_model(folder)
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer")
    return folder.resolve().name, model, with_end_of_text(tokenizer, folder), chat_template_of(folder)


def usual_checkpoint():
    """What is served where none is named."""
    if folder := newest_chat_model():
        return str(folder)
    try:
        data.fetch("smollm2", sample_ok=False)
        return "smollm2"
    except data.DownloadError as error:
        print(f"SmolLM2 is not available ({str(error).splitlines()[0]}): using the course base")
        return "course_base"


class Server(uvicorn.Server):
    """uvicorn, which on Ctrl-C or SIGTERM first lets the running answers end, for some seconds."""

    def handle_exit(self, sig, frame):
        for one in self.config.app.state.served if hasattr(self.config.app, "state") else ():
            one.scheduler.drain((self.config.timeout_graceful_shutdown or 1) - 1)  # a second to say the last word
        super().handle_exit(sig, frame)


def number_format(wanted, device):
    if wanted != "auto":
        return getattr(torch, wanted)
    return autocast_dtype(device) or torch.float32


def parse(argv):
    parser = argparse.ArgumentParser(prog="chat.py", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help="folder, smollm2 or course_base")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (0.0.0.0: all; needs --api-key)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key", default=os.environ.get("LLM_API_KEY") or None, help="or LLM_API_KEY")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="another name of this server")
    parser.add_argument("--alias", action="append", default=[], metavar="NAME[=MODEL]", help="another name of a model")
    parser.add_argument("--device", help="cpu, cuda or mps; the best there is")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--rows", type=int, default=16, help="answers that grow at the same time")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a conversation, at most")
    parser.add_argument("--queue", type=int, default=64, help="requests that may wait for a row")
    parser.add_argument("--seconds", type=float, default=300.0, help="time for one request")
    parser.add_argument("--classifier", metavar="DIR", help="a classifier of chapter 4, for /classify")
    parser.add_argument("--votes", type=Path, metavar="FILE", help="CSV file of the votes (build/chat_votes.csv)")
    args = parser.parse_args(argv)
    for name, least in (("port", 0), ("rows", 1), ("context", 16), ("queue", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    if args.port > 65535:
        parser.error(f"--port is {args.port}; it must be at most 65535")
    if not 0 < args.seconds < math.inf:
        parser.error(f"--seconds is {args.seconds}; it must be above 0")
    args.api_key = (args.api_key or "").strip() or None  # from a file with Windows' line ends, for instance
    if args.api_key and not args.api_key.isprintable():
        parser.error("--api-key holds a character that no client can send")
    if args.host not in ("127.0.0.1", "localhost", "::1") and not args.api_key:
        parser.error(f"--host {args.host} lets other machines ask: choose a key for them with --api-key")
    return args


def main(argv=None):
    args = parse(argv)
    if args.device:
        os.environ["LLM_DEVICE"] = args.device
    try:
        check_port(args.host, args.port)
        device, served = get_device(), []
        for checkpoint in args.checkpoints or [usual_checkpoint()]:
            name, model, tokenizer, chat_template = load_checkpoint(checkpoint)
            name += f"-{len(served) + 1}" if name in [one.name for one in served] else ""
            model = model.to(device, number_format(args.dtype, device))
            served.append(serve(name, model, tokenizer, chat_template=chat_template, rows=args.rows,
                                context=args.context, queue=args.queue))  # fmt: skip
            dtype = str(model.token_embedding.weight.dtype).removeprefix("torch.")
            print(f"{name}: {dtype} on {device}, {args.rows} rows of {served[-1].room} tokens"
                  + ("" if served[-1].is_chat else "; this is NOT a chat model, it only continues texts"))
        aliases = dict(alias.partition("=")[::2] for alias in args.alias)
        for alias, name in aliases.items():
            aliases[alias] = name or served[0].name
            if aliases[alias] not in [one.name for one in served]:
                raise ValueError(f"--alias {alias}={name}: there is no such model")
        classifier = None
        if args.classifier:
            from shared.classification import SpamClassifier

            classifier = SpamClassifier.load(args.classifier).to(device)
        votes = args.votes or ROOT / "build" / "chat_votes.csv"
        check_votes(votes)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    app = create_app(served, api_key=args.api_key, hosts=[*args.allow_host, args.host], aliases=aliases,
                     classifier=classifier, votes=votes, seconds=args.seconds)  # fmt: skip
    config = uvicorn.Config(app, args.host, args.port, log_level="warning", timeout_graceful_shutdown=5, backlog=512,
                            server_header=False)  # fmt: skip
    server = Server(config)
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    command_line(main)
