"""What a publication says of itself: to readers, to dataset hubs, and to those who cite it.

Its Croissant file is written from the schemas of the tables. Names of files that users gave are
shown as data: nothing of them is markup or a path.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import yaml

from study.findings import CSV_COLUMNS
from study.tables import TABLES

LICENSE = "Apache-2.0"
"""SPDX identifier of the licence of a publication: that of the software."""
_PRODUCT = "connective-fusion"
_CROISSANT = "http://mlcommons.org/croissant/1.0"
_PARQUET = "application/x-parquet"
"""The one name of the format that mlcroissant reads."""
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
"""Classes of size of dataset hubs: the number of rows that each ends below, and its name."""


@dataclass(frozen=True)
class CorpusCard:
    """Which melodies a study used: name, licence, and how to get them. Sentences are Markdown."""

    name: str
    licence: str
    origin: str


BUILTIN = CorpusCard(
    "the built-in corpus: Aird's Selection of Airs (1782-1801) and O'Neill's Music of Ireland"
    " (1903)",
    "The tunes are in the public domain.",
    "They come with music21: `pip install 'connective-fusion[builtin]'`, and `corpus: {source:"
    " builtin}` reads them.",
)
_NOTTINGHAM = CorpusCard(
    "the Nottingham Music Database, in the version that Jukedeck cleaned",
    "GNU GPL 3.",
    "The repository <https://github.com/jukedeck/nottingham-dataset>; `include: MIDI/*.mid` takes"
    " each tune once.",
)
_CRE = CorpusCard(
    "Ceol Rince na hÉireann, volumes 1-3, by Bill Black; Diamond, Shahid and McDermott",
    "CC BY 4.0.",
    "The folder `cre_corpus` of the repository"
    " <https://github.com/polifonia-project/folk_ngram_analysis>.",
)
KNOWN = {
    "f2fe51839d05f23f312f33d06e2a2aa9a4fb70c70b8ae1634f5ca2ae6f81857a": BUILTIN,
    "a5be89f990231612afca4f42c0b3fb0dfd59864b62067fe1b9268168345d44a7": BUILTIN,
    "64b0458edda7145e2342a3458021772cb886473c769cf6709060cca9cda1bac7": _NOTTINGHAM,
    "2e0ff00a18db73ec9852452b7c9c1d499ad505a47a614344a74b5221c594edd3": _NOTTINGHAM,
    "450e961d7d0c3b85ae48fbabe85c830846494aec12c50c889e0708dfab4059e1": _CRE,
    "2f1f0407fbaed9ac203ea1bc8732dfdeb7e12818c3c88c45c0568ef67b214060": _CRE,
}
"""Corpora by the hash of their content, on grids of 4 and of 12 steps per quarter note."""


@dataclass(frozen=True)
class PublishedTable:
    """One table of one study, as a file of the publication."""

    study: str
    table: str
    path: str
    """Relative to the publication, with `/`."""
    schema: pa.Schema
    rows: int
    size: int
    """In bytes."""
    sha256: str


@dataclass(frozen=True)
class PublishedStudy:
    """One study of the publication."""

    record: Mapping[str, Any]
    """What `study.json` holds."""
    source: str | None
    """What its corpus was ingested from: a name that a user gave; None if that is not known."""
    tables: Sequence[PublishedTable]
    finished: str
    """The day on which its last trial was over, as in 2026-11-26."""

    @property
    def name(self) -> str:
        """Its name, which is also that of its folder."""
        return str(self.record["name"])

    @property
    def corpus(self) -> str:
        """The hash of its corpus's content."""
        return str(self.record["identity"]["corpus"])


def is_free(corpus: str) -> bool:
    """Whether the corpus of this hash is the built-in one, whose tunes are in the public domain."""
    return KNOWN.get(corpus) is BUILTIN


def write_config(study: PublishedStudy) -> str:
    """The study's configuration as YAML, as far as it changes results.

    `cf-study run` takes it, once `corpus.source` names the melodies.
    """
    own = {k: v for k, v in study.record["identity"].items() if k not in ("corpus", "code")}
    source = "builtin" if is_free(study.corpus) else study.source or "corpus.parquet"
    # JSON's strings are YAML's, too: no name is read as a number or as markup.
    quoted = json.dumps(_plain(source), ensure_ascii=False)
    return (
        f"# The corpus has the content hash {study.corpus}.\n"
        f"name: {json.dumps(study.name)}\n"
        f"corpus: {{source: {quoted}}}\n"
        + yaml.safe_dump(own | {"selection": study.record["selection"]}, sort_keys=False)
    )


