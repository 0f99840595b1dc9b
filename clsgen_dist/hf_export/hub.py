"""Uploads an exported folder to the Hugging Face hub, where its ``README.md`` is the model card."""

from __future__ import annotations

import logging
from pathlib import Path

from clsgen_dist.errors import ServerError, SettingsError, first_line
from clsgen_dist.hf_export.adapters import CONFIG_FILE, base_name

logger = logging.getLogger(__name__)


def require_hub(name: str) -> None:
    """Check, before an export is computed, that it could be uploaded.

    Raises:
        SettingsError: the name is none that the hub allows, or there is no token that the hub accepts.
        ServerError: the hub does not answer.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SettingsError(
            f"--push_to_hub is {name!r}, expected a name like organisation/model ({first_line(error)})"
        ) from None
    if get_token() is None:
        raise SettingsError(
            "--push_to_hub needs a token with write access to Hugging Face, and there is none; run hf auth login"
        )
    try:
        HfApi().whoami()
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
            raise SettingsError(f"the hub refuses the token ({first_line(error)}); run hf auth login --force") from None
        raise ServerError(
            f"the Hugging Face hub does not answer ({first_line(error)}), so {name} cannot be written; leave "
            "--push_to_hub out, and upload the folder later with hf upload"
        ) from None


def push(folder: Path, name: str, *, private: bool = False) -> None:
    """Upload an exported folder as one commit, into a repository that is created if there is none.

    Args:
        folder: an exported model.
        name: of the repository, like ``organisation/model``.
        private: whether the repository is to be private.

    Raises:
        SettingsError: it was to be private, and there is a public one of this name; nothing is uploaded.
        ServerError: the hub does not answer, or refuses; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    if (folder / CONFIG_FILE).is_file() and Path(base := base_name(folder)).is_dir():
        logger.warning(
            "base_model_name_or_path is %s, a folder of this machine: who downloads the adapters must replace it", base
        )
    api = HfApi()
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise SettingsError(
                f"--private is true, and {name} exists already as a public repository; nothing was uploaded: make it "
                "private, or choose another name"
            )
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Export a dual-head model")
    except (HTTPError, OSError) as error:
        raise ServerError(
            f"{folder} was not uploaded to {name} ({first_line(error)}); it is complete, so go on with: "
            f"hf upload {name} {folder}"
        ) from error
    logger.info("uploaded %s to %s", folder, url)
