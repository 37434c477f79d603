"""A pretrained model comes from a folder, the cache or the hub, or is an error at once: never a random start."""

import socket
import threading

import pytest

from mmexpert.encoders import sources
from mmexpert.encoders.sources import CONFIG, TOKENIZER, WEIGHTS, find_source
from mmexpert.types import SourceError

FILES = (CONFIG, WEIGHTS)


def find(name, files=FILES):
    return find_source(name, "encoder.text.name", "encoder/text=scratch", files)


@pytest.fixture(autouse=True)
def online_without_network(monkeypatch, tmp_path):
    """No offline switch, no proxy, an empty cache; connections are refused at once and counted."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    knocks = []

    def refuse(address, timeout):
        knocks.append((address, timeout))
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    return knocks


def write(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def cache_model(tmp_path, *names):
    """A model as the hub's cache lays it out."""
    repo = tmp_path / "cache" / "models--owner--model"
    write(repo / "refs")
    (repo / "refs" / "main").write_text("0" * 40)
    return write(repo / "snapshots" / ("0" * 40), *names)


def test_a_local_folder_comes_first(tmp_path, online_without_network):
    folder = write(tmp_path / "model", "config.json", "model.safetensors")
    assert find(str(folder)) == str(folder)
    assert online_without_network == []


def test_a_folder_that_lacks_a_file_is_an_error_that_names_it(tmp_path):
    folder = write(tmp_path / "model", "config.json")
    with pytest.raises(SourceError, match="it holds no model.safetensors or"):
        find(str(folder))
    with pytest.raises(SourceError, match=r"no tokenizer\.json or vocab\.txt"):
        find(str(write(folder, "model.safetensors")), (*FILES, TOKENIZER))


def test_the_cache_comes_next_and_the_hub_is_not_asked(tmp_path, online_without_network):
    folder = cache_model(tmp_path, "config.json", "model.safetensors")
    assert find("owner/model") == str(folder)
    assert online_without_network == []


def test_a_cache_that_holds_the_configuration_alone_is_no_source(tmp_path):
    cache_model(tmp_path, "config.json")
    with pytest.raises(SourceError):
        find("owner/model")


def test_without_network_the_error_says_what_where_and_three_ways_on(online_without_network):
    with pytest.raises(SourceError) as caught:
        find("owner/model")
    text = str(caught.value)
    assert "encoder.text.name=owner/model" in text
    assert "no such folder, the hub cache has not all of the model's files, and huggingface.co does not answer" in text
    assert "(1) name a local folder" in text
    assert "(2) encoder/text=scratch" in text
    assert "(3) on a machine with network: `hf download owner/model --local-dir FOLDER`" in text
    assert caught.value.exit_code == 9
    assert online_without_network == [(("huggingface.co", 443), 1.0)]


def test_a_connection_that_hangs_is_given_up(monkeypatch):
    """Name resolution obeys no timeout: the stand-in answers after 20 s, which nobody waits for, else the source would be found."""
    late = threading.Event()

    def answer_late(address, timeout):
        late.wait(20)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", answer_late)
    monkeypatch.setattr(sources, "_PATIENCE_S", 0.05)
    try:
        with pytest.raises(SourceError, match="does not answer"):
            find("owner/model")
    finally:
        late.set()


def test_a_hub_that_answers_is_given_the_name(monkeypatch):
    class Connection:
        def close(self):
            pass

    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: Connection())
    assert find("owner/model") == "owner/model"


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_an_offline_switch_is_honoured_without_a_knock(monkeypatch, online_without_network, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SourceError, match=f"{variable} is set"):
        find("owner/model")
    assert online_without_network == []
    monkeypatch.setenv(variable, "0")
    with pytest.raises(SourceError, match="does not answer"):
        find("owner/model")


def test_behind_a_proxy_no_connection_is_tried(monkeypatch, online_without_network):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert find("owner/model") == "owner/model"
    assert online_without_network == []


def test_a_mirror_is_knocked_at_in_place_of_the_hub(monkeypatch, online_without_network):
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080")
    with pytest.raises(SourceError, match="mirror.example does not answer"):
        find("owner/model")
    assert online_without_network[0][0] == ("mirror.example", 8080)


@pytest.mark.parametrize("name", ["/no/such/folder", "./models/bert", "../bert", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up_as_a_hub_name(name, online_without_network):
    with pytest.raises(SourceError, match="there is no such folder, and a hub name is written owner/model"):
        find(name)
    assert online_without_network == []
