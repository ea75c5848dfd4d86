"""What tests of pages ask of each: tags that are closed, nothing from outside, no script."""

import html.parser
import re
from pathlib import Path

HOSTILE = '"><script>alert(1)</script><img src=http://evil.example/x onerror=y> $x_1$ \u7532'


class Page(html.parser.HTMLParser):
    """The tags, addresses and text of a page; every tag must be closed in its order."""

    VOID = {"meta", "img", "br", "input", "link"}

    def __init__(self, path):
        super().__init__()
        self.tags, self.addresses, self.ids, self.text, self._open = [], [], [], [], []
        self.feed(Path(path).read_text(encoding="utf-8"))
        assert not self._open
        self.text = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for name, v in attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
        self.addresses += re.findall(r"url\((.*?)\)", " ".join(v or "" for _, v in attributes))
        self.ids += [v for name, v in attributes if name == "id"]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] != "style":
            self.text.append(data)


def assert_self_contained(page):
    """Nothing is loaded from elsewhere; links may lead to the pictures in the run's own folder."""
    assert all(address.startswith(("data:image/jpeg;base64,", "#", "predictions/")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert all(address[1:] in page.ids for address in page.addresses if address[0] == "#")
