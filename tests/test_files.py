"""Places: local folders, and a bucket of a server that the tests start."""

import pickle
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from cf_core.bundle import load_bundle, save_bundle
from cf_core.errors import UserError
from cf_core.files import RemotePath, local, place, replacing
from cf_core.training import load_tensors, save_tensors
from evaluation.figures import save
from tests.conftest import MakeBundle


def write(text: str, path: Path | RemotePath) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def remote(uri: str) -> RemotePath:
    path = place(uri)
    assert isinstance(path, RemotePath)
    return path


def test_a_uri_of_files_is_a_local_path(tmp_path: Path) -> None:
    assert place(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert place("results/x") == Path("results/x")


def test_a_remote_file_comes_back_and_is_replaced_whole(bucket: str) -> None:
    folder = remote(f"{bucket}/files")
    path = folder / "a+b" / "ä 1e+38.txt"
    assert str(path) == f"{bucket}/files/a+b/ä 1e+38.txt"
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        path.read_bytes()
    for text in ("first", "second"):
        write(text, path)
        assert path.read_text() == text
    assert path.stat().st_size == len("second")
    assert path.is_file()
    assert path.parent.is_dir()
    assert [found.name for found in folder.glob("*")] == ["a+b"]
    with local(path) as copy:
        assert copy.read_text() == "second"
    assert not copy.exists()
    copied: RemotePath = pickle.loads(pickle.dumps(path))  # noqa: S301
    assert copied == path
    assert copied.read_text() == "second"


def test_a_writer_that_fails_leaves_the_remote_file_as_it_was(bucket: str) -> None:
    path = remote(f"{bucket}/failing/a.txt")
    write("before", path)
    with suppress(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"


def test_remote_files_are_listed_by_name_moved_and_removed(bucket: str) -> None:
    folder = remote(f"{bucket}/listed")
    for name in ("a.parquet", ".b.parquet", "c.txt"):
        write(name, folder / name)
    assert sorted(path.name for path in folder.glob("[!.]*.parquet")) == ["a.parquet"]
    (folder / "a.parquet").replace(folder / "below" / "d")
    assert not (folder / "a.parquet").exists()
    assert (folder / "below" / "d").read_text() == "a.parquet"
    (folder / "c.txt").unlink()
    (folder / "c.txt").unlink(missing_ok=True)
    assert sorted(path.name for path in folder.glob("*")) == [".b.parquet", "below"]
    assert list((folder / "nothing").glob("*")) == []


def test_the_endpoint_may_be_part_of_the_uri(
    bucket: str, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    host = endpoint.removeprefix("http://")
    folder = remote(f"{bucket}/query?endpoint_override={host}&scheme=http")
    write("x", folder / "y")
    assert str(folder / "y") == f"{bucket}/query/y?endpoint_override={host}&scheme=http"
    assert place(str(folder / "y")) == folder / "y"
    assert (folder / "y").read_text() == "x"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://", "names no bucket"),
        ("foo://x/y", "pyarrow can't open it"),
        ("s3://bucket/x?nope=1", "pyarrow can't open it .*nope"),
        ("s3://key:secret@bucket/x", "credentials belong in the environment"),
    ],
)
def test_a_uri_that_leads_nowhere_is_told(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        place(uri)
    assert "secret" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_told_in_one_line(bucket: str) -> None:
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x: can't be written") as caught:
        write("x", place("s3://no-such-bucket/x"))
    assert bucket not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_and_figures_go_to_a_bucket(bucket: str) -> None:
    folder = remote(f"{bucket}/weights")
    tensors = {"a": torch.arange(3.0)}
    save_tensors(tensors, folder / "a.safetensors")
    back = load_tensors(folder / "a.safetensors")
    assert back is not None
    assert torch.equal(back["a"], tensors["a"])
    assert load_tensors(folder / "b.safetensors") is None
    write("half a file", folder / "b.safetensors")
    assert load_tensors(folder / "b.safetensors") is None
    _, png = save(Figure(), folder / "lambda0.1")
    assert png.name == "lambda0.1.png"
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_bundle_goes_to_a_bucket_and_is_replaced(bucket: str, make_bundle: MakeBundle) -> None:
    path = remote(f"{bucket}/bundles/near")
    for conditional in (False, True):
        save_bundle(make_bundle(conditional=conditional), path)
        back = load_bundle(path)
        assert back.generator.conditional == conditional
    # What an interrupted replacement leaves: the new manifest beside an old file.
    old = (path / "generator.safetensors").read_bytes()
    save_bundle(make_bundle(), path)
    with replacing(path / "generator.safetensors") as temporary:
        temporary.write_bytes(old)
    with pytest.raises(UserError, match="altered since the bundle was made"):
        load_bundle(path)
    save_bundle(make_bundle(), path)
    assert not load_bundle(path).generator.conditional
    write("x", path / "mine.txt")
    with pytest.raises(UserError, match="is not a bundle"):
        save_bundle(make_bundle(), path)
