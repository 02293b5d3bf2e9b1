"""`python -m study RUN`"""

import sys

from infra.files import command
from study.findings import main

sys.exit(command("-m study", main, sys.argv[1:]))
