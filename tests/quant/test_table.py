"""The lines for a terminal."""

import dataclasses

from hasten.quant.table import table


def test_bits_by_layer_and_kind(figures):
    lines = table(figures)
    assert lines[1] == "bits (4+: in blocks of 32)"
    assert lines[2].split() == ["layer", "q_proj", "<b>", "odd", "bytes"]
    assert lines[3].split() == ["0", "4", "16", "-", "11,192"]
    assert lines[4].split() == ["1", "4+", "-", "16", "15,800"]


def test_the_most_sensitive_first_and_the_sums_last(figures):
    text = "\n".join(table(figures))
    assert (
        "  model.layers.0.mlp.<b>: 16 bit, 8,192 bytes, 2.00e-02 nats\n  model.layers.0.self_attn.q_proj: 4 bit in"
        in text
    )
    assert "model.layers.1.mlp.odd stays 16 bit: its width 100 is odd" in text
    assert "14,192 bytes of linear weights, 1.5769 of plain NF4 (budget 1.6); 1 of 4 projections keep more" in text
    assert text.endswith("0.0500 nats per token to the original on 2,048 other tokens (plain NF4: 0.2000; 0.25 of it)")


def test_without_text_to_measure_on(figures):
    bare = dataclasses.replace(figures, divergence=None, plain_divergence=None)
    assert table(bare)[-1] == "no text was left to measure on: give more rows"
