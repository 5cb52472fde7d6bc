import re
from html.parser import HTMLParser

import pytest
from report_samples import LAYERS, row

from qtrack.report.layer_figures import layers_figure
from qtrack.report.page import FORMATS
from qtrack.report.tables import layers

ROWS = [vars(layer) for layer in LAYERS]
HOSTILE = '<script>alert("x")</script>&--><b>'
LOADING = {"script", "link", "img", "iframe", "object", "embed", "image", "foreignobject"}


def contents(ending, rows=ROWS, title="layers of ptq"):
    return FORMATS[ending](layers_figure("ptq", rows), title, layers(rows))


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.references += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_table_gives_the_same_file(ending):
    assert contents(ending) == contents(ending)


def test_a_page_holds_the_picture_and_every_layer():
    page = Page(contents(".html").decode())
    assert sum(tag == "svg" for tag, _ in page.tags) == 1
    assert set(page.texts) >= {layer.layer for layer in LAYERS}
    assert [tag for tag, attributes in page.tags if attributes.get("class") == "marked"] == ["tr"]


def test_a_page_loads_nothing():
    text = contents(".html").decode()
    page = Page(text)
    assert LOADING.isdisjoint(tag for tag, _ in page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)|@import", text)


def test_names_are_text_and_no_markup():
    named = [vars(row(0, HOSTILE, sqnr_db=1.0, own_sqnr_db=1.0))]
    page = Page(contents(".html", named, title=HOSTILE).decode())
    plain = Page(contents(".html", ROWS[:1]).decode())
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert page.texts.count(HOSTILE) == 2  # the page's title and the layer's cell
    assert dict(page.tags)["div"].get("class") == "wide"
