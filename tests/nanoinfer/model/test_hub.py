"""A model is a folder as it is, or a hub id of which only harmless files are fetched."""

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from nanoinfer.config import ConfigError
from nanoinfer.model.hub import resolve_folder


@pytest.fixture
def asked(monkeypatch, tmp_path):
    calls = []

    def snapshot_download(repo_id, **options):
        calls.append((repo_id, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_folder_is_used_as_it_is(tmp_path, asked):
    assert resolve_folder(str(tmp_path), revision=None, with_weights=True) == tmp_path
    assert asked == []


def test_a_hub_id_fetches_safetensors_and_settings_only(tmp_path, asked):
    assert resolve_folder("Qwen/Qwen3-0.6B", revision="abc", with_weights=True) == tmp_path
    ((repo, options),) = asked
    assert (repo, options["revision"]) == ("Qwen/Qwen3-0.6B", "abc")
    assert "*.safetensors" in options["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".pth", ".py")) for pattern in options["allow_patterns"])


def test_synthetic_weights_fetch_no_weights(asked):
    resolve_folder("Qwen/Qwen3-0.6B", revision=None, with_weights=False)
    assert "*.safetensors" not in asked[0][1]["allow_patterns"]


@pytest.mark.parametrize("name", ["./missing", "/no/such/folder", "a/b/c", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(ConfigError, match="neither a folder that exists nor a hub id"):
        resolve_folder(name, revision=None, with_weights=True)


def test_an_unreachable_hub_is_an_error_with_a_remedy(monkeypatch):
    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ConfigError, match=r"could not be fetched from the hub .*offline.*local folder"):
        resolve_folder("Qwen/Qwen3-0.6B", revision="v1", with_weights=True)
