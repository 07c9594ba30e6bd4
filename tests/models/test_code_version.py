"""Which code made something."""

import subprocess

from models.code_version import code_version


def test_the_code_version_is_the_commit_and_whether_it_was_changed(monkeypatch, tmp_path):
    monkeypatch.setattr("models.code_version.CHECKOUT", tmp_path)
    installed = code_version()
    assert installed.keys() == {"squall", "torch", "ray"}

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.org")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "code.py").write_text("1\n")
    git("add", "code.py")
    git("commit", "--quiet", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert code_version() == installed | {"commit": commit}
    (tmp_path / "code.py").write_text("2\n")
    assert code_version() == installed | {"commit": f"{commit}-dirty"}
