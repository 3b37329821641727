"""The tables of kernels, for the other compiled modules."""
from cdropout cimport cdropout_table
from cdropout._core.softmax cimport SoftmaxTable

cdef const cdropout_table* kernels
cdef const SoftmaxTable* softmax_kernels
