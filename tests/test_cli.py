"""The command line on a fake server: screen, files, exit codes."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import serving
from PIL import Image
from pycocotools.coco import COCO

from m2f_cli.main import COMMANDS, main
from m2f_client import InvalidRequest, ModelNotFound
from m2f_client.fake import result_of, stacked
from m2f_client.predict.sources import unique_stems

NAMES = '["[red] disc", "square"]'


def answer(request):
    """As the server: the image's size, two instances, an error for what is not an image."""
    data = request.inputs["image"][0, 0]
    if data == b"gone":
        raise ModelNotFound("unknown model: 'mask2former'")
    try:
        width, height = Image.open(io.BytesIO(data)).size
    except OSError:
        raise InvalidRequest("image: not a JPEG, PNG or WebP") from None
    masks = np.zeros((2, height, width))
    masks[0, 1:, 1:] = 1
    masks[1, :2, :2] = 1
    arrays = stacked([result_of(masks, scores=[0.9, 0.5])])
    logits = {"cls_logits": np.zeros((1, 5, 3), np.float32), "mask_logits": np.ones((1, 5, 4, 4), np.float32)}
    ids = np.zeros((1, height, width), np.int32)
    ids[:, 1:], ids[:, :2, :2] = 1, 300
    segments = [{"id": 1, "category_id": 0, "isthing": 1}, {"id": 300, "category_id": 7, "isthing": 0}]
    return {**arrays, **logits, "panoptic": ids, "segments": np.array([[json.dumps(segments).encode()]], object)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two images that share a stem, a bad file; the working directory is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    Image.new("RGB", (20, 50)).save(tmp_path / "sub" / "a.png")
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    (tmp_path / "gone.jpg").write_bytes(b"gone")
    return tmp_path


@pytest.fixture(scope="module")
def fake():
    with serving(answer, class_names=NAMES) as fake:
        yield fake


@pytest.fixture
def m2f(folder, fake):  # noqa: ARG001 (makes the files)
    """Run `m2f predict` on the fake server: m2f("a.jpg")."""
    fake.requests.clear()
    return lambda *arguments: run("predict", "--url", fake.url, *arguments)


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_table(m2f):
    result = m2f("a.jpg")
    assert result.exit_code == 0, result.output
    assert "a.jpg  40x30, 2 instances" in result.stdout
    assert "■ [red] disc   0.900    1    1   40   30   1131" in result.stdout
    assert "\x1b" not in result.stdout  # no escape codes without a terminal
    assert result.stderr == ""


def test_parameters_reach_the_server(m2f, fake):
    m2f("a.jpg", "--score-threshold", "0.5", "--classes", "0,1", "--parameter", "keep_top_k=3",
        "--parameter", "export_postprocess_mask=true", "--parameter", "semantics=mmdet")  # fmt: skip
    sent = fake.requests[0].parameters
    assert sent == {
        "score_threshold": 0.5, "classes": "0,1", "keep_top_k": 3,
        "export_postprocess_mask": True, "semantics": "mmdet",
    }  # fmt: skip
    assert sent["export_postprocess_mask"] is True


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("classes=0", "0"),
        ("x=1", 1),
        ("x=1.5", 1.5),
        ("x=a=b", "a=b"),
        ("x=[1]", "[1]"),
        ("x=null", "null"),
        ("x=", ""),
    ],
)
def test_parameter_types(m2f, fake, written, sent):
    m2f("a.jpg", "--parameter", written)
    (value,) = fake.requests[0].parameters.values()
    assert value == sent
    assert type(value) is type(sent)


def test_out_and_raw(m2f, folder):
    result = m2f("a.jpg", "sub/a.png", "--out", "out/deep", "--raw")
    assert result.exit_code == 0, result.output
    files = sorted(path.name for path in (folder / "out/deep").iterdir())
    assert files == ["a-2.npz", "a-2_overlay.png", "a.npz", "a_overlay.png", "instances.json"]
    assert result.stdout.endswith("wrote out/deep/instances.json\n")
    assert Image.open(folder / "out/deep/a-2_overlay.png").size == (20, 50)
    with np.load(folder / "out/deep/a.npz") as logits:
        assert {name: logits[name].shape for name in logits} == {"cls_logits": (5, 3), "mask_logits": (5, 4, 4)}
    truth = COCO(str(folder / "out/deep/instances.json"))
    assert [image["file_name"] for image in truth.imgs.values()] == ["a.jpg", "sub/a.png"]
    assert truth.annToMask(truth.anns[1]).sum() == 39 * 29


