"""Git work trees: the files of HEAD, not of the work tree; links, submodules, what is refused, and that git runs nothing."""

import os
import subprocess
import zlib
from pathlib import Path

import pytest

from data_prep.sources import git_checkout
from data_prep.sources.git_objects import GitObjects, find_objects
from data_prep.sources.repositories import Selection, SourceFile
from mose.errors import MoseError

IDENTITY = {
    **{f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env={**os.environ, **IDENTITY})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "src" / "b.py").write_bytes(b"print('b')\n")
    (folder / "a name.txt").write_bytes(b"\x00\xff binary\n\n")
    (folder / "empty").write_bytes(b"")
    (folder / "run.sh").write_bytes(b"#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link.py").symlink_to("src/b.py")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def read(folder: Path) -> list[SourceFile]:
    return list(git_checkout.read(git_checkout.list_one(str(folder))[0], lambda path: True))


def test_the_files_of_the_commit_are_read_whole(checkout: Path) -> None:
    assert {file.path: file.content for file in read(checkout)} == {
        "/a name.txt": b"\x00\xff binary\n\n",
        "/empty": b"",
        "/run.sh": b"#!/bin/sh\n",
        "/src/b.py": b"print('b')\n",
    }
    assert [file.path for file in read(checkout)] == ["/a name.txt", "/empty", "/run.sh", "/src/b.py"]
    assert {file.repository for file in read(checkout)} == {"project"}


def test_changes_that_are_not_committed_are_not_read(checkout: Path) -> None:
    before = read(checkout)
    (checkout / "src" / "b.py").write_bytes(b"changed")
    (checkout / "new.py").write_bytes(b"new")
    git(checkout, "add", "new.py")
    assert read(checkout) == before


def test_a_submodule_is_left_out(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "update-index", "--add", "--cacheinfo", "160000," + "1" * 40 + ",module")
    git(checkout, "commit", "-q", "-m", "second")
    assert "/module" not in [file.path for file in read(checkout)]
    selection = Selection()
    list(git_checkout.read(git_checkout.list_one(str(checkout))[0], selection))
    assert selection.passed_over == 2  # the module and link.py


def test_reading_may_stop_early(checkout: Path) -> None:
    files = git_checkout.read(git_checkout.list_one(str(checkout))[0], lambda path: True)
    assert next(files).path == "/a name.txt"
    files.close()  # type: ignore[attr-defined]


def test_a_huge_file_does_not_shift_the_next_one(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_checkout, "READ_LIMIT_BYTES", 4)
    assert [file.content for file in read(checkout)] == [b"\x00\xff bi", b"", b"#!/bi", b"print"]


def test_what_is_not_a_work_tree_or_has_no_commit_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(MoseError, match=r"plain: git_checkouts: .*expected a git work tree with a commit"):
        git_checkout.list_one(str(plain))
    git(plain, "init", "-q")
    with pytest.raises(MoseError, match=r"plain: git_checkouts: .*expected a git work tree with a commit"):
        git_checkout.list_one(str(plain))


def test_a_folder_inside_a_work_tree_is_refused(checkout: Path) -> None:
    with pytest.raises(MoseError, match="git_checkouts: is the folder src/ of a git work tree"):
        git_checkout.list_one(str(checkout / "src"))