def write_readme(studies: Sequence[PublishedStudy]) -> str:
    """The page that readers see first, with the header by which dataset hubs load the tables."""
    tables = [table for study in studies for table in study.tables]
    first = next((t for t in tables if t.table == "verdicts"), tables[0])
    configs = [
        {"config_name": f"{each.study}-{each.table}", "data_files": each.path}
        | ({"default": True} if each is first else {})
        for each in tables
    ]
    rows = sum(table.rows for table in tables)
    header = {
        "license": LICENSE.lower(),
        "pretty_name": _title(studies),
        "size_categories": [next((name for end, name in _SIZES if rows < end), "10M<n<100M")],
        "tags": ["music", "melody"],
        "configs": configs,
    }
    return "\n".join(
        [
            "---",
            yaml.safe_dump(header, sort_keys=False).rstrip(),
            "---",
            "",
            f"# {_title(studies)}",
            "",
            *_introduce(studies),
            *_list_corpora(studies),
            *_list_tables(studies),
            *_explain_left_out(),
        ]
    )


def _title(studies: Sequence[PublishedStudy]) -> str:
    return f"Connective Fusion: results of {_join([study.name for study in studies])}"


def _join(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _introduce(studies: Sequence[PublishedStudy]) -> list[str]:
    first = studies[0].name
    return [
        "Connective Fusion transforms two melody fragments so that they join coherently while each"
        " stays recognisable. A study compares it with rivals at equal similarity. This folder has"
        " the tables that such studies found, and no model.",
        "",
        f"- `verdicts.csv`: the verdicts of all studies ({', '.join(CSV_COLUMNS)}).",
        "- `NAME/TABLE/compacted-1.parquet`: one file for each table of each study.",
        "- `NAME/config.yaml`: the study's configuration, as far as it changes results.",
        "- `croissant.json`: every column of every file, with its meaning.",
        "- `checksums.sha256`: `sha256sum --check checksums.sha256` finds what was altered.",
        "- `CITATION.cff`: how to cite this folder.",
        "",
        "All figures are drawn again from these files, without any model:",
        "",
        "```sh",
        "pip install 'connective-fusion[study]'",
        f"cf-study frontier ./{first}",
        f"cf-study query ./{first} 'FROM verdicts'",
        "```",
        "",
        f"The tables are of release {version(_PRODUCT)}. Their licence is {LICENSE}.",
        "",
    ]


def _list_corpora(studies: Sequence[PublishedStudy]) -> list[str]:
    lines = ["## Corpora", ""]
    for study in studies:
        known = KNOWN.get(study.corpus)
        if known is None:
            source = "a file that is not known" if study.source is None else _escape(study.source)
            told = (
                f"a corpus of its authors' own, ingested from {source}. Ask them for the melodies"
                " and for their licence."
            )
        else:
            told = f"{known.name}. {known.licence} {known.origin}"
        lines += [f"- `{study.name}`: {told} The content hash is `{study.corpus}`."]
    return [
        *lines,
        "",
        "The songs are not included. Tables name them by their ids, which may be names of files."
        " Only of the built-in tunes, which are in the public domain, the table `examples` holds"
        " two segments, and what was made of them.",
        "",
    ]


def _list_tables(studies: Sequence[PublishedStudy]) -> list[str]:
    rows = {(each.study, each.table): each.rows for study in studies for each in study.tables}
    lines = ["## Tables", ""]
    lines += [f"| Table | Meaning |{''.join(f' Rows: {study.name} |' for study in studies)}"]
    lines += ["|---|---|" + "--:|" * len(studies)]
    for table, about in TABLES.items():
        counts = [rows.get((study.name, table)) for study in studies]
        if any(counts):
            told = "".join(f" {count or 0:,} |" for count in counts)
            lines.append(f"| `{table}` | {about.about} |{told}")
    return [*lines, ""]


def _explain_left_out() -> list[str]:
    return [
        "## What is left out",
        "",
        "- Weights, and the tables `latents` and `failures`. What needs them says so.",
        "- Most rows of `outcomes`, the largest table, which has a row for each pair of each point."
        " Here it has the pairs of test songs alone, of these points: real neighbours, inputs, the"
        " points that are compared at matched `larger_z_distance_q90` and"
        " `larger_edit_distance_q90`, and those of the figure `transitions`. Verdicts on test songs"
        " on these two axes can be computed again from them. All other tables are whole.",
        "",
    ]


def write_croissant(studies: Sequence[PublishedStudy]) -> str:
    """The description of all tables in the format Croissant 1.0, as JSON-LD."""
    tables = [table for study in studies for table in study.tables]
    described = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _CROISSANT,
        "name": "-".join([_PRODUCT, *(study.name for study in studies)]),
        "description": f"{_title(studies)}. Tables of a comparison of methods that join melodies.",
        "license": f"https://spdx.org/licenses/{LICENSE}.html",
        "version": version(_PRODUCT),
        "datePublished": max(study.finished for study in studies),
        "creator": {"@type": "sc:Organization", "name": _authors(studies)},
        "citeAs": f"{_authors(studies)}: {_title(studies)}, see CITATION.cff",
        "distribution": [_describe_file(table) for table in tables],
        "recordSet": [_describe_records(table) for table in tables],
    }
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"


