"""Put the JUnit files of a folder into one, and say how many tests passed.

python tools/gpu_results.py TESTS.xml FOLDER    ends with 1 if a test failed or none ran
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

COUNTS = ("tests", "failures", "errors", "skipped")


def merge(target: Path, folder: Path) -> dict[str, int]:
    """Write ``target``; the sums of what the files say. One that is not whole is an error."""
    everything = ElementTree.Element("testsuites")
    found = dict.fromkeys(COUNTS, 0)
    for file in sorted(folder.glob("*.xml")):
        try:
            suites = ElementTree.parse(file).getroot().iter("testsuite")
        except ElementTree.ParseError:
            found["errors"] += 1
            continue
        for suite in suites:
            suite.set("name", file.stem)
            everything.append(suite)
            for name in COUNTS:
                found[name] += int(suite.get(name, 0))
    ElementTree.ElementTree(everything).write(target, encoding="utf-8", xml_declaration=True)
    return found


def main() -> int:
    """The exit code."""
    target, folder = (Path(argument) for argument in sys.argv[1:])
    found = merge(target, folder)
    print(", ".join(f"{number} {name}" for name, number in found.items()))
    good = found["tests"] > found["skipped"] and not found["failures"] + found["errors"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