def test_panoptic(m2f, folder, fake):
    """Read back by panopticapi's rule, `rgb2id`."""
    result = m2f("a.jpg", "bad.jpg", "sub/a.png", "--out", "out", "--panoptic")
    assert result.exit_code == 1
    assert result.stdout.endswith("wrote out/instances.json\nwrote out/panoptic.json\n")
    assert {"panoptic", "segments"} <= set(fake.requests[0].outputs)
    document = json.loads((folder / "out/panoptic.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in document["images"]] == ["a.jpg", "sub/a.png"]
    assert document["categories"] == [
        {"id": 0, "name": "[red] disc", "isthing": 1}, {"id": 7, "name": "7", "isthing": 0}
    ]  # fmt: skip
    for image, annotation in zip(document["images"], document["annotations"], strict=True):
        assert annotation["image_id"] == image["id"]
        picture = np.asarray(Image.open(folder / "out" / annotation["file_name"])).astype(int)
        assert picture.shape == (image["height"], image["width"], 3)
        ids = picture[:, :, 0] + 256 * picture[:, :, 1] + 256 * 256 * picture[:, :, 2]
        assert (ids[:2, :2] == 300).all()
        assert (ids[2:] == 1).all()
        assert (ids[0, 2:] == 0).all()
        assert [segment["id"] for segment in annotation["segments_info"]] == [1, 300]


def test_json_is_one_document_and_nothing_else(m2f):
    result = m2f("a.jpg", "bad.jpg", "--json", "--out", "out")
    document = json.loads(result.stdout)
    assert document["errors"] == [{"file_name": "bad.jpg", "reason": "image: not a JPEG, PNG or WebP"}]
    assert [row["score"] for row in document["annotations"]] == pytest.approx([0.9, 0.5])
    assert document == json.loads(Path("out/instances.json").read_text(encoding="utf-8"))


def test_bad_files_are_named_and_the_rest_go_on(m2f, folder):
    (folder / "empty").mkdir()
    result = m2f("bad.jpg", "nope.jpg", "empty", "no*.png", "a.jpg")
    assert result.exit_code == 1
    assert "a.jpg  40x30" in result.stdout
    assert result.stderr.splitlines() == [
        "m2f: bad.jpg: image: not a JPEG, PNG or WebP",
        "m2f: nope.jpg: No such file or directory",
        "m2f: empty: no images in this folder",
        "m2f: no*.png: nothing matches",
    ]


@pytest.fixture
def mixed(folder):
    """A folder as people have it: images of many names and types, what is none, and what only has the name of one."""
    (folder / "p/deep").mkdir(parents=True)
    for name in ("a.jpg", "photo.jfif", "scan.jpe", "B.JPG", "picture.bmp", "page.TIF", "deep/c.png"):
        kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(Path(name).suffix)
        Image.new("RGB", (40, 30)).save(folder / "p" / name, kind)
    for name in ("phone.heic", "notes.txt", "list.csv", ".hidden.txt"):
        (folder / "p" / name).write_bytes(b"text")
    os.mkfifo(folder / "p/pipe.jpg")
    os.mkfifo(folder / "p/clip.mp4")
    (folder / "p/zero.png").symlink_to("/dev/zero")
    (folder / "p/loop").symlink_to("..")
    return folder


def test_what_a_folder_has_is_sent_or_named(m2f, mixed):  # noqa: ARG001 (makes the files)
    result = m2f("p")
    assert result.exit_code == 1
    done = re.findall(r"^(p/\S+)  40x30", result.stdout, re.MULTILINE)
    assert done == ["p/B.JPG", "p/a.jpg", "p/deep/c.png", "p/page.TIF", "p/photo.jfif", "p/picture.bmp", "p/scan.jpe"]
    assert result.stderr.splitlines() == [
        "m2f: p/phone.heic: image: not a JPEG, PNG or WebP",
        "m2f: p/pipe.jpg: a pipe, not a file",
        "m2f: p/zero.png: a device, not a file",
        "m2f: skipped 4 files that are not images: p/loop (a link to a folder), p/clip.mp4, p/list.csv, p/notes.txt",
    ]


def test_what_is_not_an_image_by_its_name_does_not_fail(m2f, folder):
    (folder / "sub/notes.txt").touch()
    result = m2f("sub", "--out", "out")
    assert result.exit_code == 0
    assert result.stderr == "m2f: skipped 1 file that is not an image: sub/notes.txt\n"


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize("name", ["p/pipe.jpg", "p/clip.mp4"])
def test_a_pipe_that_nobody_writes_to(m2f, name):
    result = m2f("a.jpg", name, "sub/a.png", "--timeout", "0.3")
    assert result.exit_code == 1
    assert result.stdout.count("instances") == 2
    assert result.stderr == f"m2f: {name}: the pipe did not end within 0.3 s\n"


@pytest.mark.usefixtures("folder")
def test_a_pipe_that_is_written_to(fake):
    """As `m2f predict <(curl ...)`, and with an image on standard input in two ways."""
    reader, writer = os.pipe()
    os.write(writer, Path("sub/a.png").read_bytes())
    os.close(writer)
    command = [Path(sys.executable).with_name("m2f"), "predict", f"/dev/fd/{reader}", "/dev/stdin", "--url", fake.url]
    with Path("a.jpg").open("rb") as stdin:
        ran = subprocess.run(command, pass_fds=[reader], stdin=stdin, capture_output=True, text=True, check=False)
    os.close(reader)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "  20x50, 2 instances" in ran.stdout
    assert "/dev/stdin  40x30, 2 instances" in ran.stdout


@pytest.mark.parametrize("redirect", ["<&-", "0>/dev/null", "< /dev/zero"])
def test_standard_input_that_is_none(m2f, fake, redirect):  # noqa: ARG001 (makes the files)
    command = f"{Path(sys.executable).with_name('m2f')} predict - a.jpg --url {fake.url} {redirect}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert re.fullmatch(r"m2f: -: (standard input is closed|Bad file descriptor|larger than 256 MiB)\n", ran.stderr)
    assert "a.jpg  40x30" in ran.stdout


@pytest.mark.parametrize("scheme", ["rtsp", "ftp", "file", "azure"])
def test_sources_of_other_schemes_are_refused_by_name(m2f, scheme):
    result = m2f("a.jpg", f"{scheme}://somewhere/b.jpg", f"{scheme}://somewhere/c.mp4")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"m2f: {scheme}://somewhere/{name}: {scheme}:// is not read; "
        "allowed are http://, https://, s3://, gs://, az:// and paths"
        for name in ("b.jpg", "c.mp4")
    ]


def test_an_error_that_every_image_would_meet_ends_the_run_and_keeps_what_is_done(m2f):
    result = m2f("a.jpg", "gone.jpg", "sub/a.png", "--json", "--concurrency", "1", "--timeout", "5")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["images"][0]["file_name"] == "a.jpg"
    assert [error["file_name"] for error in document["errors"]] == ["gone.jpg"]
    lines = result.stderr.splitlines()
    assert re.match(r"m2f: unknown model: 'mask2former' .*; asking again, for up to 5 s without an answer$", lines[0])
    assert "m2f: gone.jpg: unknown model: 'mask2former'" in lines[1]
    assert "with --out or --jsonl the same command would resume from there" in lines[2]
    assert len(lines) == 3


def test_an_input_is_never_overwritten(m2f, folder):
    (folder / "a.jpg").rename(folder / "b_overlay.png")
    (folder / "b.jpg").write_bytes((folder / "b_overlay.png").read_bytes())
    before = (folder / "b_overlay.png").read_bytes()
    assert m2f("b.jpg", "b_overlay.png", "--out", ".").exit_code == 0
    assert (folder / "b_overlay.png").read_bytes() == before
    assert (folder / "b-2_overlay.png").exists()


def test_stems_do_not_meet(folder):
    names = [str(folder / name) for name in ("a.jpg", "a.png", "a-2.jpg", "A.webp")]
    assert list(unique_stems(names, folder, used={}).values()) == ["a", "a-2", "a-2-2", "A-3"]


def test_stems_of_an_earlier_run_stay():
    assert unique_stems(["0/a.jpg", "1/a.jpg"], None, used={"1/a.jpg": "a"}) == {"0/a.jpg": "a-2", "1/a.jpg": "a"}


def test_unwritable_output(m2f, folder):
    (folder / "file").touch()
    result = m2f("a.jpg", "--out", "file/out")
    assert result.exit_code == 1
    assert result.stderr.startswith("m2f: cannot write file/out: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.jpg", "--raw"],
        ["a.jpg", "--panoptic"],
        ["a.jpg", "--url", "s3://bucket"],
        ["a.jpg", "--parameter", "novalue"],
        ["a.jpg", "--score-threshold", "high"],
        ["a.jpg", "--timeout", "0"],
        ["a.jpg", "--out", "a.jpg"],
        ["a.jpg", "--parameter", "outputs=masks"],
        ["a.jpg", "--json", "--jsonl", "-"],
        ["a.jpg", "--jsonl", "sub"],
        ["a.jpg", "--concurrency", "0"],
        ["a.jpg", "--every", "0"],
        ["sub", "--out", "sub"],
    ],
)
def test_wrong_usage_exits_2(m2f, arguments):
    result = m2f(*arguments)
    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["predikt", "a.jpg"], "No such command 'predikt'. Did you mean 'predict'?"),
        (["xyz"], "No such command 'xyz'. There are: "),
        (["predict", "a.jpg", "--concurency", "2"], "--concurrency"),
        (["predict", "a.jpg", "--score-treshold", "1"], "--score-threshold"),
        (["eval", ".", "--jsno"], "--json"),
    ],
)
def test_a_typo_is_answered_with_what_was_meant(arguments, hint):
    result = run(*arguments)
    assert result.exit_code == 2
    assert hint in result.stderr


