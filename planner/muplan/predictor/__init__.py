"""Training and judging the output-length predictor: data, labels, word scores, trees, metrics."""
