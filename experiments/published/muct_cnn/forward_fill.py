"""``forward_fill.py FROM TO``: Kaggle's table with each missing label filled with the row before, as system 2 read it."""

import csv
import shutil
import sys
from pathlib import Path

source, target = map(Path, sys.argv[1:3])
target.mkdir(parents=True)
for name in ("test.csv", "IdLookupTable.csv", "answers.csv"):
    if (source / name).exists():
        shutil.copy(source / name, target)
with (source / "training.csv").open(newline="") as file, (target / "training.csv").open("w", newline="") as out:
    rows, write = csv.reader(file), csv.writer(out).writerow
    above = next(rows)
    write(above)
    for row in rows:
        above = [cell or last for cell, last in zip(row, above, strict=True)]
        write(above)
