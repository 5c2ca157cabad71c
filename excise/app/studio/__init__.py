"""The studio: a page in the browser on which a person reviews erasers before they ship."""
