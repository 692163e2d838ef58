"""Run by the Python of an image: which engine it has, and for what its torch was built. Usage: … PACKAGE"""

import importlib.metadata
import importlib.util
import json
import runpy
import sys
from pathlib import Path

about = {}
torch = importlib.util.find_spec("torch")
if torch and torch.origin:
    about = runpy.run_path(str(Path(torch.origin).with_name("version.py")))
kind = "cuda" if about.get("cuda") else "rocm" if about.get("hip") else "cpu"
print(json.dumps({"version": importlib.metadata.version(sys.argv[1]), "kind": kind}))
