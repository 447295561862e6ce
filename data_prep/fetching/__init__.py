"""Bodies of The Stack v2 brought from Software Heritage into a blob store, on a machine that has internet."""
