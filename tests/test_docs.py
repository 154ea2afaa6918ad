"""The pages: what they say of commands, code, files and names is so, and they keep the rules of the style."""

import ast
import asyncio
import importlib
import inspect
import re
import shlex
import shutil
import signal
import subprocess
import sys
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
from m2f.contract import OUTPUTS
from m2f.settings import KEYS
from m2f_cli.main import main
from m2f_server.events import EventName

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    {*ROOT.glob("*.md"), *(p for f in ("docs", "examples", "benchmarks", "deploy") for p in (ROOT / f).rglob("*.md"))}
)
FOLDERS = ("src", "client", "export", "model_repository", "examples", "benchmarks", "deploy", "tests")
SUFFIXES = (".py", ".c", ".pbtxt", ".sh", ".mjs", ".yml", ".yaml", ".cpp")
RUN_PAGES = ("quickstart.md", "outputs.md", "parameters.md", "client.md")  # their Python and `m2f predict` are run
NO_COMMANDS = (["m2f", "avx512"], ["m2f", "uint8"], ["m2f", "float32"])  # rows and columns of benchmarks
README_LINES, CELL_CHARACTERS, SENTENCE_WORDS = 120, 120, 30
TEXT = MarkdownIt("commonmark").enable("table")

Fence = namedtuple("Fence", "language code")


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


def wrong(check):
    """What a check yields for the pages, each with its page."""
    return [f"{page.relative_to(ROOT)}: {what}" for page in PAGES for what in check(page)]


# Style


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def shown_text(inline):
    """The text of a paragraph or a cell as a reader sees it; code is one word."""
    words = {"softbreak": " ", "hardbreak": " "}
    return "".join(
        re.sub(r"\s", "_", child.content) if child.type == "code_inline" else words.get(child.type, child.content)
        for child in inline.children
    )


def texts(path):
    """The paragraphs and the table cells of a page, each with the kind of what it is in."""
    text = re.sub(r"^(--8<--|<!--).*$", "", path.read_text(), flags=re.MULTILINE)
    return [
        (before.type, shown_text(inline)) for before, inline in pairwise(TEXT.parse(text)) if inline.type == "inline"
    ]


def test_table_cells_are_short():
    assert (
        wrong(lambda page: [text for kind, text in texts(page) if kind == "td_open" and len(text) > CELL_CHARACTERS])
        == []
    )


def long_sentences(page):
    sentences = [part for _, text in texts(page) for part in re.split(r"(?<=[.!?:;])\)?\s+", text)]
    return [sentence for sentence in sentences if len(sentence.split()) > SENTENCE_WORDS]


def test_sentences_are_short():
    assert wrong(long_sentences) == []


# Links and files


def anchors(path):
    """The anchors that GitHub gives the headings of a page."""
    parsed = TEXT.parse(path.read_text())
    titles = [after.content for before, after in pairwise(parsed) if before.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page):
    """Links that lead nowhere; anchors between pages of the site are checked by its build."""
    for token in tokens(page):
        target = token.attrs.get("href") or token.attrs.get("src") if token.type in ("link_open", "image") else None
        if target is None or re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and not page.is_relative_to(DOCS) and anchor not in anchors(file)):
            yield target


def test_links_lead_somewhere():
    assert wrong(broken_links) == []


def missing_files(page):
    file = re.compile(r"(src|client|export|model_repository|tests|benchmarks|examples|deploy|docs)/[\w./-]*")
    named = {token.content for token in tokens(page) if token.type == "code_inline" and file.fullmatch(token.content)}
    return [name for name in sorted(named) if not (ROOT / name).exists() and not (page.parent / name).exists()]


def test_files_named_in_text_are_there():
    assert wrong(missing_files) == []


def test_code_names_documents_that_are_there():
    name = re.compile(r"\b(?:docs|examples|benchmarks|deploy)/[\w./-]*\w\.(?:md|py|sh|yml|yaml)\b")
    code = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    named = {(str(path.relative_to(ROOT)), found) for path in code for found in name.findall(path.read_text())}
    assert named
    assert [(path, found) for path, found in sorted(named) if not (ROOT / found).exists()] == []


# Commands


