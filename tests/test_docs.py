"""The documentation: it builds without a warning, and what it says of commands, code and files is so."""

import ast
import html
import importlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zlib
from collections import namedtuple
from itertools import pairwise
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from markdown_it import MarkdownIt
from tritonclient.grpc import model_config_pb2

import m2f_client
import m2f_server
from m2f.contract import OUTPUTS
from m2f.settings import KEYS
from m2f_cli.main import COMMANDS, main
from m2f_server.watch import EventName

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    {*ROOT.glob("*.md"), *(p for f in ("docs", "examples", "benchmarks", "deploy") for p in (ROOT / f).rglob("*.md"))}
)
CODE = sorted(
    path
    for folder in ("src", "client", "export", "model_repository", "examples", "benchmarks", "deploy", "tests")
    for suffix in ("*.py", "*.c", "*.pbtxt", "*.sh", "*.mjs", "*.yml", "*.yaml", "*.cpp")
    for path in (ROOT / folder).rglob(suffix)
)
RUN_PAGES = ("quickstart.md", "outputs.md", "parameters.md", "client.md")  # their Python and `m2f predict` are run
NO_COMMANDS = (["m2f", "avx512"], ["m2f", "uint8"])  # rows and columns of benchmarks
TEXT = MarkdownIt("commonmark").enable("table")

Fence = namedtuple("Fence", "language code")


def relative(path):
    return str(path.relative_to(ROOT))


def included(path):
    """The text of a page with the sections that it takes from other files."""

    def section(match):
        name, _, part = match[1].partition(":")
        text = (ROOT / name).read_text()
        return text if not part else text.partition(f"[start:{part}] -->")[2].partition(f"<!-- --8<-- [end:{part}]")[0]

    return re.sub(r'^--8<-- "(.+)"$', section, path.read_text(), flags=re.MULTILINE)


def tokens(path):
    for token in TEXT.parse(included(path)):
        yield token
        yield from token.children or ()


def fences(path):
    return [Fence(t.info.strip(), t.content) for t in tokens(path) if t.type == "fence"]


