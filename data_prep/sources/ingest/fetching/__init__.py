"""Downloads file bodies from Software Heritage into a blob store."""
