"""Small nets in the manner of published ones, as several tools export them, stored with their answers.

Of each exporter a zip holds a file a kind of net, and an ``.npz`` the logits that PyTorch in float64, or Keras, gives
for the pictures of ``lce/make.py``. ``make.py`` makes them, and ``table.py`` the table in docs/importing.md.
"""
