"""Say what a data folder lacks for `make experiments`, before anything is computed.

python experiments/check_data.py FOLDER
"""

import sys
from pathlib import Path

from imagery import missing

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(str(__doc__))
    if lacking := missing(Path(sys.argv[1]), ("blue_marble", "countries", "land", "points")):
        sys.exit(lacking)
