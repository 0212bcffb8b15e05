"""The score of a MusicXML file: unpacked, parsed and part-wise, or refused where it is hostile."""

import io
import re
import zipfile
from codecs import lookup
from contextlib import suppress
from pathlib import PurePosixPath
from urllib.parse import unquote
from xml.etree.ElementTree import Element, ParseError, SubElement, fromstring

from cf_core.readers.files import UNPACKED, decode_member_name
from cf_core.readers.limits import (
    MAX_BYTES,
    MAX_TAGS,
    RejectedError,
    list_names,
)
from cf_core.readers.text import decode_text, looks_like_utf_16

_MAX_CONTAINER = 2**16
_ENCODINGS = re.compile(
    r"utf-8|ascii|iso8859-\d+|cp125\d|koi8-[ru]|mac-roman|shift_jis|cp932|big5|gb2312|gbk|gb18030"
    r"|euc_(?:jp|kr)"
)
"""Encodings in which the signs of XML are the bytes that they are in ASCII."""
_DECLARED = re.compile(rb"""^.{0,99}encoding\s*=\s*["']([\w.-]{1,40})""", re.DOTALL)


def _xml(data: bytes) -> Element:
    """Parse XML that defines no entities, in an encoding that can't hide them."""
    declared = _DECLARED.match(data[:200])
    name = declared[1].decode() if declared else "utf-8"
    encoding = "utf-8"
    with suppress(LookupError):
        encoding = lookup(name).name
    if looks_like_utf_16(data):
        text = decode_text(data)
    elif encoding.startswith("utf-16"):
        # Some programs declare the encoding that their strings had in memory.
        text = data.decode("utf-8-sig")
    elif _ENCODINGS.fullmatch(encoding):
        text = data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    else:
        raise RejectedError("unreadable", f"its encoding is {name}; save it as UTF-8")
    if "<!ENTITY" in text:
        raise RejectedError("unreadable", "defines XML entities")
    # Files from web pages may begin with an empty line, which XML forbids before a declaration.
    return fromstring(text.lstrip())  # noqa: S314  (entities were refused above)


def parse_score(data: bytes) -> Element:
    """Return the part-wise score of a file, compressed or not.

    Raises `RejectedError` where the file is hostile or not a score.
    """
    if data[:2] == b"PK":
        data = _unpacked(data)
    if max(data.count(b"<"), data.count(b"\0<"), data.count(b"<\0")) > MAX_TAGS:
        raise RejectedError("too large", f"more than {MAX_TAGS} tags")
    root = _xml(data)
    # MusicXML has no namespace, but some programs write one.
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag == "score-timewise":
        root = _part_wise(root)
    if root.tag != "score-partwise":
        raise RejectedError("unreadable", f"not a MusicXML score: <{root.tag}>")
    for beats in root.iter("beats"):
        if any(len(number) > 2 for number in re.findall(r"\d+", beats.text or "")):
            raise RejectedError("too large", "a time signature of more than 99 beats")
    return root


def _part_wise(root: Element) -> Element:
    """Return a score as parts of measures that is written as measures of parts.

    A part that a measure leaves out has an empty measure there.
    """
    parts = {e.get("id"): Element("part", e.attrib) for e in root.iterfind("measure/part")}
    for measure in root.findall("measure"):
        inside = {part.get("id"): part for part in measure.findall("part")}
        for name, whole in parts.items():
            SubElement(whole, "measure", measure.attrib).extend(inside.get(name, []))
    score = Element("score-partwise")
    score.extend([*(element for element in root if element.tag != "measure"), *parts.values()])
    return score


def _unpacked(data: bytes) -> bytes:
    """Return the score inside a compressed MusicXML file: the one that its container names.

    Where the container is missing or names none, the score must be the only one in the file.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {decode_member_name(member): member for member in archive.infolist()}
        if any(member.compress_type not in UNPACKED for member in members.values()):
            raise RejectedError("unreadable", "compressed by a method other than deflate")
        scores = [name for name in members if _is_score(name)]
        named = [name for name in _named_scores(archive, members) if name in members]
        if not named and len(scores) != 1:
            detail = (
                f"its container names none of {list_names(scores)}" if scores else "holds no score"
            )
            raise RejectedError("unreadable", detail)
        with archive.open(members[(named or scores)[0]]) as stream:
            score = stream.read(MAX_BYTES["musicxml"] + 1)
    if len(score) > MAX_BYTES["musicxml"]:
        raise RejectedError("too large", f"more than {MAX_BYTES['musicxml']} bytes uncompressed")
    return score


def _is_score(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = path.name.startswith(".") or path.parts[0].upper() in ("META-INF", "__MACOSX")
    return not hidden and path.suffix.lower() in (".xml", ".musicxml")


def _named_scores(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> list[str]:
    """Possible names of the score, as the container of a compressed file gives them."""
    container = next((m for n, m in members.items() if n.upper() == "META-INF/CONTAINER.XML"), None)
    if container is None:
        return []
    with archive.open(container) as stream:
        content = stream.read(_MAX_CONTAINER)
    try:
        paths = [e.get("full-path", "") for e in _xml(content).iter() if e.get("full-path")]
    except (ParseError, UnicodeDecodeError, RejectedError):
        return []
    plain = [re.sub(r"^(?:\./|/)+", "", path.replace("\\", "/")) for path in paths]
    return [name for path in (*paths, *plain) for name in (path, unquote(path))]