def _authors(studies: Sequence[PublishedStudy]) -> str:
    return f"The authors of {_join([study.name for study in studies])}"


def _describe_file(table: PublishedTable) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": table.path,
        "name": f"{table.study}-{table.table}.parquet",
        "contentUrl": table.path,
        "contentSize": f"{table.size} B",
        "encodingFormat": _PARQUET,
        "sha256": table.sha256,
    }


def _describe_records(table: PublishedTable) -> dict[str, Any]:
    name = f"{table.study}-{table.table}"
    about = TABLES[table.table].about
    fields = [_describe_field(name, table.path, column) for column in table.schema]
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": about,
        "field": fields,
    }


def _describe_field(records: str, path: str, column: pa.Field) -> dict[str, Any]:
    nested = hasattr(column.type, "value_type")
    return {
        "@type": "cr:Field",
        "@id": f"{records}/{column.name}",
        "name": column.name,
        "description": column.metadata[b"meaning"].decode(),
        "dataType": _name_type(column.type.value_type if nested else column.type),
        "source": {"fileObject": {"@id": path}, "extract": {"column": column.name}},
    } | ({"repeated": True} if nested else {})


def _name_type(kind: pa.DataType) -> str:
    """The name of a type in Croissant."""
    tests = {
        "sc:Boolean": pa.types.is_boolean,
        "sc:Integer": pa.types.is_integer,
        "sc:Float": pa.types.is_floating,
        "sc:DateTime": pa.types.is_timestamp,
    }
    return next((name for name, is_one in tests.items() if is_one(kind)), "sc:Text")


def write_citation(studies: Sequence[PublishedStudy]) -> str:
    """How to cite the publication, in the Citation File Format 1.2.0."""
    cited = {
        "cff-version": "1.2.0",
        "message": "If you use these results, please cite them, and the software that made them.",
        "type": "dataset",
        "title": _title(studies),
        "authors": [{"name": _authors(studies)}],
        "version": version(_PRODUCT),
        "license": LICENSE,
        "identifiers": [
            {
                "type": "other",
                "value": str(study.record["fingerprint"]),
                "description": f"Fingerprint of the study {study.name}",
            }
            for study in studies
        ],
        "keywords": ["melody", "music generation", "latent space"],
        "references": [
            {
                "type": "software",
                "title": "Connective Fusion study",
                "authors": [{"name": "The Connective Fusion study authors"}],
                "version": version(_PRODUCT),
                "license": LICENSE,
            }
        ],
    }
    return yaml.safe_dump(cited, sort_keys=False)


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _escape(text: str) -> str:
    """Write a name so that Markdown and HTML show it and take nothing of it for markup."""
    return "".join(c if c.isalnum() or c in " -" else f"&#{ord(c)};" for c in _plain(text))


_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The JSON-LD context that the specification of Croissant 1.0 prescribes."""
