"""Pushing to the Hub, against a fake of its interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from slimrl.errors import DataError, SettingsError
from slimrl.export.hub import Upload


class FakeHub:
    """A Hub that keeps what it is sent."""

    def __init__(self, private: bool | None = None, error: Exception | None = None) -> None:
        self.private, self.error = private, error
        self.created: list[tuple[str, bool]] = []
        self.files: dict[str, bytes] = {}
        self.message = ""

    def repo_exists(self, repo_id: str) -> bool:  # noqa: ARG002
        if self.error:
            raise self.error
        return self.private is not None

    def repo_info(self, repo_id: str) -> Any:
        return SimpleNamespace(id=repo_id, private=self.private)

    def create_repo(self, repo_id: str, *, private: bool) -> None:
        self.created.append((repo_id, private))

    def create_commit(self, repo_id: str, operations: Sequence[Any], *, commit_message: str) -> Any:
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()
        self.message = commit_message
        return SimpleNamespace(repo_url=f"https://hub/{repo_id}")


@pytest.fixture
def upload(tmp_path: Path) -> Upload:
    (tmp_path / "config.json").write_text("{}")
    return Upload("me/mine", {"config.json": tmp_path / "config.json"}, {"README.md": "# mine"})


def test_a_new_repository_is_private_and_gets_every_file_in_one_commit(upload: Upload) -> None:
    hub = FakeHub()
    assert upload.push(hub, "mine, trained") == "https://hub/me/mine"
    assert hub.created == [("me/mine", True)]
    assert hub.files == {"config.json": b"{}", "README.md": b"# mine"}
    assert hub.message == "mine, trained"
    assert [line.split()[-1] for line in upload.listing()] == ["README.md", "config.json"]


def test_a_network_that_is_down_is_one_sentence(upload: Upload) -> None:
    with pytest.raises(DataError, match=r"the Hub could not be reached \(ConnectionError: no route\); try again"):
        upload.push(FakeHub(error=ConnectionError("no route\nmore")), "mine")


def test_a_public_repository_is_never_taken_for_a_private_one(upload: Upload) -> None:
    hub = FakeHub(private=False)
    with pytest.raises(SettingsError, match="exists and is public; choose another name, or add --public"):
        upload.push(hub, "m")
    assert hub.files == {}
    Upload(upload.repository, upload.files, upload.texts, private=False).push(hub, "m")
    assert len(hub.files) == 2


def refusal(status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError("Refused\nlonger", response=response)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (LocalTokenNotFoundError("x"), SettingsError, "hf auth login"),
        (refusal(403), SettingsError, "does not let you write to me/mine"),
        (refusal(500), DataError, "the Hub refuses me/mine"),
    ],
)
def test_a_refusal_is_one_sentence(upload: Upload, error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        upload.push(FakeHub(error=error), "m")


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/", "./me/x", "me/ x"])
def test_a_name_that_no_repository_has_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="write it as owner/name"):
        Upload(name, {}, {})
