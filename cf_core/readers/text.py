"""The text of melody files, decoded from the encodings that programs have used."""

import re
from html import unescape


def looks_like_utf_16(data: bytes) -> bool:
    """Whether bytes are UTF-16, by their byte order mark or by a first character below 256."""
    return data[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(data) > 1 and not (data[0] and data[1]))


def decode_text(data: bytes, otherwise: str = "cp1252") -> str:
    """Decode a file: UTF-16 by its byte order mark or first character, else line by line.

    Files of several encodings may have been joined: a line is UTF-8 if it is valid, else it is in
    the encoding `otherwise`. By default that is what Windows writes, code page 1252: Latin-1 with
    quotes and dashes for control characters.
    """
    if looks_like_utf_16(data):
        marked = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        return data.decode(
            "utf-16" if marked else "utf-16-be" if not data[0] else "utf-16-le", errors="replace"
        )
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return "\n".join(_decode_line(line, otherwise) for line in lines)


def _decode_line(line: bytes, otherwise: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode(otherwise, errors="replace")


_MAILED = re.compile(r"=3D|^(?!Q:).*(?<!\d)=(?:20|0D)$", re.MULTILINE)
_MAILED_SIGN = re.compile(r"=(?:3D|(?:20|0D)?(?P<line_end>\n))")


def undo_mailing(text: str) -> str:
    """Read a tune that a mail program wrote as quoted-printable (RFC 2045): `=3D` is an `=`.

    A line that ends in `=` goes on in the next, and `=20` or `=0D` at its end is a space. Other
    codes stay as they are, since `=FF` may be two notes. So do tunes without any of these signs.
    """
    if not _MAILED.search(text):
        return text

    def sign(found: re.Match[str]) -> str:
        if found["line_end"] is None:
            return "="
        return "" if found[0] == "=\n" else "\n"

    return _MAILED_SIGN.sub(sign, text)


_BREAK = re.compile(r"<br\s*/?>\n?", re.IGNORECASE)
_TAG = re.compile(r"</?(?:html|body|pre|code|div|span|font|p)(?:\s[^<>\n]{0,999})?>", re.IGNORECASE)
"""Tags that are no broken rhythms: `<a>` and `<b>` may stand in music."""
_ENTITIES = re.compile(r"&(?:[lg]t|amp|nbsp);")


def undo_markup(text: str) -> str:
    """Read tunes that were copied from the source of a web page: no tags, and `>` for `&gt;`."""
    if "&" not in text and "</" not in text and not _BREAK.search(text):
        return text
    text = _TAG.sub("", _BREAK.sub("\n", text))
    return "\n".join(map(_unescape, text.split("\n")))


def _unescape(line: str) -> str:
    # Within a text of music `&quot;` stands for a quote of its own, beside others that enclose it.
    if "&quot;" in line and '"' not in line:
        return unescape(line)
    return _ENTITIES.sub(lambda found: unescape(found[0]), line)
