"""The executor of PyTorch's own OpenMP threads."""
from cdropout._core.executor cimport Executor

cdef const Executor* executor_of_pytorch() noexcept nogil
