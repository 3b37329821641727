"""Operands for tests of the XLA custom call of cdropout."""

import numpy as np

KEY = np.array([0, 7], np.uint32)
KEYS = np.array([[0, 7], [0, 8], [0, 9]], np.uint32)
X = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
P = np.array([0x3FE00000, 0], np.uint32)  # the bits of the float64 number 0.5, upper half first
WINDOW_2D = np.zeros((2, 4), np.uint32)  # for one mask of the shape of X
WINDOW_1D = np.zeros((1, 4), np.uint32)  # for one mask per row of X
P_MESSAGE = "dropout probability has to be between 0 and 1, but got "
