"""What docs/report.md says of reports holds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from report_data import made_up, write_results

import camkit
from camkit.results.summary import summarise

DOCS = Path(camkit.__file__).parent.parent / "docs"


def test_the_snippet_for_pandas_reads_what_is_there(tmp_path, monkeypatch):
    names = ["00012.jpg", "1e5", "NA", "3-1", b"caf\xe9.png".decode("utf-8", "surrogateescape")]
    scores = made_up(5, 0)
    scores["coherency"][3] = np.nan
    out = tmp_path / "results" / "local"
    write_results(out, {"gradcam": scores}, model="resnet50", names=names)
    (out / "summary.csv").write_text(summarise(out).to_csv(index=False))
    monkeypatch.chdir(tmp_path)
    section = (DOCS / "report.md").read_text(encoding="utf-8").split("## Reading the CSV files")[1]
    code = re.search(r"pandas:\n\n((?:    .*\n|\n)+)", section)[1]
    scope: dict = {}
    exec("\n".join(line[4:] for line in code.splitlines()), scope)
    rows = scope["gradcam"]
    assert list(rows.index) == [*names[:4], "caf\\xe9.png"]
    np.testing.assert_allclose(rows["coherency"], scores["coherency"], rtol=1e-8)
    assert scope["summary"]["method"].tolist() == ["gradcam"]


def test_the_coverage_in_the_docs_is_that_of_a_command():
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    command = re.search(r"python (scripts/\w+\.py) RUN", text)[1]
    assert (DOCS.parent / command).exists()
    row = next(line for line in text.splitlines() if re.match(r"\| mean +\| +30 \| Coh ", line))
    least, _, most = (float(share) for share in row.split("|")[4].split("/"))
    assert 93 <= least <= most <= 97
