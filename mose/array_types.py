"""Names of array types that several files share."""

import numpy as np
from numpy.typing import NDArray

INT64_ARRAY = NDArray[np.int64]
