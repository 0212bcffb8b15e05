"""Fusing over HTTP: an application for any ASGI server, and uvicorn to run it.

Everything that arrives counts as hostile. Melodies are read in processes with limits
(`cf_core.piece.read_isolated`), nothing is written to disk, and names of files are only ever shown.
The same request gets the same bytes. This file is long, because what can be asked and answered is
described here field by field.
"""

import asyncio
import logging
import platform
import re
import socket
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from math import ceil
from typing import Annotated, Any, Literal

import torch
import uvicorn
from fastapi import FastAPI, Request, Response, UploadFile
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from uvicorn.supervisors import Multiprocess

from cf_core import melody as core
from cf_core.bundle import Bundle, load_bundle
from cf_core.errors import BundleError, MelodyError, UserError
from cf_core.files import AnyPath
from cf_core.fuse import FASTEST, LEADS, SLOWEST, Fused, fuse_files
from cf_core.isolation import MEMORY, SECONDS
from cf_core.piece import Piece, read_isolated
from cf_core.readers import FORMATS
from cf_core.render import make_midi

_LOG = logging.getLogger("uvicorn.error")
MIDI, JSON = "audio/midi", "application/json"
TICKS = 960
"""Positions of notes in JSON count to the nearest of so many parts of a quarter note."""
MOST_ITERATIONS = 100
_MOST_STYLE = 64
_MOST_ERRORS = 100
"""Most wrong fields that a request may have and still hear which; to list more takes long."""


@dataclass(frozen=True)
class Limits:
    """What one worker takes; whoever asks for more gets a problem document."""

    body: int = 4 * 2**20
    """Most bytes of a request."""
    json: int = 2**19
    """Most bytes of a request in JSON: all others of the worker wait while it is parsed."""
    seconds: float = 30.0
    """Longest that a request may take to arrive, and longest that its answer may take then."""
    requests: int = 16
    """Most requests at one time, waiting ones included."""
    threads: int = 4
    """Requests that are worked on at one time; each thread has a process that reads."""
    notes: int = 4_000
    """Most notes of a melody; in JSON never more than the default, so that no time is lost."""
    bars: int = 1_000
    """Most bars of a melody, repeats played out."""


# ---- what is asked and answered ------------------------------------------------------------------


class PlainNote(BaseModel):
    """A note in plain numbers; positions and durations are in quarter notes."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    onset: float = Field(ge=0, le=1e6)
    duration: float = Field(ge=1 / TICKS, le=1e6)
    pitch: int = Field(ge=0, le=127, description="MIDI number; 60 is middle C.")


class PlainMelody(BaseModel):
    """A melody in plain numbers, which begins with a whole bar."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    notes: list[PlainNote] = Field(min_length=1, max_length=Limits.notes, fail_fast=True)
    meter: str = Field("4/4", pattern=r"^[1-9]\d?/(1|2|4|8|16|32)$")
    tempo: float = Field(core.DEFAULT_TEMPO, ge=SLOWEST, le=FASTEST)


def _split(style: Any) -> Any:
    return style.split(",", _MOST_STYLE) if isinstance(style, str) else style


Style = Annotated[
    list[float], Field(max_length=_MOST_STYLE, fail_fast=True), BeforeValidator(_split)
]
Bars = Annotated[str, Field(pattern=r"^\d{1,6}-\d{1,6}$")]


