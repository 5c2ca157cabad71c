"""Items of a run: fits, searches and blocks of pictures, and the work on them."""
