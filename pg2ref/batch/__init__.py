"""Many questions, each answered as if it were alone: rows in, results out, in order, whatever happens in between."""