def segments(line):
    """The simple commands of a shell line, as lists of words; variables set before them are left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words = [[]]
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            words.append([])
        elif words[-1] or not re.fullmatch(r"[A-Z_0-9]+=.*", word):
            words[-1].append(word)
    return [segment for segment in words if segment]


def commands(page):
    """The commands in the blocks of a page."""
    for fence in fences(page):
        code = fence.code.replace("\\\n", " ")
        if fence.language == "console":
            lines = [line[2:] for line in code.splitlines() if line.startswith("$ ")]
        elif fence.language in ("bash", "sh", "shell"):
            lines = [line for line in code.splitlines() if not line.startswith("#")]
        else:
            continue
        yield from (words for line in lines for words in segments(line))


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
    unknown = {word for word in words if "=" not in word and word[0] != "-" and word != "…"} - targets
    assert not unknown, f"no target {unknown}"


def check_python(words):
    if words[:1] == ["-m"] and words[1].startswith("benchmarks"):
        assert list(ROOT.glob(words[1].replace(".", "/") + "*")), f"no module {words[1]}"
    elif words and words[0].startswith(("benchmarks/", "examples/", "tests/", "deploy/")):
        assert (ROOT / words[0]).is_file(), f"no file {words[0]}"


CHECKS = {"m2f": check_m2f, "make": check_make, "python": check_python}


def wrong_commands(page):
    for program, *words in commands(page):
        check = CHECKS.get(Path(program).name, lambda _: None)
        try:
            check(words)
        except (click.UsageError, AssertionError) as error:
            yield f"{program} {' '.join(words)}: {error}"


@pytest.mark.torch  # `m2f export` imports it
def test_commands_parse():
    assert wrong(wrong_commands) == []


def wrong_mentions(page):
    """Commands in the text, which may be cut short: `m2f export --onnx`."""
    inline = [token.content.split() for token in tokens(page) if token.type == "code_inline"]
    for program, *words in (words for words in inline if words and words not in NO_COMMANDS):
        try:
            if program == "make":
                check_make(words)
            elif program == "m2f":
                command, _ = command_named(words)
                known = {option for param in command.params for option in (*param.opts, "--help", "--version")}
                options = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--"}
                assert options <= known, f"no option {options - known}"
        except AssertionError as error:
            yield f"{program} {' '.join(words)}: {error}"


@pytest.mark.torch  # `m2f export` imports it
def test_mentioned_commands_exist():
    assert wrong(wrong_mentions) == []


# Python


def python_blocks(page):
    return [fence.code for fence in fences(page) if fence.language == "python"]


def wrong_python(page):
    for code in python_blocks(page):
        tree = compile(code, str(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("m2f"):
                module = importlib.import_module(node.module)
                yield from (f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name))


def test_python_compiles_and_imports_what_is_there():
    assert wrong(wrong_python) == []


@pytest.fixture
def at_server(server, tmp_path, monkeypatch):
    """Make text that names the default addresses name the server's, in a folder that holds photo.jpg."""
    shutil.copy(ROOT / "examples/images/scene_1.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return lambda text: text.replace("127.0.0.1:8001", server.grpc_url).replace("127.0.0.1:8000", server.http_url)


def run(code, page):
    """Run a block, which may `await`."""
    compiled = compile(code, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if compiled.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(compiled, {}))
    else:
        exec(compiled, {})


@pytest.mark.server
def test_python_runs(at_server):
    blocks = [(page, code) for page in RUN_PAGES for code in python_blocks(DOCS / page) if ".example" not in code]
    assert {page for page, _ in blocks} == {"quickstart.md", "parameters.md", "client.md"}
    for page, code in blocks:
        run(at_server(code), page)


@pytest.mark.server
def test_commands_run(at_server):
    shown = [
        words[1:]
        for page in RUN_PAGES
        for words in commands(DOCS / page)
        if words[:3] == ["m2f", "predict", "photo.jpg"]
    ]
    assert len(shown) >= 2
    for words in shown:
        url = [] if "--url" in words else ["--url", at_server("grpc://127.0.0.1:8001")]
        done = CliRunner().invoke(main, [at_server(word) for word in words] + url)
        assert done.exit_code == 0, done.output
        assert "ring" in done.stdout


def without_figures(line):
    return re.sub(r"[\d.]+", "0", line).strip()


@pytest.mark.server
def test_serve_says_what_is_shown():
    shown_line = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("m2f: ready"))
    command = next(words for words in commands(ROOT / "README.md") if words[:2] == ["m2f", "serve"])
    ports = [f"--{port}-port=0" for port in ("http", "grpc", "metrics", "health")]
    m2f = Path(sys.executable).with_name("m2f")
    with subprocess.Popen([m2f, *command[1:], *ports], cwd=ROOT, stdout=subprocess.PIPE, text=True) as serving:
        line = serving.stdout.readline()
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(timeout=60) == 0
    assert without_figures(line) == without_figures(shown_line)


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


def test_the_folder_tree_is_complete():
    tree = next(fence.code for fence in fences(DOCS / "architecture.md") if fence.code.startswith("model_repository/"))
    listed, parent = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        parent = "" if not line.startswith(" ") else parent
        listed.add(parent + name)
        parent = parent or name
    packages = [
        path.parent for folder in ("src", "client", "export") for path in (ROOT / folder).glob("**/__init__.py")
    ]
    assert {f"{path.relative_to(ROOT)}/" for path in packages} <= listed
    assert [name for name in listed if not (ROOT / name).is_dir()] == []
