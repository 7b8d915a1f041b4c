"""The chat page comes whole: one file, nothing from elsewhere."""

import re


def test_the_page_needs_nothing_but_this_server(http):
    response = http.get("/")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    html = response.text
    addresses = set(re.findall(r"(?:src|href)=[\"']?([^\"'\s>]+)", html))
    assert all(address.startswith(("#", "data:", "$2")) for address in addresses), addresses
    assert not re.search(r"@import|url\(\s*['\"]?https?:", html)


def test_no_documentation_page_that_would_load_from_elsewhere(http):
    assert http.get("/docs").status_code == http.get("/redoc").status_code == 404
    assert "/v1/chat/completions" in http.get("/openapi.json").json()["paths"]