class Options(BaseModel):
    """The options of `cf-study fuse`, with the same meanings and defaults."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    left_bars: Bars | None = Field(
        None, description="Bars of left, such as 5-6 (0: pickup); else its last whole segment."
    )
    right_bars: Bars | None = Field(None, description="Bars of right; else its first segment.")
    seam: Literal["ends", "auto"] = Field(
        "ends", description="Leave left and enter right at their ends, or near them where they fit."
    )
    whole: bool = Field(True, description="Answer the whole tune, or the fused segments alone.")
    transpose_right: Literal["auto", "none"] | Annotated[int, Field(ge=-127, le=127)] = Field(
        "none", description="Semitones by which right is moved; auto takes what fits best."
    )
    chords: Literal["reject", "top", "bottom"] = Field(
        "reject", description="Which note of chords to take; bars with chords are rejected if none."
    )
    style: Style | None = Field(
        None, description="Numbers in 0…1, in a form such as 0.2,0.8; drawn if not given."
    )
    lambda_: float | None = Field(
        None, alias="lambda", description="Small is far from the inputs, large near them."
    )
    edits: int | None = Field(
        None, ge=0, le=10_000, description="In place of lambda: about so many grid steps change."
    )
    lead: Literal["left", "even", "right"] | float | None = Field(
        None, description="Who stays as it is: left (0), right (1), or neither (0.5)."
    )
    iterations: int | None = Field(None, le=MOST_ITERATIONS, description="Times to transform.")
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the notes that are drawn, and of the style if none."
    )
    tempo: float | None = Field(None, description="Quarter notes per minute; else that of left.")

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `fuse_files`."""
        names = ("seam", "style", "lambda_", "edits", "iterations", "seed", "tempo")
        shift, lead = self.transpose_right, self.lead
        return {
            **{name: getattr(self, name) for name in names},
            "left_bars": _bars(self.left_bars),
            "right_bars": _bars(self.right_bars),
            "transpose_right": 0 if shift == "none" else shift,
            "lead": LEADS[lead] if isinstance(lead, str) else lead,
        }


class Files(Options):
    """Two melody files to fuse; the suffix of a file's name says its format."""

    left: UploadFile
    right: UploadFile
    left_part: str | None = Field(None, description="Part of left, by name or by 1, 2, …")
    right_part: str | None = Field(None, description="Part of right.")


class Melodies(Options):
    """Two melodies in plain numbers to fuse."""

    left: PlainMelody
    right: PlainMelody


class Place(BaseModel):
    """Something that stands at a quarter note."""

    onset: float
    text: str


class FusedNote(BaseModel):
    """A note of an answer; it may be shorter than a note that is asked for in JSON."""

    onset: float
    duration: float
    pitch: int = Field(description="MIDI number; 60 is middle C.")


class Answer(BaseModel):
    """A fused melody, and the settings that it was made with."""

    notes: list[FusedNote]
    meters: list[Place] = Field(description="Where a time signature begins.")
    markers: list[Place]
    tempo: float
    left_bars: tuple[int, int] = Field(description="First and last bar taken from left.")
    right_bars: tuple[int, int]
    fused_bars: tuple[int, int] = Field(description="First and last fused bar of the whole tune.")
    edits: tuple[int, int] = Field(description="Grid steps edited in left and right.")
    seed: int
    style: list[float]
    lambda_: float | None = Field(alias="lambda")
    iterations: int
    lead: float | None
    transposed: int = Field(description="Semitones by which right was moved.")
    fit: float | None = Field(description="What the halves tell of each other, in nats.")


class Problem(BaseModel):
    """What went wrong and what to do about it, as RFC 9457 wants it."""

    type: str
    title: str
    status: int
    detail: str


# ---- problems ------------------------------------------------------------------------------------

