"""Renders the chart by Helm's own engine, without a cluster: CRDs first, then templates in the order they are applied.

    python3 render.py NAMESPACE VALUES [TEMPLATE ...]

VALUES is JSON. With names of templates only these are rendered, and no CRDs. Needs `helm-python-sdk`, which brings Helm
as a library: python3 -m pip install --require-hashes -r requirements.txt
"""

import json
import pathlib
import sys

import helm_python as helm

ORDER = ["namespace.yaml", "rbac.yaml", "configuration.yaml", "daemonset.yaml"]

chart_directory = pathlib.Path(__file__).parent / "millrace"
namespace, values, only = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
with helm.Chart.load(str(chart_directory)) as chart:
    rendered = chart.render(values, name="millrace", namespace=namespace)
by_name = {path.rsplit("/", 1)[1]: text.strip() for path, text in rendered.items()}
unknown = {name for name in by_name if not name.startswith(("_", "NOTES"))} - set(ORDER)
if unknown:
    sys.exit(f"no order is given for {sorted(unknown)}")
documents = [] if only else [(chart_directory / "crds" / "crds.yaml").read_text().strip()]
documents += [by_name[name] for name in only or ORDER if by_name.get(name)]
sys.stdout.write("\n---\n".join(documents) + "\n")
