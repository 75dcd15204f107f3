"""These tests run the kernels in Triton's interpreter, which needs a separate process:

TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from interpreter import patch_interpreter

    patch_interpreter()
else:
    collect_ignore_glob = ["test_*.py"]