@pytest.mark.usefixtures("folder")
def test_no_server():
    result = CliRunner().invoke(main, ["predict", "a.jpg", "--url", "grpc://127.0.0.1:1", "--timeout", "10"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "m2f serve" in result.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("form", ["{}", "{}/", "GRPC://{}", ' {{"grpc": "{}", "http": "h:1", "tls": false}}\n'])
def test_forms_of_an_address(fake, form):
    result = run("predict", "a.jpg", "--url", form.format(fake.url.removeprefix("grpc://")))
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", [["predict", "a.jpg"], ["demo"], ["eval", "."], ["eval", ".", "--against"]])
@pytest.mark.parametrize("url", ["s3://bucket/a", "rtsp://u:secret@camera/1", "grpc://a:x"])
def test_an_address_of_another_kind_is_refused_by_name(command, url):
    result = run(*command, *([] if command[-1] == "--against" else ["--url"]), url)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "is not an address: " in said
    assert "secret" not in said
    if "s3" in url:
        assert (
            "s3:// is not a scheme of a server; use grpc://HOST:PORT, http://HOST:PORT, grpcs:// and https://" in said
        )


def test_version_and_help():
    assert CliRunner().invoke(main, ["--version"]).output.startswith("m2f, version ")
    listing = CliRunner().invoke(main, ["-h"]).output
    assert "predict" in listing
    assert "serve" in listing


@pytest.mark.parametrize(
    ("hidden", "command", "message"),
    [
        ("m2f_cli.serve", ["serve", "--http-port", "1"], "m2f serve needs: pip install 'm2f[server]'"),
        ("rich", ["predict", "a.jpg"], "m2f predict needs: pip install 'm2f[client]'"),
        ("faster_coco_eval", ["eval", "x"], "m2f eval needs: pip install 'm2f[eval]'"),
        ("gradio", ["demo"], "m2f demo needs: pip install 'm2f[demo]'"),
    ],
)
def test_a_missing_extra_is_named(hidden, command, message):
    """In a process of its own, where a module cannot be imported."""
    code = f"import sys; sys.modules[{hidden!r}] = None; from m2f_cli.main import main; main({command!r})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_list_of_commands_says_what_each_command_says_and_imports_none():
    code = "import sys; from m2f_cli.main import main; main(['-h'], standalone_mode=False); print(sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listing, _, modules = ran.stdout.rpartition("[")
    assert "'m2f_cli.main'" in modules
    assert not re.search(r"'(m2f_cli\.(?!main'|surroundings')|torch|cv2|numpy|onnx|PIL)", modules)
    listed = dict(re.findall(r"^  (\w+) {2,}(.+)$", listing.partition("Commands:")[2], re.M))
    assert listed == {name: main.get_command(None, name).get_short_help_str(limit=200) for name in COMMANDS}


def test_the_command_starts_without_the_clients_requirements():
    hide = "import sys; sys.modules.update(dict.fromkeys(['rich', 'tritonclient', 'PIL'])); "
    ran = subprocess.run(
        [sys.executable, "-c", hide + "from m2f_cli.main import main; main(['-h'])"], capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
