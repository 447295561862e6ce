"""Files that appear whole or not at all, on disks and object stores."""
