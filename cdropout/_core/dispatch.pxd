"""The table of kernels, for the other compiled modules."""
from cdropout cimport cdropout_table

cdef const cdropout_table* kernels
