"""Uploading an export, against a hub that is not there: what is asked of it, and when nothing is."""

from __future__ import annotations

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from clsgen_dist.commands.export import run
from clsgen_dist.errors import ModelError, ServerError, SettingsError
from clsgen_dist.hf_export import export as export_module
from clsgen_dist.hf_export.artifact import META_FILE
from tests.inference.conftest import hand_made_export


@pytest.fixture
def hub(monkeypatch):
    """The hub: its answers, and what it was asked in ``asked``."""
    state = SimpleNamespace(asked=[], public=set(), fails={}, token="secret")

    class Api:
        def whoami(self):
            return self._answer("whoami")

        def create_repo(self, repo_id, *, private, exist_ok):
            if repo_id in state.public:
                assert exist_ok
            elif not private:
                state.public.add(repo_id)
            return self._answer("create_repo", repo_id, private) or SimpleNamespace(repo_id=repo_id)

        def model_info(self, repo_id):
            return SimpleNamespace(private=repo_id not in state.public)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            files = {str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()}
            self._answer("upload_folder", repo_id, files)

        def _answer(self, name, *arguments):
            state.asked.append((name, *arguments))
            if name in state.fails:
                raise state.fails[name]

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: state.token)
    return state


@pytest.fixture
def model(tmp_path):
    return str(hand_made_export(tmp_path / "export", ["no", "yes"]))


def _folded(model, tmp_path, **options):
    run(model, str(tmp_path / "folded"), fold=True, **options)


@pytest.mark.parametrize("private", [False, True])
def test_the_whole_folder_goes_up_in_one_commit_once_it_is_verified(private, hub, model, tmp_path):
    _folded(model, tmp_path, push_to_hub="org/model", private=private)
    assert [name for name, *_ in hub.asked] == ["whoami", "create_repo", "upload_folder"]
    assert hub.asked[1] == ("create_repo", "org/model", private)
    _, name, files = hub.asked[2]
    assert name == "org/model" and {META_FILE, "model.safetensors", "classification_head/weights.safetensors"} <= files


def test_nothing_is_uploaded_if_verification_fails(hub, tmp_path, monkeypatch):
    def fails(checkpoint, output, **options):
        raise ModelError("the export's logits differ")

    monkeypatch.setattr(export_module, "export", fails)
    with pytest.raises(ModelError, match="logits differ"):
        run("run", str(tmp_path / "model"), push_to_hub="org/model")
    assert [name for name, *_ in hub.asked] == ["whoami"]


def _http_error(status):
    import httpx2

    request = httpx2.Request("GET", "https://hub")
    return HfHubHTTPError("Invalid user token.", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("name", "token", "failure", "error", "words"),
    [
        ("a/b/c", "secret", None, SettingsError, "--push_to_hub is 'a/b/c', expected a name like organisation/model"),
        ("org/model", None, None, SettingsError, "needs a token with write access to Hugging Face"),
        ("org/model", "secret", _http_error(401), SettingsError, "refuses the token (Invalid user token.)"),
        ("org/model", "secret", _http_error(503), ServerError, "the Hugging Face hub does not answer"),
        ("org/model", "secret", OfflineModeIsEnabled("offline"), ServerError, "does not answer (offline)"),
    ],
)
def test_what_prevents_an_upload_is_said_before_anything_is_computed(
    name, token, failure, error, words, hub, model, tmp_path
):
    hub.token = token
    hub.fails = {"whoami": failure} if failure else {}
    with pytest.raises(error) as raised:
        _folded(model, tmp_path, push_to_hub=name)
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "folded").exists()


def test_an_upload_that_fails_leaves_the_folder_and_says_how_to_go_on(hub, model, tmp_path):
    hub.fails = {"upload_folder": ConnectionError("connection reset")}
    with pytest.raises(ServerError, match=r"not uploaded to org/model \(connection reset\).*hf upload org/model "):
        _folded(model, tmp_path, push_to_hub="org/model")
    assert (tmp_path / "folded" / META_FILE).is_file()


def test_a_private_export_does_not_go_into_a_public_repository(hub, model, tmp_path):
    hub.public.add("org/model")
    with pytest.raises(SettingsError, match="org/model exists already as a public repository; nothing was uploaded"):
        _folded(model, tmp_path, push_to_hub="org/model", private=True)
    assert "upload_folder" not in [name for name, *_ in hub.asked]
    with pytest.raises(SettingsError, match="--private is true without --push_to_hub"):
        _folded(model, tmp_path, private=True)


def test_adapters_whose_base_is_a_folder_here_are_uploaded_with_a_warning(hub, tmp_path, caplog):
    from clsgen_dist.hf_export.hub import push

    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    push(tmp_path, "org/model")
    assert "a folder of this machine" in caplog.text and hub.asked[-1][0] == "upload_folder"
