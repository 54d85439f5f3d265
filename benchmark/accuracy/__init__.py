"""The records of the studies of accuracy, and the page that shows them."""
