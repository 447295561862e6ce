"""The Stack v2 and Software Heritage, brought onto this machine."""
