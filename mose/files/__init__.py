"""Files that appear complete or not at all, on disks and object stores."""
