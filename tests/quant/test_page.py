"""The page with the map."""

import dataclasses
import re

from hasten.quant.page import density, kinds_of, page


def test_every_projection_is_on_it(figures):
    html = page("org/model", figures)
    assert "<title>org/model in 4 bit · hasten</title>" in html
    assert html.count('class="better"') == 2 and "0.0500" in html and "1.5769" in html
    assert "layers.0.self_attn.q_proj: 4 bit in blocks of 64, 3,000 bytes, 1.00e-05 nats" in html
    assert "its width 100 is odd" in html and ">4+</td>" in html


def test_it_needs_nothing_else_and_runs_nothing(figures):
    html = page("<script>alert(1)</script>", figures)
    assert "<script" not in html and "mlp.<b>" not in html and "mlp.&lt;b&gt;" in html
    assert "default-src 'none'" in html and not re.search(r'(src|href)="', html)


def test_the_most_sensitive_is_darkest(figures):
    html = page("m", figures)
    lightness = {text: int(shade) for shade, text in re.findall(r'hsl\(18 90% (\d+)%\)">(\d+)<', html)[:2]}
    assert lightness["16"] == 42 and lightness["4"] == 96


def test_without_text_to_measure_on_and_without_prices(figures):
    bare = dataclasses.replace(
        figures,
        divergence=None,
        plain_divergence=None,
        projections=tuple(dataclasses.replace(one, nats=0.0) for one in figures.projections),
    )
    assert "held-out" not in page("m", bare)


def test_order(figures):
    assert kinds_of(figures) == ["self_attn.q_proj", "mlp.<b>", "mlp.odd"]
    assert density(figures.projections[1]) == 2e-2 / 3000