def first_column(path, heading):
    """The code in the first column of the tables under whose head the first cell is `heading`."""
    head = re.escape(f"| {heading} |")
    tables = re.findall(rf"^{head}.*\n\|[-| ]+\n((?:\|.*\n)+)", included(path), flags=re.MULTILINE)
    return [
        name for table in tables for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    public = [
        {f"{module.__name__}.{name}", f"{item.__module__}.{name}"}  # there, or where it is defined
        for module in (m2f_client, m2f_server)
        for name in module.__all__
        if callable(item := getattr(module, name))
    ]
    assert [names for names in public if not names & documented] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_the_reference(site, name):
    text = html.unescape(re.sub("<[^>]+>", "", (site / "cli/index.html").read_text()))
    assert f"m2f {name}" in text
    options = {option for param in main.get_command(None, name).params for option in param.opts if option[:2] == "--"}
    assert options  # a command whose requirements are missing has none
    assert options <= set(re.findall(r"--[\w-]+", text.split(f"Usage:\nm2f {name} ")[1].split("Usage:\n")[0]))


def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not re.search(r"<(script|img)[^>]+src=.?https?:|<link[^>]+stylesheet[^>]+https?:", page.read_text())


# Links


def anchors(path):
    """The anchors that GitHub gives the headings of a page."""
    parsed = TEXT.parse(path.read_text())
    titles = [after.content for before, after in pairwise(parsed) if before.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(path):
    """Links of a page that lead nowhere; those from page to page of the site are checked by its build."""
    for token in tokens(path):
        target = token.attrs.get("href") or token.attrs.get("src") if token.type in ("link_open", "image") else None
        if target is None or re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        in_site = path.is_relative_to(DOCS)
        if not file.exists() or (anchor and not in_site and anchor not in anchors(file)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
    assert list(broken(page)) == []


def test_code_names_documents_that_are_there():
    name = re.compile(r"\b(?:docs|examples|benchmarks|deploy)/[\w./-]*\w\.(?:md|py|sh|yml|yaml)\b")
    named = {(relative(path), found) for path in CODE for found in name.findall(path.read_text())}
    assert named
    assert [(path, found) for path, found in sorted(named) if not (ROOT / found).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_named_in_text_are_there(page):
    file = re.compile(r"(src|client|export|model_repository|tests|benchmarks|examples|deploy|docs)/[\w./-]*")
    named = {token.content for token in tokens(page) if token.type == "code_inline" and file.fullmatch(token.content)}
    assert [name for name in sorted(named) if not (ROOT / name).exists() and not (page.parent / name).exists()] == []


# Commands


def segments(line):
    """The simple commands of a shell line, as lists of words; variables set before them are left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words = [[]]
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            words.append([])
        elif words[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            words[-1].append(word)
    return [segment for segment in words if segment]


def shell_lines(path):
    for fence in fences(path):
        code = fence.code.replace("\\\n", " ")
        if fence.language == "console":
            yield from (line[2:] for line in code.splitlines() if line.startswith("$ "))
        elif fence.language in ("bash", "sh", "shell"):
            yield from (line for line in code.splitlines() if not line.startswith("#"))


def shown(path):
    """The commands in the blocks of a page."""
    return [words for line in shell_lines(path) for words in segments(line)]


def mentioned(path):
    """The commands in the text of a page, which may be cut short: `m2f export --onnx`."""
    inline = [token.content.split() for token in tokens(path) if token.type == "code_inline"]
    return [words for words in inline if words and words[0] in ("m2f", "make") and words not in NO_COMMANDS]


def command_named(words):
    """The command that the words after `m2f` begin with, and the rest of them."""
    if not words or words[0].startswith("-"):
        return main, words
    command = main.get_command(None, words[0])
    assert command is not None, f"no command m2f {words[0]}"
    return command, words[1:]


def check_m2f(words):
    """Parse as click would; values are read where there is a list or a range of them."""
    command, rest = command_named(words)
    context = click.Context(command)
    values, _, _ = command.make_parser(context).parse_args(list(rest))
    for param in command.params:
        if isinstance(param.type, click.Choice | click.IntRange | click.FloatRange) and param.name in values:
            param.type_cast_value(context, values[param.name])


def check_make(words):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {word for word in words if "=" not in word and word[0] != "-"} <= targets


def check_python(words):
    if words[:1] == ["-m"] and words[1].startswith("benchmarks"):
        assert list(ROOT.glob(words[1].replace(".", "/") + "*"))
    elif words and words[0].startswith(("benchmarks/", "examples/", "tests/", "deploy/")):
        assert (ROOT / words[0]).is_file()


CHECKS = {"m2f": check_m2f, "make": check_make, "python": check_python}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_parse(page):
    for program, *words in shown(page):
        check = CHECKS.get(Path(program).name)
        try:
            if check:
                check(words)
        except (click.UsageError, AssertionError) as error:
            pytest.fail(f"{program} {' '.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_mentioned_commands_exist(page):
    for program, *words in mentioned(page):
        if program == "make":
            check_make([word for word in words if word != "…"])
        else:
            command, rest = command_named(words)
            known = {option for param in command.params for option in (*param.opts, "--help", "--version")}
            assert {word.partition("=")[0] for word in rest if word.startswith("--")} - {"--"} <= known


# Python


def python_blocks(path):
    return [fence.code for fence in fences(path) if fence.language == "python"]


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=relative)
def test_python_compiles_and_imports_what_is_there(page):
    for code in python_blocks(page):
        compile(code, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("m2f"):
                module = importlib.import_module(node.module)
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.fixture
def at_server(server, tmp_path, monkeypatch):
    """Make text that names the default addresses name the server's, in a folder that holds photo.jpg."""
    shutil.copy(ROOT / "examples/images/scene_1.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return lambda text: text.replace("127.0.0.1:8001", server.grpc_url).replace("127.0.0.1:8000", server.http_url)


@pytest.mark.server
@pytest.mark.parametrize("page", [name for name in RUN_PAGES if python_blocks(DOCS / name)])
def test_python_runs(page, at_server):
    for code in python_blocks(DOCS / page):
        if ".example" not in code:  # there is no such server
            exec(compile(at_server(code), page, "exec"), {})


@pytest.mark.server
@pytest.mark.parametrize("page", [name for name in RUN_PAGES if "m2f predict photo" in included(DOCS / name)])
def test_commands_run(page, at_server):
    for program, *words in (words for line in shell_lines(DOCS / page) for words in segments(line)):
        if program == "m2f" and words[:2] == ["predict", "photo.jpg"]:
            url = [] if "--url" in words else ["--url", at_server("grpc://127.0.0.1:8001")]
            done = CliRunner().invoke(main, [at_server(word) for word in words] + url)
            assert done.exit_code == 0, done.output
            assert "ring" in done.stdout


def shape(line):
    """A line without its figures."""
    return re.sub(r"[\d.]+", "0", line).strip()


@pytest.mark.server
def test_serve_says_what_is_shown():
    shown_line = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("m2f: ready"))
    command = next(words for words in shown(ROOT / "README.md") if words[:2] == ["m2f", "serve"])
    ports = [f"--{port}-port=0" for port in ("http", "grpc", "metrics", "health")]
    m2f = Path(sys.executable).with_name("m2f")
    with subprocess.Popen([m2f, *command[1:], *ports], cwd=ROOT, stdout=subprocess.PIPE, text=True) as serving:
        line = serving.stdout.readline()
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(timeout=60) == 0
    assert shape(line) == shape(shown_line)


# What must be described


def test_every_parameter_is_described():
    assert first_column(DOCS / "parameters.md", "key") == list(KEYS)


def test_every_output_is_described():
    config = text_format.Parse(
        (ROOT / "model_repository/mask2former/config.pbtxt").read_text(), model_config_pb2.ModelConfig()
    )
    described = first_column(DOCS / "outputs.md", "output")
    assert described == [output.name for output in config.output] == [output.name for output in OUTPUTS]


def test_every_error_of_the_client_is_described():
    public = {
        name
        for name in m2f_client.__all__
        if isinstance(kind := getattr(m2f_client, name), type) and issubclass(kind, Exception)
    }
    assert set(first_column(DOCS / "client.md", "error")) == public


def test_every_model_is_described():
    assert set(first_column(DOCS / "architecture.md", "model")) == {
        folder.parent.name for folder in (ROOT / "model_repository").glob("*/config.pbtxt")
    }


def test_every_event_is_described():
    words = first_column(DOCS / "operations.md", "`event=`")
    assert set(get_args(EventName)) - set(words) == set()


def test_every_extra_is_described():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(first_column(DOCS / "quickstart.md", "extra")) == set(project["optional-dependencies"])