PROBLEMS = {
    "malformed": (HTTPStatus.BAD_REQUEST, "The body is not what its media type says"),
    "not-acceptable": (HTTPStatus.NOT_ACCEPTABLE, "There is no answer of the accepted types"),
    "too-slow": (HTTPStatus.REQUEST_TIMEOUT, "The request did not arrive in time"),
    "too-large": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request is too large"),
    "media-type": (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The request has an unknown media type"),
    "option": (HTTPStatus.UNPROCESSABLE_ENTITY, "An option can't be taken"),
    "melody": (HTTPStatus.UNPROCESSABLE_ENTITY, "A melody can't be taken"),
    "bundle": (HTTPStatus.UNPROCESSABLE_ENTITY, "The bundle can't do that"),
    "busy": (HTTPStatus.SERVICE_UNAVAILABLE, "The server is busy"),
    "internal": (HTTPStatus.INTERNAL_SERVER_ERROR, "The server made a mistake"),
}
"""Status and title of each type of problem."""


class ProblemError(Exception):
    """Ends a request with a problem document."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


def _problem(kind: str, detail: str) -> Response:
    status, title = PROBLEMS[kind]
    document = Problem(
        type=f"tag:connective-fusion,2026:{kind}", title=title, status=status, detail=detail
    )
    again = {"Retry-After": "1"} if kind == "busy" else {}
    return _document(document, again)


def _document(document: Problem, headers: Mapping[str, str] | None = None) -> Response:
    content, media = document.model_dump_json(), "application/problem+json"
    return Response(content, document.status, headers, media)


async def _tell(_: Request, error: Exception) -> Response:
    """Answer an exception of any kind."""
    match error:
        case ProblemError():
            return _problem(error.kind, error.detail)
        case MelodyError():
            return _problem("melody", str(error))
        case BundleError():
            return _problem("bundle", str(error))
        case UserError():
            # What is left is no fault of the request: no process can be started to read it.
            _LOG.error("%s", error)
            return _problem("busy", "there is no room to read a melody; ask again later")
        case HTTPException():
            title = HTTPStatus(error.status_code).phrase
            detail = f"{title}: see /openapi.json for what there is"
            document = Problem(
                type="about:blank", title=title, status=error.status_code, detail=detail
            )
            return _document(document, error.headers)
        case _:
            return _problem("internal", "the server's log says more; please report it")


def _explain(error: ValidationError) -> ProblemError:
    """Say of each wrong field what is wrong."""
    if error.error_count() > _MOST_ERRORS:
        return ProblemError(
            "option", "too many fields are wrong; /openapi.json lists what can be given"
        )
    wrong = error.errors(include_url=False, include_input=False, include_context=False)
    if wrong[0]["type"] == "json_invalid":
        return ProblemError("malformed", f"{wrong[0]['msg']}; send JSON as in /openapi.json")
    said = []
    for each in wrong[:5]:
        place = ".".join(map(str, each["loc"]))[:100] or "the body"
        unknown = each["type"] == "extra_forbidden"
        said.append(f"{place}: {'there is no such option' if unknown else each['msg']}")
    return ProblemError("option", f"{'; '.join(said)}; /openapi.json lists what can be given")


# ---- the application -----------------------------------------------------------------------------


def make_app(bundle: Bundle, limits: Limits = Limits()) -> FastAPI:
    """Make the application: `POST /fuse`, `GET /capabilities`, `GET /health`, `/openapi.json`.

    Any ASGI server can run it. Its pool of threads ends with the application's lifespan.
    """
    service = _Service(bundle, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.pool.shutdown(wait=False, cancel_futures=True)

    # Its pages of documentation would load scripts of strangers into the browser.
    app = FastAPI(
        title="Connective Fusion",
        version=version("connective-fusion"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    fails: dict[int | str, dict[str, Any]] = {}
    for status, title in PROBLEMS.values():
        said = fails.setdefault(int(status), {"description": title})["description"]
        fails[int(status)]["description"] = said if title in said else f"{said}; {title}"
    app.post(
        "/fuse",
        response_class=Response,
        responses={200: {"model": Answer, "content": {MIDI: {}}}, **fails},
        openapi_extra={"requestBody": _describe_bodies()},
    )(service.fuse)
    app.get("/capabilities")(service.capabilities)
    app.get("/health")(service.health)
    app.head("/health", include_in_schema=False)(service.health)  # as load balancers may ask
    for kind in (ProblemError, UserError, HTTPException, Exception):
        app.add_exception_handler(kind, _tell)
    app.openapi = partial(_describe, app)  # type: ignore[method-assign]
    return app


class _Service:
    """What stands behind the paths."""

    def __init__(self, bundle: Bundle, limits: Limits) -> None:
        self.bundle = bundle
        self.limits = limits
        self.pool = ThreadPoolExecutor(limits.threads)
        self.inside = 0
        """Requests to fuse that are not answered yet."""

    async def health(self) -> dict[str, str]:
        """Say that the bundle is loaded and requests are answered."""
        return {"status": "ok"}

    async def capabilities(self) -> dict[str, Any]:
        """Say what the bundle can take, and the limits of a worker."""
        bundle, form = self.bundle, self.bundle.form
        iterations = {"default": bundle.iterations, "most": MOST_ITERATIONS}
        lambda_ = None
        if bundle.lambda_range is not None:
            least, most = bundle.lambda_range
            lambda_ = {"default": bundle.lambda_, "least": least, "most": most}
        return {
            "version": version("connective-fusion"),
            "formats": sorted(FORMATS),
            "answers": [MIDI, JSON],
            "meters": form.meters,
            "bars_per_segment": form.bars_per_segment,
            "divisions": form.divisions,
            "pitches": {"lowest": form.lowest, "highest": form.highest},
            "style_dimensions": bundle.generator.style_dim,
            "lambda": lambda_,
            "iterations": iterations,
            "lead": bundle.lead,
            "finds_fits": bundle.heard is not None,
            "limits": {**asdict(self.limits), "reading": {"seconds": SECONDS, "memory": MEMORY}},
        }

    async def fuse(self, request: Request) -> Response:
        """Fuse the end of one melody with the beginning of another.

        The answer is MIDI unless `Accept` asks for JSON.
        """
        if self.inside >= self.limits.requests:
            with suppress(ProblemError):
                # An answer to what has not arrived would be lost with the connection.
                await _receive(request, self.limits.seconds, most=0)
            raise ProblemError(
                "busy",
                f"{self.limits.requests} requests are waiting, the most at one time; ask again"
                " after as many seconds as Retry-After says",
            )
        self.inside += 1
        try:
            kind = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
            most = self.limits.json if kind == JSON else self.limits.body
            body = await _receive(request, self.limits.seconds, most)
            media = _choose_media(request.headers.get("accept", "*/*"))
            wanted = await self._parse(request, kind, body)
            async with asyncio.timeout(self.limits.seconds):
                content = await asyncio.get_running_loop().run_in_executor(
                    self.pool, self._answer, wanted, media
                )
        except TimeoutError:
            raise ProblemError(
                "busy",
                f"the answer took more than {self.limits.seconds:g} seconds; ask again later",
            ) from None
        finally:
            self.inside -= 1
        return Response(content, media_type=media)

    async def _parse(self, request: Request, kind: str, body: bytes) -> Files | Melodies:
        try:
            if kind == JSON:
                return Melodies.model_validate_json(body)
            if kind == "multipart/form-data":
                return Files.model_validate(await _read_form(request, body))
        except ValidationError as error:
            raise _explain(error) from None
        raise ProblemError(
            "media-type",
            f"{kind[:100]}: send two files as multipart/form-data, or two melodies as {JSON}",
        )

    def _answer(self, wanted: Files | Melodies, media: str) -> bytes:
        """Read, fuse and write: the work of one thread."""
        left, right = (self._read(wanted, side) for side in ("left", "right"))
        fused = fuse_files(left, right, self.bundle, **wanted.arguments())
        if media == JSON:
            return _to_json(fused, whole=wanted.whole)
        notes, meters, markers = fused.tune if wanted.whole else fused.excerpt
        return make_midi(notes, fused.tempo, meters, markers)

    def _read(self, wanted: Files | Melodies, side: str) -> Piece:
        source, form = getattr(wanted, side), self.bundle.form
        if isinstance(source, PlainMelody):
            melody = _to_melody(side, source, self.limits)
            return read_isolated(Piece.of, side, melody, form, wanted.chords)
        name, part = _clean(source.filename), getattr(wanted, f"{side}_part")
        content = source.file.read()
        piece = read_isolated(Piece.parse, name, content, part, form, wanted.chords)
        _check_count(name, "notes", len(piece.melody.notes), self.limits.notes)
        _check_count(name, "bars", len(piece.bars), self.limits.bars)
        return piece


# ---- requests ------------------------------------------------------------------------------------


async def _receive(request: Request, seconds: float, most: int) -> bytes:
    """Read a body to its end, and keep it if it is not too large."""
    chunks: list[bytes] = []
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            try:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size <= most:
                        chunks.append(chunk)
            except ClientDisconnect:
                raise ProblemError("malformed", "the request ended early; send it again") from None
            if size <= most:
                return b"".join(chunks)
    if size > most:
        raise ProblemError(
            "too-large",
            f"a request of this media type may have {most:,} bytes; send fewer bars, or files (a"
            " score as .mxl)",
        )
    raise ProblemError("too-slow", f"a request must arrive within {seconds:g} seconds; send again")


async def _read_form(request: Request, body: bytes) -> dict[str, Any]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    fields = len(Files.model_fields)
    parser = MultiPartParser(
        request.headers, stream(), max_files=2, max_fields=fields, max_part_size=2**12
    )
    parser.spool_max_size = len(body) + 1  # so that nothing is written to disk
    try:
        given = (await parser.parse()).multi_items()
    except (MultiPartException, KeyError, ValueError) as error:
        said = getattr(error, "message", "its boundary can't be found")
        raise ProblemError("malformed", f"{said}; send multipart/form-data") from None
    for name, count in Counter(name for name, _ in given).items():
        if count > 1:
            raise ProblemError("option", f"{name[:100]}: given {count} times; give it once")
    form = dict(given)
    for side in ("left", "right"):
        file = form.get(side)
        if file is None or isinstance(file, str) or not file.filename:
            ends = ", ".join(FORMATS)
            raise ProblemError("option", f"{side}: give a file with a name that ends in {ends}")
    return form


def _choose_media(accept: str) -> str:
    """The media type that is liked best; of equal ones that which is named, or MIDI."""
    liked: dict[str, tuple[float, int]] = {}
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        found = [re.fullmatch(r"q=([01](\.\d{0,3})?)", each) for each in parameters]
        quality = next((float(each[1]) for each in found if each), 1.0)
        for media in (MIDI, JSON):
            ranges = ("*/*", media.partition("/")[0] + "/*", media)
            exact = ranges.index(name) if name in ranges else -1
            # The most exact range that a type is in decides how much it is liked.
            if exact > liked.get(media, (0.0, -1))[1]:
                liked[media] = quality, exact
    best = max(liked, key=lambda media: (*liked[media], media == MIDI), default=None)
    if best is None or not liked[best][0]:
        raise ProblemError("not-acceptable", f"accept {MIDI} or {JSON}")
    return best


def _clean(name: str) -> str:
    """Name of a file as it may be shown: it never is a path."""
    last = re.split(r"[/\\]", name)[-1][-100:]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in last)


def _bars(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, last = text.split("-")
    return int(first), int(last)


def _check_count(name: str, what: str, found: int, most: int) -> None:
    if found > most:
        raise MelodyError(
            f"{name}: has {found} {what}; this server takes at most {most}, so send a part of it"
        )


def _to_melody(name: str, plain: PlainMelody, limits: Limits) -> core.Melody:
    """The notes by onset, in as many whole bars as they take."""
    _check_count(name, "notes", len(plain.notes), limits.notes)
    notes = sorted(
        core.Note(_to_ticks(note.onset), _to_ticks(note.duration), note.pitch)
        for note in plain.notes
    )
    length = core.bar_length(plain.meter)
    count = ceil(max(note.onset + note.duration for note in notes) / length)
    _check_count(name, "bars", count, limits.bars)
    bars = tuple(core.Bar(number * length, length, plain.meter) for number in range(count))
    tempos = (core.Tempo(Fraction(0), plain.tempo),)
    return core.Melody(name, name, tuple(notes), bars, tempos)


def _to_ticks(quarters: float) -> Fraction:
    return Fraction(round(quarters * TICKS), TICKS)


# ---- answers -------------------------------------------------------------------------------------


def _to_json(fused: Fused, *, whole: bool) -> bytes:
    notes, meters, markers = fused.tune if whole else fused.excerpt
    left, right = fused.bars
    settings = {
        name: getattr(fused, name)
        for name in ("tempo", "edits", "seed", "style", "iterations", "lead", "transposed", "fit")
    }
    answer = Answer(
        notes=[
            FusedNote(onset=float(n.onset), duration=float(n.duration), pitch=n.pitch)
            for n in notes
        ],
        meters=_places(meters),
        markers=_places(markers),
        left_bars=left,
        right_bars=right,
        fused_bars=fused.bars_in_tune if whole else (1, 2 * fused.form.bars_per_segment),
        **{**settings, "lambda": fused.lambda_},
    )
    return answer.model_dump_json(by_alias=True).encode()


def _places(found: Sequence[tuple[Fraction, str]]) -> list[Place]:
    return [Place(onset=float(at), text=text) for at, text in found]


# ---- its description -----------------------------------------------------------------------------

EXAMPLE: dict[str, Any] = {
    "left": {
        "notes": [
            {"onset": beat, "duration": 1, "pitch": pitch}
            for beat, pitch in enumerate((67, 69, 71, 72, 74, 72, 71, 69))
        ]
    },
    "right": {
        "notes": [
            {"onset": 2 * beat, "duration": 2, "pitch": pitch}
            for beat, pitch in enumerate((64, 62, 60, 62))
        ]
    },
    "edits": 8,
    "seed": 1,
}
"""A request in JSON."""
FORM_EXAMPLE = {"transpose_right": "auto", "edits": "8", "lead": "left", "seed": "1"}
"""Options as fields of a form, beside the two files."""


def _describe_bodies() -> dict[str, Any]:
    reference = "#/components/schemas/"
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"$ref": f"{reference}Files"},
                "example": FORM_EXAMPLE,
            },
            JSON: {"schema": {"$ref": f"{reference}Melodies"}, "example": EXAMPLE},
        },
    }


def _describe(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, with the schemas of bodies that FastAPI does not see."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, schemas = models_json_schema(
        [(Files, "validation"), (Melodies, "validation"), (Problem, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    found["components"]["schemas"] |= schemas["$defs"]
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for status, answer in found["paths"]["/fuse"]["post"]["responses"].items():
        if status != "200":
            answer["content"] = {"application/problem+json": problem}
    return found


# ---- a server ------------------------------------------------------------------------------------


def load_app(bundle: AnyPath | None = None) -> FastAPI:
    """Make the application of a bundle, by default the ready-made one, for a process of its own.

    Raises `BundleError` as `load_bundle` does.
    """
    # Products are small: threads that share one would cost more than they gain.
    torch.set_num_threads(1)
    make_midi([], tempo=120.0)  # imports what the first request would wait for
    return make_app(load_bundle(bundle))


def serve(bundle: AnyPath | None, host: str, port: int, workers: int) -> None:
    """Answer requests until interrupted, in so many processes; the port may be 0 for any.

    Raises `BundleError` as `load_bundle` does, and `UserError` on Windows, without a host, and
    where the port can't be had.
    """
    if not host:  # which sockets take for all addresses
        raise UserError("host: is empty; give an address, such as 127.0.0.1")
    if platform.system() == "Windows":
        raise UserError("Windows can't limit the reading of melodies; serve on Linux or macOS")
    load = partial(load_app, bundle)
    app = load()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: can't be listened to ({error}); give another") from None
    alone = workers == 1
    config = uvicorn.Config(
        app if alone else load, factory=not alone, workers=workers, access_log=False
    )
    place = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    _LOG.info("answering at %s", place)
    with listening, suppress(KeyboardInterrupt):
        if alone:
            uvicorn.Server(config).run([listening])
        else:
            Multiprocess(config, [listening]).run()
