"""One self-contained page and PNGs about a search, from its Result alone.

views.py says what each figure shows, charts.py draws it for the page (plotly), images.py as PNG (matplotlib), page.py
writes the page around the charts.
"""

from autokd.report.page import write_report as write_report
