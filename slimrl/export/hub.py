"""A model as a repository on the Hugging Face Hub: private unless asked otherwise, and nothing is sent without `push`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slimrl.errors import DataError, SettingsError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Hub(Protocol):
    """The part of `huggingface_hub.HfApi` that a push needs."""

    def repo_exists(self, repo_id: str) -> bool: ...

    def repo_info(self, repo_id: str) -> Any: ...

    def create_repo(self, repo_id: str, *, private: bool) -> Any: ...

    def create_commit(self, repo_id: str, operations: Sequence[Any], *, commit_message: str) -> Any: ...


@dataclass(frozen=True)
class Upload:
    """Files and texts of a model's repository, by their names in it."""

    repository: str
    """owner/name."""
    files: Mapping[str, Path]
    texts: Mapping[str, str]
    private: bool = True

    def __post_init__(self) -> None:
        if not REPOSITORY.fullmatch(self.repository):
            raise SettingsError(f"{self.repository} is no name on the Hub; write it as owner/name")

    def listing(self) -> list[str]:
        """A line on each file, with its size."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        sizes |= {name: len(text.encode()) for name, text in self.texts.items()}
        return [f"{size / 2**20:10.2f} MiB  {name}" for name, size in sorted(sizes.items())]

    def push(self, hub: Hub, message: str) -> str:
        """Commit all of it, in one commit; returns the address.

        Raises SettingsError where a repository exists that is public and should be private, and where nobody is logged in;
        DataError for any other refusal of the Hub's.
        """
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        operations = [CommitOperationAdd(name, str(path)) for name, path in self.files.items()]
        operations += [CommitOperationAdd(name, text.encode()) for name, text in self.texts.items()]
        try:
            if hub.repo_exists(self.repository):
                if self.private and not hub.repo_info(self.repository).private:
                    raise SettingsError(f"{self.repository} exists and is public; choose another name, or add --public")
            else:
                hub.create_repo(self.repository, private=self.private)
            done = hub.create_commit(self.repository, operations, commit_message=message)
        except LocalTokenNotFoundError:
            raise SettingsError("nobody is logged in to the Hub; run hf auth login first") from None
        except OfflineModeIsEnabled:
            raise SettingsError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it") from None
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 403):
                raise SettingsError(
                    f"the Hub does not let you write to {self.repository}; log in with a token that may (hf auth login)"
                ) from None
            raise DataError(f"the Hub refuses {self.repository} ({str(error).splitlines()[0][:200]})") from None
        except SettingsError:
            raise
        except Exception as error:  # whatever the network or the library raises, the way out is the same
            reason = (str(error).strip().splitlines() or [""])[0][:160]
            raise DataError(
                f"the Hub could not be reached ({type(error).__name__}: {reason}); try again when the network is back"
            ) from None
        return str(getattr(done, "repo_url", "") or f"https://huggingface.co/{self.repository}")
