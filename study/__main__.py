"""`python -m study RUN`"""

import sys

from study.findings import main

sys.exit(main(sys.argv[1:]))
