"""Questions: sets of them (conf/questions), the files that hold them, and which of them are asked."""
