"""Who is let in: keys, origins, names of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymixtral.errors import InvalidArgumentError
from pymixtral.server.access import PUBLIC, Access
from pymixtral.server.errors import APIError
from pymixtral.server.files import FILES, POLICY
from pymixtral.server.settings import Settings
from support.command_line import refused as refused_command
from support.command_line import run
from support.serving import Server, Start, read_all


def refused(settings: Settings, path: str = "/v1/models", method: str = "GET", **headers: str) -> int:
    """The status that a request is refused with; 0: it is let in."""
    try:
        Access(settings).check(method, path, {"host": "localhost:8080"} | headers)
    except APIError as error:
        return error.status
    return 0


def test_keys_of_a_file_and_the_environment(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("# of the team\nfirst\n\nsecond\n")
    server = start("--api-key-file", str(tmp_path / "keys.txt"), env={"PYMIXTRAL_API_KEYS": "third, fourth"})
    with server.client() as client:
        for path in ("/health", "/v1/health", "/livez"):
            assert client.get(path).status_code == 200
        for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/v1/nothing"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.json()["error"]["type"] == "authentication_error"
        for key in ("first", "second", "third", "fourth"):
            assert client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
            assert client.get("/v1/models", headers={"authorization": f"bearer  {key}"}).status_code == 200
            assert client.get("/v1/models", headers={"x-api-key": key}).status_code == 200
        for key in ("firs", "first1", "FIRST", "#", "# of the team", "first,second", "third, fourth"):
            assert client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 401
            assert client.get("/v1/models", headers={"x-api-key": key}).status_code == 401
        assert client.get("/v1/models", headers={"x-api-key": ""}).status_code == 401
        assert client.get("/v1/models", headers={"authorization": "Basic first"}).status_code == 401
        assert client.options("/v1/models").status_code == 405  # not 401
    assert not any("first" in line or "fourth" in line for line in server.lines)


def test_a_key_of_bytes_that_are_no_text(start: Start) -> None:
    server = start(env={"PYMIXTRAL_API_KEYS": "key"})
    request = (
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer \xff\xfe\r\n\r\n"
    )
    assert b" 401 " in read_all(server.connect(request))


@pytest.mark.parametrize(
    ("text", "word"), [("", "found none"), ("# x\n", "found none"), ("ä\n", "ASCII"), ("a b", "ASCII")]
)
def test_files_without_a_key_are_refused(start: Start, tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "keys.txt").write_text(text)
    server = start("--api-key-file", str(tmp_path / "keys.txt"), wait=False)
    assert server.wait() == 2
    (line,) = server.lines
    assert word in line
    assert "a b" not in line


def test_a_file_of_keys_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        refused_command(run("serve", "--port", "0", "--api-key-file", path), "expected a file of API keys")


def test_all_keys_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    assert refused(Settings(keys=("a", "b" * 50, "c")), authorization="Bearer a") == 0
    assert compared == [(32, 32)] * 3


def test_pages_of_other_origins_are_refused() -> None:
    settings = Settings()
    assert refused(settings, origin="http://localhost:8080") == 0
    assert refused(settings, origin="HTTP://LOCALHOST:8080") == 0
    for origin in (
        *(
            "http://localhost",
            "http://localhost:80801",
            "http://localhost.evil.com:8080",
            "https://evil.com",
            "null",
            "",
        ),
        *("http://localhost:8080.evil.com", "http://evil.com/localhost:8080", "http://evil.com://localhost:8080"),
    ):
        assert refused(settings, origin=origin) == 403, origin
    for path in PUBLIC:
        assert refused(settings, path, origin="https://evil.com") == 0
    named = Settings(cors_origins=("https://a.org", "http://b.org:81/"))
    assert refused(named, origin="https://a.org") == refused(named, origin="http://b.org:81") == 0
    assert refused(named, origin="http://a.org") == refused(named, origin="https://a.org.evil.com") == 403
    assert refused(Settings(cors_origins=("*",)), origin="https://evil.com") == 0


def test_other_names_of_the_host_are_refused_on_loopback() -> None:
    settings = Settings(cors_origins=("https://chat.example.org",))
    for host in ("localhost", "127.0.0.1:8080", "[::1]:8080", "LocalHost:1", "localhost.", "chat.example.org", ""):
        assert refused(settings, host=host) == 0, host
    for host in (
        "evil.com",
        "localhost.evil.com:8080",
        "127.0.0.1.nip.io",
        "[::2]",
        "[",
        "a@localhost@evil.com",
        "10.0.0.1",
    ):
        assert refused(settings, host=host) == 403, host
        assert refused(Settings(loopback=False), host=host) == 0
    # A page that has its own name resolved to 127.0.0.1 is of the same origin for the browser.
    assert refused(settings, host="evil.com:8080", origin="http://evil.com:8080") == 403


def test_browsers_are_answered(start: Start) -> None:
    server = start("--cors-origin", "https://A.org/", env={"PYMIXTRAL_API_KEYS": "key"})
    ask = {"origin": "https://a.org", "access-control-request-method": "POST"}
    ask["access-control-request-headers"] = "authorization,content-type"
    with server.client() as client:
        answer = client.options("/v1/completions", headers=ask)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://a.org"
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        other = client.options("/v1/completions", headers={**ask, "origin": "https://b.org"})
        assert "access-control-allow-origin" not in other.headers
        answer = client.get("/v1/models", headers={"origin": "https://a.org", "authorization": "Bearer key"})
        assert answer.headers["access-control-allow-origin"] == "https://a.org"
        assert answer.headers["vary"] == "Origin"
        unknown = client.get("/v1/models", headers={"origin": "https://a.org"})
        assert (unknown.status_code, unknown.headers["access-control-allow-origin"]) == (401, "https://a.org")
        foreign = client.get("/v1/models", headers={"origin": "https://b.org", "authorization": "Bearer key"})
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "among the cors_origins" in foreign.json()["error"]["message"]


@pytest.mark.parametrize(
    "origin", ["a.org", "", "https://", "https://a.org/page", "null", "ftp://a.org", "https://a b"]
)
def test_an_origin_that_no_page_has_is_refused(origin: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"expected cors_origins to be \* or addresses such as https://"):
        Settings(cors_origins=("*", "https://a.org", origin))


def test_other_machines_are_told_of(start: Start, server: Server) -> None:
    assert not any("other machines" in line for line in server.lines)
    everywhere = start("--host", "0.0.0.0", wait=False)
    assert "other machines can connect" in everywhere.line()
    assert not any(
        "other machines" in line for line in start("--host", "0.0.0.0", env={"PYMIXTRAL_API_KEYS": "k"}).lines
    )


def test_no_answer_is_guessed_from_its_bytes(server: Server) -> None:
    with server.client() as client:
        for path in ("/", "/health", "/v1/models", "/v1/nothing"):
            assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_the_page_runs_nothing_from_elsewhere(server: Server) -> None:
    with server.client() as client:
        for path in FILES:
            assert client.get(path).headers["content-security-policy"] == POLICY
        for path in (
            "/..%2fsettings.py",
            "/page/../settings.py",
            "/%2e%2e/settings.py",
            "/settings.py",
            "//etc/passwd",
        ):
            assert client.get(path).status_code == 404
