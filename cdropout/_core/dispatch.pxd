"""The table of the kernels in use, for the compiled modules above."""
from cdropout cimport cdropout_table

cdef const cdropout_table* kernels