def test_a_lost_object_is_named(checkout: Path) -> None:
    blob = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD:src/b.py"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (checkout / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(MoseError, match=r"src/b\.py: git has no content"):
        read(checkout)


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_a_content_under_another_contents_name_is_refused(tmp_path: Path, object_format: str) -> None:
    git(tmp_path, "init", "-q", f"--object-format={object_format}")
    (tmp_path / "a.py").write_bytes(b"a = 1\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    assert [file.content for file in read(tmp_path)] == [b"a = 1\n"]
    command = ["git", "-C", str(tmp_path), "rev-parse", "HEAD:a.py"]
    blob = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    stored = tmp_path / ".git" / "objects" / blob[:2] / blob[2:]
    stored.unlink()
    stored.write_bytes(zlib.compress(b"blob 6\0b = 2\n"))
    with pytest.raises(MoseError, match=r"a\.py: the content is not the one that its hash names"):
        read(tmp_path)


def test_a_work_tree_whose_repository_is_gone_is_refused_with_the_place(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    assert [file.path for file in read(tmp_path / "side")] == [file.path for file in read(checkout)]
    checkout.rename(tmp_path / "moved")
    with pytest.raises(MoseError, match=r"side/\.git: git_checkouts: points to .*worktrees/side, where no folder is"):
        git_checkout.list_one(str(tmp_path / "side"))


def test_references_in_a_reftable_are_refused_with_the_way_out(checkout: Path) -> None:
    (checkout / ".git" / "reftable").mkdir()
    (checkout / ".git" / "HEAD").write_text("ref: refs/heads/.invalid\n")
    with pytest.raises(MoseError, match="keeps its references in a reftable; expected files: `git refs migrate"):
        git_checkout.list_one(str(checkout))


def test_no_git_on_the_machine_is_said(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MoseError, match="git is not installed"):
        git_checkout.list_one(str(checkout))


HOOKS = ("fsmonitor-watchman", "post-checkout", "post-index-change", "pre-auto-gc", "reference-transaction", "update")
COMMANDS = (
    "core.fsmonitor", "core.sshCommand", "core.pager", "core.editor", "core.askPass", "core.gitProxy", "diff.external",
    "core.alternateRefsCommand", "credential.helper", "diff.evil.textconv", "diff.evil.command", "filter.evil.clean",
    "filter.evil.smudge", "filter.evil.process", "gpg.program", "pager.ls-tree", "pager.cat-file", "sequence.editor",
    "uploadpack.packObjectsHook", "remote.origin.uploadpack", "interactive.diffFilter",
)  # fmt: skip


def make_hostile(checkout: Path, proof: Path, url: str) -> None:
    """Name a command that writes `proof` wherever a repository can name one."""
    command = f"touch {proof}; false"
    aliases = {f"alias.{name}": f"!{command}" for name in ("ls-tree", "cat-file", "rev-parse")}
    included = checkout / ".git" / "included"
    values = {
        **dict.fromkeys(COMMANDS, command),
        **aliases,
        "core.hooksPath": str(checkout / ".git" / "hooks"),
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": url,
        "protocol.ext.allow": "always",
        "log.showSignature": "true",
        "include.path": str(included),
    }
    lines = []
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        first, _, second = section.partition(".")
        title = f'{first} "{second}"' if second else first
        lines.append(f'[{title}]\n\t{name} = "{value}"\n')
    included.write_text(f'[core]\n\tfsmonitor = "{command}"\n', "utf-8")
    with (checkout / ".git" / "config").open("a", encoding="utf-8") as config:
        config.writelines(lines)
    for name in HOOKS:
        hook = checkout / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\n{command}\n", "utf-8")
        hook.chmod(0o755)
    (checkout / ".git" / "info").mkdir(exist_ok=True)
    (checkout / ".git" / "info" / "attributes").write_text("* filter=evil diff=evil\n", "utf-8")


def lose(checkout: Path, name: str) -> None:
    """Delete the object of one file of HEAD, before a config makes git do more than look it up."""
    found = subprocess.run(["git", "-C", str(checkout), "rev-parse", f"HEAD:{name}"], check=True, capture_output=True, text=True)
    blob = found.stdout.strip()
    (checkout / ".git" / "objects" / blob[:2] / blob[2:]).unlink()


@pytest.mark.parametrize("url", ["nowhere", "ext::sh -c touch% PROOF"])
def test_a_hostile_checkout_runs_no_command(checkout: Path, tmp_path: Path, url: str) -> None:
    proof = tmp_path / "command_ran"
    lose(checkout, "src/b.py")
    make_hostile(checkout, proof, url.replace("PROOF", str(proof)))
    with pytest.raises(MoseError, match=r"src/b\.py: git has no content of this file; expected a complete clone"):
        read(checkout)
    assert not proof.exists()
    # The same checkout, read by git itself: the attack is real.
    subprocess.run(["git", "-C", str(checkout), "cat-file", "-p", "HEAD:src/b.py"], check=False, capture_output=True)
    assert proof.exists()


def test_the_environment_of_the_caller_changes_nothing(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read(checkout)
    trace = tmp_path / "trace"
    for name, value in {
        "GIT_DIR": str(tmp_path),
        "GIT_WORK_TREE": str(tmp_path),
        "GIT_OBJECT_DIRECTORY": str(tmp_path),
        "GIT_TRACE": str(trace),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.bare",
        "GIT_CONFIG_VALUE_0": "no boolean",
    }.items():
        monkeypatch.setenv(name, value)
    assert read(checkout) == expected
    assert not trace.exists()


def test_a_replaced_object_is_not_read(checkout: Path) -> None:
    expected = read(checkout)
    (checkout / "other").write_bytes(b"other")
    blob = subprocess.run(
        ["git", "-C", str(checkout), "hash-object", "-w", "other"], check=True, capture_output=True, text=True
    ).stdout.strip()
    git(checkout, "replace", "HEAD:src/b.py", blob)
    assert read(checkout) == expected


def test_packed_branches_objects_and_linked_work_trees_are_read(checkout: Path, tmp_path: Path) -> None:
    expected = [(file.path, file.content) for file in read(checkout)]
    git(checkout, "gc", "-q")
    git(checkout, "worktree", "add", "-q", str(tmp_path / "linked"))
    git(checkout, "clone", "-q", "--bare", str(checkout), str(tmp_path / "bare"))
    git(checkout, "clone", "-q", "--shared", str(checkout), str(tmp_path / "shared"))
    for folder in (checkout, tmp_path / "linked", tmp_path / "bare", tmp_path / "shared"):
        assert [(file.path, file.content) for file in read(folder)] == expected


def test_a_repository_of_sha256_is_read(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--object-format=sha256", "new")
    (tmp_path / "new" / "a.py").write_bytes(b"a")
    git(tmp_path / "new", "add", "-A")
    git(tmp_path / "new", "commit", "-q", "-m", "first")
    assert [file.content for file in read(tmp_path / "new")] == [b"a"]


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"nonsense",
        b"ref: ../../config",
        b"ref: refs/../../../x",
        b"ref: /etc/passwd",
        b"ref: HEAD",
        b"\xff" * 50,
        b"x" * 9999,
    ],
)
def test_a_head_that_names_no_branch_inside_is_refused(checkout: Path, head: bytes) -> None:
    (checkout / ".git" / "HEAD").write_bytes(head + b"\n")
    with pytest.raises(MoseError, match=r"project: git_checkouts: HEAD.*expected a git work tree with a commit") as error:
        git_checkout.list_one(str(checkout))
    assert str(error.value).isprintable()


def test_branches_that_name_each_other_are_refused(checkout: Path) -> None:
    (checkout / ".git" / "HEAD").write_text("ref: refs/heads/a\n", "utf-8")
    for name, other in (("a", "b"), ("b", "a")):
        (checkout / ".git" / "refs" / "heads" / name).write_text(f"ref: refs/heads/{other}\n", "utf-8")
    with pytest.raises(MoseError, match="git_checkouts: HEAD"):
        git_checkout.list_one(str(checkout))


def test_a_pipe_in_place_of_head_does_not_block(checkout: Path) -> None:
    (checkout / ".git" / "HEAD").unlink()
    os.mkfifo(checkout / ".git" / "HEAD")
    with pytest.raises(MoseError, match="git_checkouts: HEAD names no commit"):
        git_checkout.list_one(str(checkout))


def write_object(objects: GitObjects, kind: str, content: bytes) -> str:
    with objects.run("hash-object", "-w", "-t", kind, "--stdin", "--literally") as process:
        return process.communicate(content)[0].decode("ascii").strip()


def test_a_tree_of_ten_to_the_tenth_files_is_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_checkout, "MOST_FILES", 50_000)
    objects = find_objects(str(checkout))
    mode, inner = b"100644", write_object(objects, "blob", b"x")
    for _ in range(10):
        entries = [mode + b" f%d\0" % number + bytes.fromhex(inner) for number in range(10)]
        mode, inner = b"40000", write_object(objects, "tree", b"".join(entries))
    commit = f"tree {inner}\nauthor a <a@b> 0 +0000\ncommitter a <a@b> 0 +0000\n\nx\n".encode()
    (checkout / ".git" / "HEAD").write_text(write_object(objects, "commit", commit) + "\n", "utf-8")
    with pytest.raises(MoseError, match="HEAD has more than 50,000 files, expected fewer"):
        read(checkout)


def test_an_entry_that_is_no_file_is_named(checkout: Path) -> None:
    objects = find_objects(str(checkout))
    empty = write_object(objects, "tree", b"")
    tree = write_object(objects, "tree", b"100644 f.py\0" + bytes.fromhex(empty))
    commit = f"tree {tree}\nauthor a <a@b> 0 +0000\ncommitter a <a@b> 0 +0000\n\nx\n".encode()
    (checkout / ".git" / "HEAD").write_text(write_object(objects, "commit", commit) + "\n", "utf-8")
    with pytest.raises(MoseError, match=r"f\.py: git has no content of this file"):
        read(checkout)
