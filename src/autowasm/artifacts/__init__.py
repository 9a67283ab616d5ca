"""From "where it comes from" to "verified bytes on disk"."""
